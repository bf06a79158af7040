"""A Python that has imported everything, forked for each program that a test starts.

A fresh interpreter spends seconds on importing torch, transformers and this package. `Program` and `run` are
subprocess.Popen and subprocess.run for arguments of `python`: what they start is a fork of one process that has
imported all that and done nothing with it. Folder, environment, arguments, standard streams, signals, exit code and
the interpreter's own ending are as in a fresh one. What differs:

- what a library reads of the environment when it is imported is what the warm process had: one such process is kept
  for each set of these variables (`READ_AT_IMPORT`);
- the modules are there already, so nothing about an import can be tested so;
- sets of texts have one order in all of them: the hash seed is the warm process's;
- who starts a program is not its parent; only subprocess.Popen's own ways tell how it ended.

The warm process ends with the one that uses it.
"""

from __future__ import annotations

import array
import atexit
import gc
import inspect
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
IMPORTED = (
    *("torch", "transformers", "peft", "accelerate", "datasets", "sentence_transformers"),
    *("sklearn.linear_model", "sklearn.metrics", "scipy.stats", "matplotlib.pyplot", "torch.distributed.run"),
    *("transformers.models.qwen2.modeling_qwen2", "transformers.models.bert.modeling_bert"),
    *("flipped_kd.training.trainer", "flipped_kd.inference.matcher", "flipped_kd.inference.search_index"),
    *("flipped_kd.experiments.recipe", "flipped_kd.experiments.ablation.run", "flipped_kd.serving.runtime"),
    *(f"flipped_kd.cli.commands.{verb}" for verb in ("predict", "train", "serve", "merge", "card", "report")),
)
# Beginnings of the names of variables that Python or a library reads once.
READ_AT_IMPORT = (
    *("PYTHON", "LC_", "LANG", "HOME", "TMPDIR", "XDG_", "LD_", "MALLOC_", "OMP_", "MKL_", "KMP_", "OPENBLAS_"),
    *("TORCH_", "PYTORCH_", "CUDA_", "HF_", "HUGGING", "TRANSFORMERS_", "TOKENIZERS_", "SENTENCE_", "MPL", "ARROW_"),
)
# Read anew in each program.
READ_LATER = ("PYTHONFAULTHANDLER", "TORCH_NCCL")

_running: dict[tuple[tuple[str, str], ...], _WarmPython] = {}


class Program(subprocess.Popen):
    """subprocess.Popen for arguments of `python`: `-m module ...`, `-c code ...` or `script ...`.

    Args:
        arguments: those of `python`.
        options: of subprocess.Popen, as far as they are about streams, `cwd`, `env` and `start_new_session`.
    """

    def __init__(self, arguments: Sequence[object], **options: Any) -> None:
        self._told: socket.socket | None = None
        super().__init__([str(argument) for argument in arguments], **options)

    def _execute_child(self, args: Any, *rest: Any) -> None:
        names = [*inspect.signature(subprocess.Popen._execute_child).parameters][2:]  # type: ignore[attr-defined]
        given = dict(zip(names, rest, strict=True))
        env = dict(os.environ if given["env"] is None else given["env"])
        request = {
            "arguments": args,
            "cwd": os.fspath(given["cwd"] or os.getcwd()),
            "env": env,
            "new_session": given["start_new_session"],
        }
        theirs = [given["p2cread"], given["c2pwrite"], given["errwrite"]]
        warm = _warm(env)
        try:
            self._told = warm.ask(request, [own if end == -1 else end for own, end in enumerate(theirs)])
            self.pid = int(self._line())
        except (OSError, EOFError) as error:
            raise RuntimeError(f"the warm process has ended:\n{warm.said()}") from error
        self._child_created = True
        first = names.index("p2cread")
        self._close_pipe_fds(*rest[first : first + 6])

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not within so many seconds.
        """
        if self._ended(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self.returncode

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and self._told is not None and select.select([self._told], [], [], timeout)[0]:
            self.returncode = int(self._line())
            self._told.close()
        return self.returncode

    def _line(self) -> bytes:
        """The next number that is told of it."""
        assert self._told is not None
        line = b""
        while not line.endswith(b"\n"):
            more = self._told.recv(1)
            if not more:
                raise EOFError(f"nobody knows any more how {self.args} ended")
            line += more
        return line

    def __del__(self, *_: Any) -> None:
        """Without subprocess's own search for a child."""


def run(
    arguments: Sequence[object], input: Any = None, timeout: float | None = None, check: bool = False, **options: Any
) -> subprocess.CompletedProcess[Any]:
    """subprocess.run for arguments of `python`, see `Program`."""
    if input is not None:
        options["stdin"] = subprocess.PIPE
    if options.pop("capture_output", False):
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Program(arguments, **options) as program:
        try:
            out, err = program.communicate(input, timeout)
        except BaseException:
            program.kill()
            raise
    if check and program.returncode:
        raise subprocess.CalledProcessError(program.returncode, program.args, out, err)
    return subprocess.CompletedProcess(program.args, program.returncode, out, err)


def environment_key(env: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """What the warm process of an environment must have been started with."""
    return tuple(
        sorted(
            (name, value)
            for name, value in env.items()
            if name.startswith(READ_AT_IMPORT) and not name.startswith(READ_LATER)
        )
    )


def _warm(env: Mapping[str, str]) -> _WarmPython:
    key = environment_key(env)
    if key not in _running:
        _running[key] = _WarmPython(env)
    return _running[key]


class _WarmPython:
    """The warm process, as those see it that use it."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.errors = tempfile.TemporaryFile()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.warm_python", str(theirs.fileno())],
                cwd=ROOT,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self.errors,
                pass_fds=[theirs.fileno()],
            )
        atexit.register(self.end)

    def ask(self, request: Mapping[str, Any], streams: Sequence[int]) -> socket.socket:
        """Start a program; what is told of it comes from the socket: its number, and later its exit code."""
        told, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        content = json.dumps(request).encode()
        with theirs:
            descriptors = array.array("i", [theirs.fileno(), *streams]).tobytes()
            length = len(content).to_bytes(8, "big")
            self.requests.sendmsg([length], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
            self.requests.sendall(content)
        return told

    def said(self) -> str:
        """The end of what it wrote, why it could not start for example."""
        self.errors.seek(0)
        return self.errors.read().decode()[-3000:]

    def end(self) -> None:
        """End it; what it has started goes on."""
        self.requests.close()
        self.process.wait()


# ---- In the warm process ----


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
