"""The teacher: a small encoder, loaded safely and run once per distinct text or pair, before training.

A bi-encoder teacher (sentence-transformers) gives every text a vector, T_ij is the cosine of any two. A cross-encoder
teacher reads a pair at once and scores only the pairs it is given. Scores are data: they are computed before training
and read from disk. Beside this file: `teacher_files` (what is loaded), `teacher_cache` (written scores),
`teacher_scores` (read scores), `teacher_calibration`.
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

from ..utils.token_batches import run_in_token_batches
from .cache import CacheIdentity, TeacherCache, fill_cache
from .calibration import PlattCalibration, agreement_report
from .files import (
    KIND_REMEDY,
    KIND_RULE,
    model_class_of,
    name_of_model,
    refuse_pickles,
    resolve_model,
)
from .fingerprint import FingerprintMemory
from .items import ListedPairs, ListedTexts, TextItems
from .score_table import TeacherEmbeddings, TeacherPairScores

__all__ = [
    "BiEncoderTeacher",
    "CrossEncoderTeacher",
    "PlattCalibration",
    "TeacherEmbeddings",
    "TeacherPairScores",
    "agreement_report",
    "load_teacher",
]

# Batches computed between two looks at the progress bar: enough for sorting by length, few enough for a lively bar.
BATCHES_PER_BLOCK = 16


def load_teacher(
    teacher: str | Path | SentenceTransformer | CrossEncoder,
    *,
    revision: str | None = None,
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
) -> "BiEncoderTeacher | CrossEncoderTeacher":
    """Load a teacher in float32 and evaluation mode, and find out what kind it is.

    A folder's kind is read from its files, as sentence-transformers does: `config_sentence_transformers.json` names
    the model type where `modules.json` exists; without it a ...ForSequenceClassification architecture is a
    cross-encoder, and a plain encoder becomes a mean-pooled bi-encoder, with a warning. Weights are read from
    safetensors only, never from pickles.

    Args:
        teacher: a folder, a Hub id ("organisation/name"), or a loaded model, which is put in evaluation mode and keeps
            its dtype.
        revision: branch, tag or commit for a Hub id.
        device: where to run; by default sentence-transformers' choice, or where a loaded model is.
        trust_remote_code: run Python code from the model's repository. Only for repositories you trust.

    Returns:
        The teacher.

    Raises:
        TypeError: if `teacher` is neither a name nor a bi- or cross-encoder.
        ValueError: if the model cannot be found, is of no usable kind, has only pickled weights, has several labels,
            or gives no vector; also for a revision of something that is not on the Hub.
    """
    if revision is not None and (not isinstance(teacher, str) or Path(teacher).is_dir()):
        raise ValueError(
            f"revision={revision!r} can only be given with a Hub id, not with {_shown(teacher)}: leave it out."
        )
    if isinstance(teacher, SentenceTransformer | CrossEncoder):
        name, found_revision = name_of_model(teacher), None
        model = teacher if device is None else teacher.to(device)
    elif isinstance(teacher, str | Path):
        name, found_revision, folder = resolve_model(teacher, revision, trust_remote_code)
        refuse_pickles(folder, name)
        model_class = model_class_of(folder, name)
        try:
            model = model_class(
                str(folder),
                device=None if device is None else str(device),
                trust_remote_code=trust_remote_code,
                # All is in the folder; only code that one trusts may lie in yet another repository.
                local_files_only=not trust_remote_code,
                model_kwargs={"dtype": torch.float32, "use_safetensors": True},
            )
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError) as error:
            raise ValueError(
                f"Teacher {name!r} could not be loaded as a {model_class.__name__}: {error}. {KIND_RULE}; "
                f"{KIND_REMEDY}."
            ) from error
        model.float()
    else:
        raise TypeError(
            f"Teacher {teacher!r} of type {type(teacher).__name__} is no teacher. {KIND_RULE}; {KIND_REMEDY}."
        )
    model.eval()
    if isinstance(model, CrossEncoder):
        return CrossEncoderTeacher(model, id=name, revision=found_revision)
    return BiEncoderTeacher(model, id=name, revision=found_revision)


class _Teacher:
    """What both kinds share: name, fingerprint, and the cache folder.

    Attributes:
        model: the model, in evaluation mode; it belongs to no trainer's module tree.
        id: Hub id or base name of the folder, never a full path.
        revision: commit on the Hub, None for local models.
    """

    kind: ClassVar[str]

    def __init__(self, model: SentenceTransformer | CrossEncoder, *, id: str, revision: str | None) -> None:
        self.id = id
        self.revision = revision
        self._scratch: TemporaryDirectory | None = None
        self._fingerprint = FingerprintMemory()

    def _cache_dir(self, cache_dir: str | Path | None) -> Path:
        if cache_dir is not None:
            return Path(cache_dir)
        if self._scratch is None:
            self._scratch = TemporaryDirectory(prefix="flipped_kd_teacher_", ignore_cleanup_errors=True)
        return Path(self._scratch.name)


class BiEncoderTeacher(_Teacher):
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
            texts: non-empty strings, repetitions allowed; or the texts of data sets (`pair_texts.DatasetTexts`), which
                are read from disk when it is their turn, so that millions fit.
            cache_dir: directory of teacher caches (each teacher gets its own folder). None keeps the vectors in a
                temporary directory that lives as long as this teacher or the result.
            batch_size: texts per forward at most; fewer if they are long, on a CPU (`token_batches`).
            show_progress: whether to show a progress bar while embedding.

        Returns:
            The memory-mapped vectors of at least these texts, keyed by `flipped_kd.data.loading.text_keys`.

        Raises:
            TypeError: if `texts` is one string or holds something else than strings.
            ValueError: for an empty text, a bad batch size, a vector that is zero or not finite, or another teacher's
            cache.
            OSError: if the cache cannot be written.
        """
        items = texts if isinstance(texts, TextItems) else ListedTexts(texts)
        _check_unit(items, "texts", "embed")
        _check_batch_size(batch_size)
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


class CrossEncoderTeacher(_Teacher):
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
            pairs_a: first texts, n non-empty strings; or the pairs of data sets (`pair_texts.DatasetPairs`).
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
        _check_unit(items, "pairs", "score")
        _check_batch_size(batch_size)
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


def _shown(teacher: Any) -> str:
    return repr(str(teacher)) if isinstance(teacher, str | Path) else f"a loaded {type(teacher).__name__}"


def _check_unit(items: TextItems, wanted: str, method: str) -> None:
    if items.unit != wanted:
        raise TypeError(
            f"{method}() takes {wanted}, got {type(items).__name__} of {items.unit}: pass "
            f"Dataset{wanted.capitalize()} or Listed{wanted.capitalize()}."
        )


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r} must be at least 1.")
