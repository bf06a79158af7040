"""One process at a time writes an output, a folder or a file: a command given twice by mistake would spoil both."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)
# Names that begin with "_" are never pushed. The file stays; what counts is the lock, which ends with its process.
LOCK_FILE = "_writer.lock"
# What network file systems answer that are mounted without locks.
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold `folder` (made if absent) while the block runs.

    Raises:
        RuntimeError: another process holds it.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE, timeout=0)
    try:
        acquire(lock, f"{folder} lies on a file system without locks: see that no two commands write into it")
    except Timeout as error:
        raise RuntimeError(
            f"{folder} is being written by another process: wait until it has ended, or give another output_dir."
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def sole_writer_of(file: Path, option: str = "--output") -> Iterator[None]:
    """Hold the name of an output, a file or a folder, while the block runs; nothing is left beside it afterwards.

    Args:
        file: need not be there, nor the folders above it. Give it with its symbolic links followed.
        option: by which another name can be given.

    Raises:
        RuntimeError: another process holds it.
        OSError: nothing can be written beside it.
    """
    made = [folder for folder in file.parents if not folder.exists()]
    # filelock itself tries again where the lock's file was removed between its opening and its locking.
    lock = FileLock(file.with_name(f".{file.name}.lock"), timeout=0)
    try:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            acquire(lock, f"{file} lies on a file system without locks: see that no two commands write it")
        except Timeout as error:
            raise RuntimeError(
                f"{file} is being written by another process: wait until it has ended, or give another {option}."
            ) from error
        except FileExistsError as error:
            raise NotADirectoryError(errno.ENOTDIR, "is no folder: give another one", str(file.parent)) from error
        except OSError as error:
            raise OSError(error.errno or 0, error.strerror or str(error), str(file)) from error
        try:
            yield
        finally:
            with suppress(OSError):
                Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()
    finally:
        for folder in made:  # those that are still empty
            with suppress(OSError):
                folder.rmdir()


def acquire(lock: FileLock, without: str) -> None:
    """Hold `lock`; where the file system has none, only `without` is said, in the log.

    Raises:
        Timeout: another process holds it.
        OSError: the lock's file cannot be written.
    """
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        logger.warning("%s", without)
