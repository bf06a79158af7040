"""What a matcher is given: pairs and texts in the forms sentence-transformers takes, checked."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import datasets
import numpy as np
from torch import Tensor

from ..utils.checks import is_whole

T = TypeVar("T", bound=Hashable)
Pair: TypeAlias = Sequence[str]
Pairs: TypeAlias = Iterable[Pair] | datasets.Dataset
Texts: TypeAlias = str | Iterable[str]
Embeddings: TypeAlias = np.ndarray | Tensor


def unique(values: Sequence[T]) -> tuple[list[T], list[int]]:
    """The distinct values in order of appearance, and the place of each value among them."""
    places: dict[T, int] = {}
    order = [places.setdefault(value, len(places)) for value in values]
    return list(places), order


def checked_count(name: str, value: int, least: int = 1) -> int:
    """`value` as Python's int; ValueError unless it is a whole number from `least`."""
    if not is_whole(value) or value < least:
        raise ValueError(f"{name}={value!r} must be a whole number from {least}.")
    return int(value)


def _refuse_table(name: str, given: Any) -> None:
    """A table iterates over the names of its columns, which are texts as well."""
    if isinstance(given, datasets.DatasetDict):
        raise TypeError(f"{name} is a DatasetDict: give one of its splits {sorted(given)}.")
    if isinstance(given, Mapping) or hasattr(given, "columns"):
        kind = type(given).__name__
        raise TypeError(
            f"{name} is a {kind}, a table: give its rows, as df[['text_a', 'text_b']].values of a DataFrame (of texts "
            "df['text'].tolist()), or datasets.Dataset.from_dict of columns text_a and text_b."
        )


def _values(name: str, given: Any) -> list[Any]:
    """What an array (NumPy's, Arrow's, pandas') or an iterable holds, as Python values."""
    if not isinstance(given, Iterable):
        raise TypeError(f"{name} is {given!r}: give a list of {'texts' if name != 'pairs' else '(text_a, text_b)'}.")
    for convert in ("to_pylist", "tolist"):
        if hasattr(given, convert):
            found = getattr(given, convert)()
            return found if isinstance(found, list) else [found]
    return list(given)


def text_list(name: str, texts: Texts) -> list[str]:
    """A list of str, checked; one str stands for a list of it, but not where a list of documents is meant."""
    if isinstance(texts, str):
        if name in ("documents", "corpus"):
            raise TypeError(f"{name} must be a list of texts, got one str: {texts[:60]!r}. Put it into a list.")
        return [texts]
    _refuse_table(name, texts)
    listed = _values(name, texts)
    for position, text in enumerate(listed):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{position}] must be a str, got {text!r}. Convert or drop it.")
    return listed


def pair_columns(pairs: Pairs | Pair) -> tuple[list[tuple[str, str]], bool]:
    """Pairs as tuples, checked; and whether it was a single one."""
    if isinstance(pairs, datasets.Dataset):
        missing = {"text_a", "text_b"} - set(pairs.column_names)
        if missing:
            raise ValueError(
                f"the data set has no column {sorted(missing)}, only {pairs.column_names}: rename_column its texts to "
                "text_a and text_b."
            )
        if pairs.format["type"] != "custom":  # a transform belongs to the values, a format does not
            pairs = pairs.with_format(None)
        rows: list[Any] = list(zip(pairs["text_a"], pairs["text_b"], strict=True))
    else:
        if isinstance(pairs, str):
            raise TypeError(f"pairs must be pairs of texts, got one str: {pairs[:60]!r}. Give (text_a, text_b).")
        _refuse_table("pairs", pairs)
        rows = [row.tolist() if hasattr(row, "tolist") else row for row in _values("pairs", pairs)]
    single = len(rows) == 2 and all(isinstance(text, str) for text in rows)
    rows = [tuple(rows)] if single else rows
    for position, row in enumerate(rows):
        if isinstance(row, str) or not isinstance(row, Sequence) or len(row) != 2:
            raise ValueError(f"pairs[{position}] is no pair of texts: {row!r}. Give (text_a, text_b).")
        for text in row:
            if not isinstance(text, str):
                raise TypeError(f"pairs[{position}] must hold two str, got {text!r}. Convert or drop it.")
    return [(row[0], row[1]) for row in rows], single
