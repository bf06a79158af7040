"""The texts of a table file: checked, cut into parts of a fixed number of rows, each part with a digest."""

from __future__ import annotations

import hashlib
import itertools
import logging
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa

from .table_writers import SURROGATE, Layout, field_text
from .tables import Rows, TableSource, column_values, select_rows, separator_hint
from .validation import text_fault

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chunk:
    """The rows of one part.

    Attributes:
        number: which part it is, from 0.
        rows: the rows, without bad ones.
        texts: their texts by column.
        ids: what names each row: its number in the file (the first is 0), or the value of the id column as text.
        bad: how many rows were left out.
    """

    number: int
    rows: Rows
    texts: tuple[list[str], ...]
    ids: list[int] | list[str]
    bad: int

    @cached_property
    def digest(self) -> str:
        """Digest of texts and ids, hexadecimal."""
        return columns_digest(*self.texts, map(str, self.ids))


def columns_digest(*columns: Iterable[str]) -> str:
    """BLAKE2b of columns of strings, each with its length, hexadecimal."""
    digest = hashlib.blake2b(digest_size=16)
    for column in columns:
        texts = list(column)
        digest.update(len(texts).to_bytes(8, "little"))
        for text in texts:
            data = text.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)
    return digest.hexdigest()


class TextTable:
    """A table file, and the columns of it that are read as texts.

    Args:
        source: the file.
        columns: names of the text columns, by the option that sets them (for messages).
        part_rows: rows of a part.
        skip_bad_rows: leave out rows without proper texts instead of stopping.
        id_column: (option that sets it, name) of a column whose values name the rows; by default their numbers do.

    Raises:
        ValueError: a column is missing or named twice, or part_rows is not positive.
    """

    def __init__(
        self,
        source: TableSource,
        columns: Mapping[str, str],
        part_rows: int,
        skip_bad_rows: bool = False,
        id_column: tuple[str, str] | None = None,
    ) -> None:
        if part_rows < 1:
            raise ValueError(f"part_rows={part_rows}: a part needs at least one row.")
        if len(set(columns.values())) < len(columns):
            raise ValueError(f"{' and '.join(columns)} name the same column: give each one of its own.")
        self.source = source
        self.columns = dict(columns)
        self.part_rows = part_rows
        self.skip_bad_rows = skip_bad_rows
        self.id_column = id_column
        if source.columns is not None:
            self._check_columns(source.columns)

    def chunks(self) -> Iterator[Chunk]:
        """The parts in order.

        Raises:
            ValueError: a text is none (see `validation.text_fault`) or an id no Unicode, and bad rows are not to be
                skipped; or the file cannot be read.
        """
        present: dict[str, None] = {}  # columns of the rows so far, where no header says them, in their order
        named = False  # whether the id column is known to be there
        for number, rows in enumerate(self.source.batches(self.part_rows)):
            if not isinstance(rows, pa.Table) and self.source.columns is None:
                present.update(dict.fromkeys(name for row in rows for name in row))
            try:
                texts = [column_values(rows, column) for column in self.columns.values()]
            except UnicodeDecodeError as error:
                raise ValueError(f"{self.source.name!r} holds a text that is not UTF-8: convert it.") from error
            ids = self._ids(rows, number * self.part_rows)
            faults = [self._fault(values, id) for *values, id in zip(*texts, ids, strict=True)]
            bad = len(faults) - faults.count(None)
            if bad and not self.skip_bad_rows:
                if present:
                    self._check_columns(present)
                row, fault = next((row, fault) for row, fault in enumerate(faults) if fault is not None)
                raise ValueError(
                    f"{self.source.name!r}, row {number * self.part_rows + row} (the first is row 0): {fault}: "
                    "correct it, or leave such rows out with --skip-bad-rows."
                )
            if bad < len(rows) and present and not named and self.id_column is not None:
                self._check_columns(present, [self.id_column])  # before any work; bad rows may lack it
                named = True
            if bad:
                keep = [fault is None for fault in faults]
                rows = select_rows(rows, keep)
                texts = [list(itertools.compress(column, keep)) for column in texts]
                ids = list(itertools.compress(ids, keep))
            yield Chunk(number, rows, tuple(texts), ids, bad)
        # At the end only: a row may lack what the others have, the first one too, and is then a bad row.
        if present:
            self._check_columns(present)

    def _ids(self, rows: Rows, first: int) -> list[Any]:
        if self.id_column is None:
            return list(range(first, first + len(rows)))
        found = column_values(rows, self.id_column[1])
        return [value if value is None or isinstance(value, str) else field_text(value) for value in found]

    def _fault(self, values: Sequence[Any], id: int | str | None) -> str | None:
        """What is wrong with a row's texts, or else with what names it."""
        faults = map(text_fault, values, self.columns.values())
        fault = next((fault for fault in faults if fault is not None), None)
        if fault is None and self.id_column is not None and (id is None or not str(id).strip()):
            return f"column {self.id_column[1]!r} is empty: rows without an id could not be told apart"
        if fault is None and self.id_column is not None and SURROGATE.search(str(id)):
            # No answer and no result could hold it, which are UTF-8.
            shown = reprlib.repr(id)
            return f"column {self.id_column[1]!r} is {shown}, but an id must be Unicode without lone surrogates"
        return fault

    def _check_columns(
        self, present: Sequence[str] | Mapping[str, Any], needed: Sequence[tuple[str, str]] | None = None
    ) -> None:
        """Refuse a file without one of the needed columns, given by option; by default all of them."""
        if needed is None:
            needed = [*self.columns.items(), *([self.id_column] if self.id_column else [])]
        if not present:
            raise ValueError(f"{self.source.name!r} is empty: a table needs a header line and at least one row.")
        for option, column in needed:
            if column not in present:
                raise ValueError(
                    f"{self.source.name!r} has no column {column!r}; its columns are {sorted(present)}: name the "
                    f"right one with {option}.{separator_hint(present)}"
                )


def read_texts(
    path: str, column: tuple[str, str], id_column: tuple[str, str] | None = None, skip_bad_rows: bool = False
) -> tuple[list[str], list[Any]]:
    """All texts of a table with their ids, in memory; a column is given as (option that sets it, name).

    Raises:
        ValueError: as `TextTable.chunks`; or the file is none that can be read.
    """
    table = TextTable(TableSource(path), dict([column]), 10_000, skip_bad_rows, id_column)
    texts: list[str] = []
    ids: list[Any] = []
    bad = 0
    for chunk in table.chunks():
        texts += chunk.texts[0]
        ids += chunk.ids
        bad += chunk.bad
    tell_of_rows(table, len(texts), bad)
    return texts, ids


def tell_of_rows(table: TextTable, rows: int, bad: int) -> None:
    """Warn of bad rows that were left out, and of a table without rows."""
    if bad:
        logger.warning("%s: %d bad rows are left out", table.source.name, bad)
    if not rows:
        logger.warning("%s holds no rows", table.source.name)


@dataclass
class Scan:
    """What a first pass over a table found: its rows, how many of them were left out, its columns and digest."""

    layout: Layout
    rows: int = 0
    bad: int = 0
    digests: list[str] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """One digest of all texts and of how they are cut into parts."""
        return hashlib.blake2b("".join(self.digests).encode(), digest_size=16).hexdigest()


def scan(table: TextTable, reserved: Sequence[str], keep_rows: bool = True, converts: bool = False) -> Scan:
    """Read a whole table once, so that whatever is wrong with it is known before any work.

    Args:
        table: the table.
        reserved: names that its columns must not have where they are kept.
        keep_rows: whether its rows are written too.
        converts: whether they are written in another format than Parquet.

    Raises:
        ValueError: as `TextTable.chunks`; a column has a reserved name, or a value that cannot be written.
    """
    found = Scan(Layout(table.source if keep_rows else None))
    for chunk in table.chunks():
        if keep_rows:
            found.layout.see(chunk.rows)
            if converts and isinstance(chunk.rows, pa.Table):
                _check_values(chunk.rows, table.source.name)
        found.rows += len(chunk.rows)
        found.bad += chunk.bad
        found.digests.append(chunk.digest)
    check_names(found.layout.names, reserved, table.source.name)
    return found


def _check_values(rows: pa.Table, where: str) -> None:
    """Refuse values of Parquet that Python cannot hold, such as days beyond the year 9999."""
    for name, column in zip(rows.column_names, rows.columns, strict=True):
        try:
            column.to_pylist()
        except (ValueError, OverflowError, pa.ArrowException) as error:
            raise ValueError(
                f"{where!r}, column {name!r} has a value that can be written as Parquet only ({error}): name a "
                ".parquet file by --output, or leave the column out."
            ) from error


def check_names(names: Sequence[str], reserved: Sequence[str], where: str) -> None:
    """Refuse columns that would be overwritten."""
    taken = [name for name in reserved if name in names]
    if taken:
        raise ValueError(
            f"{where!r} already has a column {taken[0]!r}: have the new columns called otherwise with --column-prefix."
        )
