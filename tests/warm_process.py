"""The warm process of warm_python.py: it imports everything, and forks whatever it is asked for.

`python -m tests.warm_process DESCRIPTOR`, a socket. A request is the length of a JSON text, with the descriptors of a
socket for answers and of three streams, and that text; the answers are a process number and an exit code, a line each.
"""

from __future__ import annotations

import array
import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, ModuleType

IMPORTED = (
    *("torch", "transformers", "peft", "accelerate", "datasets", "sentence_transformers"),
    *("sklearn.linear_model", "sklearn.metrics", "scipy.stats", "matplotlib.pyplot", "torch.distributed.run"),
    *("transformers.models.qwen2.modeling_qwen2", "transformers.models.bert.modeling_bert"),
    *("flipped_kd.training.trainer", "flipped_kd.inference.matcher", "flipped_kd.inference.search_index"),
    *("flipped_kd.experiments.recipe", "flipped_kd.experiments.ablation.run", "flipped_kd.serving.runtime"),
    *(f"flipped_kd.cli.commands.{verb}" for verb in ("predict", "train", "serve", "merge", "card", "report")),
)


@dataclass
class _Start:
    """A program that is to be started, in the fork that will be it."""

    arguments: list[str]
    cwd: str
    env: dict[str, str]
    new_session: bool

    def become(self, streams: Sequence[int]) -> None:
        """Take over its folder, environment, streams and signals."""
        if self.new_session:
            os.setsid()
        for target, source in enumerate(streams):
            os.dup2(source, target)
            os.close(source)
        os.chdir(self.cwd)
        os.environ.clear()
        os.environ.update(self.env)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.fsync = lambda file: os.fstat(file) and None  # as in conftest.py
        if self.env.get("PYTHONFAULTHANDLER"):
            import faulthandler

            faulthandler.enable()

    def run(self) -> None:
        """What `python arguments` does; the interpreter ends when this does."""
        main = sys.modules["__main__"] = ModuleType("__main__")
        code = self._code(main)
        exec(code, vars(main))

    def _code(self, main: ModuleType) -> CodeType:
        """The program, once `main`, sys.argv and sys.path are what it expects."""
        kind, *rest = self.arguments
        if kind == "-c":
            sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
            return compile(rest[0], "<string>", "exec")
        if kind == "-m":
            sys.argv, sys.path[0] = ["-m", *rest[1:]], self.cwd
            spec = find_spec(rest[0])
            if spec is not None and spec.submodule_search_locations is not None:
                spec = find_spec(f"{rest[0]}.__main__")
            if spec is None or spec.origin is None:
                sys.exit(f"{sys.executable}: No module named {rest[0]}")
            main.__spec__, main.__package__, main.__file__ = spec, spec.parent, spec.origin
            sys.argv[0] = spec.origin
            return spec.loader.get_code(spec.name)  # type: ignore[union-attr]
        file = Path(kind).resolve()
        sys.argv, sys.path[0], main.__file__ = self.arguments, str(file.parent), str(file)
        return compile(file.read_bytes(), str(file), "exec")


def _next_start(requests: socket.socket) -> _Start | None:
    """Serve requests until there are no more (None), and return in each program that is to be run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who uses this, and for what runs
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the keepers tell no exit code
    size = array.array("i").itemsize
    while True:
        length, ancillary, *_ = requests.recvmsg(8, socket.CMSG_SPACE(4 * size))
        if not length:
            return None
        descriptors = array.array("i", ancillary[0][2])
        content = b""
        while len(content) < int.from_bytes(length, "big"):
            content += requests.recv(1 << 20)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            requests.close()
            told, *streams = descriptors
            start = _Start(**json.loads(content))
            if _keep(told, streams):
                start.become(streams)
                return start
        for descriptor in descriptors:
            os.close(descriptor)


def _keep(told: int, streams: Sequence[int]) -> bool:
    """Fork the program, where this returns True; wait for it here, and tell its number and its exit code."""
    child = os.fork()
    if child == 0:
        os.close(told)
        return True
    for descriptor in streams:  # or its readers would wait for this process, too
        os.close(descriptor)
    with socket.socket(fileno=told) as out:
        try:
            out.sendall(f"{child}\n".encode())
            out.sendall(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n".encode())
        finally:
            os._exit(0)


def _main(descriptor: int) -> None:
    gc.disable()  # an import makes much and leaves no garbage
    for name in IMPORTED:
        import_module(name)
    from tests.soak import forks

    forks.prepare()
    gc.enable()
    start = _next_start(socket.socket(fileno=descriptor))
    if start is None:
        os._exit(0)  # nothing of its own to clean up
    start.run()


if __name__ == "__main__":
    _main(int(sys.argv[1]))
