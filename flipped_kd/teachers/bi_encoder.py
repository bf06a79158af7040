"""A teacher that gives every text a vector (sentence-transformers): T_ij is the cosine of any two."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from ..utils.token_batches import run_in_token_batches
from .base import Teacher
from .files import KIND_REMEDY, KIND_RULE
from .fingerprint import FingerprintMemory


class BiEncoderTeacher(Teacher):
    """A teacher that gives each text a vector; T is the cosine of any two texts.

    Args:
        model: the bi-encoder, in evaluation mode; it belongs to no trainer's module tree.
        id: name shown in logs and on cards.
        revision: commit on the Hub.

    Raises:
        ValueError: if the model does not give one vector a text.
    """

    kind = "bi_encoder"
    has_vectors = True

    def __init__(self, model: SentenceTransformer, *, id: str, revision: str | None = None) -> None:
        super().__init__(id=id, revision=revision)
        self.model = model
        self._fingerprint = FingerprintMemory()
        try:
            self.dim = int(model.encode(["probe"], show_progress_bar=False, convert_to_numpy=True).shape[1])
        except (KeyError, IndexError) as error:
            raise ValueError(
                f"Teacher {id!r} gives no vector for a text ({type(error).__name__}: {error}): its modules lack a "
                f"pooling. {KIND_RULE}; {KIND_REMEDY}."
            ) from error

    @property
    def fingerprint(self) -> str:
        """sha256 over weights, tokenizer and settings, hexadecimal; a model changed in place is another teacher."""
        return self._fingerprint(self.model)

    def compute(self, items: list[Any], batch_size: int) -> np.ndarray:
        """Unit vectors (n, dim) float32 of texts."""
        options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": False, "convert_to_numpy": True}
        raw = run_in_token_batches(partial(self.model.encode, **options), self.model, items, batch_size)
        # Normalised here and in float64: a half-precision model's own normalisation is off by up to .4 %.
        vectors = np.asarray(raw, dtype=np.float64)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
        if len(bad):
            raise ValueError(
                f"Teacher {self.id!r} gives a vector of norm {norms[bad[0], 0]} for the text {items[bad[0]][:80]!r}; "
                "a cosine needs a finite, non-zero one. Remove the text, or check the teacher's weights."
            )
        return (vectors / norms).astype(np.float32)
