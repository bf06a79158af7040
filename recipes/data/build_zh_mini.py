"""Build the embedded Chinese mini set (`zh_mini/{train,validation,test}.jsonl`) from `zh_intents.yaml`.

It has ATEC's form: columns sentence1, sentence2 and score (1 for the same meaning), 18 % of the pairs match, sentences
of a payment app's customers. Half of the negatives are hard: among the pairs of intents that share most characters,
mostly of the same family. Phrasings are divided between the splits before pairing. The script is deterministic and
needs no network:

    python recipes/data/build_zh_mini.py            # write the three files
    python recipes/data/build_zh_mini.py --check    # fail if the committed files differ from what it would write
"""

from __future__ import annotations

import itertools
import random
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mini_texts import Phrasing, Row, by_intent, divide, fill_slots, load_intents, word_overlap, write_or_check

HERE = Path(__file__).resolve().parent
INTENTS_FILE = HERE / "zh_intents.yaml"
OUTPUT_DIR = HERE / "zh_mini"
SEED = 2507
HELD_OUT = {"validation": 3, "test": 3}  # phrasings of each intent; the others are for training
PAIRS_PER_SPLIT = {"train": 1500, "validation": 400, "test": 600}
POSITIVE_SHARE = 0.18  # ATEC's
HARD_PART = 20  # a hard negative is drawn from the likest twentieth of all pairs of two intents
SAME_FAMILY_BONUS = 0.05  # added to the overlap of characters when hard negatives are chosen
QUESTION = re.compile("怎|能不|可不|能否|如何|什么|多少|多久|多长|几|哪")
OPENINGS = ("", "", "", "", "你好，", "您好，", "那个，")
QUESTION_OPENINGS = (*OPENINGS, "请问", "我想问一下，")
QUESTION_ENDINGS = ("", "", "", "？", "？", "呢", "啊")


def build(intents_file: Path = INTENTS_FILE, seed: int = SEED) -> dict[str, list[Row]]:
    """Return the rows (`sentence1`, `sentence2`, `score`) of every split."""
    rng = random.Random(seed)
    phrasings, slots = load_intents(intents_file)
    parts: dict[str, list[Phrasing]] = {split: [] for split in PAIRS_PER_SPLIT}
    for members in by_intent(phrasings).values():
        for split, part in divide(members, HELD_OUT, rng).items():
            parts[split] += part
    rows: dict[str, list[Row]] = {}
    for split, members in parts.items():
        labelled = _pairs(members, PAIRS_PER_SPLIT[split], slots, rng)
        rows[split] = [{"sentence1": a, "sentence2": b, "score": label} for (a, b), label in labelled.items()]
        rng.shuffle(rows[split])
    return rows


def _pairs(
    members: Sequence[Phrasing], count: int, slots: Mapping[str, Sequence[str]], rng: random.Random
) -> dict[tuple[str, str], int]:
    """`count` distinct pairs of texts with their labels, matches first."""
    pairs = list(itertools.permutations(members, 2))
    matches = [pair for pair in pairs if pair[0].intent == pair[1].intent]
    others = [pair for pair in pairs if pair[0].intent != pair[1].intent]
    others.sort(key=lambda pair: (-_likeness(*pair), pair[0].template, pair[1].template))
    hard = others[: len(others) // HARD_PART]
    positives = round(POSITIVE_SHARE * count)
    made: dict[tuple[str, str], int] = {}
    while len(made) < count:
        label = int(len(made) < positives)
        first, second = rng.choice(matches if label else hard if len(made) % 2 else others)
        made.setdefault((_say(first, slots, rng), _say(second, slots, rng)), label)
    return made


def _likeness(first: Phrasing, second: Phrasing) -> float:
    return word_overlap(first.template, second.template) + SAME_FAMILY_BONUS * (first.family == second.family)


def _say(phrasing: Phrasing, slots: Mapping[str, Sequence[str]], rng: random.Random) -> str:
    """A phrasing with its slots filled, an opening and an ending that fit a question or a statement."""
    text = fill_slots(phrasing.template, slots, rng)
    if text.endswith("吗"):
        return rng.choice(QUESTION_OPENINGS) + text + rng.choice(("", "？"))
    if QUESTION.search(text):
        return rng.choice(QUESTION_OPENINGS) + text + rng.choice(QUESTION_ENDINGS)
    return rng.choice(OPENINGS) + text + rng.choice(("", "", "。"))


def main(argv: Sequence[str] | None = None) -> int:
    """Write the set, or with `--check` compare it with the files on disk. Returns the exit status."""
    return write_or_check(build(), OUTPUT_DIR, "Build the embedded Chinese mini set.", argv)


if __name__ == "__main__":
    sys.exit(main())
