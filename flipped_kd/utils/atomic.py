"""Files and folders that are there whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import errno
import glob
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from .locking import acquire

logger = logging.getLogger(__name__)
LOCK, ASIDE = ".lock", "-replaced"
# The disk is full, the user's quota is used up, or a file may not grow that large.
SPACE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_passage(path: Path) -> bool:
    """Whether `path` is a device, a pipe or a socket: what is written there goes through, and it stays what it is."""
    return path.exists() and not path.is_file() and not path.is_dir()


def place_of(path: str | os.PathLike[str]) -> Path:
    """The file that `path` stands for: symbolic links are followed, so that writing there leaves the link a link.

    A device or a pipe keeps the name it is given by: some of theirs (/dev/fd/63) lead nowhere when they are followed.
    """
    path = Path(path)
    return Path(os.path.realpath(path)) if path.is_symlink() and not is_passage(path) else path


def pass_on(source: Path, passage: Path) -> None:
    """Write the bytes of a file into a device or a pipe; waits for the reader of a named pipe.

    Raises:
        BrokenPipeError: the reader has gone before the end.
    """
    try:
        with open(source, "rb") as file, open(passage, "wb") as out:
            shutil.copyfileobj(file, out)
    except BrokenPipeError as error:
        raise BrokenPipeError(errno.EPIPE, "its reader has gone before the end", str(passage)) from error


def check_target(target: Path, replaceable: str | None = None) -> None:
    """Raise ValueError unless `target` is absent, empty, or holds the file `replaceable` and so may be replaced.

    Nor may it be a mount point, which cannot be renamed: a folder is written beside it and takes its name.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise ValueError(f"{target} is a file: give a folder.")
    if any(target.iterdir()) and not (replaceable and (target / replaceable).is_file()):
        raise ValueError(f"{target} is there and not empty: give another folder, or remove it.")
    if os.path.ismount(os.path.realpath(target)):
        raise ValueError(f"{target} is a mount point, which cannot be replaced as a whole: give a folder inside it.")


@contextmanager
def whole_or_absent(target: Path, size: int = 0) -> Iterator[Path]:
    """A folder beside `target` to write into, which takes its name at the end; on any error nothing is left of it.

    Args:
        target: the folder to make. One that is there is replaced; ask `check_target` first. Of a symbolic link it is
            the folder that it leads to.
        size: bytes that will be written, about.

    Raises:
        OSError: no space left (ENOSPC); the message says how much is needed.
    """
    target = Path(os.path.realpath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    recover(target)
    if shutil.disk_usage(target.parent).free < size:
        raise _no_space(target, size)
    # Names of processes are no names: in a container every one may be the first.
    partial = target.with_name(f".{target.name}.partial-{uuid.uuid4().hex}")
    lock = _lock_of(partial)
    try:
        acquire(lock, f"{target.parent} lies on a file system without locks: what is left by a kill stays")
        partial.mkdir()
        yield partial
        sync_tree(partial)
        take_name(partial, target, target.with_name(f"{partial.name}{ASIDE}"))
    except (OSError, SafetensorError) as error:
        # The writer of safetensors raises no OSError.
        if any(getattr(error, "errno", None) == code or f"os error {code}" in str(error) for code in SPACE_ERRORS):
            raise _no_space(target, size) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        _release(lock)


def _no_space(target: Path, size: int) -> OSError:
    needed = f"{size / 1e9:.2f} GB are needed, " if size else ""
    free = shutil.disk_usage(target.parent).free / 1e9
    return OSError(
        errno.ENOSPC,
        f"no space left for {target}: {needed}{free:.2f} GB are free. Make room or give another folder; nothing was "
        "left there.",
    )


def take_name(partial: Path, target: Path, aside: Path) -> None:
    """Rename a finished folder to `target` on the same disk; what has that name moves to `aside` and is removed.

    On an error the old folder gets its name back. After a kill between the two renamings it stands at `aside`, whole.
    """
    if not target.exists():
        partial.rename(target)
    else:
        target.rename(aside)
        try:
            partial.rename(target)
        except BaseException:
            aside.rename(target)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    sync(target.parent)


def sync_tree(folder: Path) -> None:
    """Wait until all files and folders within are on the disk: after a power cut, names may else stand for nothing."""
    for parent, _, names in os.walk(folder):
        for name in names:
            sync(Path(parent, name))
        sync(Path(parent))


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if not hasattr(os, "O_DIRECTORY"):
        return  # Windows opens no folders, and syncs no file that is open for reading
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock_of(partial: Path) -> FileLock:
    """The lock that whoever writes into `partial` holds; it ends with its process."""
    return FileLock(partial.with_name(f"{partial.name}{LOCK}"))


def _release(lock: FileLock) -> None:
    lock.release()
    with suppress(OSError):
        Path(lock.lock_file).unlink(missing_ok=True)


def recover(target: Path) -> None:
    """Put right what killed processes have left of a folder: it gets its name back, and what was not finished goes.

    `whole_or_absent` does so first; who only reads the folder calls this before.
    """
    target = Path(os.path.realpath(target))
    found = target.parent.glob(f".{glob.escape(target.name)}.partial-*")
    for name in sorted({path.name.removesuffix(LOCK).removesuffix(ASIDE) for path in found}):
        partial = target.with_name(name)
        lock = _lock_of(partial)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue  # it is being written
        except OSError as error:
            logger.warning("%s is left: its lock cannot be had (%s)", partial, error)
            continue
        try:
            aside = target.with_name(f"{name}{ASIDE}")
            if aside.exists() and not target.exists():  # killed between the two renamings
                logger.info("giving %s its name back, which a process that was killed took from it", target)
                aside.rename(target)
            for left in (partial, aside):
                if left.exists():
                    logger.info("removing %s, left by a process that was killed", left)
                    shutil.rmtree(left, ignore_errors=True)
        finally:
            _release(lock)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A name beside `path` to write to, which becomes `path` at the end; on any error `path` stays as it was.

    Folders above it are made. The bytes are on the disk before the name changes: after a power cut it may else stand
    for nothing. Symbolic links are followed. Into a device or a pipe the bytes are written at the end.
    """
    path = place_of(path)
    if is_passage(path):
        with tempfile.TemporaryDirectory(prefix="flipped-kd-") as scratch:
            yield Path(scratch, "written")
            pass_on(Path(scratch, "written"), path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    finally:
        with suppress(OSError):  # not to hide the error that is on its way
            partial.unlink(missing_ok=True)


@contextmanager
def explained(words: str, place: Path) -> Iterator[None]:
    """Give an OSError of the block `words`, in which `{reason}` stands for what it said, and the name of `place`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno or errno.EIO, words.format(reason=reason), str(place)) from error


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write text (as UTF-8) or bytes to `path`, whole or not at all."""
    with replacing(path) as partial:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
