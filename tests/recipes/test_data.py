"""The embedded finance mini set: what its script builds, no sentence in two splits, as hard as it claims."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path

import mini_texts
import pytest

from recipes.data import build_fin_mini as builder

DATA = Path(__file__).resolve().parents[2] / "recipes" / "data"
Row = dict[str, str | int]
Splits = dict[str, list[Row]]
Parsed = dict[str, list[tuple[set[str], set[str], int]]]


@pytest.fixture(scope="module")
def rebuilt() -> Splits:
    return builder.build()


@pytest.fixture(scope="module")
def splits() -> Splits:
    return {
        name: [json.loads(line) for line in (DATA / "fin_mini" / f"{name}.jsonl").read_text("utf-8").splitlines()]
        for name in builder.PAIRS_PER_SPLIT
    }


def texts(rows: list[Row]) -> list[str]:
    return [str(row[name]) for row in rows for name in ("text_a", "text_b")]


def find_templates(text: str, patterns: list[tuple[str, re.Pattern[str], str]]) -> set[str]:
    """Templates that occur in a text, without those that lie inside a longer one found there."""
    lower = text.lower()
    found = [(m.span(), template) for piece, p, template in patterns if piece in lower and (m := p.search(lower))]
    return {t for (a, b), t in found if not any(c <= a and b <= d and (c, d) != (a, b) for (c, d), _ in found)}


@pytest.fixture(scope="module")
def parsed(splits: Splits) -> Parsed:
    """Of each row the templates found in text_a and in text_b, and the label."""
    phrasings, slots = mini_texts.load_intents(builder.INTENTS_FILE)
    patterns = []
    for phrasing in phrasings:
        pieces = re.split(r"\{(\w+)\}", phrasing.template.lower())
        values = {name: "(?:" + "|".join(re.escape(v.lower()) for v in slots[name]) + ")" for name in pieces[1::2]}
        body = "".join(values[piece] if i % 2 else re.escape(piece) for i, piece in enumerate(pieces))
        patterns.append((max(pieces[::2], key=len), re.compile(body + r"(?=[.?]|$)"), phrasing.template))
    return {
        name: [
            (find_templates(str(r["text_a"]), patterns), find_templates(str(r["text_b"]), patterns), int(r["label"]))
            for r in rows
        ]
        for name, rows in splits.items()
    }


def test_committed_files_equal_a_rebuild(splits: Splits, rebuilt: Splits) -> None:
    assert splits == rebuilt
    for name, rows in rebuilt.items():
        assert (DATA / "fin_mini" / f"{name}.jsonl").read_text("utf-8") == mini_texts.to_jsonl(rows)


def test_check_option_finds_a_changed_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rebuilt: Splits, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(builder, "build", lambda: rebuilt)
    assert builder.main(["--output_dir", str(tmp_path)]) == 0
    assert builder.main(["--output_dir", str(tmp_path), "--check"]) == 0
    changed = tmp_path / "test.jsonl"
    changed.write_text(changed.read_text("utf-8").replace('"label": 1', '"label": 0', 1), "utf-8")
    assert builder.main(["--output_dir", str(tmp_path), "--check"]) == 1
    assert "test.jsonl: DIFFERS" in capsys.readouterr().out


def test_counts_columns_labels_and_size(splits: Splits) -> None:
    assert {name: len(rows) for name, rows in splits.items()} == builder.PAIRS_PER_SPLIT
    assert sum(map(len, splits.values())) >= 3000
    for rows in splits.values():
        assert all(list(row) == ["text_a", "text_b", "label"] for row in rows)
        assert all(text == text.strip() != "" for text in texts(rows))
        assert Counter(row["label"] for row in rows) == {0: len(rows) // 2, 1: len(rows) // 2}
    assert sum(path.stat().st_size for path in (DATA / "fin_mini").iterdir()) < 1_000_000


def test_no_text_is_shared_between_splits(splits: Splits) -> None:
    plain = {name: {" ".join(re.findall(r"\w+", t.lower())) for t in texts(rows)} for name, rows in splits.items()}
    assert not plain["train"] & plain["validation"]
    assert not plain["train"] & plain["test"]
    assert not plain["validation"] & plain["test"]


def test_no_phrasing_is_shared_between_splits(parsed: Parsed) -> None:
    used = {name: set().union(*(a | b for a, b, _ in rows)) for name, rows in parsed.items()}
    assert not used["train"] & used["validation"]
    assert not used["train"] & used["test"]
    assert not used["validation"] & used["test"]


def test_labels_say_whether_the_intents_are_equal(parsed: Parsed) -> None:
    intent_of = {p.template: p.intent for p in mini_texts.load_intents(builder.INTENTS_FILE)[0]}
    for rows in parsed.values():
        for templates_a, templates_b, label in rows:
            intents_a, intents_b = ({intent_of[t] for t in ts} for ts in (templates_a, templates_b))
            assert len(intents_a) == len(intents_b) == 1
            assert (intents_a == intents_b) == bool(label)
            assert not templates_a & templates_b


def test_every_intent_is_in_every_split(parsed: Parsed) -> None:
    phrasings, _ = mini_texts.load_intents(builder.INTENTS_FILE)
    intent_of = {p.template: p.intent for p in phrasings}
    counts = Counter(p.intent for p in phrasings)
    assert len(counts) >= 48 and min(counts.values()) >= 16
    for rows in parsed.values():
        in_positives = {intent_of[t] for a, _, label in rows if label for t in a}
        assert in_positives == set(counts)


def test_no_pair_occurs_twice_in_either_order(splits: Splits) -> None:
    pairs = [frozenset((row["text_a"], row["text_b"])) for rows in splits.values() for row in rows]
    assert all(len(pair) == 2 for pair in pairs)
    assert len(set(pairs)) == len(pairs)


def test_hard_negatives_share_more_words_than_positives(splits: Splits) -> None:
    for rows in splits.values():
        overlap = {
            label: sorted(
                mini_texts.word_overlap(str(r["text_a"]), str(r["text_b"])) for r in rows if r["label"] == label
            )
            for label in (0, 1)
        }
        hard = overlap[0][len(overlap[0]) // 2 :]
        assert sum(hard) / len(hard) > 2 * sum(overlap[1]) / len(overlap[1])


def test_slot_values_of_a_pair_differ() -> None:
    slots = {"amount": ["1 euro", "2 euros"]}
    phrasings = [mini_texts.Phrasing("f", "i", f"{word} {{amount}}") for word in ("pay", "send")]
    for seed in range(50):
        pair = builder.render_pair(((phrasings[0],), (phrasings[1],)), slots, random.Random(seed))
        assert sum("1 euro" in text.lower() for text in pair) == 1
        assert sum("2 euros" in text.lower() for text in pair) == 1


@pytest.mark.parametrize(
    ("intents", "message"),
    [
        ("{x: [Pay {sum}]}", "unknown slots \\['sum'\\]"),
        ("{x: [Pay me], y: [pay me]}", "stands in both 'x' and 'y'"),
    ],
)
def test_faulty_intents_are_refused(tmp_path: Path, intents: str, message: str) -> None:
    file = tmp_path / "intents.yaml"
    file.write_text(
        "slots: {amount: [1 euro]}\nfamilies:\n  f: " + intents.replace("Pay {sum}", '"Pay {sum}"'), "utf-8"
    )
    with pytest.raises(ValueError, match=message):
        mini_texts.load_intents(file)


def test_too_few_phrasings_are_refused() -> None:
    phrasings = [mini_texts.Phrasing("f", "only", text) for text in ("one", "two")]
    with pytest.raises(ValueError, match="Intent 'only' yields 1 positive pairs but 5 are asked for"):
        builder.choose_positives(phrasings, 5, random.Random(0))
