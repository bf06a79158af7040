"""FAQ data: the pairs to train on, and rankings of all questions."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from flipped_kd.data.faq import Faq, faq_pairs, read_faq, subset
from tests.cli.helpers import write_rows
from tests.data.faq_example import FAQ, QUESTIONS


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


def test_not_all_queries_are_compared_at_once() -> None:
    """500 queries and 1,000 questions would take 4 MB."""
    questions = {str(number): f"question {number}" for number in range(1000)}
    queries = tuple(f"query {number}" for number in range(500))
    tracemalloc.start()
    faq_pairs(Faq(queries, ("7",) * 500, questions))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e6


def test_files_are_read_and_ids_are_texts(tmp_path: Path) -> None:
    questions = write_rows(tmp_path / "questions.jsonl", [{"id": 0, "question": "a b"}, {"id": 1, "question": "c d"}])
    queries = write_rows(tmp_path / "queries.jsonl", [{"query": "a", "question_id": 0}])
    assert read_faq(queries, questions) == Faq(("a",), ("0",), {"0": "a b", "1": "c d"})


@pytest.mark.parametrize(
    ("queries", "questions", "message"),
    [
        ([{"query": "a", "question_id": 9}], [{"id": 0, "question": "a"}, {"id": 1, "question": "b"}], "line 1.*=9"),
        ([{"query": "a"}], [{"id": 0, "question": "a"}, {"id": 1, "question": "b"}], "line 1 has no 'question_id'"),
        ([], [{"id": 0, "question": "a"}, {"id": 0, "question": "b"}], "line 2.*occurs twice"),
        (
            [],
            [{"id": 0, "question": "a"}, {"id": 1, "question": " "}],
            "line 2: .*'question' is ' '.*not white",
        ),
        ([], [{"id": 0, "question": "a"}, {"id": 1, "question": "b"}], "holds no queries"),
        ([], [{"id": 0, "question": "a"}], "holds 1 questions"),
        ([], ["a"], "line 1 is no JSON object"),
        ([], [{"id": 0, "question": 7}, {"id": 1, "question": "b"}], r"line 1: column 'question' is 7 \(int\)"),
        ([], [{"id": 0, "question": "\ud800"}, {"id": 1, "question": "b"}], "line 1.*without lone surrogates"),
        ([], [{"id": 0, "question": "a"}, {"id": 1, "question": "a"}], "holds 1 questions"),
        ([], [{"id": 0, "question": "a"}, {"id": 1, "question": "a"}, {"id": 1, "question": "b"}], "line 3.*twice"),
    ],
)
def test_bad_files_are_refused_by_line(queries: Any, questions: Any, message: str, tmp_path: Path) -> None:
    files = write_rows(tmp_path / "queries.jsonl", queries), write_rows(tmp_path / "questions.jsonl", questions)
    with pytest.raises(ValueError, match=message):
        read_faq(*files)


def labels_of(pairs: Any) -> dict[tuple[str, str], set[int]]:
    found: dict[tuple[str, str], set[int]] = {}
    for row in pairs:
        found.setdefault((row["text_a"], row["text_b"]), set()).add(row["label"])
    return found


def test_no_pair_is_right_and_wrong(tmp_path: Path) -> None:
    """Neither where a question stands twice under two ids, nor where a query has several right questions."""
    texts = ["where is my card", "where is my card", "my card is lost", "change my PIN", "why the fee"]
    questions = write_rows(
        tmp_path / "questions.jsonl", [{"id": number, "question": text} for number, text in enumerate(texts)]
    )
    asked = [("card", 0), ("my card", 1), ("no card came", 0), ("no card came", 2), ("no card came", 1), ("fee", 4)]
    queries = write_rows(tmp_path / "queries.jsonl", [{"query": query, "question_id": key} for query, key in asked])
    faq = read_faq(queries, questions)
    assert list(faq.questions.values()) == list(dict.fromkeys(texts))
    right = {(query, texts[key]) for query, key in asked}
    every = {(query, text) for query, _ in asked for text in texts}
    for few in (faq, subset(faq, 3, seed=1), Faq(faq.queries, faq.gold, faq.questions | {"9": "why the fee"})):
        labels = labels_of(faq_pairs(few, hard=9))
        kept = {pair for pair in every if pair[0] in few.queries}
        # The right questions of a row that is left out are no pairs, and no wrong ones.
        assert {pair for pair, found in labels.items() if found == {0}} == kept - right
        assert {pair for pair, found in labels.items() if found == {1}} <= right
        assert all(len(found) == 1 for found in labels.values())
    assert {pair for pair, found in labels_of(faq_pairs(faq)).items() if found == {1}} == right


@pytest.mark.parametrize(
    ("query", "likest", "others"),
    [
        ("我的银行卡丢了", "银行卡丢失怎么办", ["如何修改密码", "怎样申请贷款", "为什么收费"]),
        ("カードをなくしました", "カードをなくしたらどうする", ["パスワードを変える", "ローンの申し込み"]),
        ("บัตรของฉันหาย", "ทำบัตรหายต้องทำอย่างไร", ["เปลี่ยนรหัสผ่านอย่างไร", "ขอสินเชื่อ"]),
        ("我的visa卡丢了", "VISA 卡", ["如何修改密码", "怎样申请贷款"]),
        ("c", "C", ["a", "b"]),
        ("?", "??", ["!", "."]),
    ],
)
def test_hard_questions_are_like_the_query_in_every_language(query: str, likest: str, others: list[str]) -> None:
    texts = [*others, likest]
    faq = Faq((query,), ("0",), {str(number): text for number, text in enumerate(texts)})
    assert faq_pairs(faq, hard=1, random=0)["text_b"][:] == [others[0], likest]


@pytest.mark.parametrize("end", ["\u2028", "\x85", "\u2029"])
def test_a_text_may_hold_what_python_takes_for_a_line_end(end: str, tmp_path: Path) -> None:
    rows = [{"id": 0, "question": f"where{end}is it"}, {"id": 1, "question": "b"}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path / "questions.jsonl").write_bytes("\n".join(lines).encode())
    queries = write_rows(tmp_path / "queries.jsonl", [{"query": "a", "question_id": 0}])
    assert read_faq(queries, tmp_path / "questions.jsonl").questions["0"] == f"where{end}is it"


def test_byte_order_marks_and_blank_lines_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").write_text(
        '{"id": 0, "question": "a"}\r\n\n{"id": 1, "question": "b"}\n\n \n', encoding="utf-8-sig"
    )
    (tmp_path / "queries.jsonl").write_text('{"query": "q", "question_id": 1}\n\n', encoding="utf-8-sig")
    faq = read_faq(tmp_path / "queries.jsonl", tmp_path / "questions.jsonl")
    assert faq == Faq(("q",), ("1",), {"0": "a", "1": "b"})
    (tmp_path / "queries.jsonl").write_text('\n{"query": "q", "question_id": 9}\n')
    with pytest.raises(ValueError, match="line 2.*=9"):
        read_faq(tmp_path / "queries.jsonl", tmp_path / "questions.jsonl")


@pytest.mark.parametrize("name", ["questions.jsonl", "queries.jsonl"])
def test_a_file_that_is_not_utf_8_is_named(name: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "questions.jsonl", [{"id": 0, "question": "a"}, {"id": 1, "question": "b"}])
    write_rows(tmp_path / "queries.jsonl", [{"query": "a", "question_id": 0}])
    rows = '{"id": 0, "question": "é"}\n' if name == "questions.jsonl" else '{"query": "é", "question_id": 0}\n'
    (tmp_path / name).write_bytes(rows.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"{name}', line 1 is not JSON in UTF-8"):
        read_faq(tmp_path / "queries.jsonl", tmp_path / "questions.jsonl")


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="absent.jsonl' does not exist"):
        read_faq(tmp_path / "queries.jsonl", tmp_path / "absent.jsonl")
