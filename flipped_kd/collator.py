"""From rows of text to one batch: token ids, the texts' spans, and what the teacher said of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .keys import KnownMatches, text_keys
from .packing import pack_rows
from .prompts import PairPrompt, PairTokens, pad_batch
from .teacher_scores import TeacherEmbeddings, TeacherPairScores


@dataclass
class TeacherScoringCollator:
    """Batches pairs for [`FlippedDistillationTrainer`]. Holds no model and pickles, so it runs in data-loader workers.

    Args:
        prompt: how pairs and single texts become tokens.
        pad_token_id: id to pad with.
        teacher_scores: the teacher's cached vectors (bi-encoder) or pair scores (cross-encoder); None batches without
            a teacher.
        known_matches: texts known to match, dropped off the diagonal.
        encode_alone: also give the texts b alone (not needed for representation "joint").
        matrix: give T for every two texts of the batch (N, N), not for the pairs alone (N,).
        padding_side: "right" or "left".
        position_offset: with `encode_alone`, pack text_b alone into its pair's row (see `packing`), positions numbered
            from here; None gives it a row of its own.

    Raises:
        ValueError: `matrix` with a cross-encoder's scores, or packing with padding on the left.

    Example:
        Three rows `{"text_a": "a", "text_b": "b", "label": 1}` give

        - `input_ids`, `attention_mask` (3, T): the pair prompts; `span_a`, `span_b` (3, T) bool: the texts' own
          tokens;
        - `answer_position` (3,): where the answer is predicted;
        - `alone_input_ids`, `alone_attention_mask`, `alone_span` (3, U): text_b after the prompt's prefix (with
          `encode_alone`); packed instead: `alone_span` (3, T), `position_ids` (3, T) and `attention_mask` (3, 1, T, T)
          bool;
        - `labels` (3,) int64, if the rows have labels; `rows` (3,), if they are numbered;
        - `teacher_similarity` (3, 3) or (3,) float32 in [-1, 1] and, for a matrix, `excluded` (3, 3) bool.
    """

    prompt: PairPrompt
    pad_token_id: int
    teacher_scores: TeacherEmbeddings | TeacherPairScores | None = None
    known_matches: KnownMatches | None = None
    encode_alone: bool = True
    matrix: bool = True
    padding_side: Literal["right", "left"] = "right"
    position_offset: int | None = None

    def __post_init__(self) -> None:
        if self.position_offset is not None and self.padding_side != "right":
            raise ValueError("packed rows are padded on the right: use padding_side='right' or position_offset=None.")
        self._check_teacher()

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Batch `rows`, each with text_a, text_b and optionally label and row."""
        texts_a, texts_b = [row["text_a"] for row in rows], [row["text_b"] for row in rows]
        pairs = self.prompt.encode_pairs(texts_a, texts_b)
        alone = self.prompt.encode_texts(texts_b) if self.encode_alone else []
        if alone and self.position_offset is not None:
            batch = pack_rows(pairs, alone, self.pad_token_id, self.position_offset)
        else:
            batch = self._padded(pairs)
            if alone:
                batch |= {f"alone_{name}": value for name, value in self._padded(alone).items()}
                batch["alone_span"] = self._spans(alone, batch["alone_input_ids"].shape[1], [t.text_a for t in alone])
        length = batch["input_ids"].shape[1]
        batch["span_a"] = self._spans(pairs, length, [pair.text_a for pair in pairs])
        batch["span_b"] = self._spans(pairs, length, [_present(pair.text_b) for pair in pairs])
        ends = [len(pair.input_ids) if self.padding_side == "right" else length for pair in pairs]
        batch["answer_position"] = torch.tensor(ends) - 1
        if "label" in rows[0]:
            batch["labels"] = torch.tensor([int(row["label"]) for row in rows])
        if "row" in rows[0]:
            batch["rows"] = torch.tensor([row["row"] for row in rows])
        if self.teacher_scores is not None:
            batch |= self._teacher(self.teacher_scores, text_keys(texts_a), text_keys(texts_b))
        return batch

    def _check_teacher(self) -> None:
        if self.matrix and isinstance(self.teacher_scores, TeacherPairScores):
            raise ValueError(
                "a cross-encoder teacher scores given pairs only: matrix=True needs the vectors of a bi-encoder "
                "teacher; use matrix=False."
            )

    def _padded(self, tokens: Sequence[PairTokens]) -> dict[str, Tensor]:
        ids, mask = pad_batch([entry.input_ids for entry in tokens], self.pad_token_id, self.padding_side)
        return {"input_ids": ids, "attention_mask": mask}

    def _spans(self, tokens: Sequence[PairTokens], length: int, spans: Sequence[tuple[int, int]]) -> Tensor:
        mask = torch.zeros(len(tokens), length, dtype=torch.bool)
        for row, (entry, (start, end)) in enumerate(zip(tokens, spans, strict=True)):
            shift = length - len(entry.input_ids) if self.padding_side == "left" else 0
            mask[row, start + shift : end + shift] = True
        return mask

    def _teacher(
        self, scores: TeacherEmbeddings | TeacherPairScores, keys_a: np.ndarray, keys_b: np.ndarray
    ) -> dict[str, Tensor]:
        self._check_teacher()  # the scores may have been set since
        if not self.matrix or isinstance(scores, TeacherPairScores):
            return {"teacher_similarity": torch.from_numpy(scores.similarity(keys_a, keys_b))}
        similarity = np.clip(scores.vectors(keys_a) @ scores.vectors(keys_b).T, -1.0, 1.0)
        excluded = (self.known_matches or KnownMatches(np.empty(0, dtype=np.int64)))(keys_a, keys_b)
        np.fill_diagonal(excluded, False)  # the diagonal has gold labels
        return {"teacher_similarity": torch.from_numpy(similarity), "excluded": torch.from_numpy(excluded)}


def _present(span: tuple[int, int] | None) -> tuple[int, int]:
    assert span is not None, "a pair has two spans"
    return span
