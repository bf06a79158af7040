"""The teacher's scores as training reads them: memory-mapped vectors by text key, or probabilities by pair."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np

from ..data.keys import pair_keys
from .shards import map_shard

SIMILARITY_CHUNK_BYTES = 32 * 2**20
# Any fixed odd number does: it makes the first text of a pair differ from the second, so that the symmetric pair key
# keeps the order.
_FIRST_TEXT = np.int64(0x5851F42D4C957F2D)


def ordered_pair_keys(keys_a: np.ndarray, keys_b: np.ndarray) -> np.ndarray:
    """Keys of ordered pairs: (a, b) and (b, a) differ, as a cross-encoder's scores do.

    Args:
        keys_a: text keys of the first texts, int64 (n,).
        keys_b: text keys of the second texts, int64 (n,).

    Returns:
        int64 (n,).
    """
    return pair_keys(np.asarray(keys_a, dtype=np.int64) ^ _FIRST_TEXT, np.asarray(keys_b, dtype=np.int64))


def gathered(blocks: Sequence[np.ndarray], starts: np.ndarray, rows: np.ndarray, dim: int) -> np.ndarray:
    """The rows of blocks (n_i, dim) that lie one behind the other from `starts` on, copied: float32 (rows, dim)."""
    result = np.empty((len(rows), dim), dtype=np.float32)
    block_of = np.searchsorted(starts, rows, side="right") - 1
    for block in np.unique(block_of):
        chosen = block_of == block
        result[chosen] = blocks[block][rows[chosen] - starts[block]]
    return result


class VectorTable:
    """Read-only vectors by key, memory-mapped from shards.

    Pickling passes the shards' paths only: the receiving process maps the same files, nothing is copied.

    Args:
        paths: shard files, the first to hold a key wins.
        dim: length of a vector.
        keep_alive: temporary folder of the shards, if it must live as long as this object. A pickled copy does not
            keep it alive.
    """

    def __init__(self, paths: Sequence[Path], dim: int, keep_alive: TemporaryDirectory | None = None) -> None:
        self.paths = tuple(Path(path) for path in paths)
        self.dim = dim
        self._keep_alive = keep_alive
        keys, self._vectors = [np.empty(0, dtype=np.int64)], []
        for path in self.paths:
            shard_keys, vectors = map_shard(path)
            keys.append(shard_keys)
            self._vectors.append(vectors)
        self._offsets = np.cumsum([0] + [len(vectors) for vectors in self._vectors])
        # np.unique returns first occurrences, so the oldest shard wins.
        self._keys, self._rows = np.unique(np.concatenate(keys), return_index=True)

    def add(self, path: Path) -> None:
        """Take up one more shard; keys that are known keep their vectors. Copies the index once."""
        shard_keys, vectors = map_shard(path)
        new_keys, rows = np.unique(shard_keys, return_index=True)
        unknown = ~self.contains(new_keys)
        new_keys, rows = new_keys[unknown], rows[unknown]
        places = np.searchsorted(self._keys, new_keys)
        self._keys = np.insert(self._keys, places, new_keys)
        self._rows = np.insert(self._rows, places, rows + self._offsets[-1])
        self._vectors.append(vectors)
        self._offsets = np.append(self._offsets, self._offsets[-1] + len(vectors))
        self.paths = (*self.paths, Path(path))

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths, "dim": self.dim}

    def __setstate__(self, state: dict[str, Any]) -> None:
        VectorTable.__init__(self, state["paths"], state["dim"])

    def __len__(self) -> int:
        return len(self._keys)

    def contains(self, keys: np.ndarray) -> np.ndarray:
        """Which keys have a vector: bool, the shape of `keys`."""
        return self._find(np.asarray(keys, dtype=np.int64))[1]

    def rows(self, keys: np.ndarray) -> np.ndarray:
        """Row numbers of the keys' vectors, counted over all shards.

        Args:
            keys: text keys (`flipped_kd.data.keys.text_keys`), int64 (n,).

        Returns:
            int64 (n,).

        Raises:
            ValueError: if the teacher has not scored one of them.
        """
        keys = np.asarray(keys, dtype=np.int64)
        positions, found = self._find(keys)
        if not found.all():
            first = int(np.flatnonzero(~found)[0])
            raise ValueError(
                f"{int((~found).sum())} of {len(keys)} keys were not scored by the teacher (the first at position "
                f"{first}, key {int(keys[first])}). Every text used must be scored beforehand: pass all splits' texts "
                "to the teacher's embed() (a bi-encoder) or all pairs, in the same order of the two texts, to its "
                "score() (a cross-encoder)."
            )
        return self._rows[positions]

    def vectors(self, keys: np.ndarray) -> np.ndarray:
        """The keys' vectors, copied out of the memory map: float32 (n, dim). Raises ValueError as `rows` does."""
        return gathered(self._vectors, self._offsets, self.rows(keys), self.dim)

    def _find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if len(self._keys) == 0:
            return np.zeros(keys.shape, dtype=np.int64), np.zeros(keys.shape, dtype=bool)
        positions = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return positions, self._keys[positions] == keys


class TeacherEmbeddings(VectorTable):
    """A teacher's L2-normalised vectors by text key; see `VectorTable` for pickling and memory."""

    has_vectors = True

    def similarity(self, keys_a: np.ndarray, keys_b: np.ndarray) -> np.ndarray:
        """Cosines T of paired texts, in chunks, so that a million pairs stay in bounded memory.

        Args:
            keys_a: text keys, int64 (n,).
            keys_b: text keys, int64 (n,).

        Returns:
            float32 (n,) in [-1, 1].

        Raises:
            ValueError: if the lengths differ or a text was not scored.
        """
        keys_a, keys_b = _paired(keys_a, keys_b)
        step = max(1, SIMILARITY_CHUNK_BYTES // (4 * self.dim))
        result = np.empty(len(keys_a), dtype=np.float32)
        for start in range(0, len(keys_a), step):
            part = slice(start, start + step)
            np.einsum("nd,nd->n", self.vectors(keys_a[part]), self.vectors(keys_b[part]), out=result[part])
        return np.clip(result, -1.0, 1.0)


class TeacherPairScores(VectorTable):
    """A teacher's match probabilities by ordered pair of text keys; see `VectorTable`."""

    has_vectors = False

    def probability(self, keys_a: np.ndarray, keys_b: np.ndarray) -> np.ndarray:
        """The model's match probability P of each pair: float32 (n,) in [0, 1]. Raises as `similarity` does."""
        return self.vectors(ordered_pair_keys(*_paired(keys_a, keys_b)))[:, 0]

    def similarity(self, keys_a: np.ndarray, keys_b: np.ndarray) -> np.ndarray:
        """Scores T = 2 P - 1 of paired texts, on the scale of a cosine.

        Args:
            keys_a: text keys of the first texts, int64 (n,).
            keys_b: text keys of the second texts, int64 (n,).

        Returns:
            float32 (n,) in [-1, 1].

        Raises:
            ValueError: if the lengths differ or a pair was not scored in this order.
        """
        return 2.0 * self.probability(keys_a, keys_b) - 1.0


def _paired(keys_a: np.ndarray, keys_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    keys_a, keys_b = np.asarray(keys_a, dtype=np.int64), np.asarray(keys_b, dtype=np.int64)
    if keys_a.shape != keys_b.shape or keys_a.ndim != 1:
        raise ValueError(
            f"keys_a and keys_b must be two rows of equal length, got shapes {keys_a.shape} and {keys_b.shape}."
        )
    return keys_a, keys_b


TeacherScores: TypeAlias = TeacherEmbeddings | TeacherPairScores
