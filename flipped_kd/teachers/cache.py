"""The teacher's vectors on disk: written once, memory-mapped ever after.

A cache is a folder `<teacher id>-<first 16 hex digits of the fingerprint>` of shards (see `CacheIdentity`) and
one JSON file that says whose vectors they are.

- A shard is written whole to a temporary name and renamed, so a kill loses at most the shard in the making. Shards are
  never changed and, unless corrupt, never removed: others may have them mapped.
- A shard whose bytes do not match its name is corrupt, is reported, and its texts are scored anew.
- The first writer of a key wins, in the order of names: vectors once read do not change. A shard's stamp is the time,
  but always above that of every shard before it.
- Several processes may write at once: names are unique and renames atomic.
- At load only the sorted keys and their row numbers are in memory (16 bytes a text).

What a kill, a full disk or a corrupt shard interrupts is made up for bit for bit, on the same machine with the same
batch size: texts are scored in one fixed order, every shard's batches start afresh, and what is missing is whole
shards. Only where other texts were added in between, or two runs wrote the same texts, do last bits differ.
"""

import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from ..utils.atomic import explained
from ..utils.json_files import write_json
from .score_table import VectorTable
from .shards import (
    SHARD_NAME,
    CacheIdentity,
    is_intact,
    shard_bytes,
    shard_digest,
    shard_name,
    stored_identity,
    write_named,
)

logger = logging.getLogger(__name__)

METADATA_NAME = "teacher_cache.json"
STALE_TEMPORARY_SECONDS = 24 * 3600
_clear_write_error = partial(
    explained,
    "the teacher cache cannot be written ({reason}). It needs a writable directory with free space: make room there, "
    "or choose another directory with cache_dir",
)


class TeacherCache:
    """One teacher's folder of shards.

    Args:
        cache_dir: the user's cache directory, in which each teacher has its own folder; or such a folder itself.
        identity: whose vectors these are.

    Raises:
        ValueError: if the folder's metadata names another teacher.
    """

    def __init__(self, cache_dir: Path, identity: CacheIdentity) -> None:
        self.identity = identity
        is_cache_itself = (cache_dir / METADATA_NAME).exists()
        self.folder = cache_dir if is_cache_itself else cache_dir / identity.folder_name
        self._check_owner()

    def shard_paths(self) -> list[Path]:
        """The shards that can be trusted, oldest first.

        A corrupt one is logged by name and removed, one of another teacher or format is logged and left alone; either
        way its texts count as missing and are scored again.
        """
        good = []
        for path in sorted(self.folder.glob("part-*.arrow")):
            if not SHARD_NAME.fullmatch(path.name):
                continue
            try:
                intact = is_intact(path)
                stored = stored_identity(path) if intact else {}
            except FileNotFoundError:
                continue  # another process found it corrupt and removed it first
            if not intact:
                logger.warning(
                    "Teacher cache: %s is corrupt (its bytes do not match its name); its texts are scored again.", path
                )
                self.remove(path)
            elif stored != self.identity.to_dict():
                logger.warning(
                    "Teacher cache: %s belongs to another teacher or format (%s) and is ignored.", path, stored
                )
            else:
                good.append(path)
        return good

    def prepare(self) -> None:
        """Make the folder ready for writing, and find out before the teacher runs whether it can be written.

        Raises:
            OSError: naming the folder and the remedy.
        """
        with _clear_write_error(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            metadata = {"teacher": self.identity.teacher, **self.identity.to_dict()}
            write_json(self.folder / METADATA_NAME, metadata)
            # By the clock that dates the files, which on a network drive is not this machine's.
            now = (self.folder / METADATA_NAME).stat().st_mtime
            for path in self.folder.glob(".tmp-*"):
                with suppress(FileNotFoundError):  # its writer may be renaming it just now
                    if now - path.stat().st_mtime > STALE_TEMPORARY_SECONDS:
                        path.unlink()

    def write(self, keys: np.ndarray, vectors: np.ndarray) -> Path:
        """Write one shard: keys int64 (n,), vectors float32 (n, dim). OSError names the folder and the remedy."""
        data = shard_bytes(keys, vectors, self.identity)
        digest = shard_digest([data])
        with _clear_write_error(self.folder):
            return write_named(self.folder, data, lambda: shard_name(self._next_stamp(), digest))

    def _next_stamp(self) -> int:
        """Nanoseconds since 1970, or one more than the newest shard's stamp where the clock has been set back."""
        found = filter(None, map(SHARD_NAME.fullmatch, os.listdir(self.folder)))
        return max(time.time_ns(), 1 + max((int(name["stamp"]) for name in found), default=0))

    def _check_owner(self) -> None:
        path = self.folder / METADATA_NAME
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            fingerprint, kind, teacher = found["fingerprint"], found["kind"], found["teacher"]
        except (FileNotFoundError, NotADirectoryError):
            return
        except (ValueError, KeyError, TypeError):
            logger.warning("Teacher cache: %s is corrupt and is written anew; each shard is checked by itself.", path)
            return
        if (fingerprint, kind) != (self.identity.fingerprint, self.identity.kind):
            raise ValueError(
                f"{self.folder} is a cache written by another teacher: it holds {kind} of {teacher!r} (fingerprint "
                f"{fingerprint[:16]}), not {self.identity.kind} of {self.identity.teacher!r} (fingerprint "
                f"{self.identity.fingerprint[:16]}). Pass the directory above it as cache_dir, or another one; each "
                "teacher gets its own folder inside."
            )

    @staticmethod
    def remove(path: Path) -> None:
        """Remove a file that is of no use any more, if that can be done."""
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            # A cache that is only read goes on without the shard; one that must be written fails with a clear error in
            # prepare().
            logger.warning("Teacher cache: %s could not be removed (%s) and is ignored.", path, error)


def scoring_order(keys: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Positions, longest first, so that a batch holds items of like length; equal lengths by key.

    The batches, and with them the last bits of the vectors, so do not depend on the order of the texts.
    """
    return np.lexsort((keys, -lengths))


def fill_cache(
    cache: TeacherCache,
    keys: np.ndarray,
    lengths: np.ndarray,
    compute: Callable[[np.ndarray], np.ndarray],
    *,
    block: int,
    description: str,
    show_progress: bool,
) -> list[Path]:
    """Score every key the cache lacks, each once, longest first, shard by shard.

    Args:
        cache: where to look and to write.
        keys: int64 (n,), repetitions allowed.
        lengths: int (n,), how long each item is, so that a batch holds items of like length.
        compute: given positions in `keys` (int64 (m,)), returns their vectors, float32 (m, dim).
        block: items handed to `compute` at a time (several batches).
        description: what is scored, for the log and the progress bar.
        show_progress: whether to show the bar.

    Returns:
        The paths of the shards that hold all keys, oldest first.

    Raises:
        OSError: if the folder cannot be written, naming it and the remedy.
    """
    paths = cache.shard_paths()
    missing, total = _missing(VectorTable(paths, cache.identity.dim), keys)
    logger.info(
        "Teacher cache %s: %d distinct %s, %d found, %d to score.",
        cache.folder, total, description, total - len(missing), len(missing),
    )  # fmt: skip
    if len(missing) == 0:
        return paths
    cache.prepare()
    missing = missing[scoring_order(keys[missing], lengths[missing])]
    shard_rows = cache.identity.shard_rows
    with tqdm(total=len(missing), desc="teacher", unit=" " + description, disable=not show_progress) as bar:
        for start in range(0, len(missing), shard_rows):
            chunk = missing[start : start + shard_rows]
            vectors = np.empty((len(chunk), cache.identity.dim), dtype=np.float32)
            for offset in range(0, len(chunk), block):
                part = chunk[offset : offset + block]
                vectors[offset : offset + block] = compute(part)
                bar.update(len(part))
            cache.write(keys[chunk], vectors)
    # Listed again: where another run has written some of these keys first, its vectors are the ones that all read.
    return cache.shard_paths()


def _missing(table: VectorTable, keys: np.ndarray) -> tuple[np.ndarray, int]:
    """The first position of each key that the table lacks, int64 (m,), and how many distinct keys there are."""
    distinct, first = np.unique(keys, return_index=True)
    return first[~table.contains(distinct)], len(distinct)
