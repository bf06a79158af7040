"""What a teacher is to score: single texts or ordered pairs, named by keys, fetched when it is their turn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import datasets
import numpy as np

from ..data.keys import text_keys
from .score_table import ordered_pair_keys

READ_ROWS = 10_000  # rows read at a time for their keys: some MB of strings


class TextItems(ABC):
    """n items, each a text or an ordered pair of texts; repetitions allowed.

    Attributes:
        unit: what an item is, "texts" or "pairs".
        keys: int64 (n,), `text_keys` of the texts or `ordered_pair_keys` of the pairs.
        lengths: int32 (n,), characters.
    """

    unit: ClassVar[str]
    keys: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    @abstractmethod
    def take(self, positions: np.ndarray) -> list[Any]:
        """The items at `positions`, in that order: strings, or tuples of two.

        Args:
            positions: int (m,), each from 0 to n - 1, repetitions allowed.
        """


class ListedTexts(TextItems):
    """Texts of a list.

    Args:
        texts: non-empty strings.
        name: how errors call them.

    Raises:
        TypeError: if `texts` is one string or holds something else than strings.
        ValueError: for a text without visible characters.
    """

    unit = "texts"

    def __init__(self, texts: Iterable[str], name: str = "texts") -> None:
        if isinstance(texts, str):
            raise TypeError(f"{name} is one string, {texts[:40]!r}; pass a list of strings.")
        self.texts = list(texts)
        check_texts(self.texts, name)
        self.keys, self.lengths = _describe([self.texts])

    def take(self, positions: np.ndarray) -> list[str]:
        return [self.texts[position] for position in positions.tolist()]


class ListedPairs(TextItems):
    """Ordered pairs of two lists of equal length; raises as `ListedTexts`."""

    unit = "pairs"

    def __init__(self, pairs_a: Iterable[str], pairs_b: Iterable[str]) -> None:
        self.first, self.second = ListedTexts(pairs_a, "pairs_a"), ListedTexts(pairs_b, "pairs_b")
        if len(self.first) != len(self.second):
            raise ValueError(
                f"pairs_a has {len(self.first)} texts and pairs_b {len(self.second)}: give one second text for each "
                "first one."
            )
        self.keys = ordered_pair_keys(self.first.keys, self.second.keys)
        self.lengths = self.first.lengths + self.second.lengths

    def take(self, positions: np.ndarray) -> list[tuple[str, str]]:
        return list(zip(self.first.take(positions), self.second.take(positions), strict=True))


class _DatasetItems(TextItems):
    """Items in sections, one behind the other: a section is one data set's column, or two columns read together."""

    def __init__(self, parts: Sequence[datasets.Dataset], column_groups: Sequence[list[str]]) -> None:
        self._sections = [
            part.select_columns(columns).with_format("arrow") for part in parts for columns in column_groups
        ]
        self._ends = np.cumsum([len(section) for section in self._sections], dtype=np.int64)
        total = int(self._ends[-1]) if len(self._ends) else 0
        self.keys, self.lengths = np.empty(total, np.int64), np.empty(total, np.int32)
        done = 0
        for number, section in enumerate(self._sections):
            start = done
            for batch in section.iter(batch_size=READ_ROWS):
                columns = [batch.column(name).to_pylist() for name in section.column_names]
                for name, texts in zip(section.column_names, columns, strict=True):
                    check_texts(texts, f"data set {number // len(column_groups)}, {name}", done - start)
                rows = slice(done, done + len(columns[0]))
                self.keys[rows], self.lengths[rows] = _describe(columns)
                done = rows.stop

    def take(self, positions: np.ndarray) -> list[Any]:
        # In the order they lie on disk, which reads twice as fast as any other (3.5 us a row, measured).
        order = np.argsort(positions, kind="stable")
        ordered = np.asarray(positions, dtype=np.int64)[order]
        result: list[Any] = [None] * len(order)
        bounds = np.searchsorted(ordered, [0, *self._ends])
        starts = [0, *self._ends]
        for section, offset, begin, end in zip(self._sections, starts, bounds, bounds[1:], strict=False):
            if begin == end:
                continue
            table = section[ordered[begin:end] - offset]
            columns = [column.to_pylist() for column in table.columns]
            items = columns[0] if len(columns) == 1 else zip(*columns, strict=True)
            for place, item in zip(order[begin:end].tolist(), items, strict=True):
                result[place] = item
        return result


class DatasetTexts(_DatasetItems):
    """Every text of both columns of pair sets.

    Args:
        parts: data sets with columns text_a, text_b.

    Raises:
        TypeError: if an entry is no string.
        ValueError: for a text without visible characters, or a missing column.
    """

    unit = "texts"

    def __init__(self, parts: Sequence[datasets.Dataset]) -> None:
        super().__init__(parts, [["text_a"], ["text_b"]])


class DatasetPairs(_DatasetItems):
    """Every ordered pair (text_a, text_b) of pair sets; as `DatasetTexts`."""

    unit = "pairs"

    def __init__(self, parts: Sequence[datasets.Dataset]) -> None:
        super().__init__(parts, [["text_a", "text_b"]])


def check_texts(texts: Sequence[Any], name: str, first: int = 0) -> None:
    """Refuse what a teacher cannot read.

    Args:
        texts: to be checked.
        name: how the error calls them.
        first: number of the first of them.

    Raises:
        TypeError: for something else than a string.
        ValueError: for a text without visible characters.
    """
    for number, text in enumerate(texts, start=first):
        if not isinstance(text, str):
            raise TypeError(
                f"{name}[{number}] is {text!r} of type {type(text).__name__}; every text must be a string."
            )
        if not text.strip():
            raise ValueError(
                f"{name}[{number}] is empty ({text!r}); remove such rows first (see flipped_kd.validate_pairs)."
            )


def _describe(columns: Sequence[list[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Keys and lengths of the texts of one column, or of the pairs of two."""
    keys = [text_keys(texts) for texts in columns]
    lengths = [np.fromiter(map(len, texts), dtype=np.int32, count=len(texts)) for texts in columns]
    if len(columns) == 1:
        return keys[0], lengths[0]
    return ordered_pair_keys(*keys), lengths[0] + lengths[1]
