"""Text as code in Markdown, whatever it holds."""

from __future__ import annotations

import re


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
