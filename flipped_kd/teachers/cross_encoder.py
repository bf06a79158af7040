"""A teacher that reads both texts of a pair at once."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from sentence_transformers import CrossEncoder

from ..utils.token_batches import run_in_token_batches
from .base import Teacher
from .fingerprint import FingerprintMemory


class CrossEncoderTeacher(Teacher):
    """A teacher that reads both texts of a pair at once; it scores given pairs only, so T exists on the diagonal
    alone.

    Args:
        model: the cross-encoder, with one output, in evaluation mode; it belongs to no trainer's module tree.
        id: name shown in logs and on cards.
        revision: commit on the Hub.

    Raises:
        ValueError: if the model has several labels.
    """

    kind = "cross_encoder"
    has_vectors = False

    def __init__(self, model: CrossEncoder, *, id: str, revision: str | None = None) -> None:
        super().__init__(id=id, revision=revision)
        self.model = model
        self._fingerprint = FingerprintMemory()
        if model.num_labels != 1:
            raise ValueError(
                f"Teacher {id!r} is a cross-encoder with num_labels={model.num_labels}; a matching teacher has one "
                "output, the match logit. Use a cross-encoder with num_labels=1 or a bi-encoder."
            )

    @property
    def fingerprint(self) -> str:
        """sha256 over weights, tokenizer and settings, hexadecimal; a model changed in place is another teacher."""
        return self._fingerprint(self.model)

    def compute(self, items: list[Any], batch_size: int) -> np.ndarray:
        """Match probabilities P = sigmoid(logit) (n, 1) float32 of pairs."""
        # The sigmoid is named, since a model's own activation may be none (raw logits) or another.
        options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": False, "convert_to_numpy": True}
        run = partial(self.model.predict, **options, activation_fn=torch.nn.Sigmoid())
        scores = run_in_token_batches(run, self.model, items, batch_size)
        probabilities = np.asarray(scores, dtype=np.float32).reshape(-1, 1)
        bad = np.flatnonzero(~np.isfinite(probabilities))
        if len(bad):
            raise ValueError(
                f"Teacher {self.id!r} gives {probabilities[bad[0], 0]} for the pair {items[bad[0]]!r}; a score must "
                "be finite. Remove the pair, or check the teacher's weights."
            )
        return probabilities
