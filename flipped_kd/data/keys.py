"""64-bit keys of texts and pairs: what is known of them is looked up without holding their strings."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

_BATCH = 10_000  # rows of a dataset read at a time
_CELLS = 1 << 20  # cells of a batch compared at a time: bounds temporary memory to some 50 MB


def text_keys(texts: Sequence[str]) -> np.ndarray:
    """Name each of n texts by a 64-bit key: the 8-byte BLAKE2b digest of its UTF-8 bytes, little-endian int64 (n,).

    Equal texts have equal keys on every machine and in every run; texts are compared as they are (no Unicode or case
    folding). Among n distinct texts some two share a key with probability about n^2 / 2^65: 3e-8 for a million texts.
    Lone surrogates are encoded with ``surrogatepass``. TypeError: one string in the place of a list, or no string in
    it.
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


def _mix(values: Tensor) -> Tensor:
    """The finalizer of SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64 bits that spreads every one."""
    values = (values ^ _shifted(values, 30)) * _signed(0xBF58476D1CE4E5B9)
    values = (values ^ _shifted(values, 27)) * _signed(0x94D049BB133111EB)
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """`values >> bits` of unsigned numbers: int64, the only 64-bit type that every device computes with, copies the
    sign in from the left."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number


def pair_keys_of(keys_a: Tensor, keys_b: Tensor) -> Tensor:
    """`pair_keys` of tensors on any device: int64, of the broadcast shape."""
    low, high = torch.minimum(keys_a, keys_b), torch.maximum(keys_a, keys_b)
    return _mix(_mix(low + _signed(0x9E3779B97F4A7C15)) + high)


def pair_keys(keys_a: np.ndarray, keys_b: np.ndarray) -> np.ndarray:
    """Name each unordered pair of texts by one 64-bit key: (a, b) and (b, a) have the same key.

    The smaller key is mixed, the larger added, and the sum mixed again, all modulo 2^64. For a fixed smaller key this
    is a bijection of the larger one; otherwise two pairs collide as random keys do (see `text_keys`). The keys are
    broadcast. TypeError: they are not int64.
    """
    for name, keys in (("keys_a", keys_a), ("keys_b", keys_b)):
        if np.asarray(keys).dtype != np.int64:
            raise TypeError(f"{name} has dtype {np.asarray(keys).dtype}; keys are int64: make them with text_keys")
    return pair_keys_of(*(torch.from_numpy(np.array(keys)) for keys in (keys_a, keys_b))).numpy()


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
    from (a, b) and (b, c) nothing follows for (a, c). Texts are told by their keys, never by their vectors: dropout
    makes those of one text differ.

    Holds one sorted int64 tensor, 8 bytes a positive pair, which moves to the device of the keys it is asked about.

    Args:
        positive_keys: int64 (p,), pair keys (see `pair_keys`) of the positive pairs, in any order.
    """

    def __init__(self, positive_keys: np.ndarray | Tensor) -> None:
        self.positive_keys = torch.as_tensor(positive_keys, dtype=torch.int64).sort().values

    @classmethod
    def from_pairs(cls, dataset: Dataset) -> "KnownMatches":
        """Collect the positive pairs of a checked pair set (see `validate_pairs`)."""
        keys_a, keys_b = dataset_keys(dataset)
        labels = np.asarray(dataset.with_format("numpy")["label"][:])
        positive = labels == 1
        return cls(np.unique(pair_keys(keys_a[positive], keys_b[positive])))

    @classmethod
    def of_batch(cls, keys_a: Tensor, keys_b: Tensor, labels: Tensor) -> "KnownMatches":
        """The positive pairs of one batch of N pairs, where the whole set is not known (a stream): all (N,)."""
        # The largest key stands for "no positive": a mask would give a shape that the host must wait for.
        return cls(torch.where(labels == 1, pair_keys_of(keys_a, keys_b), torch.iinfo(torch.int64).max))

    def __len__(self) -> int:
        return len(self.positive_keys)

    def __call__(self, keys_a: Tensor, keys_b: Tensor) -> Tensor:
        """Compare every text a_i with every text b_j.

        Args:
            keys_a: int64 text keys, shape (n,).
            keys_b: int64 text keys, shape (m,), on the same device.

        Returns:
            bool tensor of shape (n, m), True where a_i and b_j are known to match.
        """
        known = keys_a[:, None] == keys_b[None, :]
        if len(self) == 0 or len(keys_b) == 0:
            return known
        self.positive_keys = self.positive_keys.to(keys_a.device)
        rows = max(1, _CELLS // len(keys_b))
        for start in range(0, len(keys_a), rows):
            pairs = pair_keys_of(keys_a[start : start + rows, None], keys_b[None, :])
            places = torch.searchsorted(self.positive_keys, pairs).clamp(max=len(self) - 1)
            known[start : start + rows] |= self.positive_keys[places] == pairs
        return known


@dataclasses.dataclass(frozen=True)
class SharedTexts:
    """What two splits share.

    Attributes:
        first: name of a split.
        second: name of the other.
        count: distinct texts that occur in both.
        example: one of them.
        pairs: distinct pairs that occur in both, in either order.
    """

    first: str
    second: str
    count: int
    example: str
    pairs: int

    def __str__(self) -> str:
        texts = f"{self.count} texts, such as {self.example!r},"
        return f"{self.first} and {self.second} share {texts} and {self.pairs} pairs"


def shared_texts(**splits: Dataset) -> list[SharedTexts]:
    """Find texts and pairs that occur in more than one split: pairs are a leak from training into the test.

    Texts are compared exactly; paraphrases and other spellings are not found.

    Args:
        **splits: Checked pair sets by name, such as ``shared_texts(train=train, test=test)``.

    Returns:
        One entry for each two splits that share texts; an empty list if none do.
    """
    keys_of = {name: dataset_keys(split) for name, split in splits.items()}
    texts = {name: np.unique(np.concatenate(keys), return_index=True) for name, keys in keys_of.items()}
    pairs = {name: np.unique(pair_keys(*keys)) for name, keys in keys_of.items()}
    names, found = list(splits), []
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            common = np.intersect1d(texts[first][0], texts[second][0], assume_unique=True)
            if len(common):
                # Places count through text_a, then through text_b.
                keys, places = texts[first]
                column, row = divmod(int(places[np.searchsorted(keys, common[0])]), len(splits[first]))
                example = splits[first][row][("text_a", "text_b")[column]]
                both = len(np.intersect1d(pairs[first], pairs[second], assume_unique=True))
                found.append(SharedTexts(first, second, len(common), example, both))
    return found
