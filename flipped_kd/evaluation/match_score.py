"""Match scores: what predictions are made of (answer, similarity or both), fitted on validation pairs and saved."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from ..utils.atomic import write_atomically
from ..utils.choices import SCORE_KINDS, ScoreKind
from ..utils.json_files import AGAIN, read_versioned
from .metrics import best_f1_threshold, precision_threshold

logger = logging.getLogger(__name__)
SCORE_FILE = "match_score.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class LogOdds:
    """log-odds of a match = answer * x_answer + similarity * x_similarity + bias.

    `threshold` is the cut on the log-odds chosen on validation.
    """

    answer: float
    similarity: float
    bias: float
    threshold: float

    def __call__(self, answer: np.ndarray, similarity: np.ndarray) -> np.ndarray:
        """Log-odds (n,) of pairs with answer log-odds `answer` (n,) and similarity `similarity` (n,).

        What has weight 0 is not looked at, and may be NaN where it was not computed.
        """
        total: np.ndarray = np.zeros(np.shape(answer))
        for weight, values in ((self.answer, answer), (self.similarity, similarity)):
            if weight:
                total = total + weight * np.asarray(values, np.float64)
        return total + self.bias


def fit_log_odds(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """Logistic regression on standardised features, returned in raw units.

    Args:
        features: (n, k).
        labels: (n,) 0/1, both classes present.

    Returns:
        (coefficients (k,), intercept), so that sigmoid(features @ coefficients + intercept) is the match probability.
    """
    features, labels = np.asarray(features, np.float64), np.asarray(labels)
    if len(np.unique(labels)) < 2:
        raise ValueError(f"all {len(labels)} labels are {labels[0]}: a score is fitted on pairs of both classes.")
    mean, spread = features.mean(0), features.std(0)
    # A constant feature keeps coefficient 0; rounding gives it a spread that is not quite 0.
    spread = np.where(spread > 1e-12 * np.abs(features).max(0), spread, 1.0)
    model = LogisticRegression().fit((features - mean) / spread, labels)
    coefficients = model.coef_[0] / spread
    return coefficients, float(model.intercept_[0] - coefficients @ mean)


class MatchScore:
    """The three ways to score a pair, each as log-odds with natural threshold 0 and a threshold chosen on validation.

    - `answer`: logit(yes) - logit(no), as it is;
    - `similarity`: the cosine of the representations, through a one-feature logistic fit;
    - `both`: a two-feature logistic fit of the two.

    Args:
        kinds: log-odds by kind.
        default: the kind that predictions use unless told otherwise.
        min_precision: the precision that the thresholds were chosen for; None: they have the best F1.
        fitted_on: how many pairs it was fitted on, and the share of matches among them; None where that is not known.

    Raises:
        ValueError: the default is not among the kinds.

    Examples:
        >>> answer, similarity = np.array([3.0, 0.5, -0.1, -2.0]), np.array([0.9, 0.2, 0.3, 0.1])
        >>> score = MatchScore.fit(answer, similarity, labels=np.array([1, 1, 0, 0]))
        >>> score.matches(answer, similarity, "answer")
        array([ True,  True, False, False])
        >>> score.probability(answer, similarity).round(2)
        array([0.83, 0.48, 0.45, 0.24])
    """

    def __init__(
        self,
        kinds: dict[ScoreKind, LogOdds],
        default: ScoreKind = "both",
        min_precision: float | None = None,
        fitted_on: tuple[int, float] | None = None,
    ) -> None:
        if default not in kinds:
            raise ValueError(f"score={default!r} is not one of {list(kinds)}.")
        self.kinds = kinds
        self.default = default
        self.min_precision = min_precision
        self.fitted_on = fitted_on

    @classmethod
    def fit(
        cls,
        answer: np.ndarray,
        similarity: np.ndarray,
        labels: np.ndarray,
        default: ScoreKind = "both",
        min_precision: float | None = None,
    ) -> MatchScore:
        """Fit on held-out pairs, with as many matches among them as where the scores will be used.

        Args:
            answer: log-odds (n,) of the pairs, as `FlippedMatcher.scores` gives them.
            similarity: cosines (n,).
            labels: (n,) 0/1.
            default: the kind that predictions use unless told otherwise.
            min_precision: choose the thresholds with the most recall at this precision; by default those with the best
                F1.

        Raises:
            ValueError: the labels are all of one class; no threshold of the default kind has that precision. (Of
                another kind that is a warning, and its threshold lies above all these pairs.)
        """
        (only,), only_bias = fit_log_odds(np.asarray(similarity)[:, None], labels)
        (first, second), bias = fit_log_odds(np.stack([answer, similarity], 1), labels)
        parameters = {
            "answer": (1.0, 0.0, 0.0),
            "similarity": (0.0, float(only), only_bias),
            "both": (float(first), float(second), bias),
        }
        kinds: dict[ScoreKind, LogOdds] = {}
        for kind in SCORE_KINDS:
            raw = LogOdds(*parameters[kind], threshold=0.0)
            scores = raw(answer, similarity)
            if min_precision is None:
                threshold = best_f1_threshold(scores, labels)
            else:
                try:
                    threshold = precision_threshold(scores, labels, min_precision)
                except ValueError as error:
                    if kind == default:
                        raise ValueError(f"score {kind!r}: {error}") from None
                    logger.warning("score %r: %s; only what is above all validation pairs matches by it", kind, error)
                    threshold = float(np.nextafter(scores.max(), np.inf))
            kinds[kind] = LogOdds(*parameters[kind], threshold=float(threshold))
        return cls(kinds, default, min_precision, (len(labels), float(np.mean(labels))))

    def log_odds(self, answer: np.ndarray, similarity: np.ndarray, kind: ScoreKind | None = None) -> np.ndarray:
        """Log-odds of a match.

        Args:
            answer: log-odds (n,) of the answer.
            similarity: cosines (n,). What `kind` does not use may be NaN.
            kind: the score; None takes the default.

        Returns:
            (n,), natural threshold 0.
        """
        return self.kinds[kind or self.default](answer, similarity)

    def probability(self, answer: np.ndarray, similarity: np.ndarray, kind: ScoreKind | None = None) -> np.ndarray:
        """Match probabilities.

        Args:
            answer: as in `log_odds`.
            similarity: as in `log_odds`.
            kind: as in `log_odds`.

        Returns:
            (n,) in [0, 1].
        """
        return expit(self.log_odds(answer, similarity, kind))

    def threshold(self, kind: ScoreKind | None = None) -> float:
        """The threshold chosen on validation pairs.

        Args:
            kind: as in `log_odds`.

        Returns:
            The least probability of a match, on the scale of `probability`.
        """
        return float(expit(self.kinds[kind or self.default].threshold))

    def matches(self, answer: np.ndarray, similarity: np.ndarray, kind: ScoreKind | None = None) -> np.ndarray:
        """Which pairs match by the chosen threshold.

        Args:
            answer: as in `log_odds`.
            similarity: as in `log_odds`.
            kind: as in `log_odds`.

        Returns:
            (n,) bool.
        """
        found: np.ndarray = self.log_odds(answer, similarity, kind) >= self.kinds[kind or self.default].threshold
        return found

    def to_dict(self) -> dict[str, Any]:
        """The whole definition as plain JSON values."""
        fitted = self.fitted_on
        return {
            "format_version": FORMAT_VERSION,
            "default": self.default,
            "min_precision": self.min_precision,
            "log_odds": {kind: asdict(odds) for kind, odds in self.kinds.items()},
            **({} if fitted is None else {"fitted_on": {"pairs": fitted[0], "positive_share": fitted[1]}}),
        }

    def to_json(self) -> str:
        """What match_score.json holds."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write match_score.json, whole or not at all.

        Args:
            folder: where to, made if absent.
        """
        write_atomically(Path(folder) / SCORE_FILE, self.to_json())

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> MatchScore:
        """Read match_score.json.

        Args:
            folder: holds it.

        Raises:
            ValueError: the file is absent, broken or from a newer release.
        """
        path = Path(folder) / SCORE_FILE
        if not path.is_file():
            raise ValueError(
                f"{path.parent} holds no {SCORE_FILE}: train with an eval_dataset, or fit one with MatchScore.fit."
            )
        saved = read_versioned(path, FORMAT_VERSION, AGAIN)
        try:
            kinds = {kind: LogOdds(**odds) for kind, odds in saved["log_odds"].items()}
            fitted = saved.get("fitted_on")
            fitted_on = None if fitted is None else (int(fitted["pairs"]), float(fitted["positive_share"]))
            return cls(kinds, saved["default"], saved.get("min_precision"), fitted_on)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no saved MatchScore ({error!r}): {AGAIN}.") from error


# What a model without match_score.json has: the answer's log-odds as they are, and no threshold that was chosen.
ANSWER_ONLY = MatchScore({"answer": LogOdds(1.0, 0.0, 0.0, threshold=0.0)}, "answer")
