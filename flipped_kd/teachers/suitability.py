"""Is a teacher worth learning from? Its agreement with labelled pairs, and what the dual threshold would drop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..evaluation.metrics import best_f1_threshold, matching_metrics
from ..utils.markdown import table
from .calibration import DROPPED_SHARE_LIMIT, PlattCalibration, agreement_report

CHECK_VERSION = 1
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# Below it a teacher orders pairs hardly better than chance.
WEAK_AUC = 0.65
# A difference of AUC that a student's and a teacher's must have to be called one.
MARGIN = 0.01
# Gap between calibrated probability and share of matches, averaged over bins.
CALIBRATION_LIMIT = 0.1


def check_scores(
    scores: np.ndarray,
    labels: np.ndarray,
    *,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    student: tuple[np.ndarray, np.ndarray | None] | None = None,
    thresholds: tuple[float, float] = (0.5, 0.5),
) -> dict[str, Any]:
    """Judge a teacher's scores against labels.

    Args:
        scores: the teacher's T of n pairs, higher for matches.
        labels: 0 or 1, (n,), both classes present.
        validation: (scores, labels) of other pairs, to calibrate and choose thresholds on; by default the pairs
            themselves, which flatters.
        student: the bare LLM's answer log-odds of the pairs (n,), and of the validation pairs.
        thresholds: tau_pos and tau_neg in [0, 1] of the training that is planned.

    Returns:
        Plain JSON values: calibration, agreement (`agreement_report`), matching (`matching_metrics` at P >= .5 and at
        the threshold with the best F1), threshold_curve (shares that each tau would drop of either class, and the
        label's share among what is kept), student (the same metrics), advice in words.

    Raises:
        ValueError: as `PlattCalibration.fit`.
    """
    calibrated = (scores, labels) if validation is None else validation
    calibration = PlattCalibration.fit(*calibrated)
    probabilities = calibration.probability(np.asarray(scores, np.float64))
    tuned = float(calibration.probability(np.array([best_f1_threshold(*calibrated)], np.float64))[0])
    report: dict[str, Any] = {
        "format_version": CHECK_VERSION,
        "calibrated_on": {"pairs": len(calibrated[1]), "held_out": validation is not None},
        "calibration": calibration.to_dict(),
        "agreement": agreement_report(scores, labels, calibration, tau_pos=thresholds[0], tau_neg=thresholds[1]),
        "matching": matching_metrics(probabilities, labels, threshold=0.5, tuned_threshold=tuned)
        if calibration.scale > 0
        else None,
        "threshold_curve": [_at(threshold, scores, labels, calibration) for threshold in THRESHOLDS],
    }
    if student is not None:
        answers, known = student
        chosen_on = (answers, labels) if validation is None or known is None else (known, validation[1])
        cut = best_f1_threshold(*chosen_on)
        report["student"] = matching_metrics(answers, labels, threshold=0.0, tuned_threshold=cut)
    return report | {"advice": advice(report)}


def _at(threshold: float, scores: np.ndarray, labels: np.ndarray, calibration: PlattCalibration) -> dict[str, float]:
    """What tau_pos = tau_neg = threshold would drop."""
    found = agreement_report(scores, labels, calibration, tau_pos=threshold, tau_neg=threshold)
    shares = {name: float(found[name]) for name in ("dropped_positive_share", "dropped_negative_share")}
    return {"threshold": threshold, **shares}


def advice(report: Mapping[str, Any]) -> list[str]:
    """What to make of the numbers, most important first; never empty."""
    agreement, slope = report["agreement"], report["calibration"]["scale"]
    auc, student = agreement["roc_auc"], report.get("student")
    said = []
    if slope <= 0:
        return [
            f"Do not use this teacher: its scores fall where labels say match (slope {slope:.3g}). Check that label 1 "
            "means a match and that the teacher's score rises with similarity."
        ]
    if auc < WEAK_AUC:
        said.append(
            f"Weak: AUC {auc:.3f} is little better than chance (.5). Fine-tune the teacher on these pairs, or take "
            "one of this domain and language."
        )
    for label, name in (("positive", "matches"), ("negative", "others")):
        share = agreement[f"dropped_{label}_share"]
        if share > DROPPED_SHARE_LIMIT:
            said.append(_about_dropped(report, label, name, share))
    if student is not None:
        said.append(_about_student(auc, student["roc_auc"]))
    if agreement["expected_calibration_error"] > CALIBRATION_LIMIT:
        words = f"Its probabilities are off by {agreement['expected_calibration_error']:.2f} on average: "
        if report["calibrated_on"]["held_out"]:
            words += "the pairs it is calibrated on differ from these. Calibrate on validation pairs of the same kind."
        else:
            words += "matches do not become more frequent with its score by one curve. Look at scores and labels."
        said.append(words)
    if not said or (len(said) == 1 and student is not None and auc > student["roc_auc"] + MARGIN):
        said.insert(0, f"Usable: AUC {auc:.3f}, and the thresholds keep most pairs of both classes.")
    return said


def warnings_of(report: Mapping[str, Any]) -> list[str]:
    """What must not be overlooked: a teacher that is wrong, no better than the LLM, or dropped too often."""
    agreement, student = report["agreement"], report.get("student")
    said = []
    if report["calibration"]["scale"] <= 0:
        return list(report["advice"])
    if student is not None and student["roc_auc"] > agreement["roc_auc"]:
        said.append(
            f"the teacher (AUC {agreement['roc_auc']:.3f}) is worse than the LLM as it is ({student['roc_auc']:.3f})."
        )
    for label, name in (("positive", "matches"), ("negative", "others")):
        share = agreement[f"dropped_{label}_share"]
        if share > DROPPED_SHARE_LIMIT:
            said.append(f"the thresholds drop {share:.0%} of the {name}, more than {DROPPED_SHARE_LIMIT:.0%}.")
    return said


def _about_dropped(report: Mapping[str, Any], label: str, name: str, share: float) -> str:
    kept = [row for row in report["threshold_curve"] if row[f"dropped_{label}_share"] <= DROPPED_SHARE_LIMIT]
    option = f"--{label}_threshold"
    words = f"It disagrees with the labels on {share:.0%} of the {name}, which L_dist would lose."
    if not kept:
        return f"{words} Check their labels."
    best = kept[-1] if label == "positive" else kept[0]
    return (
        f"{words} Check some of their labels; if they are right, {option} {best['threshold']} drops "
        f"{best[f'dropped_{label}_share']:.0%}."
    )


def _about_student(teacher: float, student: float) -> str:
    if student >= teacher - MARGIN:
        return (
            f"The LLM as it is (AUC {student:.3f}) already matches as well as the teacher ({teacher:.3f}): there is "
            "little to learn from it. Plain fine-tuning may do, or take a stronger teacher."
        )
    return f"The LLM as it is has AUC {student:.3f}, the teacher {teacher:.3f}: there is something to learn."


def system_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Teacher and, where it is known, bare LLM: name, AUC, average precision, F1 at the tuned threshold and at .5."""
    systems = [("teacher", report["matching"]), ("LLM, not trained", report.get("student"))]
    keys = ("roc_auc", "average_precision", "f1_tuned", "f1")
    return [[name, *(f"{found[key]:.4f}" for key in keys)] for name, found in systems if found is not None]


def curve_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """What each threshold would drop: its value, share of the matches, share of the others."""
    return [
        [f"{row['threshold']:.1f}", f"{row['dropped_positive_share']:.1%}", f"{row['dropped_negative_share']:.1%}"]
        for row in report["threshold_curve"]
    ]


def check_table(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    agreement = report["agreement"]
    chosen = "threshold of validation" if report["calibrated_on"]["held_out"] else "best threshold of these pairs"
    heads = ["", "AUC", "average precision", f"F1, {chosen}", "F1, probability .5"]
    metrics = table(heads, system_rows(report))
    dropped = table(
        ["threshold", "matches dropped (P < threshold)", "others dropped (P >= threshold)"], curve_rows(report)
    )
    size = f"{agreement['n']} pairs, {agreement['positive_share']:.1%} of them matches"
    error = f"calibration error {agreement['expected_calibration_error']:.3f}"
    advice = "\n".join(f"- {words}" for words in report["advice"])
    return "\n\n".join([f"{size}; {error}", metrics, dropped, advice])
