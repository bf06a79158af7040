"""Pairs worth reading: the most confident mistakes of each system, and what only the flipped student gets right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from scipy.special import expit

from .comparison import SplitScores, combine
from .match_score import fit_log_odds
from .metrics import best_f1_threshold

EXAMPLES = 8  # of each kind
LONGEST = 400  # characters of a text that are kept
STUDENTS = ("llm_sft", "llm_flipped")


@dataclass(frozen=True)
class Judged:
    """A system's score of every test pair on one scale, and its decision.

    Attributes:
        probability: (n,) match probability, by a logistic fit on the validation pairs.
        predicted: (n,) bool, at the threshold with the best F1 on validation, as in the report's table.
    """

    probability: np.ndarray
    predicted: np.ndarray


def judge_systems(
    validation_labels: np.ndarray, teacher: SplitScores, students: Mapping[str, tuple[SplitScores, SplitScores]]
) -> dict[str, Judged]:
    """Judge teacher and students by name, "teacher" first; of a student both scores (answer, similarity) together."""
    (slope,), offset = fit_log_odds(teacher.validation[:, None], validation_labels)
    # The decision is by T itself: rounding in the log-odds must not move a pair over the threshold.
    cut = best_f1_threshold(teacher.validation, validation_labels)
    judged = {"teacher": Judged(expit(slope * teacher.test + offset), teacher.test >= cut)}
    for name, (answer, similarity) in students.items():
        both = combine(answer, similarity, validation_labels)
        judged[name] = Judged(expit(both.test), both.test >= best_f1_threshold(both.validation, validation_labels))
    return judged


def choose_examples(judged: Mapping[str, Judged], test: datasets.Dataset) -> dict[str, Any]:
    """Examples of each kind as plain JSON values, texts cut to 400 characters.

    mistakes: for each system how many there are ("count") and its most confident ones ("pairs"), the worst first;
    only_flipped: the same of pairs that the flipped student got right and both others wrong, the surest first;
    all_but_flipped: of pairs that it alone got wrong. A pair is text_a, text_b, label and the probability by each
    system.
    """
    labels = np.asarray(test["label"])
    gold = labels.astype(bool)
    right = {name: one.predicted == gold for name, one in judged.items()}

    def found(rows: np.ndarray, system: str) -> dict[str, Any]:
        # How far from undecided, towards what the system decided.
        sure = np.abs(judged[system].probability[rows] - (~judged[system].predicted[rows]))
        chosen = rows[np.argsort(-sure, kind="stable")[:EXAMPLES]]
        return {"count": len(rows), "pairs": [_pair(test[int(row)], int(row), judged) for row in chosen]}

    examples: dict[str, Any] = {
        "test_pairs": len(labels),
        "mistakes": {name: found(np.flatnonzero(~right[name]), name) for name in judged},
    }
    if {"teacher", *STUDENTS} <= judged.keys():
        flipped, others = right["llm_flipped"], (right["llm_sft"], right["teacher"])
        alone = {
            "only_flipped": flipped & ~others[0] & ~others[1],
            "all_but_flipped": ~flipped & others[0] & others[1],
        }
        examples |= {name: found(np.flatnonzero(rows), "llm_flipped") for name, rows in alone.items()}
    return examples


def shortened(text: str) -> str:
    """The text, or its beginning if it is long."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _pair(row: Mapping[str, Any], place: int, judged: Mapping[str, Judged]) -> dict[str, Any]:
    return {
        "text_a": shortened(row["text_a"]),
        "text_b": shortened(row["text_b"]),
        "label": int(row["label"]),
        "probability": {name: round(float(one.probability[place]), 4) for name, one in judged.items()},
    }
