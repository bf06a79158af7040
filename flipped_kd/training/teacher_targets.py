"""The teacher as training sees it: scores of every data set, their calibration, and what they say of a batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor

from ..data.keys import KnownMatches, dataset_keys
from ..teachers.base import Teacher
from ..teachers.calibration import DROPPED_SHARE_LIMIT, PlattCalibration, agreement_report
from ..teachers.score_table import TeacherScores, ordered_pair_keys
from ..teachers.streaming import StreamedScores
from ..utils.angles import cosine_matrix, paired_cosines
from .config import FlippedDistillationConfig

logger = logging.getLogger(__name__)


@dataclass
class TeacherTargets:
    """What teacher and gold labels say of a batch of N pairs.

    Attributes:
        labels: (N,) gold labels 0/1.
        similarity: T, (N, N) for every two texts or (N,) for the pairs alone.
        probability: P, the same shape.
        excluded: for a matrix, True where two texts off the diagonal are known to match.
    """

    labels: Tensor
    similarity: Tensor
    probability: Tensor
    excluded: Tensor | None


class TeacherSignal:
    """Scores data sets with the teacher once, calibrates its scores, and gives the targets of a batch.

    Args:
        teacher: the teacher, outside any module tree.
        args: settings; the cache folder and the thresholds are read.
        matrix: whether targets are wanted for every two texts of a batch.
        known_matches: texts known to match beside a batch's own positive pairs: those of the training set; None where
            that is a stream.

    Attributes:
        scores: the teacher's scores of all data sets given to `score`, memory-mapped.
        calibration: from T to P; None until `calibrate`.
        report: how the teacher agrees with the labels; empty until `calibrate`.
    """

    def __init__(
        self,
        teacher: Teacher,
        args: FlippedDistillationConfig,
        matrix: bool,
        known_matches: KnownMatches | None,
    ) -> None:
        self.teacher = teacher
        self.args = args
        self.matrix = matrix
        self.known_matches = known_matches
        self.scores: TeacherScores | None = None
        self.calibration: PlattCalibration | None = None
        self.report: dict[str, float | int] = {}
        self._stream: StreamedScores | None = None

    @property
    def cache_dir(self) -> str:
        """Where the scores are kept; a name that begins with "_" is never pushed."""
        return self.args.teacher_cache_dir or f"{self.args.output_dir}/_teacher_cache"

    # ---- Data sets ----

    def score(self, parts: Sequence[datasets.Dataset]) -> TeacherScores:
        """Put every text (pair) of `parts` into the teacher's cache; the main process first, the others then read."""
        options: dict[str, Any] = {
            "cache_dir": self.cache_dir,
            "batch_size": self.args.teacher_batch_size,
            "show_progress": not self.args.disable_tqdm and self.args.process_index == 0,
        }
        with self.args.main_process_first(local=False, desc="scoring with the teacher"):
            self.scores = self.teacher.score_datasets(parts, **options)
        return self.scores

    def similarity(self, dataset: datasets.Dataset) -> np.ndarray:
        """T of each pair of a scored set, (n,) in [-1, 1]."""
        assert self.scores is not None, "every data set is scored before it is used"
        return self.scores.similarity(*dataset_keys(dataset))

    def calibrate(self, held_out: datasets.Dataset, checked: datasets.Dataset) -> None:
        """Fit P on `held_out`, and see on `checked` (the training pairs) how often teacher and labels disagree.

        Args:
            held_out: pairs of both classes.
            checked: pairs.
        """
        scores, labels = self.similarity(held_out), np.asarray(held_out["label"])
        self.calibration = PlattCalibration.fit(scores, labels)
        self.report = agreement_report(
            self.similarity(checked),
            np.asarray(checked["label"]),
            self.calibration,
            tau_pos=self.args.positive_threshold,
            tau_neg=self.args.negative_threshold,
        )
        filtered = self.args.mcl_weight if self.args.contrast_filter == "all" else 0.0
        dropping = [name for name, weight in (("L_dist", self.args.dist_weight), ("L_MCL", filtered)) if weight]
        for label in ("positive", "negative") if dropping else ():
            share = self.report[f"dropped_{label}_share"]
            if share > DROPPED_SHARE_LIMIT:
                logger.warning(
                    "the thresholds drop %.0f %% of the %s pairs from %s: the teacher disagrees too often with the "
                    "labels; use a teacher that knows this domain, or check the labels",
                    100 * share,
                    label,
                    " and ".join(dropping),
                )

    # ---- A streamed training set ----

    @property
    def stream(self) -> StreamedScores:
        """Scores of texts that no data set has announced; opened on first use."""
        if self._stream is None:
            self._stream = StreamedScores(self.teacher, self.cache_dir, self.args.teacher_batch_size)
        return self._stream

    def complete(self, batch: dict[str, Any]) -> None:
        """Score the texts that a batch of a streamed set has brought with it, in place of the texts."""
        texts_a, texts_b = batch.pop("texts_a"), batch.pop("texts_b")
        device = batch["keys_a"].device
        keys_a, keys_b = batch["keys_a"].cpu().numpy(), batch["keys_b"].cpu().numpy()
        if not self.teacher.has_vectors:
            keys, pairs = ordered_pair_keys(keys_a, keys_b), list(zip(texts_a, texts_b, strict=True))
            probability = torch.from_numpy(self.stream.look_up(keys, pairs)[:, 0])
            batch["teacher_similarity"] = (2 * probability - 1).to(device)
            return
        vectors = torch.from_numpy(self.stream.look_up(np.concatenate([keys_a, keys_b]), texts_a + texts_b))
        teacher_a, teacher_b = vectors.to(device).chunk(2)
        if self.matrix:
            batch["teacher_a"], batch["teacher_b"] = teacher_a, teacher_b
        else:
            batch["teacher_similarity"] = paired_cosines(teacher_a, teacher_b).clamp(-1.0, 1.0)

    def flush(self) -> None:
        """Have everything scored so far on the disk, as before a checkpoint."""
        if self._stream is not None:
            self._stream.flush()

    # ---- Batches ----

    def targets(
        self, inputs: Mapping[str, Any], gather: Callable[[Tensor], Tensor] | None = None
    ) -> TeacherTargets | None:
        """What is known of a batch of `TeacherScoringCollator`; None before calibration or of an unscored batch.

        Args:
            inputs: the batch.
            gather: joins the rows of all ranks, whose pairs are then one batch.
        """
        names = ("teacher_a", "teacher_b", "keys_a", "keys_b") if self.matrix else ("teacher_similarity",)
        if self.calibration is None or names[0] not in inputs:
            return None
        labels, *values = (inputs[name] if gather is None else gather(inputs[name]) for name in ("labels", *names))
        if not self.matrix:
            (similarity,) = values
            return TeacherTargets(labels, similarity, self.calibration.probability(similarity), None)
        teacher_a, teacher_b, keys_a, keys_b = values
        similarity = cosine_matrix(teacher_a, teacher_b).clamp(-1.0, 1.0)
        # A batch's own positives as well: those of a stream, and of an evaluation set, are in no list.
        excluded = KnownMatches.of_batch(keys_a, keys_b, labels)(keys_a, keys_b)
        if self.known_matches is not None:
            excluded |= self.known_matches(keys_a, keys_b)
        excluded.fill_diagonal_(False)  # the diagonal has gold labels
        return TeacherTargets(labels, similarity, self.calibration.probability(similarity), excluded)
