"""Start a test module on several ranks of this machine, by torchrun or as the recipes are launched."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parents[2]
# Ranks of one machine need no other interface, whatever its own name resolves to.
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo"} if "lo" in [name for _, name in socket.if_nameindex()] else {}


class HangError(AssertionError):
    """Ranks that have not ended; the message shows where each of them was."""


def launch(module: str, *arguments: object, ranks: int = 2) -> None:
    """Run `python -m module arguments` on so many CPU ranks; fails with the end of what they wrote."""
    complete(lambda: start(torchrun(ranks), module, *arguments))


def torchrun(ranks: int) -> list[str]:
    """The command that starts so many ranks of this machine."""
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks)),
        *("--master_port", "0", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"),
    ]


def complete(begin: Callable[[], subprocess.Popen[str]], timeout: float = 300) -> str:
    """`finish` what `begin` starts, and begin once more where it hangs, with a warning that shows where.

    Two ranks of gloo hung once in hundreds of runs, and in none of those made to find out why. What hangs each time
    fails.
    """
    try:
        return finish(begin(), timeout)
    except HangError as error:
        warnings.warn(f"ranks hung and are started again: {error}", stacklevel=2)
        return finish(begin(), timeout)


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
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONFAULTHANDLER": "1",
            **LOOPBACK,
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(launcher: subprocess.Popen[str], timeout: float = 300, succeeds: bool = True) -> str:
    """Wait for a launcher's end and return what it wrote; it must have succeeded, or must have failed.

    Raises:
        HangError: it has not ended after `timeout` seconds. It and its ranks are killed.
    """
    try:
        _, errors = launcher.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise HangError(f"not ended after {timeout} s:\n{_kill(launcher)[-6000:]}") from None
    finally:
        launcher.kill()  # no effect where it has ended
    assert (launcher.returncode == 0) == succeeds, errors[-3000:]
    return errors


def _kill(launcher: subprocess.Popen[str]) -> str:
    """End a launcher and all that it has started; returns what they wrote, last each one's stack."""
    ranks = psutil.Process(launcher.pid).children(recursive=True)
    launcher.send_signal(signal.SIGSTOP)  # or it would clear up first
    for rank in ranks:
        rank.send_signal(signal.SIGABRT)  # faulthandler writes the stacks
    psutil.wait_procs(ranks, timeout=20)
    for rank in ranks:
        if rank.is_running():
            rank.kill()
    launcher.kill()
    return launcher.communicate()[1]
