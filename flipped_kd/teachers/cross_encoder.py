"""A teacher that reads both texts of a pair at once."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import CrossEncoder

from ..utils.token_batches import run_in_token_batches
from .base import BATCHES_PER_BLOCK, Teacher, check_batch_size, check_unit
from .cache import TeacherCache, fill_cache
from .items import ListedPairs, TextItems
from .score_table import TeacherEmbeddings, TeacherPairScores
from .shards import CacheIdentity


class CrossEncoderTeacher(Teacher):
    """A teacher that reads both texts of a pair at once; it scores given pairs only, so T exists on the diagonal
    alone.

    Args:
        model: the cross-encoder, with one output.
        id: name shown in logs and on cards.
        revision: commit on the Hub.

    Raises:
        ValueError: if the model has several labels.
    """

    kind = "cross_encoder"

    def __init__(self, model: CrossEncoder, *, id: str, revision: str | None = None) -> None:
        super().__init__(model, id=id, revision=revision)
        self.model = model
        if model.num_labels != 1:
            raise ValueError(
                f"Teacher {id!r} is a cross-encoder with num_labels={model.num_labels}; a matching teacher has one "
                "output, the match logit. Use a cross-encoder with num_labels=1 or a bi-encoder."
            )

    @property
    def fingerprint(self) -> str:
        """sha256 over weights, tokenizer and settings, hexadecimal; a model changed in place is another teacher."""
        return self._fingerprint(self.model)

    def score(
        self,
        pairs_a: Iterable[str] | TextItems,
        pairs_b: Iterable[str] | None = None,
        *,
        cache_dir: str | Path | None,
        batch_size: int = 64,
        show_progress: bool = True,
    ) -> TeacherPairScores:
        """Match probabilities P = sigmoid(logit) of pairs, each distinct ordered pair scored once per cache.

        Args:
            pairs_a: first texts, n non-empty strings; or the pairs of data sets (`items.DatasetPairs`).
            pairs_b: second texts, n non-empty strings; None with the pairs of data sets.
            cache_dir: as in `BiEncoderTeacher.embed`.
            batch_size: pairs per forward at most, as in `BiEncoderTeacher.embed`.
            show_progress: whether to show a progress bar while scoring.

        Returns:
            The memory-mapped scores of at least these pairs.

        Raises:
            TypeError, ValueError, OSError: as `BiEncoderTeacher.embed`; ValueError also for unequal numbers of texts,
            TypeError for pairs_b beside the pairs of data sets.
        """
        if isinstance(pairs_a, TextItems):
            if pairs_b is not None:
                raise TypeError(f"pairs_b must be left out with {type(pairs_a).__name__}, which has both texts.")
            items = pairs_a
        else:
            items = ListedPairs(pairs_a, [] if pairs_b is None else pairs_b)
        check_unit(items, "pairs", "score")
        check_batch_size(batch_size)
        paths = fill_cache(
            TeacherCache(self._cache_dir(cache_dir), self.identity),
            items.keys,
            items.lengths,
            lambda positions: self.predict(items.take(positions), batch_size),
            block=batch_size * BATCHES_PER_BLOCK,
            description="pairs",
            show_progress=show_progress,
        )
        return TeacherPairScores(paths, 1, keep_alive=self._scratch if cache_dir is None else None)

    def embed(self, texts: Iterable[str], **options: Any) -> TeacherEmbeddings:
        """Always refused: a cross-encoder has no vectors.

        Raises:
            ValueError: naming the teacher and the remedy.
        """
        raise ValueError(
            f"Teacher {self.id!r} is a cross-encoder: it scores given pairs and has no vector of a single text, so "
            "options that need the score of any two texts of a batch cannot be used with it. Use its score(), or a "
            "bi-encoder teacher."
        )

    @property
    def identity(self) -> CacheIdentity:
        """Whose scores a cache of this teacher holds."""
        return CacheIdentity("pair_probabilities", self.id, self.fingerprint, 1)

    def predict(self, pairs: list[tuple[str, str]], batch_size: int) -> np.ndarray:
        """Match probabilities (n, 1) float32 of the pairs, computed now."""
        # The sigmoid is named, since a model's own activation may be none (raw logits) or another.
        options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": False, "convert_to_numpy": True}
        compute = partial(self.model.predict, **options, activation_fn=torch.nn.Sigmoid())
        scores = run_in_token_batches(compute, self.model, pairs, batch_size)
        probabilities = np.asarray(scores, dtype=np.float32).reshape(-1, 1)
        bad = np.flatnonzero(~np.isfinite(probabilities))
        if len(bad):
            raise ValueError(
                f"Teacher {self.id!r} gives {probabilities[bad[0], 0]} for the pair {pairs[bad[0]]!r}; a score must "
                "be finite. Remove the pair, or check the teacher's weights."
            )
        return probabilities
