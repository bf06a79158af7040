"""Start a test module on several ranks of this machine: forked at once, by torchrun or as the recipes are launched."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence

import psutil
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from torch.distributed import TCPStore

from tests.cli.helpers import environment
from tests.warm_python import ROOT, Program

# Ranks of one machine need no other interface, whatever its own name resolves to.
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo"} if "lo" in [name for _, name in socket.if_nameindex()] else {}


class HangError(AssertionError):
    """Ranks that have not ended; the message shows where each of them was.

    Args:
        timeout: seconds that they had.
        written: by all of them, the stacks last.
    """

    def __init__(self, timeout: float, written: str) -> None:
        # faulthandler ends with a line of hundreds of extension modules, which would push the stacks out.
        lines = [line for line in written.splitlines() if not line.startswith("Extension modules: ")]
        super().__init__("\n".join([f"not ended after {timeout:g} s:", *lines])[-6000:])


class Ranks:
    """Ranks forked from a warm Python, see tests/warm_python.py: each imports nothing more.

    They are told what torchrun tells its ranks, and as with torchrun the store that they meet at is held by who starts
    them. What differs: no agent watches over them, and their sets have one order.

    Args:
        module: what each rank runs.
        arguments: its arguments.
        ranks: how many.
        variables: of their environment.
    """

    def __init__(self, module: str, *arguments: object, ranks: int = 2, **variables: str) -> None:
        self._written = tempfile.TemporaryFile("w+", encoding="utf-8")
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        shared = {
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self._store.port), "PYTHONFAULTHANDLER": "1"},
            **{"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1"},
            **{"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "True"},
            **{"TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_MAX_RESTARTS": "0"},
            **LOOPBACK,
            **variables,
        }
        self.programs = [
            Program(
                ["-m", module, *arguments],
                cwd=ROOT,
                env=environment(**shared, RANK=str(rank), LOCAL_RANK=str(rank)),
                stdout=subprocess.DEVNULL,
                stderr=self._written,
            )
            for rank in range(ranks)
        ]

    def finish(self, timeout: float = 300) -> str:
        """Wait for their end and return what they wrote. Once one has failed, the others are ended.

        Raises:
            HangError: they have not ended after `timeout` seconds.
            AssertionError: one has failed.
        """
        until = time.monotonic() + timeout
        try:
            while None in (codes := [program.poll() for program in self.programs]) and not any(codes):
                if time.monotonic() > until:
                    _show_stacks([psutil.Process(program.pid) for program in self.programs if program.poll() is None])
                    raise HangError(timeout, self._text())
                time.sleep(0.01)
        finally:
            for program in self.programs:
                program.kill()
        assert not any(codes), f"{codes}:\n{self._text()[-3000:]}"
        return self._text()

    def _text(self) -> str:
        self._written.seek(0)
        return self._written.read()


def launch(module: str, *arguments: object, ranks: int = 2, **variables: str) -> None:
    """Run `python -m module arguments` on so many CPU ranks, see `Ranks`; fails with the end of what they wrote."""
    complete(lambda timeout: Ranks(module, *arguments, ranks=ranks, **variables).finish(timeout))


def launch_by_torchrun(module: str, *arguments: object, ranks: int = 2) -> None:
    """The same by torchrun itself, in fresh interpreters."""
    complete(lambda timeout: finish(start(torchrun(ranks), module, *arguments), timeout))


def torchrun(ranks: int) -> list[str]:
    """What is given to `python` to start so many ranks of this machine."""
    return [
        *("-m", "torch.distributed.run", "--nproc_per_node", str(ranks)),
        *("--master_port", "0", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"),
    ]


def complete(attempt: Callable[[float], str], timeout: float = 300) -> str:
    """What an attempt returns; another one is made where it hangs, with a warning that shows where.

    Two ranks of gloo hung once in hundreds of runs, and in none of those made to find out why. What hangs each time
    fails.
    """
    try:
        return attempt(timeout)
    except HangError as error:
        warnings.warn(f"ranks hung and are started again: {error}", stacklevel=2)
        return attempt(timeout)


def launched_environment(*options: str) -> dict[str, str]:
    """What `accelerate launch OPTIONS` adds to the environment of the processes it starts."""
    asked = _validate_launch_command(launch_command_parser().parse_args([*options, "script"]))[0]
    several = asked.multi_gpu or asked.use_fsdp
    found = prepare_multi_gpu_env(asked) if several else prepare_simple_launcher_cmd_env(asked)[1]
    return {name: value for name, value in found.items() if os.environ.get(name) != value}


def accelerate_launch(config: str, options: Sequence[str], module: str, *arguments: object) -> subprocess.Popen[str]:
    """Start `accelerate launch --config_file recipes/accelerate/CONFIG.yaml OPTIONS -m module arguments`.

    The launcher is forked from a warm Python; its ranks, which it starts itself, are fresh interpreters.
    """
    return start(["-m", "accelerate.commands.launch", *configured(config), *options], module, *arguments, by=Program)


def configured(config: str) -> list[str]:
    """The options that name a configuration of recipes/accelerate."""
    return ["--config_file", str(ROOT / "recipes" / "accelerate" / f"{config}.yaml")]


def start(
    command: Sequence[str], module: str, *arguments: object, by: type[subprocess.Popen] | None = None, **variables: str
) -> subprocess.Popen[str]:
    """Start a launcher on a module, offline and without GPUs; in a fresh interpreter unless `by` is a `Program`."""
    words = [*command, "-m", module, *map(str, arguments)]
    return (by or subprocess.Popen)(
        words if by else [sys.executable, *words],
        cwd=ROOT,
        env=environment(PYTHONFAULTHANDLER="1", **LOOPBACK, **variables),
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
        raise HangError(timeout, _kill(launcher)) from None
    finally:
        launcher.kill()  # no effect where it has ended
    assert (launcher.returncode == 0) == succeeds, errors[-3000:]
    return errors


def _kill(launcher: subprocess.Popen[str]) -> str:
    """End a launcher and all that it has started; returns what they wrote, last each one's stack."""
    ranks = psutil.Process(launcher.pid).children(recursive=True)
    launcher.send_signal(signal.SIGSTOP)  # or it would clear up first
    _show_stacks(ranks)
    launcher.kill()
    return launcher.communicate()[1]


def _show_stacks(ranks: Sequence[psutil.Process]) -> None:
    """Let each write where it is, one after the other, and end it."""
    for rank in ranks:
        rank.suspend()  # or it would fail, once another has gone, in another place
    for rank in ranks:
        rank.send_signal(signal.SIGABRT)  # faulthandler writes the stacks
        rank.resume()
        psutil.wait_procs([rank], timeout=20)
        if rank.is_running():
            rank.kill()
