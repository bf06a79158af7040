"""What is shown as code ends where it should, whatever it holds."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flipped_kd.utils.markdown import code, fenced, table

TICKS = st.text(alphabet="`a|\n ", max_size=12)


@given(TICKS)
def test_a_block_holds_its_text(text: str) -> None:
    fence, *body, end = fenced(text).split("\n")
    assert "\n".join(body) == text.rstrip("\n")
    assert fence == end and fence not in text


@given(TICKS.filter(str.strip))
def test_inline_code_holds_its_text(text: str) -> None:
    shown = code(text)
    ticks = re.match("`+", shown)
    assert ticks and shown.endswith(ticks[0]) and "\n" not in shown
    inside = shown[len(ticks[0]) : -len(ticks[0])]
    assert len(ticks[0]) not in map(len, re.findall("`+", inside))
    assert inside.strip().replace("\\|", "|") == text.replace("\n", " ").strip()
    assert not re.search(r"(?<!\\)\|", shown)  # would end a table's cell


def test_a_table_has_a_line_for_each_row_and_no_other_shape() -> None:
    assert table(["", "F1"], [["teacher", 0.5], ["llm", ""]]).splitlines() == [
        "| | F1 |",
        "|---|---|",
        "| teacher | 0.5 |",
        "| llm | |",
    ]
    with pytest.raises(ValueError, match=r"1 cells under 2 heads: \['a'\]"):
        table(["x", "y"], [["a"]])
