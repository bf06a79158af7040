"""Folders are whole or absent: full disks, kills and errors included."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flipped_kd.utils.atomic import check_target, replacing, whole_or_absent, write_atomically
from tests.cli.helpers import is_device, null_device, through_pipe

ROOT = Path(__file__).parents[2]


def test_a_folder_takes_its_name_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "new" / "model"
    with whole_or_absent(target) as partial:
        (partial / "weights").write_text("1")
        assert not target.exists() and partial.parent == target.parent
    assert [path.name for path in target.parent.iterdir()] == ["model"]
    assert (target / "weights").read_text() == "1"


def test_an_earlier_folder_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("1")
    with pytest.raises(ZeroDivisionError), whole_or_absent(target) as partial:
        (partial / "new").write_text("2")
        raise ZeroDivisionError
    assert [path.name for path in target.iterdir()] == ["old"]
    with whole_or_absent(target) as partial:
        (partial / "new").write_text("2")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path) -> None:
    too_much = shutil.disk_usage(tmp_path).free * 1000
    with pytest.raises(OSError, match=r"GB are needed, .* are free") as error:
        with whole_or_absent(tmp_path / "model", too_much):
            raise AssertionError("nothing is written")
    assert error.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    "writer", ["open(path, 'wb').write(bytes(1 << 20))", "save_file({'a': zeros(1 << 18)}, path)"]
)
def test_room_that_ends_while_writing(tmp_path: Path, writer: str) -> None:
    """The kernel refuses the rest of a file, as it does on a full disk; safetensors' writer raises no OSError."""
    code = f"""
import resource, sys
from numpy import zeros
from safetensors.numpy import save_file
from flipped_kd.utils.atomic import whole_or_absent
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
with whole_or_absent(__import__("pathlib").Path(sys.argv[1])) as partial:
    (partial / "small").write_text("1")
    path = str(partial / "large")
    {writer}
"""
    done = run(code, str(tmp_path / "model"))
    assert done.returncode == 1 and f"[Errno {errno.ENOSPC}] no space left for" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    code = """
import os, pathlib, signal, sys
from flipped_kd.utils.atomic import whole_or_absent
with whole_or_absent(pathlib.Path(sys.argv[1])) as partial:
    (partial / "half").write_text("1")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    target = tmp_path / "model [1]"
    assert run(code, str(target)).returncode == -signal.SIGKILL
    assert not target.exists() and len(list(tmp_path.iterdir())) == 2  # the folder and its lock
    with whole_or_absent(target):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_what_another_process_writes_stays(tmp_path: Path) -> None:
    """Whatever its number: in containers that share a disk, every process may be the first."""
    code = """
import pathlib, sys
from flipped_kd.utils.atomic import whole_or_absent
with whole_or_absent(pathlib.Path(sys.argv[1])) as partial:
    (partial / "whose").write_text("theirs")
    print("writing", flush=True)
    sys.stdin.read()
"""
    target = tmp_path / "model"
    command = [sys.executable, "-c", code, str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None and other.stdout is not None and other.stdout.readline() == "writing\n"
        with whole_or_absent(target) as partial:
            (partial / "whose").write_text("ours")
        assert (target / "whose").read_text() == "ours"
        other.stdin.close()
    assert other.returncode == 0 and (target / "whose").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_a_folder_moved_aside_by_a_killed_process_gets_its_name_back(tmp_path: Path) -> None:
    aside = tmp_path / ".model.partial-1234-replaced"
    aside.mkdir()
    (aside / "old").write_text("1")
    with pytest.raises(ZeroDivisionError), whole_or_absent(tmp_path / "model"):
        assert (tmp_path / "model" / "old").is_file()
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_targets_in_use_are_refused(tmp_path: Path) -> None:
    check_target(tmp_path / "absent")
    check_target(tmp_path)
    (tmp_path / "ours.json").write_text("{}")
    with pytest.raises(ValueError, match="not empty"):
        check_target(tmp_path)
    with pytest.raises(ValueError, match="not empty"):
        check_target(tmp_path, "other.json")
    check_target(tmp_path, "ours.json")
    with pytest.raises(ValueError, match="is a file"):
        check_target(tmp_path / "ours.json")


# ---- Links, pipes and devices ----


def test_a_folder_given_by_a_link_is_made_where_the_link_leads(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    link = tmp_path / "link"
    link.symlink_to("disk/model")
    for content in ("1", "2"):  # absent, then there
        with whole_or_absent(link) as partial:
            (partial / "weights").write_text(content)
            assert partial.parent == disk
        assert link.is_symlink() and (disk / "model" / "weights").read_text() == content
    assert [path.name for path in disk.iterdir()] == ["model"]


def test_a_file_given_by_a_link_is_written_where_the_link_leads(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "first").symlink_to("second")
    (tmp_path / "second").symlink_to("disk/file")
    for content in ("1", "2"):
        write_atomically(tmp_path / "first", content)
        assert (tmp_path / "first").is_symlink() and (tmp_path / "second").is_symlink()
        assert (tmp_path / "disk" / "file").read_text() == content
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["file"]


def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    content = bytes(range(256)) * 1000  # more than a pipe holds
    assert through_pipe(tmp_path / "pipe", lambda: write_atomically(tmp_path / "pipe", content)) == content
    (tmp_path / "link").symlink_to("other")
    assert through_pipe(tmp_path / "other", lambda: write_atomically(tmp_path / "link", "text")) == b"text"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "other", "pipe"]


def test_a_pipe_named_by_its_number_is_written_into() -> None:
    """As a shell names it: command --output >(gzip > file)."""
    reader, writer = os.pipe()
    write_atomically(f"/dev/fd/{writer}", "text")
    os.close(writer)
    with open(reader, "rb") as file:
        assert file.read() == b"text"


def test_a_device_is_written_into(tmp_path: Path) -> None:
    if not null_device(tmp_path / "null"):
        pytest.skip("this process may make no devices")
    (tmp_path / "link").symlink_to("null")
    for name in ("null", "link"):
        write_atomically(tmp_path / name, "text")
        with replacing(tmp_path / name) as partial:
            partial.write_text("more")
    assert is_device(tmp_path / "null") and (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "null"]


def test_nothing_goes_into_a_pipe_after_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # that nobody reads: opening it would wait
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "pipe") as partial:
        partial.write_text("half")
        raise ZeroDivisionError
