"""Tables written to files, batch by batch: JSON Lines, CSV, TSV, Parquet, NumPy.

What `tables` has read is written unchanged, with columns added:

- Parquet to Parquet keeps the schema.
- JSON to Parquet: a column whose values have one plain type (bool, int, float, str; null anywhere) gets it; any other
  column is written as JSON text, every value of it. A key that a row lacks counts as null.
- In CSV null is an empty field, and what is neither text nor a number is JSON.
"""

from __future__ import annotations

import base64
import csv
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from datetime import date, datetime, time
from io import TextIOWrapper
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..utils.json_files import finite
from .tables import Rows, TableSource

WRITABLE = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
# Rows or bytes that are gathered into one row group of a Parquet file.
ROW_GROUP_ROWS = 65_536
ROW_GROUP_BYTES = 64 * 2**20
SURROGATE = re.compile("[\ud800-\udfff]")
MAX_EXACT = 2**53  # integers up to here are exact as float64


class Layout:
    """The columns that a writer needs to know before the first row, learned by a first pass over the rows.

    Args:
        source: where the rows come from, or None where rows made here are written with no columns but their own.
    """

    def __init__(self, source: TableSource | None = None) -> None:
        self.schema = None if source is None else source.schema
        self._kinds: dict[str, set[str]] = {
            name: set() for name in (source.columns if source is not None and source.columns else [])
        }

    @property
    def names(self) -> list[str]:
        """The columns, in order of appearance."""
        return list(self._kinds)

    def see(self, rows: Rows) -> None:
        """Take note of some rows. Raises ValueError for a column name that is no Unicode."""
        if isinstance(rows, pa.Table):
            return  # the schema says it all
        for row in rows:
            for name, value in row.items():
                if name not in self._kinds and SURROGATE.search(name):
                    raise ValueError(f"column {name!r} has a name with lone surrogates: rename it.")
                self._kinds.setdefault(name, set()).add(_kind(value))

    def arrow_schema(self) -> pa.Schema:
        """The columns' Arrow types; string for those that are written as JSON text."""
        if self.schema is not None:
            return self.schema
        return pa.schema([(name, _arrow_type(kinds) or pa.string()) for name, kinds in self._kinds.items()])

    def json_columns(self) -> set[str]:
        """The columns whose values have no one plain type."""
        return {name for name, kinds in self._kinds.items() if _arrow_type(kinds) is None}


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if abs(value) <= MAX_EXACT else "long" if -(2**63) <= value < 2**63 else "other"
    if isinstance(value, float):
        return "float"
    return "str" if isinstance(value, str) and not SURROGATE.search(value) else "other"


def _arrow_type(kinds: set[str]) -> pa.DataType | None:
    """The type that holds values of all these kinds, null apart; None if there is none."""
    for covered, kind in (
        ({"str"}, pa.string()),  # also of nothing but null
        ({"bool"}, pa.bool_()),
        ({"int", "long"}, pa.int64()),
        ({"int", "float"}, pa.float64()),
    ):
        if kinds - {"null"} <= covered:
            return kind
    return None


class TableWriter(ABC):
    """Writes rows into a binary file, which stays open."""

    @abstractmethod
    def write(self, rows: Rows | None, added: pa.Table) -> None:
        """Write `rows`, each with its row of `added`; without rows, `added` alone."""

    def close(self) -> None:
        """Write what is left, and what follows the last row; here nothing."""
        return

    def abandon(self) -> None:
        """Leave the file as it is, half-written; here nothing is held."""
        return


class JsonLinesWriter(TableWriter):
    """Writes one JSON object a line, in UTF-8."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, rows: Rows | None, added: pa.Table) -> None:
        # JSON has no NaN and no infinity, which Parquet may bring; where a JSON file has them, they are kept.
        of_parquet = isinstance(rows, pa.Table)
        for row in _merged(rows, added):
            self._file.write(json_text(finite(row) if of_parquet else row).encode("utf-8") + b"\n")


class CsvWriter(TableWriter):
    """Writes CSV or TSV with a header, in UTF-8."""

    def __init__(self, file: BinaryIO, names: Sequence[str], separator: str) -> None:
        self._names = names
        self._text = TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        self._plain = csv.writer(self._text, delimiter=separator, lineterminator="\n")
        # A lone carriage return ends a record unless it is quoted, which csv does not do by itself.
        self._quoted = csv.writer(self._text, delimiter=separator, lineterminator="\n", quoting=csv.QUOTE_ALL)
        self._write(list(names))

    def _write(self, fields: list[str]) -> None:
        (self._quoted if any("\r" in field for field in fields) else self._plain).writerow(fields)

    def write(self, rows: Rows | None, added: pa.Table) -> None:
        for row in _merged(rows, added):
            self._write([field_text(row.get(name)) for name in self._names])

    def close(self) -> None:
        self._text.detach()

    abandon = close


class ParquetWriter(TableWriter):
    """Writes Parquet in row groups of some tens of thousands of rows."""

    def __init__(self, file: BinaryIO, layout: Layout, added: pa.Schema) -> None:
        self._rows_schema = layout.arrow_schema()
        self._json_columns = layout.json_columns()
        self._schema = pa.schema([*self._rows_schema, *added], metadata=self._rows_schema.metadata)
        self._writer = pq.ParquetWriter(file, self._schema)
        self._pending: list[pa.Table] = []

    def write(self, rows: Rows | None, added: pa.Table) -> None:
        table = self._as_table([{}] * len(added) if rows is None else rows)
        self._pending.append(pa.Table.from_arrays([*table.columns, *added.columns], schema=self._schema))
        if sum(map(len, self._pending)) >= ROW_GROUP_ROWS or sum(t.nbytes for t in self._pending) >= ROW_GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def abandon(self) -> None:
        self._writer.is_open = False  # or it writes its footer when it is collected, into a closed file

    def _as_table(self, rows: Rows) -> pa.Table:
        if isinstance(rows, pa.Table):
            return rows
        columns = []
        for field in self._rows_schema:
            values = [row.get(field.name) for row in rows]
            if field.name in self._json_columns:
                values = [value if value is None else json_text(value) for value in values]
            columns.append(pa.array(values, field.type))
        return pa.Table.from_arrays(columns, schema=self._rows_schema)

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(pa.concat_tables(self._pending))
            self._pending = []


class NumpyWriter(TableWriter):
    """Writes one column of vectors as an array (rows, dimension) of float32 that `numpy.load` can map into memory."""

    def __init__(self, file: BinaryIO, rows: int, dimension: int) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, dimension)}
        np.lib.format.write_array_header_1_0(file, header)
        self._file = file

    def write(self, rows: Rows | None, added: pa.Table) -> None:
        """Write the only column of `added`; the rows are left out."""
        self._file.write(_vectors(added.column(0)).astype("<f4").tobytes())


def open_writer(format: str, file: BinaryIO, layout: Layout, added: pa.Schema, rows: int) -> TableWriter:
    """A writer of rows with `layout` and the columns `added` into a binary file.

    Args:
        format: "jsonl", "csv", "tsv", "parquet" or "npy".
        file: opened for writing; stays open.
        layout: the columns of the rows.
        added: the columns that are added to them.
        rows: how many rows there will be (asked by "npy").
    """
    if format == "jsonl":
        return JsonLinesWriter(file)
    if format == "parquet":
        return ParquetWriter(file, layout, added)
    if format == "npy":
        return NumpyWriter(file, rows, added.field(0).type.list_size)
    return CsvWriter(file, [*layout.names, *added.names], "\t" if format == "tsv" else ",")


def json_text(value: Any) -> str:
    """JSON of a value, also of what Parquet brings: times in ISO form, bytes in base64, decimals as text."""
    text = json.dumps(value, ensure_ascii=False, default=_plain)
    # UTF-8 cannot hold lone surrogates, JSON's escapes can.
    return json.dumps(value, default=_plain) if SURROGATE.search(text) else text


def _plain(value: Any) -> Any:
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else str(value)


def field_text(value: Any) -> str:
    """A value as a CSV field."""
    if value is None:
        return ""
    if isinstance(value, str) and not SURROGATE.search(value):
        return value
    return json_text(value) if isinstance(value, str | bool | int | float | list | dict) else str(_plain(value))


def _merged(rows: Rows | None, added: pa.Table) -> Iterator[dict[str, Any]]:
    extra = _records(added)
    if rows is None:
        yield from extra
        return
    for row, more in zip(rows.to_pylist() if isinstance(rows, pa.Table) else rows, extra, strict=True):
        yield row | more


def _records(table: pa.Table) -> list[dict[str, Any]]:
    columns = [
        # The shortest decimals that give the same float32 back.
        [[float(number) for number in vector] for vector in _vectors(column).astype(str)]
        if pa.types.is_fixed_size_list(column.type)
        else column.to_pylist()
        for column in table.columns
    ]
    return [dict(zip(table.column_names, values, strict=True)) for values in zip(*columns, strict=True)]


def _vectors(column: pa.ChunkedArray) -> np.ndarray:
    """(rows, dimension) of a column of fixed-size lists of float32."""
    values = column.combine_chunks()
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], column.type)
    return values.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)
