"""The teacher's scores of a streamed training set: texts are scored when a batch brings them, in the main process.

New scores wait in a bounded buffer and become a shard of the cache when it is full, and before each checkpoint. A run
that is resumed reads from disk what the interrupted one had read, and scores the rest anew in the same batches: only
whole batches are written, so both have the same last bits. (Where two processes score one text in different batches,
they go on with their own result, and after a resume with the one written first: equal but for last bits.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .base import Teacher, checked_scores
from .cache import TeacherCache, scoring_order
from .score_table import VectorTable, gathered


class StreamedScores:
    """Looks up scores in the cache, computes those it lacks, and keeps them.

    Memory: the buffer, at most one shard and one batch; and 16 bytes for each text (pair) of the cache.

    Args:
        teacher: the teacher.
        cache_dir: directory of teacher caches, shared with other runs.
        batch_size: texts (pairs) a forward of the teacher.

    Raises:
        ValueError: the folder is another teacher's.
        OSError: the folder cannot be written.
    """

    def __init__(self, teacher: Teacher, cache_dir: str | Path, batch_size: int) -> None:
        self.teacher = teacher
        self.batch_size = batch_size
        self.cache = TeacherCache(Path(cache_dir), teacher.identity)
        self.cache.prepare()
        self.table = VectorTable(self.cache.shard_paths(), self.cache.identity.dim)
        self._keys: list[np.ndarray] = []
        self._values: list[np.ndarray] = []

    @property
    def waiting(self) -> int:
        """How many scores are in the buffer."""
        return sum(map(len, self._keys))

    def look_up(self, keys: np.ndarray, items: list[Any]) -> np.ndarray:
        """Scores of one batch's items, each distinct one computed once.

        Args:
            keys: int64 (n,), of the texts; of the ordered pairs for a teacher without vectors.
            items: the n texts or pairs themselves.

        Returns:
            float32 (n, dim): unit vectors, or match probabilities with dim 1.

        Raises:
            ValueError: as `Teacher.embed`.
            OSError: the buffer is full and the folder cannot be written; what was there stays whole.
        """
        result = np.empty((len(keys), self.cache.identity.dim), dtype=np.float32)
        stored = self.table.contains(keys)
        result[stored] = self.table.vectors(keys[stored])
        rest = np.flatnonzero(~stored)
        if not len(rest):
            return result
        self._compute(keys[rest], [items[place] for place in rest.tolist()])
        result[rest] = self._from_buffer(keys[rest])
        if self.waiting >= self.cache.identity.shard_rows:
            self.flush()
        return result

    def _from_buffer(self, keys: np.ndarray) -> np.ndarray:
        waiting = np.concatenate(self._keys)
        order = np.argsort(waiting)
        rows = order[np.searchsorted(waiting, keys, sorter=order)]
        starts = np.cumsum([0] + [len(block) for block in self._keys])
        return gathered(self._values, starts, rows, self.cache.identity.dim)

    def _compute(self, keys: np.ndarray, items: list[Any]) -> None:
        """Put into the buffer what neither it nor the cache has."""
        distinct, first = np.unique(keys, return_index=True)
        if self._keys:
            first = first[~np.isin(distinct, np.concatenate(self._keys))]
        if not len(first):
            return
        new = (items[place] for place in first.tolist())
        lengths = np.array([len(item) if isinstance(item, str) else sum(map(len, item)) for item in new])
        first = first[scoring_order(keys[first], lengths)]
        chosen = [items[place] for place in first.tolist()]
        self._values.append(checked_scores(self.teacher, chosen, self.batch_size))
        self._keys.append(keys[first])

    def flush(self) -> None:
        """Write the buffer as a shard; afterwards everything looked up so far is on the disk."""
        if not self._keys:
            return
        path = self.cache.write(np.concatenate(self._keys), np.concatenate(self._values))
        self.table.add(path)
        self._keys, self._values = [], []
