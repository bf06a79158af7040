"""Start a test module on several ranks of this machine, by torchrun or as the recipes are launched."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def launch(module: str, *arguments: object, ranks: int = 2, timeout: float = 300) -> None:
    """Run `python -m module arguments` on so many CPU ranks; fails with the end of what they wrote."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks)),
        *("--master_port", "0", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"),
    ]
    finish(start(command, module, *arguments), timeout)


def accelerate_launch(config: str, options: Sequence[str], module: str, *arguments: object) -> subprocess.Popen[str]:
    """Start `accelerate launch --config_file recipes/accelerate/CONFIG.yaml OPTIONS -m module arguments`."""
    file = REPOSITORY / "recipes" / "accelerate" / f"{config}.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file), *options]
    return start(command, module, *arguments)


def start(command: Sequence[str], module: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a launcher on a module, offline and without GPUs."""
    return subprocess.Popen(
        [*command, "-m", module, *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(launcher: subprocess.Popen[str], timeout: float = 300, succeeds: bool = True) -> str:
    """Wait for a launcher's end and return what it wrote; it must have succeeded, or must have failed."""
    try:
        _, errors = launcher.communicate(timeout=timeout)
    finally:
        launcher.kill()  # no effect where it has ended
    assert (launcher.returncode == 0) == succeeds, errors[-3000:]
    return errors
