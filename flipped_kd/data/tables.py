"""Tables in files, read in batches of rows: JSON Lines, CSV, TSV, Parquet, plain text. `table_writers` writes them.

Memory is bounded by a batch, whatever the size of the file (a JSON array and a single Parquet row group are read
whole). Nothing is guessed: JSON values keep their types, CSV values are text, so "NA" and "007" stay what they are.
"""

from __future__ import annotations

import csv
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

STANDARD = "-"  # the name of standard input and standard output
READABLE = {
    **{".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"},
    **{".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".txt": "text"},
}

# Some rows of a table: as Arrow where they come from Parquet, else as Python values.
Rows: TypeAlias = list[dict[str, Any]] | pa.Table


def format_of(path: Path | str, formats: Mapping[str, str]) -> str:
    """The format that the ending of a file's name says; "-" is JSON Lines.

    Raises:
        ValueError: the ending is none of `formats`.
    """
    if str(path) == STANDARD:
        return "jsonl"
    suffix = Path(path).suffix.lower()
    if suffix not in formats:
        raise ValueError(
            f"{str(path)!r} has the ending {suffix!r}: give a name that ends in one of {sorted(formats)}."
        )
    return formats[suffix]


class TableSource:
    """A table file to read, as often as one likes; standard input only once.

    Args:
        path: the file, or "-" for JSON Lines from standard input.

    Attributes:
        name: what messages call it.
        columns: its column names, where a header or a schema says them (CSV, TSV, Parquet, text).
        schema: its Arrow schema, of a Parquet file.

    Raises:
        ValueError: there is no such file, its ending is unknown, or its header cannot be read.
    """

    def __init__(self, path: Path | str) -> None:
        self.format = format_of(path, READABLE)
        self.path = Path(path)
        self.is_standard = str(path) == STANDARD
        self.name = "standard input" if self.is_standard else self.path.name
        self.columns: list[str] | None = None
        self.schema: pa.Schema | None = None
        if self.is_standard:
            return
        if not self.path.is_file():
            if self.path.is_fifo():
                raise ValueError(f"{str(path)!r} is a pipe: give it on standard input, with - as the name.")
            what = "is a folder" if self.path.is_dir() else "does not exist"
            raise ValueError(f"{str(path)!r} {what}: give a file that ends in one of {sorted(READABLE)}.")
        if self.format == "csv":
            self.columns = next(csv_records(self.path))
        elif self.format == "text":
            self.columns = ["text"]
        elif self.format == "parquet":
            with self._parquet() as file:
                self.schema = file.schema_arrow
                self.columns = list(self.schema.names)
        if self.columns is not None and len(set(self.columns)) < len(self.columns):
            raise ValueError(f"{self.name!r} names a column twice in {self.columns}: rename one.")

    def batches(self, size: int) -> Iterator[Rows]:
        """The rows in order, `size` at a time; the last batch may be shorter.

        Raises:
            ValueError: the file is not what its ending says; the message names the line.
        """
        if self.format == "parquet":
            yield from self._tables(size)
            return
        if self.is_standard:
            rows = json_lines(standard_input(), self.name)
        else:
            rows = {"jsonl": json_rows, "csv": _csv_rows, "text": _text_rows}[self.format](self.path)
        while batch := list(itertools.islice(rows, size)):
            yield batch

    def _parquet(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.path)
        except (pa.ArrowException, OSError) as error:
            self._refuse(error)
            raise

    def _refuse(self, error: Exception) -> None:
        """Raise ValueError for what is wrong with a Parquet file: errors of the disk have a number, it has none."""
        if getattr(error, "errno", None) is None:
            raise ValueError(f"{self.name!r} cannot be read as Parquet: {error}") from error

    def _tables(self, size: int) -> Iterator[pa.Table]:
        pending: list[pa.RecordBatch] = []
        with self._parquet() as file:
            try:
                for batch in file.iter_batches(batch_size=size):
                    pending.append(batch)
                    if sum(map(len, pending)) >= size:
                        table = pa.Table.from_batches(pending)
                        yield table.slice(0, size)
                        pending = table.slice(size).to_batches()
            except (pa.ArrowException, OSError) as error:
                self._refuse(error)
                raise
        if pending:
            yield pa.Table.from_batches(pending)


def standard_input() -> BinaryIO:
    """The bytes of standard input; ValueError where it is closed."""
    if sys.stdin is None:
        raise ValueError("standard input is closed: give the table as a file.")
    return sys.stdin.buffer


def json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON Lines file, line by line, or of a JSON array, which is read whole.

    Raises:
        ValueError: a line or the array is no JSON, or an item no object.
    """
    with open(path, "rb") as file:
        is_array = file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
        file.seek(0)
        if not is_array:
            yield from json_lines(file, path.name)
            return
        try:
            items = json.load(file)
        except ValueError as error:
            raise ValueError(f"{path.name!r} is not JSON in UTF-8: fix it ({error})") from None
    for number, item in enumerate(items, start=1):
        yield _object(item, f"{path.name!r}, element {number}")


def json_lines(lines: Iterable[bytes], name: str) -> Iterator[dict[str, Any]]:
    """The objects of JSON Lines; blank lines are skipped. Raises ValueError naming the line that is no object."""
    return (item for _, item in numbered_json_lines(lines, name))


def numbered_json_lines(lines: Iterable[bytes], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """As `json_lines`, each object with the number of its line, from 1 on."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{name!r}, line {number} is not JSON in UTF-8: fix it ({error})") from None
        yield number, _object(item, f"{name!r}, line {number}")


def _object(item: Any, place: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise ValueError(f"{place} is no JSON object: write one object for each row")
    return item


def csv_separator(path: Path) -> str:
    """What separates the fields: a tab in .tsv files, else a comma."""
    return "\t" if path.suffix.lower() == ".tsv" else ","


def separator_hint(columns: Iterable[str]) -> str:
    """A sentence for those who miss a column: the only one may be several, separated as spreadsheets do in Europe."""
    names = list(columns)
    found = [mark for mark in (";", "\t", "|") if len(names) == 1 and mark in names[0]]
    return f" Its fields seem to be separated by {found[0]!r}: save it with commas (tabs in a .tsv)." if found else ""


def csv_records(path: Path, separator: str | None = None, encoding: str = "utf-8-sig") -> Iterator[list[str]]:
    """The header of a CSV or TSV file, then its records, each with as many fields; blank lines are skipped.

    By default the separator is that of `csv_separator`, and the text UTF-8 with or without a byte order mark.
    ValueError: it is not in this encoding, or a record has more or fewer fields than the header.
    """
    csv.field_size_limit(2**31 - 1)  # the default refuses texts of more than 131,072 characters
    records, used = None, encoding.upper().removesuffix("-SIG")
    try:
        with open(path, encoding=encoding, newline="") as file:
            # Strict: an open quote would take the lines that follow into its text.
            records = csv.reader(file, delimiter=separator or csv_separator(path), strict=True)
            header = next(filter(None, records), [])
            yield header
            for record in records:
                if record and len(record) != len(header):
                    raise ValueError(
                        f"the record that ends on line {records.line_num} has {len(record)} fields and the header "
                        f'{len(header)}: put texts that contain the separator, quotes or line ends in "quotes"'
                    )
                if record:
                    yield record
    except UnicodeDecodeError as error:
        where = _undecodable(path, error)
        raise ValueError(f"{path.name!r} cannot be read as CSV in {used}: save it as {used} ({where})") from error
    except csv.Error as error:
        place = "" if records is None else f", line {records.line_num}"
        raise ValueError(f"{path.name!r}{place} cannot be read as CSV in {used}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path.name!r} cannot be read as CSV in {used}: {error}") from error


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    records = csv_records(path)
    header = next(records)
    for record in records:
        yield dict(zip(header, record, strict=True))


def _text_rows(path: Path) -> Iterator[dict[str, Any]]:
    # Not `splitlines`, which would cut texts at U+2028, U+0085 and form feeds.
    try:
        with open(path, encoding="utf-8-sig") as file:
            for line in file:
                yield {"text": line.rstrip("\n")}
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name!r} is not UTF-8: convert it ({_undecodable(path, error)})") from error


def _undecodable(path: Path, error: UnicodeDecodeError) -> str:
    """What is wrong with a text file's bytes, and on which line: the error itself counts from some chunk's start."""
    if error.encoding != "utf-8":
        return str(error)
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as found:
                return f"line {number} holds the byte 0x{line[found.start]:02x} ({found.reason})"
    return str(error)


def column_values(rows: Rows, column: str) -> list[Any]:
    """The values of one column; None where a row lacks it."""
    return rows.column(column).to_pylist() if isinstance(rows, pa.Table) else [row.get(column) for row in rows]


def select_rows(rows: Rows, keep: Sequence[bool]) -> Rows:
    """The rows where `keep` is true."""
    if not isinstance(rows, pa.Table):
        return list(itertools.compress(rows, keep))
    try:
        return rows.filter(pa.array(keep, pa.bool_()))
    except pa.ArrowNotImplementedError:  # views, such as those of polars; they can be sliced
        return pa.concat_tables([rows.slice(0, 0), *(rows.slice(row, 1) for row, kept in enumerate(keep) if kept)])
