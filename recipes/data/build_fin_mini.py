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

import argparse
import json
import os
import random
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

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

OPENERS = ("Hi, ", "Hello, ", "Good morning, ", "Quick question, ", "Hey, ")
CLOSERS = (" Thanks", " Thank you", " Please help", " Regards")
QUESTION_STARTS = frozenset(
    "how what why when where which who can could may is are am do does did has have will must should was".split()
)
STOP_WORDS = frozenset(
    "a an and any are as at be been but by can could did do does for from had has have how i if in is it its me my "
    "not of on or so still that the there they this to was we what when where which who why will with would you your "
    "am may".split()
)


@dataclass(frozen=True)
class Phrasing:
    """One hand-written template, with the intent and family it belongs to."""

    family: str
    intent: str
    template: str


Message = tuple[Phrasing, ...]  # one or two phrasings of one intent, said one after the other
Pair = tuple[Message, Message]


@cache
def words(text: str) -> frozenset[str]:
    """Return the set of lower-case content words of `text`, without slots, punctuation and function words."""
    return frozenset(re.findall(r"[a-z0-9]+", re.sub(r"\{\w+\}", " ", text.lower()))) - STOP_WORDS


def word_overlap(text_a: str, text_b: str) -> float:
    """Return the Jaccard overlap in [0, 1] of the content words of two texts (0 if neither has any)."""
    words_a, words_b = words(text_a), words(text_b)
    return len(words_a & words_b) / max(len(words_a | words_b), 1)


def load_intents(path: Path = INTENTS_FILE) -> tuple[list[Phrasing], dict[str, list[str]]]:
    """Read the intents file.

    Returns:
        The phrasings in file order, and the slot values by slot name.

    Raises:
        ValueError: a phrasing occurs twice, or uses a slot without values.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    slots = {name: [str(value) for value in values] for name, values in content["slots"].items()}
    phrasings: list[Phrasing] = []
    seen: dict[str, str] = {}
    for family, intents in content["families"].items():
        for intent, templates in intents.items():
            for template in templates:
                unknown = set(re.findall(r"\{(\w+)\}", template)) - slots.keys()
                if unknown:
                    raise ValueError(
                        f"{path.name}: {template!r} uses unknown slots {sorted(unknown)}; add them to `slots`."
                    )
                if template.lower() in seen:
                    raise ValueError(
                        f"{path.name}: {template!r} stands in both {seen[template.lower()]!r} and {intent!r}; "
                        "reword one of them."
                    )
                seen[template.lower()] = intent
                phrasings.append(Phrasing(family, intent, template))
    return phrasings, slots


def split_phrasings(phrasings: Sequence[Phrasing], rng: random.Random) -> dict[str, list[Phrasing]]:
    """Divide the phrasings of every intent between the splits; a phrasing goes to exactly one.

    Held out are phrasings whose content words mostly occur in phrasings of the same intent that stay in training:
    models that learn their vocabulary from this set alone cannot know a word they never saw; on other phrasings they
    could only guess.
    """
    splits: dict[str, list[Phrasing]] = {name: [] for name in PAIRS_PER_SPLIT}
    for members in by_intent(phrasings).values():
        staying = rng.sample(members, len(members))
        held_out: list[Phrasing] = []
        for _ in range(HELD_OUT_PHRASINGS["validation"] + HELD_OUT_PHRASINGS["test"]):
            best = max(
                range(len(staying)), key=lambda i: coverage(staying[:i] + staying[i + 1 :], [*held_out, staying[i]])
            )
            held_out.append(staying.pop(best))
        rng.shuffle(held_out)
        splits["train"] += staying
        splits["validation"] += held_out[: HELD_OUT_PHRASINGS["validation"]]
        splits["test"] += held_out[HELD_OUT_PHRASINGS["validation"] :]
    return splits


def coverage(staying: Sequence[Phrasing], held_out: Sequence[Phrasing]) -> float:
    """Return the mean share in [0, 1] of the content words of `held_out` phrasings that occur in `staying`."""
    known = frozenset[str]().union(*(words(p.template) for p in staying))
    return sum(len(words(p.template) & known) / max(len(words(p.template)), 1) for p in held_out) / len(held_out)


def by_intent(phrasings: Sequence[Phrasing]) -> dict[str, list[Phrasing]]:
    """Group phrasings by intent, in order."""
    groups: dict[str, list[Phrasing]] = {}
    for phrasing in phrasings:
        groups.setdefault(phrasing.intent, []).append(phrasing)
    return groups


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


def style(sentences: Sequence[str], rng: random.Random) -> str:
    """Join sentences and add what leaves the meaning: punctuation, at times a greeting, a closing word, lower case."""
    parts = []
    for sentence in sentences:
        is_question = sentence.split()[0].lower() in QUESTION_STARTS
        parts.append(sentence[0].upper() + sentence[1:] + ("?" if is_question else "."))
    text = " ".join(parts)
    if rng.random() < 0.25:
        text = text[:-1]
    elif rng.random() < 0.10:
        text += rng.choice(CLOSERS)
    if rng.random() < 0.12:
        text = rng.choice(OPENERS) + (text if text.startswith("I ") else text[0].lower() + text[1:])
    return text.lower() if rng.random() < 0.15 else text


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


def to_jsonl(rows: Sequence[Mapping[str, str | int]]) -> str:
    """Serialise rows, one JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the set, or with `--check` compare it with the files on disk. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Build the embedded finance mini set.")
    parser.add_argument("--output_dir", type=Path, default=OUTPUT_DIR, help="folder of the three jsonl files")
    parser.add_argument("--check", action="store_true", help="compare instead of writing; exit 1 on a difference")
    args = parser.parse_args(argv)
    status = 0
    for name, rows in build().items():
        path, content = args.output_dir / f"{name}.jsonl", to_jsonl(rows)
        if args.check:
            same = path.is_file() and path.read_text(encoding="utf-8") == content
            print(f"{path.name}: {'as built' if same else 'DIFFERS from what is built; run without --check'}")
            status = status if same else 1
            continue
        args.output_dir.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".jsonl.tmp")
        temporary.write_text(content, encoding="utf-8")
        os.replace(temporary, path)
        print(f"{path.name}: {len(rows)} pairs, {len(content.encode('utf-8'))} bytes")
    return status


if __name__ == "__main__":
    sys.exit(main())
