"""rank gives what the matcher gives."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from flipped_kd.inference.matcher import FlippedMatcher
from tests.cli.helpers import (
    NEAR,
    quietly,
    read_rows,
    write_rows,
)


def test_rank_is_the_matchers(
    adapter: Path, matcher: FlippedMatcher, documents: list[dict[str, str]], tmp_path: Path, capsys
) -> None:
    source = write_rows(tmp_path / "documents.jsonl", documents)
    texts = [row["text"] for row in documents]
    query = "where is my card"
    assert quietly("rank", adapter, query, source, "--part-rows", 7) == 0
    found = read_rows(capsys.readouterr().out)
    expected = matcher.rank(query, texts, return_documents=True)
    assert [row["corpus_id"] for row in found] == [row["corpus_id"] for row in expected]
    assert [row["text"] for row in found] == [row["text"] for row in expected]
    np.testing.assert_allclose([row["score"] for row in found], [row["score"] for row in expected], **NEAR)
    assert len(found) == len(texts) > 20
    flags = ("--top-k", 3, "--score", "answer", "--id-column", "key")
    assert quietly("rank", adapter, query, source, "-o", tmp_path / "out.csv", *flags) == 0
    best = matcher.rank(query, texts, 3, score="answer")
    with open(tmp_path / "out.csv", newline="") as file:
        assert [row["corpus_id"] for row in csv.DictReader(file)] == [f"doc-{row['corpus_id']}" for row in best]
