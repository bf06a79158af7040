"""From the teacher's raw score to a match probability, and how well the teacher agrees with the labels."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import overload

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, roc_auc_score

from ..evaluation.metrics import scores_and_labels
from ..utils.angles import wide

# Penalty on the slope of standardised scores, as a share of the mean loss: slope^2 / (2 * SLOPE_SCALE). At a slope of
# 5, usual for cosines, it costs 1e-4 nats; on separable data, where the unpenalised slope is infinite, it stops it. A
# penalty in T's own units would flatten the P of teachers whose scores lie close together, as a cross-encoder's do
# where it denies nearly all pairs.
SLOPE_SCALE = 1e5
# A teacher that contradicts the labels on a larger share of either class is warned of.
DROPPED_SHARE_LIMIT = 0.3
# Of [0, 1], for the calibration error.
BINS = 15


@dataclass(frozen=True)
class PlattCalibration:
    """P = sigmoid(scale * T + offset), Platt's calibration with class-balanced weights.

    The thresholds .5 of arXiv 2507.05617 suppose scores for which .5 means "undecided", which raw cosines are not (our
    reading). Both classes weigh the same in the fit, so that it means that whatever the share of positives: plain
    Platt (1999) on data with few positives gives all of them P < .5, and the dual threshold would drop them.

    Args:
        scale: the slope c; positive where the teacher agrees with the labels.
        offset: d.

    Raises:
        ValueError: if one of them is not finite.

    Examples:
        >>> scores, labels = np.array([0.9, 0.6, 0.5, 0.1, 0.7, 0.3]), np.array([1, 1, 0, 0, 0, 0])
        >>> PlattCalibration.fit(scores, labels).probability(scores).round(2)
        array([0.95, 0.51, 0.28, 0.01, 0.74, 0.05])
    """

    scale: float
    offset: float

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not math.isfinite(value):
                raise ValueError(f"PlattCalibration: {name}={value!r} must be finite; fit() gives usable values.")

    @classmethod
    def fit(cls, scores: np.ndarray, labels: np.ndarray) -> "PlattCalibration":
        """Fit by logistic regression, class-balanced.

        Minimises mean_i w_i log(1 + exp(-s_i (c T_i + d))) + (c std(T))^2 / (2 SLOPE_SCALE), with s_i = +-1, w_i = n /
        (2 n_class) and std so weighted too: practically unpenalised, but finite on separable scores, unchanged if
        either class is repeated, and with the same P for a T in other units.

        Args:
            scores: teacher scores T of the pairs, float (n,), higher for matches.
            labels: 0 or 1, (n,).

        Returns:
            The calibration. A slope that is not positive (the teacher contradicts the labels) is returned with a
            UserWarning.

        Raises:
            ValueError: for unequal lengths, scores that are not finite or all equal, labels outside {0, 1} or a single
                class.
        """
        scores, labels = _checked(scores, labels)
        if len(np.unique(labels)) < 2:
            raise ValueError(
                f"PlattCalibration.fit needs pairs of both classes, but all {len(labels)} labels are "
                f"{int(labels[0])}. Fit on a split that has matches and non-matches."
            )
        if np.ptp(scores) == 0:
            raise ValueError(
                f"PlattCalibration.fit: the teacher gives all {len(scores)} pairs the same score {scores[0]!r}, so it "
                "tells nothing about matches. Check the teacher on two different pairs, or choose another."
            )
        model = LogisticRegression(
            C=SLOPE_SCALE / len(labels), class_weight="balanced", solver="newton-cholesky", tol=1e-8, max_iter=1000
        )
        centre, spread = _balanced_moments(scores, labels == 1)
        model.fit(((scores - centre) / spread)[:, None], labels)
        scale = float(model.coef_[0, 0] / spread)
        calibration = cls(scale=scale, offset=float(model.intercept_[0] - scale * centre))
        if calibration.scale <= 0:
            warnings.warn(
                "The teacher contradicts the labels: its scores do not rise with the match label (calibration slope "
                f"{calibration.scale:.4g} <= 0 on {len(labels)} pairs). Distilling it will teach the wrong thing. "
                "Check that label 1 means a match, that the teacher "
                "knows this domain, and that its score rises with similarity; else choose another teacher.",
                UserWarning,
                stacklevel=2,
            )
        return calibration

    @overload
    def probability(self, scores: np.ndarray) -> np.ndarray: ...

    @overload
    def probability(self, scores: torch.Tensor) -> torch.Tensor: ...

    def probability(self, scores: np.ndarray | torch.Tensor) -> np.ndarray | torch.Tensor:
        """Match probabilities.

        Args:
            scores: teacher scores T, any shape, array or tensor.

        Returns:
            P in [0, 1], the same shape and kind, float64 for float64 input and else float32.
        """
        if isinstance(scores, torch.Tensor):
            return torch.sigmoid(self.scale * wide(scores) + self.offset)
        array = np.asarray(scores)
        dtype = np.float64 if array.dtype == np.float64 else np.float32
        logits = torch.as_tensor(self.scale * array.astype(np.float64) + self.offset)
        return torch.sigmoid(logits).numpy().astype(dtype)

    def to_dict(self) -> dict[str, float]:
        """Plain JSON values: scale and offset."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, float]) -> "PlattCalibration":
        """The inverse of `to_dict`.

        Args:
            values: scale and offset.

        Raises:
            ValueError: if these are not the keys, or a value is not finite.
        """
        if set(values) != {"scale", "offset"}:
            raise ValueError(
                f"PlattCalibration.from_dict: got keys {sorted(values)}, needs exactly ['offset', 'scale']."
            )
        return cls(scale=float(values["scale"]), offset=float(values["offset"]))


def agreement_report(
    scores: np.ndarray,
    labels: np.ndarray,
    calibration: PlattCalibration,
    *,
    tau_pos: float = 0.5,
    tau_neg: float = 0.5,
) -> dict[str, float | int]:
    """How well the teacher agrees with labelled pairs, and what the dual threshold (arXiv 2507.05617) would drop of
    them.

    Args:
        scores: teacher scores T, float (n,).
        labels: 0 or 1, (n,).
        calibration: turns T into P.
        tau_pos: a positive is kept if P >= tau_pos, in [0, 1].
        tau_neg: a negative is kept if P < tau_neg, in [0, 1].

    Returns:
        n, positive_share; roc_auc and average_precision of T; f1 and accuracy of P >= .5; dropped_positive_share and
        dropped_negative_share (of their class); expected_calibration_error: mean over 15 equal bins of [0, 1] of
        |share of matches - mean P|, weighted by the bins' sizes, both classes weighing the same as in the fit. What
        needs both classes, or a class that is absent, is nan.

    Raises:
        ValueError: for bad scores or labels as in `PlattCalibration.fit`, or thresholds outside [0, 1].
    """
    scores, labels = _checked(scores, labels)
    for name, threshold in (("tau_pos", tau_pos), ("tau_neg", tau_neg)):
        if not 0.0 <= threshold <= 1.0:
            raise ValueError(
                f"agreement_report: {name}={threshold!r} must be a probability in [0, 1]; the paper uses 0.5."
            )
    probabilities = calibration.probability(scores)
    positive = labels == 1
    both = bool(positive.any() and not positive.all())
    predicted = probabilities >= 0.5
    # 1 keeps every negative, as in the losses: a steep calibration rounds P to 1.
    denied = (probabilities >= tau_neg) & (tau_neg < 1.0)
    return {
        "n": len(labels),
        "positive_share": float(positive.mean()),
        "roc_auc": float(roc_auc_score(labels, scores)) if both else math.nan,
        "average_precision": float(average_precision_score(labels, scores)) if both else math.nan,
        "f1": float(f1_score(labels, predicted, zero_division=0.0)),
        "accuracy": float(accuracy_score(labels, predicted)),
        "dropped_positive_share": float((probabilities[positive] < tau_pos).mean()) if positive.any() else math.nan,
        "dropped_negative_share": float(denied[~positive].mean()) if not positive.all() else math.nan,
        "expected_calibration_error": _balanced_calibration_error(probabilities, positive) if both else math.nan,
    }


def _balanced_calibration_error(probabilities: np.ndarray, positive: np.ndarray) -> float:
    weights = np.where(positive, 0.5 / positive.sum(), 0.5 / (~positive).sum())
    bins = np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)
    # In a bin, weight * |share - mean P| = |sum of weighted (label - P)|.
    gaps = np.bincount(bins, weights=weights * (positive - probabilities), minlength=BINS)
    return float(np.abs(gaps).sum())


def _balanced_moments(scores: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation with both classes weighing the same."""
    classes = scores[positive], scores[~positive]
    centre = float(np.mean([part.mean() for part in classes]))
    return centre, math.sqrt(np.mean([((part - centre) ** 2).mean() for part in classes]))


def _checked(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    damaged = "the teacher's weights or its cache are damaged, check the teacher on this pair and score anew"
    return scores_and_labels(np.asarray(scores, dtype=np.float64), labels, damaged)
