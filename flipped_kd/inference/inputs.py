"""What a matcher is given: pairs and texts in the forms sentence-transformers takes, checked."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import datasets
import numpy as np
from torch import Tensor

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


def check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r} must be a whole number from 1.")


def _refuse_table(name: str, given: Any) -> None:
    """A table iterates over the names of its columns, which are texts as well."""
    if isinstance(given, Mapping) or hasattr(given, "columns"):
        kind = type(given).__name__
        raise TypeError(
            f"{name} is a {kind}, a table: give its rows, as df[['text_a', 'text_b']].values of a DataFrame (of texts "
            "df['text'].tolist()), or datasets.Dataset.from_dict of columns text_a and text_b."
        )


def text_list(name: str, texts: Texts) -> list[str]:
    """A list of str, checked; one str stands for a list of it, but not where a list of documents is meant."""
    if isinstance(texts, str):
        if name in ("documents", "corpus"):
            raise TypeError(f"{name} must be a list of texts, got one str: {texts[:60]!r}. Put it into a list.")
        return [texts]
    _refuse_table(name, texts)
    listed = list(texts)
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
        rows: list[Any] = list(zip(pairs["text_a"], pairs["text_b"], strict=True))
    else:
        _refuse_table("pairs", pairs)
        rows = pairs.tolist() if isinstance(pairs, np.ndarray) else list(pairs)
    single = len(rows) == 2 and all(isinstance(text, str) for text in rows)
    rows = [tuple(rows)] if single else rows
    for position, row in enumerate(rows):
        if isinstance(row, str) or not isinstance(row, Sequence) or len(row) != 2:
            raise ValueError(f"pairs[{position}] is no pair of texts: {row!r}. Give (text_a, text_b).")
        for text in row:
            if not isinstance(text, str):
                raise TypeError(f"pairs[{position}] must hold two str, got {text!r}. Convert or drop it.")
    return [(row[0], row[1]) for row in rows], single
