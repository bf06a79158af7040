"""Threads of a CPU: a launcher's single process gets the cores that there are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flipped_kd.utils.devices import cpu_cores, launched_threads, use_cpu_threads

ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no"}


@pytest.mark.parametrize(
    ("environment", "cores", "expected"),
    [
        ({"OMP_NUM_THREADS": "1", **ACCELERATE}, 8, 8),
        ({"OMP_NUM_THREADS": "1", **ACCELERATE, "LOCAL_WORLD_SIZE": "2"}, 8, 4),
        ({"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "3"}, 8, 2),
        ({"OMP_NUM_THREADS": "1", **ACCELERATE, "LOCAL_WORLD_SIZE": "2"}, 2, None),  # one each
        ({"OMP_NUM_THREADS": "1", **ACCELERATE}, 1, None),
        ({"OMP_NUM_THREADS": "4", **ACCELERATE}, 8, None),  # somebody has chosen
        ({"OMP_NUM_THREADS": "1"}, 8, None),  # no launcher
        (ACCELERATE, 8, None),
    ],
)
def test_the_share_of_a_launched_process(environment: dict[str, str], cores: int, expected: int | None) -> None:
    assert launched_threads(environment, cores) == expected


def test_a_number_is_what_is_used() -> None:
    before = torch.get_num_threads()
    try:
        assert use_cpu_threads(3) == torch.get_num_threads() == 3
        assert use_cpu_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(cpu_cores() < 2, reason="needs two cores")
@pytest.mark.distributed
def test_accelerate_launch_uses_the_cores(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("from flipped_kd.utils.devices import use_cpu_threads; print('threads', use_cpu_threads())")
    command = ["accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no"]
    done = subprocess.run(
        [sys.executable, "-m", *command, "--dynamo_backend", "no", str(script)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # as the launcher sets it where nobody has chosen
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"threads {cpu_cores()}" in done.stdout
