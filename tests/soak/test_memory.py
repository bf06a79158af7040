"""Memory does not grow with steps; that of the teacher's scores, hardly with texts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from benchmarks import teacher_scale
from tests.invariants.training import lora, new_trainer, settings

REPOSITORY = Path(__file__).parents[2]
WARM_UP, STEPS = 100, 400
PAIRS = 8  # a step
# What a leak of each step's texts and token ids as a list would take at the least; the leaking run shows it.
ALLOWED = 3 * 2**20


def anonymous() -> int:
    """RssAnon of this process in bytes."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    assert found is not None
    return 1024 * int(found[1])


def growth(folder: Path, leaks: bool) -> int:
    """Bytes by which training's last 300 steps made this process grow."""
    trainer = new_trainer(
        settings(folder / "out", max_steps=STEPS, logging_steps=50, per_device_train_batch_size=PAIRS),
        str(folder / "student"),
        str(folder / "teacher"),
        datasets.load_from_disk(str(folder / "pairs")),
        datasets.load_from_disk(str(folder / "held_out")),
        None,
        peft_config=lora(),
    )
    sizes: list[int] = []
    kept: list[Any] = []
    step = trainer.training_step

    def measured(model: Any, inputs: dict[str, Any], *args: Any) -> Any:
        sizes.append(anonymous())
        if leaks:
            kept.append({name: value.clone() for name, value in inputs.items() if name.endswith(("_ids", "_a", "_b"))})
        return step(model, inputs, *args)

    trainer.training_step = measured  # type: ignore[method-assign]
    trainer.train()
    return sizes[-1] - sizes[WARM_UP]


def run(folder: Path, leaks: bool) -> int:
    command = (
        "import sys; from tests.soak.test_memory import *; print(growth(Path(sys.argv[1]), sys.argv[2] == 'True'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", command, str(folder), str(leaks)],
        cwd=REPOSITORY,
        # One arena of the allocator: threads of the autograd engine open more, each growing at its own first use.
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="RssAnon is read from /proc")
def test_memory_does_not_grow_with_steps(
    student_dir: Path, teacher_dir: Path, pairs: datasets.Dataset, held_out: datasets.Dataset, tmp_path: Path
) -> None:
    (tmp_path / "student").symlink_to(student_dir)
    (tmp_path / "teacher").symlink_to(teacher_dir)
    pairs.save_to_disk(str(tmp_path / "pairs"))
    held_out.save_to_disk(str(tmp_path / "held_out"))
    found = run(tmp_path, leaks=False)
    assert found < ALLOWED
    assert run(tmp_path, leaks=True) > found + 2**20  # so it would be seen


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="RssAnon is read from /proc")
def test_scores_of_many_texts_take_little_memory(tmp_path: Path) -> None:
    few, many = teacher_scale.measure("score", tmp_path, [20_000, 80_000])
    # 16 bytes of keys stay; sorting them and Python's bits come on top. Vectors (128 bytes a text) stay on disk.
    assert max(many["peak"], 0) / 80_000 < 128 + few["characters"]
    (found,) = teacher_scale.measure("find", tmp_path, [80_000])
    assert found["peak"] / 80_000 < 128 + few["characters"]
