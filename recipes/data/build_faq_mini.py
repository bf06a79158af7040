"""Build the embedded FAQ mini set (`faq_mini/{questions,train,validation,test}.jsonl`) from `faq_intents.yaml`.

The intents file holds questions of an internet and mobile provider's customers, written by hand for this project. The
first phrasing of each is the FAQ's canonical question; a query is one or two of the others. Phrasings are divided
between the splits before queries are made, so no sentence, whatever its slot values, occurs in two of them. The script
is deterministic and needs no network:

    python recipes/data/build_faq_mini.py            # write the four files
    python recipes/data/build_faq_mini.py --check    # fail if the committed files differ from what it would write
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path

from mini_texts import Row, by_intent, divide, fill_slots, load_intents, style, write_or_check

HERE = Path(__file__).resolve().parent
INTENTS_FILE = HERE / "faq_intents.yaml"
OUTPUT_DIR = HERE / "faq_mini"
SEED = 2507
HELD_OUT = {"validation": 3, "test": 4}  # phrasings of each question; the others are for training
QUERIES = {"train": 14, "validation": 3, "test": 6}  # of each question
TWO_SENTENCE_SHARE = 0.5


def build(intents_file: Path = INTENTS_FILE, seed: int = SEED) -> dict[str, list[Row]]:
    """Return the rows of every file: questions (id, question), and queries (query, question_id) by split."""
    rng = random.Random(seed)
    phrasings, slots = load_intents(intents_file)
    files: dict[str, list[Row]] = {"questions": [], **{split: [] for split in QUERIES}}
    for number, (canonical, *others) in enumerate(by_intent(phrasings).values()):
        files["questions"].append({"id": number, "question": canonical.template})
        for split, own in divide(others, HELD_OUT, rng, known=[canonical]).items():
            made: dict[str, None] = {}
            while len(made) < QUERIES[split]:
                said = rng.sample(own, 2 if rng.random() < TWO_SENTENCE_SHARE else 1)
                made[style([fill_slots(phrasing.template, slots, rng) for phrasing in said], rng)] = None
            files[split] += [{"query": query, "question_id": number} for query in made]
    for split in QUERIES:
        rng.shuffle(files[split])
    return files


def main(argv: Sequence[str] | None = None) -> int:
    """Write the set, or with `--check` compare it with the files on disk. Returns the exit status."""
    return write_or_check(build(), OUTPUT_DIR, "Build the embedded FAQ mini set.", argv)


if __name__ == "__main__":
    sys.exit(main())
