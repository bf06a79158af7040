"""The metrics as `evaluate.Metric` classes that need no network. Only this file imports `evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import evaluate
import numpy as np
from datasets import Features, List, Value

from .metrics import matching_metrics
from .ranking import ranking_metrics


class _InMemoryMetric(evaluate.Metric):
    """An `evaluate.Metric` that keeps what it is given in memory, so that many may run at once without lock files.

    Pass ``num_process`` above 1 (with an ``experiment_id``) for evaluate's own exchange by files between processes.
    """

    def __init__(self, config_name: str | None = None, *, num_process: int = 1, **options: Any) -> None:
        options.setdefault("keep_in_memory", num_process == 1)
        super().__init__(config_name, num_process=num_process, **options)


class PairMatching(_InMemoryMetric):
    """`matching_metrics` as an `evaluate.Metric`: scores as predictions, labels as references.

    Examples:
        >>> PairMatching().compute(predictions=[0.9, 0.2], references=[1, 0])["f1"]
        1.0
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="F1, precision, recall and accuracy at thresholds; ROC AUC, average precision.",
            citation="",
            inputs_description=matching_metrics.__doc__,
            # Floating references: an integer feature would turn a wrong label such as 0.5 into 0 without a word.
            features=Features({"predictions": Value("float64"), "references": Value("float64")}),
        )

    def _compute(
        self,
        *,
        predictions: list[float],
        references: list[float],
        threshold: float | None = 0.5,
        tuned_threshold: float | None = None,
    ) -> dict[str, float]:
        # None becomes NaN, and is refused as such.
        scores, labels = np.array(predictions, dtype=np.float64), np.array(references, dtype=np.float64)
        return matching_metrics(scores, labels, threshold=threshold, tuned_threshold=tuned_threshold)


class Retrieval(_InMemoryMetric):
    """`ranking_metrics` as an `evaluate.Metric`: ranked ids as predictions, relevant ids as references.

    Ids are strings; for ids of other types use `ranking_metrics`.

    Examples:
        >>> Retrieval().compute(predictions=[["b", "a"]], references=[["a"]])["mrr"]
        0.5
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Accuracy, recall, MRR and nDCG at cut-offs of ranked document ids.",
            citation="",
            inputs_description=ranking_metrics.__doc__,
            features=Features({"predictions": List(Value("string")), "references": List(Value("string"))}),
        )

    def _compute(
        self, *, predictions: list[list[str]], references: list[list[str]], cutoffs: Sequence[int] = (1, 5, 10)
    ) -> dict[str, float]:
        return ranking_metrics(predictions, references, cutoffs=cutoffs)
