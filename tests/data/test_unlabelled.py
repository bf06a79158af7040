"""Texts without labels: one a line, or a table's column; labelled pairs are no such."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flipped_kd.data.unlabelled import read_unlabelled


def test_lines_and_columns(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("where is my card\n\nä, b\n \n", encoding="utf-8")
    assert read_unlabelled(tmp_path / "lines.txt") == ["where is my card", "ä, b"]
    (tmp_path / "table.csv").write_text('question,id\n"a, b",1\nc,2\n', encoding="utf-8")
    assert read_unlabelled(tmp_path / "table.csv", "question") == ["a, b", "c"]
    (tmp_path / "table.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n', encoding="utf-8")
    assert read_unlabelled(tmp_path / "table.jsonl") == ["a", "b"]


@pytest.mark.parametrize("end", ["\u2028", "\x85", "\u2029", "\x0b", "\x0c", "\x1c"])
@pytest.mark.parametrize("name", ["texts.txt", "texts.TXT", "texts.jsonl"])
def test_texts_are_cut_at_line_ends_only(name: str, end: str, tmp_path: Path) -> None:
    texts = [f"where{end}is it", "b"]
    lines = texts if name.lower().endswith("txt") else [json.dumps({"text": text}) for text in texts]
    (tmp_path / name).write_text("\n".join(lines) + "\n\n", encoding="utf-8-sig")
    assert read_unlabelled(tmp_path / name) == texts


def test_rows_may_lack_the_text(tmp_path: Path) -> None:
    path = tmp_path / "table.jsonl"
    path.write_text('{"id": 1}\n{"text": "b"}\n')
    assert read_unlabelled(path, skip_bad_rows=True) == ["b"]
    path.write_text('{"text": "b"}\n{"text": "c", "label": 1}\n')
    with pytest.raises(ValueError, match="has a column 'label'"):
        read_unlabelled(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("latin.txt", "é\n".encode("latin-1"), "latin.txt' is not UTF-8"),
        ("every.jsonl", '{"text": " "}\n{"text": " "}\n', "row 0.*--skip_bad_rows True"),
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
def test_what_is_no_file_of_texts_is_refused(
    name: str, content: str | bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read_unlabelled(tmp_path / name)


def test_bad_rows_may_be_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "table.jsonl").write_text('{"text": "a"}\n{"text": " "}\n', encoding="utf-8")
    assert read_unlabelled(tmp_path / "table.jsonl", skip_bad_rows=True) == ["a"]
    assert caplog.messages == ["table.jsonl: 1 bad rows are left out"]
    (tmp_path / "table.jsonl").write_text('{"text": " "}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="is empty"):
        read_unlabelled(tmp_path / "table.jsonl", skip_bad_rows=True)
