"""The part of the trainer that scores pairs: evaluation, prediction, and the match score fitted on held-out pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeAlias, cast

import datasets
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import EvalPrediction
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from ..data.validation import PAIR_FEATURES, PairColumns, validate_pairs
from ..evaluation.match_score import MatchScore
from ..evaluation.metrics import matching_metrics
from ..students.cpu_bfloat16 import fast_bfloat16
from ..utils.choices import ScoreKind
from .config import FlippedDistillationConfig
from .loss_log import LossLog
from .processes import ready_to_evaluate
from .random_states import random_states_kept
from .saving import PublishingTrainer

PairDatasets: TypeAlias = datasets.Dataset | Mapping[str, datasets.Dataset] | None


class PairScoringTrainer(PublishingTrainer):
    """Evaluates on pairs and fits what turns their two raw scores into predictions.

    `compute_loss(..., return_outputs=True)` of a subclass gives (loss, (answer log-odds (B,), similarity (B,))), and
    its `_checked_loader` the batches of a set that `_to_score` gave.
    """

    # Narrower than in Trainer.
    args: FlippedDistillationConfig
    columns: PairColumns | None
    loss_log: LossLog
    _checked_loader: Callable[[datasets.Dataset], DataLoader]
    # What the match score was fitted on.
    fitted_scores: tuple[np.ndarray, np.ndarray] | None

    # ---- Data ----

    def _eval_parts(self) -> list[datasets.Dataset]:
        if self.eval_dataset is None:
            return []
        return list(self.eval_dataset.values()) if isinstance(self.eval_dataset, Mapping) else [self.eval_dataset]

    def _to_score(self, dataset: datasets.Dataset, name: str) -> datasets.Dataset:
        """A checked pair set for evaluation or prediction, where one class will do."""
        if any(dataset is part for part in self._eval_parts()):
            return dataset  # checked at construction
        wanted = set(dataclasses.astuple(PairColumns.of(self.columns)))
        # A part of a set that this trainer has checked before bears the library's own column names.
        named = set(dataset.column_names or ()) if isinstance(dataset, datasets.Dataset) else set()
        renamed = not wanted <= named and set(PAIR_FEATURES) <= named
        return validate_pairs(
            dataset, columns=None if renamed else self.columns, require_both_classes=False, name=name
        )

    def _fast_products(self) -> AbstractContextManager[Any]:
        return fast_bfloat16(self.args.product_dtype, self.args.device)

    @contextmanager
    def in_precision(self) -> Iterator[None]:
        """Inside, a model that accelerate has not prepared computes as the prepared one does: autocast is round that
        one's forward."""
        dtype = self.args.product_dtype
        with torch.autocast(self.args.device.type, dtype, enabled=dtype != torch.float32), self._fast_products():
            yield

    # ---- Evaluation ----

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Tensor | None]:
        """(loss, (answer log-odds (B,), similarity (B,)), labels (B,)): never the logits of the vocabulary."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager(), self._fast_products():
            loss, scores = self.compute_loss(model, inputs, return_outputs=True)
        return (loss.detach(), None, None) if prediction_loss_only else (loss.detach(), scores, inputs["labels"])

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As in Trainer, with the mean of each loss term among the metrics; training's random numbers stay."""
        training, self.loss_log = self.loss_log, LossLog()
        try:
            with ready_to_evaluate(self), random_states_kept():
                output = super().evaluation_loop(
                    dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
                )
            terms = self.loss_log.flush(self.accelerator, f"{metric_key_prefix}_")
        finally:
            self.loss_log = training
        parts = self._eval_parts()
        if self.is_in_train and parts and dataloader.dataset is parts[0] and output.predictions is not None:
            scores: Any = output.predictions
            if np.isfinite(scores).all():
                self._fit(scores[0], scores[1], parts[0])  # so that a checkpoint of this step carries its score
        return output._replace(metrics={**(output.metrics or {}), **terms})

    def score_pairs(self, dataset: datasets.Dataset) -> tuple[np.ndarray, np.ndarray]:
        """Both scores of each pair, in order; pairs of like length share a batch.

        Args:
            dataset: n pairs with text_a, text_b and label.

        Returns:
            The answer's log-odds (n,), and the cosine of both texts (n,) in [-1, 1].

        Raises:
            ValueError: a column is missing, or a row is no pair.
        """
        dataset = self._to_score(dataset, "score_pairs")
        lengths = [len(a) + len(b) for a, b in zip(dataset["text_a"], dataset["text_b"], strict=True)]
        order = np.argsort(lengths, kind="stable")
        loader = self._checked_loader(dataset.select(order))
        with self._without_metrics():
            # Not predict(), which gives no scores under prediction_loss_only.
            predictions: Any = self.evaluation_loop(loader, "Scoring", False, metric_key_prefix="score").predictions
        for callback in self.callback_handler.callbacks:
            if getattr(callback, "prediction_bar", None) is not None:  # or the next scoring would go on in this bar
                callback.on_predict(self.args, self.state, self.control, metrics={})
        scores = np.empty((2, len(order)))
        scores[:, order] = np.stack(predictions)
        return scores[0], scores[1]

    @contextmanager
    def _without_metrics(self) -> Iterator[None]:
        """Inside, scores are kept and no metrics are computed of them: those may count on a set's own order."""
        keep = self.compute_metrics, self.args.batch_eval_metrics
        self.compute_metrics, self.args.batch_eval_metrics = None, False
        try:
            yield
        finally:
            self.compute_metrics, self.args.batch_eval_metrics = keep

    def fit_match_score(self, dataset: datasets.Dataset | None = None) -> MatchScore:
        """Fit thresholds and the combination of both scores.

        Args:
            dataset: n held-out pairs of both classes; by default the (first) evaluation set.

        Returns:
            The match score, which is kept and saved with the adapter.

        Raises:
            ValueError: there is no such set, or its labels are all of one class.
        """
        if dataset is None and not self._eval_parts():
            raise ValueError(
                "a match score is fitted on held-out pairs: give a data set here, or the trainer an eval_dataset."
            )
        dataset = self._eval_parts()[0] if dataset is None else self._to_score(dataset, "fit_match_score")
        return self._fit(*self.score_pairs(dataset), dataset)

    def _fit(self, answer: np.ndarray, similarity: np.ndarray, dataset: datasets.Dataset) -> MatchScore:
        self.fitted_scores = (answer, similarity)
        self.match_score = MatchScore.fit(
            answer, similarity, np.asarray(dataset["label"]), cast(ScoreKind, self.args.score)
        )
        self.scored_step = self.state.global_step
        return self.match_score

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        self.loss_log = LossLog()  # an earlier training, or attempt at a batch size, may have ended between two logs
        return super()._init_training_state(*args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as Trainer does, then fit the match score on the evaluation set, if there is one.

        With max_steps=0, which Trainer takes for "not set", there is no optimizer and no step: what A's start gives is
        what is saved and scored.
        """
        self.scored_step = None  # steps are counted anew, and the weights at one of them will be others
        result = TrainOutput(0, 0.0, {}) if self.args.max_steps == 0 else super().train(*args, **kwargs)
        # An evaluation after the last step has fitted it already.
        if self._eval_parts() and self.scored_step != self.state.global_step:
            self.fit_match_score()
        return result


def pair_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Metrics of the answer at its natural threshold; AUC and average precision of the similarity, prefixed."""
    predictions: Any = prediction.predictions
    answer, similarity = predictions
    labels: Any = prediction.label_ids
    result = matching_metrics(answer, labels, threshold=0.0)
    ranked = matching_metrics(similarity, labels, threshold=None)
    return result | {f"similarity_{name}": ranked[name] for name in ("roc_auc", "average_precision")}
