"""A teacher that gives every text a vector (sentence-transformers): T_ij is the cosine of any two."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from ..utils.token_batches import run_in_token_batches
from .base import BATCHES_PER_BLOCK, Teacher, check_batch_size, check_unit
from .cache import TeacherCache, fill_cache
from .files import (
    KIND_REMEDY,
    KIND_RULE,
)
from .items import ListedTexts, TextItems
from .score_table import TeacherEmbeddings
from .shards import CacheIdentity


class BiEncoderTeacher(Teacher):
    """A teacher that gives each text a vector; T is the cosine of any two texts.

    Args:
        model: the bi-encoder.
        id: name shown in logs and on cards.
        revision: commit on the Hub.

    Raises:
        ValueError: if the model does not give one vector a text.
    """

    kind = "bi_encoder"

    def __init__(self, model: SentenceTransformer, *, id: str, revision: str | None = None) -> None:
        super().__init__(model, id=id, revision=revision)
        self.model = model
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

    def embed(
        self,
        texts: Iterable[str] | TextItems,
        *,
        cache_dir: str | Path | None,
        batch_size: int = 64,
        show_progress: bool = True,
    ) -> TeacherEmbeddings:
        """Vectors of all texts, each distinct text embedded once, ever, per cache.

        A second call with the same texts only reads. With several ranks, let the main process call it first and the
        others after: they then find everything in the cache.

        Args:
            texts: non-empty strings, repetitions allowed; or the texts of data sets (`items.DatasetTexts`), which
                are read from disk when it is their turn, so that millions fit.
            cache_dir: directory of teacher caches (each teacher gets its own folder). None keeps the vectors in a
                temporary directory that lives as long as this teacher or the result.
            batch_size: texts per forward at most; fewer if they are long, on a CPU (`token_batches`).
            show_progress: whether to show a progress bar while embedding.

        Returns:
            The memory-mapped vectors of at least these texts, keyed by `flipped_kd.data.keys.text_keys`.

        Raises:
            TypeError: if `texts` is one string or holds something else than strings.
            ValueError: for an empty text, a bad batch size, a vector that is zero or not finite, or another teacher's
            cache.
            OSError: if the cache cannot be written.
        """
        items = texts if isinstance(texts, TextItems) else ListedTexts(texts)
        check_unit(items, "texts", "embed")
        check_batch_size(batch_size)
        paths = fill_cache(
            TeacherCache(self._cache_dir(cache_dir), self.identity),
            items.keys,
            items.lengths,
            lambda positions: self.encode(items.take(positions), batch_size),
            block=batch_size * BATCHES_PER_BLOCK,
            description="texts",
            show_progress=show_progress,
        )
        return TeacherEmbeddings(paths, self.dim, keep_alive=self._scratch if cache_dir is None else None)

    @property
    def identity(self) -> CacheIdentity:
        """Whose vectors a cache of this teacher holds."""
        return CacheIdentity("embeddings", self.id, self.fingerprint, self.dim)

    def encode(self, texts: list[str], batch_size: int) -> np.ndarray:
        """Unit vectors (n, dim) float32 of the texts, computed now."""
        options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": False, "convert_to_numpy": True}
        raw = run_in_token_batches(partial(self.model.encode, **options), self.model, texts, batch_size)
        # Normalised here and in float64: a half-precision model's own normalisation is off by up to .4 %.
        vectors = np.asarray(raw, dtype=np.float64)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
        if len(bad):
            raise ValueError(
                f"Teacher {self.id!r} gives a vector of norm {norms[bad[0], 0]} for the text {texts[bad[0]][:80]!r}; "
                "a cosine needs a finite, non-zero one. Remove the text, or check the teacher's weights."
            )
        return (vectors / norms).astype(np.float32)
