"""What is shown never ends a run: a screen that lacks letters, one that nobody reads any more, a full one."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import pytest

from flipped_kd.utils.screen import Legible, unfailing_screen
from tests.cli.helpers import closed_pipe

ROOT = Path(__file__).parents[2]


def full_disk() -> TextIO:
    return open("/dev/full", "w", encoding="utf-8")


def closed() -> TextIO:
    stream = io.StringIO()
    stream.close()
    return stream


def test_what_a_screen_lacks_is_shown_as_an_escape() -> None:
    shown = io.BytesIO()
    stream = Legible(io.TextIOWrapper(shown, encoding="cp1252", newline=""))
    print("ΔF1 ± 银", file=stream, flush=True)
    assert shown.getvalue() == "\\u0394F1 ± \\u94f6\n".encode("cp1252")


@pytest.mark.parametrize("broken", [closed_pipe, full_disk, closed])
def test_nothing_is_raised_where_a_stream_takes_no_more(
    broken: Callable[[], TextIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = broken(), broken()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    done = []
    with unfailing_screen():
        for number in range(3):
            print("text " * 10_000, flush=True)  # more than what is gathered
            print("text", file=sys.stderr)
            done.append(number)
    assert done == [0, 1, 2] and sys.stdout is out and sys.stderr is err
    for stream in {out, err} if not out.closed else ():
        stream.close()  # nothing is left that could not be written


def test_a_result_that_cannot_be_shown_is_an_error() -> None:
    stream = Legible(closed_pipe())
    with pytest.raises(BrokenPipeError):
        print("result", file=stream, flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def test_a_process_without_streams_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with unfailing_screen():
        print("nobody sees this")
    assert sys.stdout is None and sys.stderr is None  # as before


def test_the_process_ends_as_its_work_did() -> None:
    """Python itself ends with 120 where its output cannot be flushed at the end."""
    code = (
        "import sys\nfrom flipped_kd.utils.screen import unfailing_screen\n"
        "with unfailing_screen():\n    print('x' * 100)\nsys.stdin.read(1)\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=writer)
    os.close(writer)
    assert found.returncode == 0


def test_other_attributes_are_the_streams_own(capsys: pytest.CaptureFixture[str]) -> None:
    with unfailing_screen(), unfailing_screen():
        assert sys.stdout.encoding.lower() == "utf-8" and not sys.stdout.isatty()
        sys.stdout.writelines(["a", "b\n"])
        sys.stdout.buffer.write(json.dumps("c").encode())
        sys.stdout.buffer.flush()
    assert capsys.readouterr().out == 'ab\n"c"'
