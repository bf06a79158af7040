"""Texts without labels: one a line, or a table's column; labelled pairs are no such."""

from __future__ import annotations

from pathlib import Path

import pytest

from flipped_kd.data.unlabelled import read_texts


def test_lines_and_columns(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("where is my card\n\nä, b\n \n", encoding="utf-8")
    assert read_texts(tmp_path / "lines.txt") == ["where is my card", "ä, b"]
    (tmp_path / "table.csv").write_text('question,id\n"a, b",1\nc,2\n', encoding="utf-8")
    assert read_texts(tmp_path / "table.csv", "question") == ["a, b", "c"]
    (tmp_path / "table.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n', encoding="utf-8")
    assert read_texts(tmp_path / "table.jsonl") == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.txt", None, "does not exist"),
        ("empty.txt", "", "is empty"),
        ("empty.jsonl", "", "is empty"),
        ("empty.csv", "", "is empty"),
        ("blank.txt", "\n \n", "is empty"),
        ("pairs.csv", "text,label\na,1\n", "has a column 'label': labelled pairs are training pairs"),
        ("other.csv", "question\na\n", "no column 'text'.*--unlabelled_column"),
        ("blank.jsonl", '{"text": "a"}\n{"text": " "}\n', "row 1.*--skip_bad_rows True"),
    ],
)
def test_what_is_no_file_of_texts_is_refused(name: str, content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_texts(tmp_path / name)


def test_bad_rows_may_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "table.jsonl").write_text('{"text": "a"}\n{"text": " "}\n', encoding="utf-8")
    assert read_texts(tmp_path / "table.jsonl", skip_bad_rows=True) == ["a"]
