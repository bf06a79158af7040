"""The teacher's vectors on disk: written once, memory-mapped ever after.

A cache is a folder `<teacher id>-<first 16 hex digits of the fingerprint>` of Arrow IPC files ("shards"), each a key
column (int64) and a vector column (fixed_size_list<float32>), and one JSON file that says whose vectors they are.

- A shard is written whole to a temporary name and renamed, so a kill loses at most the shard in the making.
- A shard's file name carries a hash of its bytes; a file that does not match it is corrupt, is reported by name, and
  its texts are scored anew.
- Shard names start with the time of writing and the first writer of a key wins: vectors once read do not change,
  although other batches would give other last bits.
- Several processes may write at once: names are unique and renames atomic; keys written twice are harmless.
- At load only the sorted keys and their row numbers are in memory (16 bytes a text); vectors stay in the memory map.
"""

import errno
import hashlib
import json
import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm.auto import tqdm

from .teacher_scores import VectorTable

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
METADATA_NAME = "teacher_cache.json"
SHARD_METADATA_KEY = b"flipped_kd"
MAX_SHARD_ROWS = 20_000
MAX_SHARD_BYTES = 64 * 2**20
STALE_TEMPORARY_SECONDS = 24 * 3600


@dataclass(frozen=True)
class CacheIdentity:
    """Whose vectors a cache holds; written into the folder and into every shard.

    Attributes:
        kind: what a row is: "embeddings" (a text's L2-normalised vector) or "pair_probabilities" (one match
            probability).
        teacher: the teacher's name, for messages and the folder's name.
        fingerprint: sha256 of the teacher's weights and settings, hexadecimal.
        dim: length of a vector.
    """

    kind: str
    teacher: str
    fingerprint: str
    dim: int

    @property
    def folder_name(self) -> str:
        """Name of the cache folder inside the user's cache directory."""
        slug = re.sub(r"[^A-Za-z0-9._-]+", "--", self.teacher).strip("-.") or "teacher"
        return f"{slug[:80]}-{self.fingerprint[:16]}"

    def to_dict(self) -> dict[str, Any]:
        """The metadata as stored: `FORMAT_VERSION`, kind, fingerprint, dim (the name is left out of comparisons)."""
        return {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "fingerprint": self.fingerprint,
            "dim": self.dim,
            "normalised": self.kind == "embeddings",
        }


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
            try:
                intact = _file_digest(path) == path.stem.rpartition("-")[2]
                stored = _shard_metadata(path) if intact else {}
            except FileNotFoundError:
                continue  # another process found it corrupt and removed it first
            if not intact:
                logger.warning(
                    "Teacher cache: %s is corrupt (its bytes do not match its name); its texts are scored again.", path
                )
                self._remove(path)
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
            write_durably(self.folder / METADATA_NAME, (json.dumps(metadata, indent=2) + "\n").encode())
            for path in self.folder.glob(".tmp-*"):
                with suppress(FileNotFoundError):  # its writer may be renaming it just now
                    if time.time() - path.stat().st_mtime > STALE_TEMPORARY_SECONDS:
                        path.unlink()

    def write(self, keys: np.ndarray, vectors: np.ndarray) -> Path:
        """Write one shard.

        Args:
            keys: int64 (n,).
            vectors: float32 (n, dim).

        Returns:
            The shard's path.

        Raises:
            OSError: naming the folder and the remedy.
        """
        data = _serialise(keys, vectors, self.identity)
        path = self.folder / f"part-{time.time_ns():020d}-{_digest([data])}.arrow"
        with _clear_write_error(self.folder):
            write_durably(path, data)
        return path

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
    def _remove(path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            # A cache that is only read goes on without the shard; one that must be written fails with a clear error in
            # prepare().
            logger.warning("Teacher cache: %s could not be removed (%s) and is ignored.", path, error)


def write_durably(path: Path, data: bytes | pa.Buffer) -> None:
    """Write `data` beside `path`, flush it to the disk, then rename: `path` is whole even after a power cut."""
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
    distinct, first = np.unique(keys, return_index=True)
    missing = first[~VectorTable(paths, cache.identity.dim).contains(distinct)]
    logger.info(
        "Teacher cache %s: %d distinct %s, %d found, %d to score.",
        cache.folder, len(distinct), description, len(distinct) - len(missing), len(missing),
    )  # fmt: skip
    if len(missing) == 0:
        return paths
    cache.prepare()
    # Equal lengths are ordered by key, so that the batches, and with them the last bits, do not depend on the order of
    # the texts.
    missing = missing[np.lexsort((keys[missing], -lengths[missing]))]
    shard_rows = max(1, min(MAX_SHARD_ROWS, MAX_SHARD_BYTES // (4 * cache.identity.dim)))
    with tqdm(total=len(missing), desc="teacher", unit=" " + description, disable=not show_progress) as bar:
        for start in range(0, len(missing), shard_rows):
            chunk = missing[start : start + shard_rows]
            vectors = np.empty((len(chunk), cache.identity.dim), dtype=np.float32)
            for offset in range(0, len(chunk), block):
                part = chunk[offset : offset + block]
                vectors[offset : offset + block] = compute(part)
                bar.update(len(part))
            paths.append(cache.write(keys[chunk], vectors))
    return paths


def _digest(parts: Iterable[bytes | pa.Buffer]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return _digest(iter(lambda: file.read(2**20), b""))


def _serialise(keys: np.ndarray, vectors: np.ndarray, identity: CacheIdentity) -> pa.Buffer:
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1), type=pa.float32()), identity.dim)
    schema = pa.schema(
        [pa.field("key", pa.int64(), nullable=False), pa.field("vector", column.type, nullable=False)],
        metadata={SHARD_METADATA_KEY: json.dumps(identity.to_dict())},
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch([pa.array(keys, type=pa.int64()), column], schema=schema))
    return sink.getvalue()


def _shard_metadata(path: Path) -> dict[str, Any]:
    with pa.memory_map(str(path)) as source:
        metadata = pa.ipc.open_file(source).schema.metadata or {}
    return json.loads(metadata.get(SHARD_METADATA_KEY, b"{}"))


@contextmanager
def _clear_write_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            error.errno or errno.EIO,
            f"the teacher cache cannot be written ({reason}). It needs a writable directory with free space: "
            "make room there, or choose another directory with cache_dir",
            str(folder),
        ) from error
