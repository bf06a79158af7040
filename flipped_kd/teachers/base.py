"""What a teacher is, whatever its kind. A new kind is one class; nothing outside this folder asks for the class."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import datasets
import numpy as np
import torch

from ..utils.checks import is_whole
from .cache import TeacherCache, fill_cache
from .items import DatasetPairs, DatasetTexts, ListedPairs, ListedTexts, TextItems
from .score_table import TeacherEmbeddings, TeacherPairScores, TeacherScores
from .shards import CacheIdentity

# Batches computed between two looks at the progress bar: enough for sorting by length, few enough for a lively bar.
BATCHES_PER_BLOCK = 16
# Of a vector that is to have length 1: half precision rounds by up to .4 %.
LENGTH_TOLERANCE = 0.01


class Teacher(ABC):
    """A small expert that scores pairs of texts: T in [-1, 1], higher where they match.

    With vectors, T is the cosine of any two texts of a batch. Without, it is 2 P - 1 of given pairs (our reading).

    Args:
        id: Hub id or base name of a folder, never a full path.
        revision: commit on the Hub, None for local models.

    Attributes:
        kind: name of the kind, as reports and cards show it.
        has_vectors: whether it gives each text a vector.
        dim: length of a vector; 1 without vectors.

    Examples:
        A teacher of one's own, by words that two texts share:

        >>> class WordOverlap(Teacher):
        ...     kind, has_vectors = "word_overlap", False
        ...     @property
        ...     def fingerprint(self):
        ...         return "word-overlap-1"
        ...     def compute(self, items, batch_size):
        ...         words = [[set(text.lower().split()) for text in pair] for pair in items]
        ...         return np.array([[len(a & b) / len(a | b)] for a, b in words], np.float32)
        >>> teacher = WordOverlap(id="word-overlap")
        >>> round(float(teacher.compute([("lost my card", "my card is lost")], 64)[0, 0]), 2)
        0.75
    """

    kind: ClassVar[str]
    has_vectors: ClassVar[bool]
    dim: int = 1

    def __init__(self, *, id: str, revision: str | None = None) -> None:
        self.id = id
        self.revision = revision
        self._scratch: TemporaryDirectory | None = None
        self._works_on: torch.device | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What a copy is made of; it gets a temporary folder of its own."""
        return vars(self) | {"_scratch": None}

    # ---- What a kind gives ----

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Text that changes whenever the scores would, as after a change of the weights in place."""

    @abstractmethod
    def compute(self, items: list[Any], batch_size: int) -> np.ndarray:
        """Scores of the items, computed now.

        Args:
            items: n texts, with vectors; else n pairs (text_a, text_b).
            batch_size: items a forward at most.

        Returns:
            float32 (n, dim): vectors of unit length; else match probabilities P (n, 1).

        Raises:
            ValueError: a score is not finite; the message names the item.
        """

    # ---- What all kinds share ----

    @property
    def identity(self) -> CacheIdentity:
        """Whose scores a cache of this teacher holds."""
        content = "embeddings" if self.has_vectors else "pair_probabilities"
        return CacheIdentity(content, self.id, self.fingerprint, self.dim)

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
            ValueError: the teacher has no vectors; an empty text, a bad batch size, a vector that is zero or not
                finite, or another teacher's cache.
            OSError: if the cache cannot be written.
        """
        if not self.has_vectors:
            kind = self.kind.replace("_", "-")
            raise ValueError(
                f"Teacher {self.id!r} is a {kind}: it scores given pairs and has no vector of a single text. Options "
                "that need the score of any two texts of a batch cannot be used with it: use its score(), or a "
                "bi-encoder teacher."
            )
        items = texts if isinstance(texts, TextItems) else ListedTexts(texts)
        _check_unit(items, "texts", "embed")
        paths = self._fill(items, cache_dir, batch_size, show_progress)
        return TeacherEmbeddings(paths, self.dim, keep_alive=self._scratch if cache_dir is None else None)

    def score(
        self,
        pairs_a: Iterable[str] | TextItems,
        pairs_b: Iterable[str] | None = None,
        *,
        cache_dir: str | Path | None,
        batch_size: int = 64,
        show_progress: bool = True,
    ) -> TeacherPairScores:
        """Match probabilities P of pairs, each distinct ordered pair scored once per cache.

        Args:
            pairs_a: first texts, n non-empty strings; or the pairs of data sets (`items.DatasetPairs`).
            pairs_b: second texts, n non-empty strings; None with the pairs of data sets.
            cache_dir: as in `embed`.
            batch_size: pairs per forward at most, as in `embed`.
            show_progress: whether to show a progress bar while scoring.

        Returns:
            The memory-mapped scores of at least these pairs.

        Raises:
            TypeError: as `embed`; for pairs_b beside the pairs of data sets.
            ValueError: as `embed`; the teacher has vectors, or there are unequal numbers of texts.
            OSError: as `embed`.
        """
        if self.has_vectors:
            raise ValueError(f"Teacher {self.id!r} ({self.kind}) scores pairs by the vectors of embed(): use that.")
        if isinstance(pairs_a, TextItems):
            if pairs_b is not None:
                raise TypeError(f"pairs_b must be left out with {type(pairs_a).__name__}, which has both texts.")
            items = pairs_a
        else:
            items = ListedPairs(pairs_a, [] if pairs_b is None else pairs_b)
        _check_unit(items, "pairs", "score")
        paths = self._fill(items, cache_dir, batch_size, show_progress)
        return TeacherPairScores(paths, 1, keep_alive=self._scratch if cache_dir is None else None)

    def score_datasets(self, parts: Sequence[datasets.Dataset], **options: Any) -> TeacherScores:
        """Scores of every pair of some data sets, by `embed` or by `score`.

        Args:
            parts: with the columns text_a and text_b.
            **options: of `embed`: cache_dir, batch_size, show_progress.

        Returns:
            A table whose `similarity` gives T of a pair by the keys of its texts.

        Raises:
            TypeError, ValueError, OSError: as `embed` and `score`.
        """
        if self.has_vectors:
            return self.embed(DatasetTexts(parts), **options)
        return self.score(DatasetPairs(parts), **options)

    def _fill(
        self, items: TextItems, cache_dir: str | Path | None, batch_size: int, show_progress: bool
    ) -> list[Path]:
        """The shards of the cache, once they hold the items."""
        if not is_whole(batch_size) or batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r} must be a whole number from 1.")
        with ExitStack() as work:
            begin = functools.cache(lambda: work.enter_context(self._at_work()))

            def compute(positions: np.ndarray) -> np.ndarray:
                begin()  # not before something is missing
                return checked_scores(self, items.take(positions), batch_size)

            return fill_cache(
                TeacherCache(self._cache_dir(cache_dir), self.identity),
                items.keys,
                items.lengths,
                compute,
                block=batch_size * BATCHES_PER_BLOCK,
                description=items.unit,
                show_progress=show_progress,
            )

    def rest(self) -> None:
        """Leave an accelerator to the student: from now on `model` is there only while texts are scored.

        For a teacher whose scores are cached. One of a stream, which scores at each step, should stay. Kinds without
        an attribute `model` do nothing.
        """
        model: Any = getattr(self, "model", None)
        device: torch.device | None = getattr(model, "device", None)
        if device is not None and device.type != "cpu":
            self._works_on = device
            model.to("cpu")

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Inside, a teacher that rests is back on its device."""
        device: torch.device | None = getattr(self, "_works_on", None)
        model: Any = getattr(self, "model", None)
        if device is None:
            yield
            return
        model.to(device)
        try:
            yield
        finally:
            model.to("cpu")

    def _cache_dir(self, cache_dir: str | Path | None) -> Path:
        if cache_dir is not None:
            return Path(cache_dir)
        if self._scratch is None:
            self._scratch = TemporaryDirectory(prefix="flipped_kd_teacher_", ignore_cleanup_errors=True)
        return Path(self._scratch.name)


def checked_scores(teacher: Teacher, items: list[Any], batch_size: int) -> np.ndarray:
    """What `compute` of a teacher gives, held to what it must give.

    Raises:
        ValueError: also for another shape, vectors of another length than 1, and probabilities outside [0, 1].
    """
    scores = np.asarray(teacher.compute(items, batch_size), dtype=np.float32)
    unit = "text" if teacher.has_vectors else "pair"
    if np.shape(scores) != (len(items), teacher.dim):
        raise ValueError(
            f"Teacher {teacher.id!r} gives an array of shape {np.shape(scores)} for {len(items)} {unit}s: its "
            f"compute() must give {(len(items), teacher.dim)}."
        )
    if teacher.has_vectors:
        values, low, high = np.linalg.norm(scores, axis=1), 1 - LENGTH_TOLERANCE, 1 + LENGTH_TOLERANCE
        given, wanted = "a vector of length ", "vectors of length 1"
    else:
        values, low, high = scores[:, 0], 0.0, 1.0
        given, wanted = "", "match probabilities in [0, 1]"
    bad = np.flatnonzero(~((values >= low) & (values <= high)))
    if len(bad):
        raise ValueError(
            f"Teacher {teacher.id!r} gives {given}{values[bad[0]]} for the {unit} {items[bad[0]]!r}: its compute() "
            f"must give {wanted}."
        )
    return scores


def _check_unit(items: TextItems, wanted: str, method: str) -> None:
    if items.unit != wanted:
        raise TypeError(
            f"{method}() takes {wanted}, got {type(items).__name__} of {items.unit}: pass "
            f"Dataset{wanted.capitalize()} or Listed{wanted.capitalize()}."
        )
