"""Texts of a field without labels: from a file with one on each line, or from a column of a table."""

from __future__ import annotations

from pathlib import Path

from .tables import TableSource
from .text_tables import TextTable

ROWS_AT_A_TIME = 10_000


def read_texts(path: str | Path, column: str = "text", label_column: str = "label") -> list[str]:
    """All texts of a file, in memory.

    Args:
        path: plain text with one text on each line (.txt), or a table: JSON Lines, CSV, TSV, Parquet.
        column: of a table, the column of the texts.
        label_column: a column that a file of unlabelled texts must not have.

    Raises:
        ValueError: there is no such file, it is empty, it has labels, or a row holds no text.
    """
    if not Path(path).is_file():
        raise ValueError(f"unlabelled_file={str(path)!r} does not exist: give a file of texts, one on each line.")
    texts: list[str] = []
    table = TextTable(TableSource(str(path)), {"--unlabelled_column": column}, ROWS_AT_A_TIME)
    for chunk in table.chunks():
        names = chunk.rows.column_names if hasattr(chunk.rows, "column_names") else chunk.rows[0]
        if label_column in names:
            raise ValueError(
                f"unlabelled_file={str(path)!r} has a column {label_column!r}: labelled pairs are training pairs; "
                "name them as train_file, or give a file of texts alone."
            )
        texts += chunk.texts[0]
    if not texts:
        raise ValueError(f"unlabelled_file={str(path)!r} is empty: give texts, or leave it out.")
    return texts
