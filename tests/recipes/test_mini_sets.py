"""The embedded sets of medicine, FAQ and Chinese: what their scripts build, nothing in two splits, true labels."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import build_faq_mini
import build_med_mini
import build_zh_mini
import mini_texts
import pytest
import yaml

DATA = Path(__file__).parents[2] / "recipes" / "data"
BUILDERS: dict[str, Any] = {"faq": build_faq_mini, "med": build_med_mini, "zh": build_zh_mini}
SPLITS = ("train", "validation", "test")


def rows_of(name: str, split: str) -> list[dict[str, Any]]:
    lines = (DATA / f"{name}_mini" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("name", BUILDERS)
def test_committed_files_are_what_the_builder_builds(name: str, tmp_path: Path) -> None:
    builder = BUILDERS[name]
    assert builder.main(["--check"]) == 0
    assert {path.stem for path in (DATA / f"{name}_mini").iterdir()} == set(builder.build())
    assert builder.build(seed=1) != builder.build(seed=0) == builder.build(seed=0)
    assert sum(path.stat().st_size for path in (DATA / f"{name}_mini").iterdir()) < 700_000
    assert builder.main(["--output_dir", str(tmp_path), "--check"]) == 1


def med_names(kind: str) -> dict[str, str]:
    """What each lay (article) phrase of the medicine set names."""
    content = yaml.safe_load(build_med_mini.TOPICS_FILE.read_text(encoding="utf-8"))
    said = [
        (text.lower(), name)
        for part in ("exposures", "outcomes")
        for name, words in content[part].items()
        for text in words[kind]
    ]
    assert len(dict(said)) == len(said)  # a phrase names one thing
    return dict(said)


def test_medicine_is_half_matches_and_its_topics_are_in_one_split() -> None:
    lay, article = med_names("lay"), med_names("article")
    asked: dict[str, set[frozenset[str]]] = {}
    for split in SPLITS:
        rows = rows_of("med", split)
        assert len(rows) == build_med_mini.PAIRS_PER_SPLIT[split]
        assert sum(row["label"] for row in rows) == len(rows) // 2
        assert len({(row["text_a"], row["text_b"]) for row in rows}) == len(rows)
        asked[split] = set()
        for row in rows:
            topic = found(row["text_a"], lay)
            assert len(topic) == 2, row
            asked[split].add(topic)
            if row["label"]:
                assert topic <= found(row["text_b"], article), row
    assert not asked["train"] & asked["validation"] and not asked["train"] & asked["test"]
    assert not asked["validation"] & asked["test"]


def found(text: str, names: dict[str, str]) -> frozenset[str]:
    """What a text names; a phrase within a longer one that it holds does not count."""
    lower = f" {text.lower().replace('?', ' ').replace(':', ' ').replace(',', ' ')} "
    phrases = [phrase for phrase in names if f" {phrase} " in lower]
    for phrase in sorted(phrases, key=len, reverse=True):
        if f" {phrase} " in lower:
            lower = lower.replace(f" {phrase} ", f" {'#' * len(phrase)} ")
        else:
            phrases.remove(phrase)
    return frozenset(names[phrase] for phrase in phrases)


def test_hard_negatives_of_medicine_name_what_was_asked() -> None:
    names, articles = med_names("lay"), med_names("article")
    shared = Counter(
        len(found(row["text_a"], names) & found(row["text_b"], articles))
        for row in rows_of("med", "train")
        if not row["label"]
    )
    hard = shared[1] + shared[2]
    assert hard > 0.5 * sum(shared.values())
    assert shared[2] > 0.08 * sum(shared.values())  # exposure and outcome are both named, the latter by the way


def test_faq_queries_are_of_every_question_and_none_is_in_two_splits() -> None:
    questions = rows_of("faq", "questions")
    assert len(questions) == 36 and [row["id"] for row in questions] == list(range(36))
    texts = {}
    for split in SPLITS:
        rows = rows_of("faq", split)
        counts = Counter(row["question_id"] for row in rows)
        assert set(counts) == set(range(36)) and set(counts.values()) == {build_faq_mini.QUERIES[split]}
        texts[split] = {row["query"].lower().strip(".?") for row in rows}
        assert not texts[split] & {row["question"].lower().strip("?") for row in questions}
    assert not texts["train"] & texts["test"] and not texts["train"] & texts["validation"]
    assert not texts["validation"] & texts["test"]


def test_chinese_has_atecs_share_and_its_matches_are_of_one_intent() -> None:
    phrasings, slots = mini_texts.load_intents(build_zh_mini.INTENTS_FILE)
    said = {text: phrasing.intent for phrasing in phrasings for text in filled(phrasing.template, slots)}
    sentences = {}
    for split in SPLITS:
        rows = rows_of("zh", split)
        assert [*rows[0]] == ["sentence1", "sentence2", "score"]
        assert sum(row["score"] for row in rows) == pytest.approx(0.18 * len(rows), abs=0.5)
        texts = {row[side] for row in rows for side in ("sentence1", "sentence2")}
        sentences[split] = {plain(text, said) for text in texts}
        for row in rows:
            first, second = (said[plain(row[side], said)] for side in ("sentence1", "sentence2"))
            assert row["score"] == (first == second)
    assert not sentences["train"] & sentences["test"] and not sentences["train"] & sentences["validation"]


def filled(template: str, slots: dict[str, list[str]]) -> list[str]:
    """All texts of a template."""
    texts = [template]
    for name, values in slots.items():
        texts = [text.replace("{" + name + "}", value) for text in texts for value in values]
    return list(dict.fromkeys(texts))


def plain(text: str, said: dict[str, str]) -> str:
    """The phrasing without what is said around it."""
    for opening in sorted(build_zh_mini.QUESTION_OPENINGS, key=len, reverse=True):
        for ending in ("", "？", "呢", "啊", "。"):
            inner = text.removeprefix(opening)
            if text == opening + inner and inner.endswith(ending):
                if (inner.removesuffix(ending) if ending else inner) in said:
                    return inner.removesuffix(ending) if ending else inner
    raise AssertionError(f"{text!r} is no phrasing")


def test_held_out_words_are_known() -> None:
    members = [mini_texts.Phrasing("f", "i", text) for text in ("pay bill", "bill late", "pay late", "odd words here")]
    for seed in range(5):
        staying, held_out = mini_texts.hold_out(members, 1, random.Random(seed))
        assert sorted(p.template for p in [*staying, *held_out]) == sorted(p.template for p in members)
        assert held_out[0].template != "odd words here"
    known = [mini_texts.Phrasing("f", "i", "odd words here, pay")]
    assert mini_texts.coverage(known, members[3:]) == 1
    with pytest.raises(ValueError, match="'i' has 4 phrasings to divide; 3 held out"):
        mini_texts.hold_out(members, 3, random.Random(0))


def test_a_chinese_character_is_a_word() -> None:
    assert mini_texts.words("还款{days} pay") == {"还", "款", "pay"}
    assert mini_texts.word_overlap("提前还款", "还款日") == pytest.approx(2 / 5)
