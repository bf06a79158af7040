"""The comparison as data and as a table: every system's metrics over seeds, and paired differences between systems."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.atomic import write_atomically
from ..utils.json_files import write_json
from ..utils.markdown import table
from .match_score import fit_log_odds
from .metrics import best_f1_threshold, matching_metrics
from .run_files import REPORT_FILE, REPORT_TABLE_FILE

REPORT_VERSION = 1
# What a report of a finished comparison holds at least.
REPORT_KEYS = ("student", "teacher", "seeds", "data", "systems", "differences", "runs", "settings")
# What was done before it was a setting, for reports that lack it.
BEFORE_THE_CHOICE = {"contrast_filter": "all", "answer_teacher_weight": 0.0, "answer_vocabulary_weight": 1.0}
METRIC_HEADS = {"f1": "F1", "accuracy": "accuracy", "auc": "AUC", "average_precision": "average precision"}
COMPARED_METRICS = tuple(METRIC_HEADS)
SYSTEMS = {
    "teacher": "teacher (small encoder)",
    "llm": "LLM, not trained",
    "llm_sft": "LLM, plain fine-tuning: answer",
    "llm_sft_similarity": "LLM, plain fine-tuning: similarity",
    "llm_sft_both": "LLM, plain fine-tuning: both",
    "llm_sft_plus_teacher": "LLM, plain fine-tuning: answer + teacher",
    "llm_flipped_start": "LLM, flipped, before any step: similarity",
    "llm_flipped": "LLM, flipped: answer",
    "llm_flipped_similarity": "LLM, flipped: similarity",
    "llm_flipped_both": "LLM, flipped: both",
}
DIFFERENCES = (
    ("llm_flipped", "llm_sft"),
    ("llm_flipped_both", "llm_sft_both"),
    ("llm_flipped_both", "llm_sft_plus_teacher"),
    ("llm_flipped_both", "teacher"),
)

RETRIEVAL = {"accuracy@1": "accuracy@1", "accuracy@5": "accuracy@5", "mrr": "MRR", "ndcg@10": "nDCG@10"}


@dataclass(frozen=True)
class SplitScores:
    """One feature of every validation and test pair: answer log-odds, a similarity or a teacher's cosine."""

    validation: np.ndarray
    test: np.ndarray

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray], kind: str) -> SplitScores:
        """What an .npz file of a run or a seed holds by that name."""
        return cls(arrays[f"{kind}_validation"], arrays[f"{kind}_test"])


def combine(first: SplitScores, second: SplitScores, validation_labels: np.ndarray) -> SplitScores:
    """Two features as one log-odds, by a logistic fit on the validation pairs."""
    coefficients, intercept = fit_log_odds(np.stack([first.validation, second.validation], 1), validation_labels)
    validation, test = (
        np.stack(features, 1) @ coefficients + intercept
        for features in ((first.validation, second.validation), (first.test, second.test))
    )
    return SplitScores(validation, test)


def judge(
    scores: SplitScores, validation_labels: np.ndarray, test_labels: np.ndarray, natural_threshold: float | None = None
) -> dict[str, float]:
    """Test metrics of one system. F1, precision, recall and accuracy are at the threshold with the best F1 on
    validation.

    With `natural_threshold` (0 for log-odds) the same four at that one too, as `f1_natural` and so on.
    """
    tuned = best_f1_threshold(scores.validation, validation_labels)
    raw = matching_metrics(scores.test, test_labels, threshold=natural_threshold, tuned_threshold=tuned)
    thresholded = ("f1", "precision", "recall", "accuracy")
    result = {name: raw[f"{name}_tuned"] for name in thresholded}
    result |= {"auc": raw["roc_auc"], "average_precision": raw["average_precision"]}
    if natural_threshold is not None:
        result |= {f"{name}_natural": raw[name] for name in thresholded}
    return result


def judge_seed(
    teacher: SplitScores,
    llm: SplitScores | None,
    sft: tuple[SplitScores, SplitScores] | None,
    flipped: tuple[SplitScores, SplitScores],
    validation_labels: np.ndarray,
    test_labels: np.ndarray,
    start: SplitScores | None = None,
) -> dict[str, dict[str, float]]:
    """Metrics of all systems for one seed; `sft` and `flipped` are (answer, similarity), what is None is left out.

    `start` is the flipped student's similarity after the start of A, before any step.
    """
    scores: dict[str, tuple[SplitScores, float | None]] = {"teacher": (teacher, None)}
    if llm is not None:
        scores["llm"] = (llm, 0.0)
    trained = {"llm_flipped": flipped} if sft is None else {"llm_sft": sft, "llm_flipped": flipped}
    for name, (answer, similarity) in trained.items():
        scores[name] = (answer, 0.0)
        scores[f"{name}_similarity"] = (similarity, None)
        scores[f"{name}_both"] = (combine(answer, similarity, validation_labels), 0.0)
    if start is not None:
        scores["llm_flipped_start"] = (start, None)
    if sft is not None:
        scores["llm_sft_plus_teacher"] = (combine(sft[0], teacher, validation_labels), 0.0)
    found = {name: scores[name] for name in SYSTEMS if name in scores}
    return {name: judge(one, validation_labels, test_labels, threshold) for name, (one, threshold) in found.items()}


def summarise(per_seed: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Means, spreads (sample standard deviation) and values by seed of systems, and their paired differences.

    A system that some seed lacks is left out.

    Args:
        per_seed: what `judge_seed` gave for each seed.
    """
    # The bare LLM was not asked where a run was made without the baseline.
    in_all = [name for name in per_seed[0] if all(name in seed for seed in per_seed)]
    systems = {name: _spread([seed[name] for seed in per_seed]) for name in in_all}
    differences = {
        f"{first} - {second}": _spread(
            [{metric: seed[first][metric] - seed[second][metric] for metric in COMPARED_METRICS} for seed in per_seed]
        )
        for first, second in DIFFERENCES
        if first in systems and second in systems
    }
    return {"systems": systems, "differences": differences}


def summarise_retrieval(per_seed: Sequence[Mapping[str, Mapping[str, float] | None]]) -> dict[str, Any]:
    """Means, spreads and values by seed of the ranking metrics of each system that has them in every seed."""
    of_systems = {name: [found for seed in per_seed if (found := seed.get(name))] for name in SYSTEMS}
    return {name: _spread(found) for name, found in of_systems.items() if len(found) == len(per_seed)}


def _spread(seeds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Mean of each metric under its name, `std` and `by_seed` of all beside them."""
    by_seed = {metric: [float(seed[metric]) for seed in seeds] for metric in seeds[0]}
    means = {metric: float(np.mean(values)) for metric, values in by_seed.items()}
    std = {metric: float(np.std(values, ddof=1)) if len(values) > 1 else 0.0 for metric, values in by_seed.items()}
    return {**means, "std": std, "by_seed": by_seed}


def completed(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report with the settings that are newer than it."""
    settings = report["settings"]
    # What the report says, in its order, and what it lacks behind it.
    training = settings["training"] | BEFORE_THE_CHOICE | settings["training"]
    return {**report, "settings": {**settings, "training": training}}


# AUC above the bare LLM's from which plain fine-tuning counts as having learned something; an LLM that is as good as
# this before has little to learn.
LEARNED, GOOD_BEFORE = 0.02, 0.9


def markdown_table(report: Mapping[str, Any]) -> str:
    """The tables of a report as Markdown; mean ± sample standard deviation over seeds."""
    systems, differences, *rankings = report_tables(report)
    shown = [systems, differences]
    shown += [(["all questions ranked for each query", *heads[1:]], rows) for heads, rows in rankings]
    return "\n\n".join([*(table(heads, rows) for heads, rows in shown), *_warnings(report)])


def report_tables(report: Mapping[str, Any]) -> list[tuple[list[str], list[list[str]]]]:
    """Heads and rows of the systems, of their paired differences and, where the data is an FAQ, of the rankings."""
    several = len(report["seeds"]) > 1

    def of_systems(systems: Mapping[str, Any], heads: Mapping[str, str]) -> tuple[list[str], list[list[str]]]:
        return ["system", *heads.values()], [
            [SYSTEMS.get(name, name), *(_cell(values, metric, several) for metric in heads)]
            for name, values in systems.items()
        ]

    gaps = []
    for name, values in report["differences"].items():
        first, second = (SYSTEMS.get(part, part) for part in name.split(" - "))
        wins = sum(value > 0 for value in values["by_seed"]["auc"])
        cells = [_cell(values, metric, several, sign="+") for metric in ("f1", "auc")]
        gaps.append([f"{first} − {second}", *cells, f"{wins} of {len(report['seeds'])}"])
    return [
        of_systems(report["systems"], METRIC_HEADS),
        (["paired difference", "ΔF1", "ΔAUC", "seeds with ΔAUC > 0"], gaps),
        *([of_systems(report["retrieval"], RETRIEVAL)] if "retrieval" in report else []),
    ]


def _warnings(report: Mapping[str, Any]) -> list[str]:
    """Says so where the baseline is none, so that a difference from it is not taken for more than it is."""
    systems = report["systems"]
    if not {"llm", "llm_sft"} <= set(systems):
        return []
    plain, bare = systems["llm_sft"]["auc"], systems["llm"]["auc"]
    if plain > bare + LEARNED or bare >= GOOD_BEFORE:
        return []
    return [
        f"Plain fine-tuning has not learned the task: its answer has an AUC of {plain:.3f}, where the LLM before "
        f"training has {bare:.3f}. It may need more pairs, more steps or another learning rate.",
    ]


def _cell(values: Mapping[str, Any], metric: str, several: bool, sign: str = "") -> str:
    number = f"{values[metric]:{sign}.4f}"
    return f"{number} ± {values['std'][metric]:.4f}" if several else number


def write_report(report: Mapping[str, Any], folder: str | os.PathLike[str]) -> None:
    """Write report.json and report.md into `folder`, each whole or not at all."""
    size = report["data"]
    title = (
        f"# Test results\n\n{size['train']} training, {size['validation']} validation and {size['test']} test pairs; "
        f"seeds {report['seeds']}. F1 and accuracy at the threshold with the best F1 on validation.\n\n"
    )
    write_json(Path(folder) / REPORT_FILE, report)
    write_atomically(Path(folder) / REPORT_TABLE_FILE, title + markdown_table(report) + "\n")
