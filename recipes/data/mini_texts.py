"""What the builders of the embedded mini sets share: phrasings with slots, word overlap, style, writing the files."""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from flipped_kd.utils.atomic import write_atomically

Row = Mapping[str, str | int | float]

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


@cache
def words(text: str) -> frozenset[str]:
    """Return the lower-case content words of `text`, without slots, punctuation and function words.

    A Chinese character counts as a word.
    """
    return frozenset(re.findall(r"[a-z0-9]+|[\u4e00-\u9fff]", re.sub(r"\{\w+\}", " ", text.lower()))) - STOP_WORDS


def word_overlap(text_a: str, text_b: str) -> float:
    """Return the Jaccard overlap in [0, 1] of the content words of two texts (0 if neither has any)."""
    words_a, words_b = words(text_a), words(text_b)
    return len(words_a & words_b) / max(len(words_a | words_b), 1)


def load_intents(path: Path) -> tuple[list[Phrasing], dict[str, list[str]]]:
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


def coverage(staying: Sequence[Phrasing], held_out: Sequence[Phrasing]) -> float:
    """Return the mean share in [0, 1] of the content words of `held_out` phrasings that occur in `staying`."""
    known = frozenset[str]().union(*(words(p.template) for p in staying))
    return sum(len(words(p.template) & known) / max(len(words(p.template)), 1) for p in held_out) / len(held_out)


def hold_out(
    members: Sequence[Phrasing], count: int, rng: random.Random, known: Sequence[Phrasing] = ()
) -> tuple[list[Phrasing], list[Phrasing]]:
    """Divide the phrasings of one intent into those that stay in training and `count` held out, in random order.

    Held out are phrasings whose content words mostly occur in phrasings of the same intent that stay in training, or
    in `known` ones: models that learn their vocabulary from this set alone cannot know a word they never saw; on other
    phrasings they could only guess.

    Raises:
        ValueError: fewer than two phrasings would stay.
    """
    if len(members) < count + 2:
        raise ValueError(
            f"Intent {members[0].intent!r} has {len(members)} phrasings to divide; {count} held out and 2 in training "
            "need more. Add phrasings."
        )
    staying = rng.sample(members, len(members))
    held_out: list[Phrasing] = []
    for _ in range(count):
        best = max(
            range(len(staying)),
            key=lambda i: coverage([*known, *staying[:i], *staying[i + 1 :]], [*held_out, staying[i]]),
        )
        held_out.append(staying.pop(best))
    rng.shuffle(held_out)
    return staying, held_out


def divide(
    members: Sequence[Phrasing], held_out: Mapping[str, int], rng: random.Random, known: Sequence[Phrasing] = ()
) -> dict[str, list[Phrasing]]:
    """The phrasings of one intent by split: "train", and as many as named of each other split (see `hold_out`)."""
    staying, others = hold_out(members, sum(held_out.values()), rng, known)
    parts = {"train": staying}
    for split, size in held_out.items():
        parts[split], others = others[:size], others[size:]
    return parts


def by_intent(phrasings: Sequence[Phrasing]) -> dict[str, list[Phrasing]]:
    """Group phrasings by intent, in order."""
    groups: dict[str, list[Phrasing]] = {}
    for phrasing in phrasings:
        groups.setdefault(phrasing.intent, []).append(phrasing)
    return groups


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


def fill_slots(template: str, slots: Mapping[str, Sequence[str]], rng: random.Random) -> str:
    """Put a random value into each slot of a template."""
    return re.sub(r"\{(\w+)\}", lambda match: rng.choice(slots[match.group(1)]), template)


def to_jsonl(rows: Sequence[Row]) -> str:
    """Serialise rows, one JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_or_check(
    files: Mapping[str, Sequence[Row]], output_dir: Path, description: str, argv: Sequence[str] | None = None
) -> int:
    """A builder's command: write each file (NAME.jsonl), or with `--check` compare. Returns the exit status."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output_dir", type=Path, default=output_dir, help="folder of the jsonl files")
    parser.add_argument("--check", action="store_true", help="compare instead of writing; exit 1 on a difference")
    args = parser.parse_args(argv)
    status = 0
    for name, rows in files.items():
        path, content = args.output_dir / f"{name}.jsonl", to_jsonl(rows)
        if args.check:
            same = path.is_file() and path.read_text(encoding="utf-8") == content
            print(f"{path.name}: {'as built' if same else 'DIFFERS from what is built; run without --check'}")
            status = status if same else 1
            continue
        write_atomically(path, content)
        print(f"{path.name}: {len(rows)} rows, {len(content.encode('utf-8'))} bytes")
    return status
