"""Computed rows written as they come, for pipes: nothing is kept, nothing can be resumed."""

from __future__ import annotations

from typing import BinaryIO

import pyarrow as pa

from .table_jobs import Arrange, Compute
from .table_writers import Layout, open_writer
from .text_tables import TextTable, check_names


def stream(
    table: TextTable,
    file: BinaryIO,
    compute: Compute,
    added: pa.Schema,
    *,
    keep_rows: bool = True,
    arrange: Arrange | None = None,
) -> tuple[int, int]:
    """Compute part by part and write JSON Lines as they come, for pipes: nothing is kept, nothing can be resumed.

    With `arrange` all parts are gathered in memory first. Returns how many rows were read, and how many left out.
    """
    writer = open_writer("jsonl", file, Layout(), added, 0)
    parts = [added.empty_table()]
    count = bad = 0
    for chunk in table.chunks():
        count, bad = count + len(chunk.rows), bad + chunk.bad
        if keep_rows:
            rows = chunk.rows
            names = rows.column_names if isinstance(rows, pa.Table) else [name for row in rows for name in row]
            check_names(names, added.names, table.source.name)
        if not len(chunk.rows):
            continue
        if arrange is not None:
            parts.append(compute(chunk))
            continue
        writer.write(chunk.rows if keep_rows else None, compute(chunk))
        file.flush()
    if arrange is not None:
        writer.write(None, arrange(pa.concat_tables(parts)))
    file.flush()
    return count, bad
