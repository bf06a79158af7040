"""Programs forked from a warm Python behave as those of a fresh one."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests import warm_python
from tests.cli.helpers import closed_pipe, environment
from tests.warm_python import Program, environment_key, run


def told(code: str, *arguments: object, **options: Any) -> str:
    """What a program prints that succeeds."""
    options = {"env": environment(), "capture_output": True, "text": True} | options
    done = run(["-c", code, *arguments], **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_everything_is_imported_and_nothing_has_begun() -> None:
    code = "import sys, threading, torch; print(*sorted(sys.modules)); print(threading.active_count()); "
    code += "print(torch.cuda.is_initialized(), torch.distributed.is_initialized())"
    modules, threads, begun = told(code).splitlines()
    assert {"torch", "transformers", "flipped_kd.training.trainer"} <= set(modules.split())
    assert threads == "1" and begun == "False False"


def test_it_has_its_own_folder_arguments_and_environment(tmp_path: Path) -> None:
    code = "import os, sys; print(os.getcwd(), sys.argv, os.environ['MINE'], 'THEIRS' in os.environ, sys.path[0])"
    found = told(code, "one", 2, cwd=tmp_path, env=environment(MINE="mine"))
    assert found == f"{tmp_path} ['-c', 'one', '2'] mine False \n"


def test_modules_and_scripts_are_what_python_makes_of_them(tmp_path: Path) -> None:
    """Arguments, path, and names of the main module: compared with a fresh interpreter."""
    text = "import sys; print(sys.argv, sys.path[0], __name__, __package__, __file__, __spec__ and __spec__.name)"
    (tmp_path / "package").mkdir()
    for name in ("script.py", "package/__init__.py", "package/__main__.py", "package/part.py"):
        (tmp_path / name).write_text(text)
    for arguments in (["script.py", "x"], ["-m", "package", "x"], ["-m", "package.part", "x"], ["-m", "script"]):
        options: dict[str, Any] = {"cwd": tmp_path, "env": environment(), "capture_output": True, "text": True}
        fresh = subprocess.run([sys.executable, *arguments], **options)
        found = run(arguments, **options)
        assert fresh.returncode == found.returncode == 0 and fresh.stdout.splitlines()[-1].startswith("[")
        assert found.stdout == fresh.stdout, arguments


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("pass", 0, ""),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('why')", 1, "why\n"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
        ("raise KeyboardInterrupt", -signal.SIGINT, "KeyboardInterrupt\n"),
        ("import os; os._exit(4)", 4, ""),
    ],
)
def test_exit_codes(code: str, status: int, error: str) -> None:
    done = run(["-c", code], env=environment(), capture_output=True, text=True)
    assert done.returncode == status and done.stderr.endswith(error) and bool(done.stderr) == bool(error)


def test_the_interpreter_ends_as_it_does() -> None:
    code = "import atexit, threading, time\natexit.register(print, 'last')\n"
    code += "threading.Thread(target=lambda: [time.sleep(0.2), print('thread')]).start()\nprint('main')"
    assert told(code).split() == ["main", "thread", "last"]


def test_streams() -> None:
    code = "import sys; print(sys.stdin.read().upper()); print('oops', file=sys.stderr)"
    done = run(["-c", code], input="yes", env=environment(), capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("YES\n", "oops\n")
    both = told(code, stdin=subprocess.DEVNULL, capture_output=False, stdout=-1, stderr=subprocess.STDOUT)
    assert sorted(both.split()) == ["oops"]


def test_a_reader_that_has_gone() -> None:
    for code in ("print('unread')", "import os; os.write(1, b'unread')"):
        options: dict[str, Any] = {"env": environment()}
        with closed_pipe() as gone:
            fresh = subprocess.run([sys.executable, "-c", code], stdout=gone, stderr=gone, **options)
            found = run(["-c", code], stdout=gone, stderr=gone, **options)
        assert found.returncode == fresh.returncode != 0


def test_signals_reach_it() -> None:
    code = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\nprint(1, flush=True)\n"
    for number, status in ((signal.SIGTERM, 7), (signal.SIGINT, -signal.SIGINT), (signal.SIGKILL, -signal.SIGKILL)):
        with Program(["-c", code + "time.sleep(60)"], env=environment(), stdout=-1, stderr=-1, text=True) as program:
            assert program.stdout is not None and program.stdout.readline() == "1\n"
            assert program.poll() is None
            program.send_signal(number)
            assert program.wait(timeout=30) == program.poll() == status
    assert program.returncode == -signal.SIGKILL


def test_one_that_hangs_is_ended() -> None:
    begun = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired) as error:
        run(["-c", "import time; print('here', flush=True); time.sleep(60)"], env=environment(), stdout=-1, timeout=3)
    assert time.monotonic() - begun < 30 and error.value.stdout == b"here\n"


def test_a_session_of_its_own() -> None:
    code = "import os; print(os.getsid(0) == os.getpid())"
    assert told(code, start_new_session=True) == "True\n" and told(code) == "False\n"


def test_several_run_at_once_and_know_their_own_ends() -> None:
    programs = [
        Program(["-c", f"import sys; sys.stdin.read(); sys.exit({number})"], env=environment(), stdin=-1)
        for number in (5, 6, 7)
    ]
    for program in programs:
        assert program.poll() is None and program.stdin is not None
    for program in reversed(programs):
        program.stdin.close()  # type: ignore[union-attr]
    assert [program.wait(30) for program in programs] == [5, 6, 7]


def test_what_is_read_at_import_asks_for_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    here = environment_key(environment())
    for name in ("HF_ENDPOINT", "OMP_NUM_THREADS", "PYTHONIOENCODING", "CUDA_VISIBLE_DEVICES"):
        assert environment_key(environment(**{name: "another"})) != here
    assert environment_key(environment(RANK="1", FLIPPED_KD_TOKEN="x", PYTHONFAULTHANDLER="1")) == here
    # One whose imports fail says so.
    monkeypatch.setattr(warm_python, "_running", {})
    with pytest.raises(RuntimeError, match="the warm process has ended:\n(.*\n)*.*PYTHONHASHSEED"):
        run(["-c", "pass"], env=environment(PYTHONHASHSEED="no number"))


def test_it_ends_with_who_uses_it() -> None:
    code = "import socket; from tests.warm_process import _next_start\n"
    code += "mine, theirs = socket.socketpair(); mine.close(); print(_next_start(theirs))"
    assert told(code) == "None\n"
