"""Training pairs that come as a stream (`datasets.IterableDataset`): each row is checked when it comes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import datasets
from torch.utils.data import get_worker_info

from .validation import PairColumns, check_columns, label_of, row_fault


def validate_stream(
    dataset: datasets.IterableDataset, columns: PairColumns | Mapping[str, str] | None = None, name: str = "train"
) -> datasets.IterableDataset:
    """Hold a stream to the rules of `validate_pairs`, row by row.

    What needs all rows is not checked: that both classes occur, and that there are enough pairs for a batch.

    Args:
        dataset: rows with two texts and a label.
        columns: as in `validate_pairs`.
        name: how errors call the set.

    Returns:
        A stream of text_a, text_b (str), label (0 or 1) and row (the row's number from 0 on, among those of
        its data-loader worker), in the same order.

    Raises:
        ValueError: a column is missing, where the stream knows its columns; else, and for a bad row, while the stream
            is read: the error names row, value and remedy.
    """
    names = PairColumns.of(columns)
    dataset = dataset.with_format(None)  # Python's values, not a framework's
    if dataset.column_names is not None:
        check_columns(dataset.column_names, names, name)

    # Chosen at the end: a stream may not know its columns.
    return dataset.map(partial(_checked, names=names, name=name), with_indices=True).select_columns(
        ["text_a", "text_b", "label", "row"]
    )


# Not within the function above: workers that are not forked get it pickled.
def _checked(row: dict[str, Any], number: int, *, names: PairColumns, name: str) -> dict[str, Any]:
    """The pair of a row; ValueError for a bad one."""
    fault = row_fault(row, names, None)
    if fault is not None:
        worker = get_worker_info()
        part = "" if worker is None else f" of those that data-loader worker {worker.id} reads"
        raise ValueError(
            f"{name}: row {number}{part} (the first is row 0): {fault}: correct it, or filter the stream "
            "(IterableDataset.filter) before you give it."
        )
    texts = {role: row[getattr(names, role)] for role in ("text_a", "text_b")}
    return {**texts, "label": label_of(row[names.label], None), "row": number}
