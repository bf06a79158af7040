"""Metrics of matching, at given thresholds and over all of them, and the threshold to choose on validation pairs."""

import math

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import accuracy_score, average_precision_score, precision_recall_fscore_support, roc_auc_score

from ..utils.checks import is_number


def scores_and_labels(
    scores: ArrayLike, labels: ArrayLike, remedy: str = "find out what made it so, there is no metric of such scores"
) -> tuple[np.ndarray, np.ndarray]:
    """Check n scores and n labels; floating scores keep their precision, labels become int64.

    Args:
        scores: Shape (n,), finite.
        labels: Shape (n,), 0 or 1.
        remedy: What to do about a score that is not finite.

    Raises:
        ValueError: If a score is not finite, a label not 0 or 1, or the shapes differ or are empty.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise ValueError(f"scores and labels have shapes {scores.shape} and {labels.shape}: give one of each per pair")
    if len(scores) == 0:
        raise ValueError("there are no scores: give at least one pair")
    if scores.dtype not in (np.float32, np.float64):
        scores = scores.astype(np.float64)
    finite = np.isfinite(scores)
    if not finite.all():
        row = int(np.argmin(finite))
        raise ValueError(f"score {row} is {scores[row]}, one of {np.sum(~finite)} that are not finite: {remedy}")
    valid = (labels == 0) | (labels == 1)
    if not np.all(valid):
        row = int(np.argmin(valid))
        raise ValueError(f"label {row} is {labels[row]!r}, but a label is 0 or 1: threshold or map the labels first")
    return scores, labels.astype(np.int64)


def best_f1_threshold(scores: ArrayLike, labels: ArrayLike) -> float:
    """The threshold with the highest F1 on these pairs, over every possible cut; choose it on validation pairs.

    A pair is predicted to match if its score is at least the threshold. The threshold lies midway between the lowest
    score above the cut and the highest below it; where everything is predicted to match, it is the lowest score. Of
    cuts with equal F1 the one with the fewest predicted matches (the highest threshold) is taken.

    Args:
        scores: Shape (n,), finite, higher means match; any scale.
        labels: Shape (n,), 0 or 1.

    Returns:
        The threshold, on the scale of `scores`; exactly representable in their precision.

    Raises:
        ValueError: If a score is not finite, a label not 0 or 1, the shapes differ, or no label is 1.
    """
    scores, last, true_positives = _cuts(scores, labels)
    f1 = 2 * true_positives / (last + 1 + true_positives[-1])
    return _threshold_at(scores, int(last[np.argmax(f1)]))


def precision_threshold(scores: ArrayLike, labels: ArrayLike, precision: float) -> float:
    """The threshold with the highest recall among those whose precision on these pairs is at least `precision`.

    The precision is that of these pairs, chosen on them: of few predicted matches it says little about others.
    Arguments and errors as in `best_f1_threshold`; ValueError too where no threshold has that precision (the best
    there is is named).
    """
    if not is_number(precision) or not 0 < precision <= 1:
        raise ValueError(f"precision={precision!r} must lie in (0, 1]")
    scores, last, true_positives = _cuts(scores, labels)
    reached = true_positives / (last + 1)
    allowed = np.flatnonzero(reached >= precision)
    if len(allowed) == 0:
        raise ValueError(
            f"no threshold has a precision of {precision} on these {len(scores)} pairs, the best has "
            f"{reached.max():.3f}: ask for less, or train a better matcher"
        )
    # Of cuts with equal recall the highest one: further down there are only wrong matches.
    best = allowed[np.argmax(true_positives[allowed])]
    return _threshold_at(scores, int(last[best]))


def _cuts(scores: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores in falling order, the last place above each possible cut, and the matches above it."""
    scores, labels = scores_and_labels(scores, labels)
    if not labels.any():
        raise ValueError(f"none of the {len(labels)} labels is 1, so every threshold has F1 0: add positive pairs")
    order = np.argsort(-scores, kind="stable")
    scores, labels = scores[order], labels[order]
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))  # a cut cannot part equal scores
    return scores, last, np.cumsum(labels)[last]


def _threshold_at(scores: np.ndarray, cut: int) -> float:
    """The threshold below the score at place `cut` of falling scores."""
    if cut == len(scores) - 1:
        return float(scores[cut])
    above, below = scores[cut], scores[cut + 1]
    middle = above / 2 + below / 2
    # Between neighbouring floats there is no middle: rounding may reach the lower score, which must stay below.
    return float(middle if below < middle <= above else above)


def _at_threshold(scores: np.ndarray, labels: np.ndarray, threshold: float, suffix: str) -> dict[str, float]:
    if not (is_number(threshold) and math.isfinite(threshold)):
        raise ValueError(f"the threshold is {threshold!r}; it must be finite, on the scale of the scores")
    predicted = (scores >= threshold).astype(np.int64)
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, average="binary", zero_division=0.0)
    accuracy = accuracy_score(labels, predicted)
    values = {"f1": f1, "precision": precision, "recall": recall, "accuracy": accuracy}
    return {name + suffix: float(value) for name, value in values.items()}


def matching_metrics(
    scores: ArrayLike, labels: ArrayLike, *, threshold: float | None = 0.5, tuned_threshold: float | None = None
) -> dict[str, float]:
    """Judge the scores of pairs against their labels.

    Args:
        scores: Shape (n,), finite, higher means match.
        labels: Shape (n,), 0 or 1.
        threshold: The natural threshold of the scores: 0.5 for probabilities, 0.0 for log-odds, None for scores that
            have none, such as cosines. A score at or above it counts as a match.
        tuned_threshold: A threshold chosen on other pairs (see `best_f1_threshold`), never on these.

    Returns:
        ``roc_auc`` (NaN if all labels are the same), ``average_precision`` (NaN if none is 1); with `threshold` also
        ``f1``, ``precision``, ``recall``, ``accuracy``; with `tuned_threshold` the same four with the suffix
        ``_tuned``. All in [0, 1]. Precision without predicted matches, recall without positives and F1 without
        either are 0.

    Raises:
        ValueError: If a score or threshold is not finite, a label is not 0 or 1, or the shapes differ or are empty.
    """
    scores, labels = scores_and_labels(scores, labels)
    scores = scores.astype(np.float64)  # so that a threshold means the same for scores of every precision
    results: dict[str, float] = {}
    if threshold is not None:
        results |= _at_threshold(scores, labels, threshold, "")
    if tuned_threshold is not None:
        results |= _at_threshold(scores, labels, tuned_threshold, "_tuned")
    both = labels.min() != labels.max()
    results["roc_auc"] = float(roc_auc_score(labels, scores)) if both else math.nan
    results["average_precision"] = float(average_precision_score(labels, scores)) if labels.any() else math.nan
    return results
