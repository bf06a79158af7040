"""The two scores of a pair, what predictions make of them, and the vectors of texts."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, Literal, overload

import datasets
import numpy as np
import torch
from peft import PeftModel
from scipy.special import expit
from sentence_transformers.util import cos_sim
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..evaluation.match_score import MatchScore
from ..prompts.pair_prompt import PairPrompt
from ..students.loading import padding_id
from ..students.lora_encoder import LoraEncoder
from ..students.probing import input_device
from ..utils.checks import check_choice, is_number
from ..utils.choices import SCORE_KINDS, ScoreKind
from .copying import Copied, FreshLock
from .inputs import Embeddings, Pair, Pairs, Texts, checked_count, pair_columns, text_list, unique
from .model_runner import WINDOW, ModelRunner

logger = logging.getLogger(__name__)
# Pairs of a Dataset read at a time: equal texts and pairs among them are computed once.
PART = 16_384


class PairScorer(Copied):
    """Scores pairs of texts and encodes texts with one model. See `FlippedMatcher`, which adds searching and ranking.

    It can be copied and pickled, with its model; see `Copied`.

    Attributes:
        source: what the model was loaded from; "" if it was not.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        prompt: PairPrompt,
        encoder: LoraEncoder,
        match_score: MatchScore | None = None,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.encoder = encoder
        self.match_score = match_score
        self.source = ""
        self._lock = FreshLock()
        self._reader = ModelRunner(model, prompt, encoder, padding_id(tokenizer), self._lock)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return input_device(self.model)

    # ---- Pairs ----

    def scores(
        self,
        pairs: Pairs | Pair,
        *,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        kind: ScoreKind | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The two raw scores of each pair, as FlippedDistillationTrainer.score_pairs gives them.

        Args:
            pairs: as in `predict`; a Dataset is read in parts, so that memory does not grow with it.
            batch_size: pairs (texts) read at a time.
            show_progress_bar: None shows it where the logger is at INFO; one for each part.
            kind: compute only what this score needs; None computes both.

        Returns:
            (answer log-odds (n,), similarity (n,) in [-1, 1]), float64; what `kind` does not need is NaN. Of a single
            pair both are scalars.
        """
        if kind is not None:
            check_choice("kind", kind, SCORE_KINDS)
        batch_size = checked_count("batch_size", batch_size)
        if isinstance(pairs, datasets.Dataset) and len(pairs) > PART:
            found = np.empty((2, len(pairs)))
            for rows_of, part in _parts(pairs):
                found[:, rows_of] = self.scores(
                    part, batch_size=batch_size, show_progress_bar=show_progress_bar, kind=kind
                )
            return found[0], found[1]
        columns, single = pair_columns(pairs)
        rows, order = unique(columns)
        answer, similarity = np.full((2, len(rows)), np.nan)
        if kind != "similarity":
            with self._bar("pairs", len(rows), show_progress_bar) as bar:
                answer = self._reader.answers(rows, batch_size, bar)
        if kind != "answer":
            texts, place = unique([text for row in rows for text in row])
            vectors = self._vectors(texts, batch_size, show_progress_bar)
            similarity = row_cosines(vectors, place[0::2], place[1::2])
        return (answer[order[0]], similarity[order[0]]) if single else (answer[order], similarity[order])

    def predict(
        self,
        pairs: Pairs | Pair,
        *,
        score: ScoreKind | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
    ) -> np.ndarray:
        """Probabilities that the texts of each pair match.

        Args:
            pairs: pairs of texts, as in CrossEncoder.predict, or a Dataset with columns text_a and text_b, which is
                read in parts, so that memory does not grow with it.
            score: "answer", "similarity" or "both"; None takes the model's default, "answer" if it has no match score.
            batch_size: pairs (texts) read at a time.
            show_progress_bar: None shows it where the logger is at INFO.

        Returns:
            (n,) float64 in [0, 1]; a scalar for a single pair.

        Raises:
            ValueError: an unknown score, or one that this model has no match score for; a row that is no pair; an
                unusable text.
            TypeError: a text is no str.
        """
        kind = self._kind(score)
        options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": show_progress_bar}
        if isinstance(pairs, datasets.Dataset) and len(pairs) > PART:
            found = np.empty(len(pairs))  # all that grows with the set
            for rows_of, part in _parts(pairs):
                found[rows_of] = self.predict(part, score=kind, **options)
            return found
        return self._probability(*self.scores(pairs, kind=kind, **options), kind)

    def matches(
        self,
        pairs: Pairs | Pair,
        *,
        threshold: float | Literal["tuned"] = "tuned",
        score: ScoreKind | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
    ) -> np.ndarray:
        """Whether the texts of each pair match.

        Args:
            pairs: as in `predict`.
            threshold: "tuned" is the one chosen on held-out pairs and saved with the model (`flipped-kd calibrate`
                chooses it anew); or the least probability of a match, in [0, 1].
            score: as in `predict`.
            batch_size: as in `predict`.
            show_progress_bar: as in `predict`.

        Returns:
            (n,) bool; a scalar for a single pair.

        Raises:
            ValueError: as `predict`; a threshold that is no probability; "tuned" without a match score.
        """
        kind = self._kind(score)
        tuned = isinstance(threshold, str) and threshold == "tuned"
        if tuned:
            if self.match_score is None:
                raise ValueError(
                    f"threshold='tuned': no threshold was chosen for {self.source or 'this matcher'!r}, which has no "
                    "match score: give a probability, or fit one (flipped-kd calibrate)."
                )
        elif not is_number(threshold) or not 0 <= threshold <= 1:  # type: ignore[operator]
            raise ValueError(f"threshold={threshold!r}: give 'tuned' or a probability in [0, 1].")
        options = {"batch_size": batch_size, "show_progress_bar": show_progress_bar}
        answer, similarity = self.scores(pairs, **options, kind=kind)  # type: ignore[arg-type]
        if not tuned:
            above: np.ndarray = self._probability(answer, similarity, kind) >= threshold
            return above
        assert self.match_score is not None
        return self.match_score.matches(answer, similarity, kind)

    def _kind(self, score: ScoreKind | None) -> ScoreKind:
        """Which score to compute, refused where it cannot be had."""
        available = ("answer",) if self.match_score is None else tuple(self.match_score.kinds)
        if score is None:
            return "answer" if self.match_score is None else self.match_score.default
        if score in SCORE_KINDS and score not in available:
            raise ValueError(
                f"score={score!r} needs a match score, which {self.source or 'this matcher'!r} has not: train with an "
                "eval_dataset, fit one by MatchScore.fit on scores(), or use score='answer'."
            )
        check_choice("score", score, available)
        return score

    def _log_odds(self, answer: np.ndarray, similarity: np.ndarray, kind: ScoreKind) -> np.ndarray:
        return answer if self.match_score is None else self.match_score.log_odds(answer, similarity, kind)

    def _probability(self, answer: np.ndarray, similarity: np.ndarray, kind: ScoreKind) -> np.ndarray:
        return expit(self._log_odds(answer, similarity, kind))

    # ---- Texts ----

    @overload
    def encode(
        self,
        texts: Texts,
        *,
        batch_size: int = ...,
        show_progress_bar: bool | None = ...,
        convert_to_tensor: Literal[False] = ...,
    ) -> np.ndarray: ...

    @overload
    def encode(
        self,
        texts: Texts,
        *,
        batch_size: int = ...,
        show_progress_bar: bool | None = ...,
        convert_to_tensor: Literal[True],
    ) -> Tensor: ...

    def encode(
        self,
        texts: Texts,
        *,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        convert_to_tensor: bool = False,
    ) -> np.ndarray | Tensor:
        """Vectors of texts by the LoRA encoder.

        Args:
            texts: n texts, or one.
            batch_size: texts read at a time.
            show_progress_bar: None shows it where the logger is at INFO.
            convert_to_tensor: give a Tensor on the model's device.

        Returns:
            Unit vectors (n, D) float32; (D,) for one text.

        Raises:
            TypeError: a text is no str.
        """
        batch_size = checked_count("batch_size", batch_size)
        distinct, order = unique(text_list("texts", texts))
        vectors = self._vectors(distinct, batch_size, show_progress_bar)[order]
        result = vectors[0] if isinstance(texts, str) else vectors
        return result.to(self.device) if convert_to_tensor else result.numpy()

    def _vectors(self, texts: list[str], batch_size: int, show_progress_bar: bool | None) -> Tensor:
        """Vectors (n, D) of distinct texts, in main memory."""
        with self._bar("texts", len(texts), show_progress_bar) as bar:
            return self._reader.vectors(texts, batch_size, bar)

    def similarity(self, a: Texts | Embeddings, b: Texts | Embeddings) -> Tensor:
        """Cosines of every text (or vector) of `a` with every one of `b`.

        Args:
            a: texts, which are encoded, or vectors (n_a, D) of `encode`.
            b: the same.

        Returns:
            (n_a, n_b) in [-1, 1].
        """
        return cos_sim(self._as_vectors(a), self._as_vectors(b)).clamp(-1, 1)  # rounding may pass 1

    def _as_vectors(self, values: Texts | Embeddings) -> Tensor:
        if isinstance(values, Tensor) or (isinstance(values, np.ndarray) and values.dtype.kind not in "OUST"):
            if isinstance(values, np.ndarray):  # torch takes neither negative strides nor another byte order
                values = torch.from_numpy(np.array(values, dtype=np.float32, order="C"))
            return torch.atleast_2d(values.to(self.device, torch.float32))
        return torch.atleast_2d(self.encode(values, convert_to_tensor=True))

    def _bar(self, unit: str, total: int, show: bool | None) -> tqdm:
        if show is None:
            show = logger.getEffectiveLevel() in (logging.INFO, logging.DEBUG)
        return tqdm(total=total, unit=f" {unit}", disable=not show)


def _parts(pairs: datasets.Dataset) -> Iterator[tuple[slice, datasets.Dataset]]:
    """A set in parts, each with its place."""
    for start in range(0, len(pairs), PART):
        place = slice(start, min(start + PART, len(pairs)))
        yield place, pairs.select(range(place.start, place.stop))


def row_cosines(vectors: Tensor, first: list[int], second: list[int]) -> np.ndarray:
    """Cosines (n,) float64 of unit vectors, by their rows in `vectors`."""
    cosines = np.empty(len(first))
    for start in range(0, len(first), WINDOW):
        part = slice(start, start + WINDOW)
        cosines[part] = (vectors[first[part]].double() * vectors[second[part]].double()).sum(1).numpy()
    return np.clip(cosines, -1, 1)  # the vectors' lengths are rounded
