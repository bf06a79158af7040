"""FAQ data: the pairs to train on, and rankings of all questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flipped_kd.data.faq import Faq, faq_pairs, read_faq
from tests.data.faq_example import FAQ, QUESTIONS


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_query_has_its_gold_question_hard_ones_and_others() -> None:
    pairs = faq_pairs(FAQ)
    assert len(pairs) == 15
    for number, (query, gold) in enumerate(zip(FAQ.queries, FAQ.gold, strict=True)):
        rows = pairs.select(range(5 * number, 5 * number + 5))
        assert set(rows["text_a"]) == {query}
        assert rows["label"][:] == [1, 0, 0, 0, 0]
        assert rows["text_b"][0] == QUESTIONS[gold]
        assert len(set(rows["text_b"])) == 5
    assert pairs["text_b"][1] == QUESTIONS["lost"]  # shares "my card"
    assert pairs.to_dict() == faq_pairs(FAQ).to_dict() != faq_pairs(FAQ, seed=4).to_dict()
    assert len(faq_pairs(FAQ, hard=4, random=9)) == 18  # all there are


def test_files_are_read_and_ids_are_texts(tmp_path: Path) -> None:
    questions = write(tmp_path / "questions.jsonl", [{"id": 0, "question": "a b"}, {"id": 1, "question": "c d"}])
    queries = write(tmp_path / "queries.jsonl", [{"query": "a", "question_id": 0}])
    assert read_faq(queries, questions) == Faq(("a",), ("0",), {"0": "a b", "1": "c d"})


@pytest.mark.parametrize(
    ("queries", "questions", "message"),
    [
        ([{"query": "a", "question_id": 9}], [{"id": 0, "question": "a"}, {"id": 1, "question": "b"}], "line 1.*=9"),
        ([{"query": "a"}], [{"id": 0, "question": "a"}, {"id": 1, "question": "b"}], "line 1 has no 'question_id'"),
        ([], [{"id": 0, "question": "a"}, {"id": 0, "question": "b"}], "line 2.*occurs twice"),
        ([], [{"id": 0, "question": "a"}, {"id": 1, "question": " "}], "line 2: ' ' is no text"),
        ([], [{"id": 0, "question": "a"}, {"id": 1, "question": "b"}], "holds no queries"),
        ([], [{"id": 0, "question": "a"}], "holds 1 questions"),
        ([], ["a"], "line 1 has no 'id'"),
    ],
)
def test_bad_files_are_refused_by_line(queries: Any, questions: Any, message: str, tmp_path: Path) -> None:
    files = write(tmp_path / "queries.jsonl", queries), write(tmp_path / "questions.jsonl", questions)
    with pytest.raises(ValueError, match=message):
        read_faq(*files)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="absent.jsonl' does not exist"):
        read_faq(tmp_path / "queries.jsonl", tmp_path / "absent.jsonl")
