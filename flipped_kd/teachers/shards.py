"""One file of teacher scores: its bytes, its name, whether it is intact, and how it is written whole or not at all.

A shard is an Arrow IPC file of one record batch with a key column (int64) and a vector column
(fixed_size_list<float32>); its metadata say whose vectors they are. Its name is `part-<stamp>-<digest>.arrow`:

- the stamp, 20 digits, orders shards by the time of writing (see `TeacherCache`);
- the digest is that of the file's bytes: a file that does not match its name is corrupt.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

FORMAT_VERSION = 1
MAX_SHARD_ROWS = 20_000
MAX_SHARD_BYTES = 64 * 2**20
SHARD_NAME = re.compile(r"part-(?P<stamp>\d{20})-(?P<digest>[0-9a-f]{16})\.arrow")
_IDENTITY_KEY = b"flipped_kd"
_WRITE_ATTEMPTS = 4
_SETTLED_NS = 2 * 10**9
# Files whose bytes this process has found to match their names: path, inode, size, time of change.
_found_intact: set[tuple[str, int, int, int]] = set()


@dataclass(frozen=True)
class CacheIdentity:
    """Whose vectors a cache holds; written into the folder and into every shard.

    Attributes:
        kind: what a row is: "embeddings" (a text's L2-normalised vector) or "pair_probabilities" (one match
            probability).
        teacher: the teacher's name, for messages and the folder's name.
        fingerprint: sha256 of the teacher's weights and settings, hexadecimal; or any text that stands for them.
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
        mark = self.fingerprint
        if not re.fullmatch("[0-9a-f]{64}", mark):  # of a teacher of one's own: any text, and many begin alike
            mark = hashlib.sha256(mark.encode()).hexdigest()
        return f"{slug[:80]}-{mark[:16]}"

    @property
    def shard_rows(self) -> int:
        """Rows of a full shard, so that it stays a moderate file and a kill loses little."""
        return max(1, min(MAX_SHARD_ROWS, MAX_SHARD_BYTES // (4 * self.dim)))

    def to_dict(self) -> dict[str, Any]:
        """The metadata as stored: `FORMAT_VERSION`, kind, fingerprint, dim (the name is left out of comparisons)."""
        return {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "fingerprint": self.fingerprint,
            "dim": self.dim,
            "normalised": self.kind == "embeddings",
        }


def shard_name(stamp: int, digest: str) -> str:
    """A shard's file name, matched by `SHARD_NAME`."""
    return f"part-{stamp:020d}-{digest}.arrow"


def shard_bytes(keys: np.ndarray, vectors: np.ndarray, identity: CacheIdentity) -> pa.Buffer:
    """A shard's file.

    Args:
        keys: int64 (n,).
        vectors: float32 (n, dim).
        identity: whose vectors.
    """
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1), type=pa.float32()), identity.dim)
    schema = pa.schema(
        [pa.field("key", pa.int64(), nullable=False), pa.field("vector", column.type, nullable=False)],
        metadata={_IDENTITY_KEY: json.dumps(identity.to_dict())},
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch([pa.array(keys, type=pa.int64()), column], schema=schema))
    return sink.getvalue()


def map_shard(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Keys (copied) and vectors (a view of the memory map) of a shard whose bytes were found intact."""
    # The map outlives its file: a cache of many shards must not use up the process's open files.
    with pa.memory_map(str(path)) as source:
        batch = pa.ipc.open_file(source).get_batch(0)
    keys = np.array(batch.column(0).to_numpy(zero_copy_only=True))
    vectors = batch.column(1).flatten().to_numpy(zero_copy_only=True)
    return keys, vectors.reshape(len(keys), -1)


def stored_identity(path: Path) -> dict[str, Any]:
    """What an intact shard says of whose vectors it holds: `CacheIdentity.to_dict`, {} if it says nothing."""
    with pa.memory_map(str(path)) as source:
        metadata = pa.ipc.open_file(source).schema.metadata or {}
    return json.loads(metadata.get(_IDENTITY_KEY, b"{}"))


def shard_digest(parts: Iterable[bytes | pa.Buffer]) -> str:
    """16 hexadecimal digits over all bytes."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def is_intact(path: Path) -> bool:
    """Whether a file's bytes match its name. A file that has not changed since it was last asked is not read again."""
    status = path.stat()
    facts = (str(path), status.st_ino, status.st_size, status.st_mtime_ns)
    if facts in _found_intact:
        return True
    with open(path, "rb") as file:
        intact = shard_digest(iter(lambda: file.read(2**20), b"")) == path.stem.rpartition("-")[2]
    # The clock of files ticks slowly: one changed just now might change again without showing it.
    if intact and time.time_ns() - status.st_mtime_ns > _SETTLED_NS:
        _found_intact.add(facts)
    return intact


def write_named(folder: Path, data: bytes | pa.Buffer, name: Callable[[], str]) -> Path:
    """As `write_atomically`, to a file whose name is asked for when the bytes are safe, just before the rename."""
    for attempt in range(1, _WRITE_ATTEMPTS + 1):
        temporary = folder / f".tmp-{uuid.uuid4().hex}"
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            path = folder / name()
            os.replace(temporary, path)
            return path
        except FileNotFoundError:
            # Another run, whose clock is ahead, may have taken the temporary for one left by a kill.
            if attempt == _WRITE_ATTEMPTS or not folder.is_dir():
                raise
        finally:
            with suppress(OSError):  # not to hide the error that is on its way
                temporary.unlink(missing_ok=True)
    raise AssertionError("the last attempt returns or raises")
