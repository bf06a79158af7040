"""Markdown: text as code, whatever it holds, and tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def code(text: object) -> str:
    """Inline code, also inside a table; line breaks become spaces."""
    shown = " ".join(str(text).split("\n")).replace("|", "\\|")
    fence = "`" * (1 + _longest_run(shown))
    pad = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def fenced(text: str, language: str = "") -> str:
    """A code block, without the line breaks at the text's end."""
    body = text.rstrip("\n")
    fence = "`" * max(3, 1 + _longest_run(body))
    return f"{fence}{language}\n{body}\n{fence}"


def _longest_run(text: str) -> int:
    """Length of the longest run of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)


def table(heads: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; cells stand as they are, so that whatever a user has named goes through `code` first.

    Args:
        heads: one for each column.
        rows: each with as many cells.

    Raises:
        ValueError: a row has another number of cells.
    """
    lines = [_line(heads), "|" + "---|" * len(heads)]
    for row in rows:
        if len(row) != len(heads):
            raise ValueError(f"{len(row)} cells under {len(heads)} heads: {list(row)}.")
        lines.append(_line(row))
    return "\n".join(lines)


def _line(cells: Sequence[object]) -> str:
    return "|" + "|".join(f" {cell} " if str(cell) else " " for cell in cells) + "|"
