"""The prose of a Markdown page, and how easily it reads."""

from __future__ import annotations

import re

import textstat

# Stands for a code span: a word of one syllable, as a name in code is read at a glance.
NAME = "code"


def prose(page: str) -> list[str]:
    """The paragraphs and list items of a page, without headings, tables, code, formulas, images and links' targets."""
    text = re.sub(r"^(`{3,})[^\n]*\n.*?^\1$", "\n\n", page, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)|https?://\S+", NAME, text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->|<[^>\n]+>", "", text, flags=re.DOTALL)
    text = re.sub(r"^(#.*|[ \t]*\|.*|:::.*|---)$", "\n", text, flags=re.MULTILINE)
    text = re.sub(r"^\s*(?:[-*]|\d+\.) ", "\n\n", text, flags=re.MULTILINE)  # each item is a paragraph of its own
    text = re.sub(r"[*_\\]", "", text)
    text = re.sub(r"(?<=\d)[.,](?=\d)|(?<!\w)\.(?=\d)", "", text)  # no full stop: 0.5, .85
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return [part for part in paragraphs if re.search(r"\w", part)]


def sentences(page: str) -> list[str]:
    """The sentences of a page's prose. A list item or a paragraph ends one, with a full stop or without."""
    return [
        sentence.strip()
        for paragraph in prose(page)
        for sentence in re.split(r"(?<=[.!?])[\")]*\s+(?=\S)", paragraph)
        if re.search(r"\w", sentence)
    ]


def words(sentence: str) -> int:
    """How many words a sentence has; a name in code is one, signs are none."""
    return len(re.findall(r"[^\s]*\w[^\s]*", sentence))


def reading_ease(page: str) -> float:
    """Flesch's reading ease of the prose: 60 to 70 is plain English, below 50 is hard."""
    return float(textstat.flesch_reading_ease("\n".join(sentence.rstrip(".") + "." for sentence in sentences(page))))
