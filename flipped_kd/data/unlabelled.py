"""Texts of a field without labels: from a file with one on each line, or from a column of a table."""

from __future__ import annotations

import itertools
from pathlib import Path

import pyarrow as pa

from .tables import TableSource
from .text_tables import TextTable, tell_of_rows

ROWS_AT_A_TIME = 10_000


def read_unlabelled(
    path: str | Path, column: str = "text", label_column: str = "label", skip_bad_rows: bool = False
) -> list[str]:
    """All texts of a file, in memory.

    Args:
        path: plain text with one text on each line (.txt; blank lines are left out), or a table: JSON Lines, CSV, TSV,
            Parquet.
        column: of a table, the column of the texts.
        label_column: a column that a file of unlabelled texts must not have.
        skip_bad_rows: leave out rows of a table without a text instead of stopping.

    Raises:
        ValueError: there is no such file, it is empty, it has labels, or a row holds no text.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"unlabelled_file={str(path)!r} does not exist: give a file of texts, one on each line.")
    texts = _lines(path) if path.suffix.lower() == ".txt" else _cells(path, column, label_column, skip_bad_rows)
    if not texts:
        raise ValueError(f"unlabelled_file={str(path)!r} is empty: give texts, or leave it out.")
    return texts


def _lines(path: Path) -> list[str]:
    rows = itertools.chain.from_iterable(TableSource(path).batches(ROWS_AT_A_TIME))
    return [row["text"] for row in rows if row["text"].strip()]


def _cells(path: Path, column: str, label_column: str, skip_bad_rows: bool) -> list[str]:
    if path.stat().st_size == 0:
        return []
    texts: list[str] = []
    bad = 0
    table = TextTable(TableSource(str(path)), {"--unlabelled_column": column}, ROWS_AT_A_TIME, skip_bad_rows)
    try:
        for chunk in table.chunks():
            names = chunk.rows.column_names if isinstance(chunk.rows, pa.Table) else set().union(*chunk.rows)
            if label_column in names:
                raise ValueError(
                    f"unlabelled_file={str(path)!r} has a column {label_column!r}: labelled pairs are training pairs; "
                    "name them as train_file, or give a file of texts alone."
                )
            texts += chunk.texts[0]
            bad += chunk.bad
    except ValueError as error:  # told in the words of the recipes' options
        raise ValueError(str(error).replace("--skip-bad-rows", "--skip_bad_rows True")) from error
    tell_of_rows(table, len(texts), bad)
    return texts
