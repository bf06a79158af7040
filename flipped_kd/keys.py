"""Name texts and pairs by 64-bit keys: to look up what is known of them without holding their strings.

- `text_keys`, `pair_keys`: the keys; the same on every machine and in every run.
- `KnownMatches`: which texts of a batch are known to match.
- `shared_texts`: texts that occur in two splits.
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
from datasets import Dataset

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_BATCH = 10_000  # rows of a dataset read at a time
_CELLS = 1 << 20  # cells of a batch compared at a time: bounds temporary memory to some 50 MB


def text_keys(texts: Sequence[str]) -> np.ndarray:
    """Name each text by a 64-bit key: the 8-byte BLAKE2b digest of its UTF-8 bytes, read as a little-endian int64.

    Equal texts have equal keys on every machine and in every run; texts are compared as they are (no Unicode or case
    folding). Among n distinct texts some two share a key with probability about n^2 / 2^65: 3e-8 for a million texts.
    Lone surrogates, which Python strings can hold and UTF-8 cannot, are encoded with ``surrogatepass``.

    Args:
        texts: n strings.

    Returns:
        int64 array of shape (n,).

    Raises:
        TypeError: If `texts` is a single string, or an entry is not a string.
    """
    if isinstance(texts, str):
        raise TypeError(f"texts is one string ({texts[:40]!r}), not a sequence of strings: pass [text]")
    try:
        digests = [hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts]
    except AttributeError:
        row, value = next((i, text) for i, text in enumerate(texts) if not isinstance(text, str))
        raise TypeError(
            f"texts[{row}] is {value!r} of type {type(value).__name__}; only strings have keys: drop or convert it"
        ) from None
    return np.frombuffer(b"".join(digests), dtype="<i8").astype(np.int64)


def _mix(values: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea, Flood 2014): a bijection of uint64 that spreads every bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def pair_keys(keys_a: np.ndarray, keys_b: np.ndarray) -> np.ndarray:
    """Name each unordered pair of texts by one 64-bit key: (a, b) and (b, a) have the same key.

    The smaller key is mixed, the larger added, and the sum mixed again, all modulo 2^64. For a fixed smaller key this
    is a bijection of the larger one; otherwise two pairs collide as random keys do (see `text_keys`).

    Args:
        keys_a: int64 text keys; any shape.
        keys_b: int64 text keys; broadcast against `keys_a`.

    Returns:
        int64 array of the broadcast shape.

    Raises:
        TypeError: If the keys are not int64.
    """
    for name, keys in (("keys_a", keys_a), ("keys_b", keys_b)):
        if np.asarray(keys).dtype != np.int64:
            raise TypeError(f"{name} has dtype {np.asarray(keys).dtype}; keys are int64: make them with text_keys")
    low = np.minimum(keys_a, keys_b)
    high = np.maximum(keys_a, keys_b)
    # Views keep the bits; arrays (never scalars) wrap around silently in uint64, as intended.
    low, high = np.atleast_1d(low).view(np.uint64), np.atleast_1d(high).view(np.uint64)
    mixed = _mix(_mix(low + _GOLDEN) + high)
    return mixed.view(np.int64).reshape(np.broadcast_shapes(np.shape(keys_a), np.shape(keys_b)))


def dataset_keys(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Text keys of both columns of a pair set, read in batches.

    Args:
        dataset: n pairs with columns ``text_a`` and ``text_b``.

    Returns:
        Two int64 arrays of shape (n,): the keys of ``text_a`` and of ``text_b``.
    """
    arrow = dataset.with_format("arrow")
    keys_a, keys_b = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for batch in arrow.iter(batch_size=_BATCH):
        keys_a.append(text_keys(batch.column("text_a").to_pylist()))
        keys_b.append(text_keys(batch.column("text_b").to_pylist()))
    return np.concatenate(keys_a), np.concatenate(keys_b)


class KnownMatches:
    """Which texts are known to match: the same text, or a positive pair of the dataset in either order.

    Off the diagonal of a batch such a cell is not a true negative, so the losses drop it. Matches are not inferred:
    from (a, b) and (b, c) nothing follows for (a, c).

    Holds one sorted int64 array (8 bytes a positive pair), so it pickles into data-loader workers cheaply.

    Args:
        positive_keys: int64 array of shape (p,), pair keys (see `pair_keys`) of the positive pairs, in any order.
    """

    def __init__(self, positive_keys: np.ndarray) -> None:
        self.positive_keys = np.unique(np.asarray(positive_keys, dtype=np.int64))

    @classmethod
    def from_pairs(cls, dataset: Dataset) -> "KnownMatches":
        """Collect the positive pairs of a checked pair set (see `validate_pairs`)."""
        keys_a, keys_b = dataset_keys(dataset)
        labels = np.asarray(dataset.with_format("numpy")["label"][:])
        positive = labels == 1
        return cls(pair_keys(keys_a[positive], keys_b[positive]))

    def __len__(self) -> int:
        return len(self.positive_keys)

    def __call__(self, keys_a: np.ndarray, keys_b: np.ndarray) -> np.ndarray:
        """Compare every text a_i with every text b_j.

        Args:
            keys_a: int64 text keys, shape (n,).
            keys_b: int64 text keys, shape (m,).

        Returns:
            bool array of shape (n, m), True where a_i and b_j are known to match.
        """
        keys_a, keys_b = np.asarray(keys_a), np.asarray(keys_b)
        known = keys_a[:, None] == keys_b[None, :]
        if len(self.positive_keys) == 0 or len(keys_b) == 0:
            return known
        rows = max(1, _CELLS // len(keys_b))
        for start in range(0, len(keys_a), rows):
            pairs = pair_keys(keys_a[start : start + rows, None], keys_b[None, :])
            places = np.minimum(np.searchsorted(self.positive_keys, pairs), len(self.positive_keys) - 1)
            known[start : start + rows] |= self.positive_keys[places] == pairs
        return known


@dataclasses.dataclass(frozen=True)
class SharedTexts:
    """Texts that occur in two splits: the names of the splits, how many distinct texts, and one of them."""

    first: str
    second: str
    count: int
    example: str


def shared_texts(**splits: Dataset) -> list[SharedTexts]:
    """Find texts that occur in more than one split, in either column: a leak from training into the test.

    Texts are compared exactly; paraphrases and other spellings are not found.

    Args:
        **splits: Checked pair sets by name, such as ``shared_texts(train=train, test=test)``.

    Returns:
        One entry for each two splits that share texts; an empty list if none do.
    """
    texts = {name: np.unique(np.concatenate(dataset_keys(split)), return_index=True) for name, split in splits.items()}
    names, found = list(splits), []
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            common = np.intersect1d(texts[first][0], texts[second][0], assume_unique=True)
            if len(common):
                # Places count through text_a, then through text_b.
                keys, places = texts[first]
                column, row = divmod(int(places[np.searchsorted(keys, common[0])]), len(splits[first]))
                example = splits[first][row][("text_a", "text_b")[column]]
                found.append(SharedTexts(first, second, len(common), example))
    return found
