"""Build the embedded medicine mini set (`med_mini/{train,validation,test}.jsonl`) from `med_topics.yaml`.

As in NFCorpus, a pair is a lay question and the title of an article; they match if both are about the same exposure
and the same outcome. Questions use everyday words, titles mostly technical ones, so that what matches shares few
words. Many titles name a further condition of the people studied. Half of the negatives are hard: the title shares the
question's exposure or outcome, not both, and every second one with the same exposure names the outcome asked for as
that further condition. A topic, an exposure with an outcome, occurs in one split only, as queries do in NFCorpus. The
script is deterministic and needs no network:

    python recipes/data/build_med_mini.py            # write the three files
    python recipes/data/build_med_mini.py --check    # fail if the committed files differ from what it would write
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from mini_texts import Row, write_or_check

HERE = Path(__file__).resolve().parent
TOPICS_FILE = HERE / "med_topics.yaml"
OUTPUT_DIR = HERE / "med_mini"
SEED = 2507
PAIRS_PER_SPLIT = {"train": 1800, "validation": 400, "test": 600}
TOPIC_SHARES = {"train": 0.7, "validation": 0.12, "test": 0.18}

QUESTION_WORDS = ("Are", "Can", "Is", "Should", "What")

Topic = tuple[str, str]  # names of an exposure and of an outcome
Content = Mapping[str, Any]


def build(topics_file: Path = TOPICS_FILE, seed: int = SEED) -> dict[str, list[Row]]:
    """Return the rows (`text_a` a question, `text_b` a title, `label`) of every split."""
    rng = random.Random(seed)
    content = yaml.safe_load(topics_file.read_text(encoding="utf-8"))
    topics = list(itertools.product(content["exposures"], content["outcomes"]))
    rng.shuffle(topics)
    rows: dict[str, list[Row]] = {}
    start = 0
    for split, count in PAIRS_PER_SPLIT.items():
        size = round(TOPIC_SHARES[split] * len(topics))
        rows[split] = _split(topics[start : start + size], count, content, rng)
        start += size
    return rows


def _split(topics: Sequence[Topic], count: int, content: Content, rng: random.Random) -> list[Row]:
    """Half matches, a quarter hard and a quarter random negatives, all of these topics and all distinct."""
    made: dict[tuple[str, str], int] = {}
    while len(made) < count:
        topic, kind = rng.choice(topics), ("match", "hard", "match", "random")[len(made) % 4]
        other = topic if kind == "match" else _other(topic, topics, kind == "hard", rng)
        misleading = kind == "hard" and other[0] == topic[0] and rng.random() < 0.5
        pair = _question(content, topic, rng), _title(content, other, topic[1] if misleading else None, rng)
        made.setdefault(pair, int(kind == "match"))
    rows: list[Row] = [{"text_a": a, "text_b": b, "label": label} for (a, b), label in made.items()]
    rng.shuffle(rows)
    return rows


def _other(topic: Topic, topics: Sequence[Topic], hard: bool, rng: random.Random) -> Topic:
    """A topic that shares the exposure or the outcome (hard), or neither."""
    shared = [other for other in topics if (other[0] == topic[0]) != (other[1] == topic[1])]
    apart = [other for other in topics if other[0] != topic[0] and other[1] != topic[1]]
    return rng.choice(shared if hard and shared else apart)


def _question(content: Content, topic: Topic, rng: random.Random) -> str:
    text = rng.choice(content["questions"]).format(**_words(content, topic, "lay", rng))
    asks = text.startswith(QUESTION_WORDS) or text.endswith("evidence")
    return _capital(text) + ("?" if asks else "")


def _title(content: Content, topic: Topic, condition: str | None, rng: random.Random) -> str:
    """A title about a topic; the studied people have `condition`, or any other one, or none is named."""
    groups = [group for group in content["groups"] if condition is None or "{condition}" in group]
    named = condition or rng.choice([name for name in content["outcomes"] if name != topic[1]])
    group = rng.choice(groups).format(condition=rng.choice(content["outcomes"][named]["article"]))
    return _capital(rng.choice(content["titles"]).format(**_words(content, topic, "article", rng), group=group))


def _words(content: Content, topic: Topic, kind: str, rng: random.Random) -> dict[str, str]:
    exposure, outcome = (
        content[part][name][kind] for part, name in zip(("exposures", "outcomes"), topic, strict=True)
    )
    return {"exposure": rng.choice(exposure), "outcome": rng.choice(outcome)}


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def main(argv: Sequence[str] | None = None) -> int:
    """Write the set, or with `--check` compare it with the files on disk. Returns the exit status."""
    return write_or_check(build(), OUTPUT_DIR, "Build the embedded medicine mini set.", argv)


if __name__ == "__main__":
    sys.exit(main())
