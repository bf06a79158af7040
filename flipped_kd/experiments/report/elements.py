"""What a section of the report page is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from .figures import Drawing, Picture

Draw = Callable[[Iterable[Drawing]], list[Picture]]


@dataclass
class Table:
    """Cells as text; `prose` are the columns that hold sentences."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    prose: tuple[int, ...] = ()


@dataclass
class Section:
    """One part of the page, in this order: loud words, words, missing, tables, plots."""

    id: str
    title: str
    words: list[str] = field(default_factory=list)
    loud: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    plots: list[Picture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
