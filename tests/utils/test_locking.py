"""One process at a time writes into an output folder; whoever is killed lets go of it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flipped_kd.utils.locking import sole_writer, sole_writer_of

HOLD = """
import sys, time
from pathlib import Path
from flipped_kd.utils.locking import sole_writer, sole_writer_of
with sole_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_another_process_is_refused_until_the_holder_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            with pytest.raises(RuntimeError, match="is being written by another process"), sole_writer(folder):
                pytest.fail("two writers")
        finally:
            holder.kill()
        holder.wait()
    with sole_writer(folder):  # the file is still there, the lock is not
        pass


def test_the_folder_is_free_after_an_error(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyError), sole_writer(tmp_path):
            raise KeyError


def test_a_file_system_without_locks_is_told_of_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Other errors, a full disk among them, are errors."""

    def failing(code: int) -> None:
        def flock(*_arguments: object) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr("fcntl.flock", flock)

    failing(errno.ENOLCK)
    with sole_writer(tmp_path):
        pass
    assert "without locks" in caplog.text
    failing(errno.ENOSPC)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)), sole_writer(tmp_path):
        pytest.fail("no lock, and no reason to do without")


def test_an_output_file_has_one_writer_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "out.csv"
    code = HOLD.replace("import sole_writer", "import sole_writer_of as sole_writer")
    with subprocess.Popen([sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            with pytest.raises(RuntimeError, match="out.csv is being written by another process"):
                with sole_writer_of(file):
                    pytest.fail("two writers")
            with sole_writer_of(file.with_name("other.csv")):  # of the same folder
                pass
        finally:
            holder.kill()
        holder.wait()
    with sole_writer_of(file):
        file.write_text("whole")
    assert [path.name for path in file.parent.iterdir()] == ["out.csv"]
    with pytest.raises(KeyError), sole_writer_of(tmp_path / "absent" / "out.csv"):
        raise KeyError
    assert not (tmp_path / "absent").exists()


def test_an_output_that_cannot_be_had_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is no folder") as error, sole_writer_of(tmp_path / "file" / "out"):
        pytest.fail("no folder")
    assert error.value.filename == str(tmp_path / "file")
    monkeypatch.setattr("fcntl.flock", lambda *_: os.open(tmp_path / "absent" / "any", os.O_RDONLY))
    with pytest.raises(OSError, match="No such file") as error, sole_writer_of(tmp_path / "out.csv"):
        pytest.fail("no lock")
    assert error.value.filename == str(tmp_path / "out.csv")
