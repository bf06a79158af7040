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
import inspect
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
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
                [sys.executable, "-m", "tests.warm_process", str(theirs.fileno())],
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
