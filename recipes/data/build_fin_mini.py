"""Build the embedded finance mini set (`fin_mini/{train,validation,test}.jsonl`) from `fin_intents.yaml`.

The intents file holds questions of bank and payment customers, written by hand for this project: families of
neighbouring intents, each intent with 28 phrasings. A text is one or two phrasings of one intent. Two texts of one
intent are a positive pair, texts of two intents a negative pair. The script is deterministic and needs no network:

    python recipes/data/build_fin_mini.py            # write the three files
    python recipes/data/build_fin_mini.py --check    # fail if the committed files differ from what it would write

What makes the set hard, on purpose: of the pairs of an intent, those that share few words are preferred as positives;
half of the negatives are drawn among those that share many words, mostly from the same family; slot values (amounts,
countries, shops) always differ between the two texts of a pair, so they carry no signal. Phrasings are divided between
the splits before pairing, so no sentence, whatever its slot values, occurs in two splits.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mini_texts import Phrasing, by_intent, divide, load_intents, style, word_overlap, write_or_check

HERE = Path(__file__).resolve().parent
INTENTS_FILE = HERE / "fin_intents.yaml"
OUTPUT_DIR = HERE / "fin_mini"

SEED = 2507
PAIRS_PER_SPLIT = {"train": 2400, "validation": 500, "test": 800}
HELD_OUT_PHRASINGS = {"validation": 4, "test": 4}  # of each intent; the others are for training
TWO_SENTENCE_SHARE = 0.75  # of the messages; the others have one sentence

SAME_FAMILY_BONUS = 0.15  # added to the word overlap when a hard negative is chosen
HARD_NEGATIVE_POOL = 6  # a hard negative is drawn among this many best-scoring candidates
POSITIVE_CANDIDATES = 2  # distinct candidates for every positive pair kept; those with the least overlap are kept
MAX_DRAWS = 1000  # of candidates for the positives of one intent
NEGATIVE_DRAWS = 4  # candidate messages drawn from every other intent for a negative


Message = tuple[Phrasing, ...]  # one or two phrasings of one intent, said one after the other
Pair = tuple[Message, Message]


def split_phrasings(phrasings: Sequence[Phrasing], rng: random.Random) -> dict[str, list[Phrasing]]:
    """Divide the phrasings of every intent between the splits; a phrasing goes to exactly one."""
    splits: dict[str, list[Phrasing]] = {name: [] for name in PAIRS_PER_SPLIT}
    for members in by_intent(phrasings).values():
        for name, part in divide(members, HELD_OUT_PHRASINGS, rng).items():
            splits[name] += part
    return splits


def sample_message(members: Sequence[Phrasing], rng: random.Random) -> Message:
    """Draw one or two phrasings of one intent as a message."""
    size = 2 if len(members) > 1 and rng.random() < TWO_SENTENCE_SHARE else 1
    return tuple(rng.sample(members, size))


def message_overlap(message_a: Message, message_b: Message) -> float:
    """Return the word overlap of two messages before slot filling."""
    return word_overlap(" ".join(p.template for p in message_a), " ".join(p.template for p in message_b))


def choose_positives(phrasings: Sequence[Phrasing], count: int, rng: random.Random) -> list[Pair]:
    """Choose `count` distinct pairs within intents, evenly over the intents, preferring pairs that share few words.

    The two messages of a pair have no phrasing in common.
    """
    groups = list(by_intent(phrasings).values())
    rng.shuffle(groups)  # which intents get one pair more than others
    chosen: list[Pair] = []
    for index, members in enumerate(groups):
        wanted = count // len(groups) + (index < count % len(groups))
        candidates: dict[frozenset[Message], tuple[float, Pair]] = {}
        for _ in range(MAX_DRAWS):
            if len(candidates) == POSITIVE_CANDIDATES * wanted:
                break
            message_a = sample_message(members, rng)
            rest = [p for p in members if p not in message_a]
            if not rest:
                continue
            message_b = sample_message(rest, rng)
            key = frozenset(tuple(sorted(m, key=lambda p: p.template)) for m in (message_a, message_b))
            candidates.setdefault(key, (message_overlap(message_a, message_b), (message_a, message_b)))
        if len(candidates) < wanted:
            raise ValueError(
                f"Intent {members[0].intent!r} yields {len(candidates)} positive pairs but {wanted} are asked for; "
                "add phrasings."
            )
        ranked = sorted(candidates.values(), key=lambda item: item[0])
        chosen += [pair for _, pair in ranked[:wanted]]
    return chosen


def choose_negatives(phrasings: Sequence[Phrasing], count: int, rng: random.Random) -> list[Pair]:
    """Choose `count` distinct pairs across intents.

    Every second one is hard (many shared words, mostly the same family), the others are random from another family.
    """
    groups = list(by_intent(phrasings).values())
    chosen: list[Pair] = []
    used: set[frozenset[Message]] = set()
    while len(chosen) < count:
        members = groups[(len(chosen) // 2) % len(groups)]
        anchor = sample_message(members, rng)
        others = [
            sample_message(group, rng) for group in groups if group is not members for _ in range(NEGATIVE_DRAWS)
        ]
        others = [m for m in others if frozenset((anchor, m)) not in used]
        if len(chosen) % 2 == 0:
            scored = [
                (message_overlap(anchor, m) + SAME_FAMILY_BONUS * (m[0].family == anchor[0].family), m) for m in others
            ]
            pool = [m for _, m in sorted(scored, key=lambda item: -item[0])[:HARD_NEGATIVE_POOL]]
        else:
            pool = [m for m in others if m[0].family != anchor[0].family]
        other = rng.choice(pool)
        used.add(frozenset((anchor, other)))
        chosen.append((anchor, other))
    return chosen


def render_pair(pair: Pair, slots: Mapping[str, Sequence[str]], rng: random.Random) -> tuple[str, str]:
    """Turn two messages into texts whose slot values differ, in random order, styled as customers write."""
    first, second = rng.sample(pair, 2)
    taken: set[str] = set()

    def fill(match: re.Match[str]) -> str:
        value = rng.choice([v for v in slots[match.group(1)] if v not in taken])
        taken.add(value)
        return value

    def render(message: Message) -> str:
        return style([re.sub(r"\{(\w+)\}", fill, phrasing.template) for phrasing in message], rng)

    return render(first), render(second)


def build(intents_file: Path = INTENTS_FILE, seed: int = SEED) -> dict[str, list[dict[str, str | int]]]:
    """Return the rows (`text_a`, `text_b`, `label`) of every split, the same for the same file and seed."""
    rng = random.Random(seed)
    phrasings, slots = load_intents(intents_file)
    rows: dict[str, list[dict[str, str | int]]] = {}
    for name, members in split_phrasings(phrasings, rng).items():
        half = PAIRS_PER_SPLIT[name] // 2
        labelled = [(pair, 1) for pair in choose_positives(members, half, rng)]
        labelled += [(pair, 0) for pair in choose_negatives(members, PAIRS_PER_SPLIT[name] - half, rng)]
        rng.shuffle(labelled)
        rows[name] = []
        for pair, label in labelled:
            text_a, text_b = render_pair(pair, slots, rng)
            rows[name].append({"text_a": text_a, "text_b": text_b, "label": label})
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Write the set, or with `--check` compare it with the files on disk. Returns the exit status."""
    return write_or_check(build(), OUTPUT_DIR, "Build the embedded finance mini set.", argv)


if __name__ == "__main__":
    sys.exit(main())
