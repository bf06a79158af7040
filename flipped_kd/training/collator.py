"""From rows of text to one batch: token ids, the texts' spans, and what the teacher said of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..data.keys import text_keys
from ..prompts.pair_prompt import PairPrompt
from ..prompts.pair_tokens import PairTokens, pad_batch, span_mask
from ..teachers.score_table import TeacherScores
from .packing import RowLayout, shared_rows


@dataclass
class TeacherScoringCollator:
    """Batches pairs for [`FlippedDistillationTrainer`]. Holds no model and pickles, so it runs in data-loader workers.

    What the student reads of B pairs comes in four layouts: in rows of their own or in R shared rows, and each of
    the two whole or, with mini_batch_size m, as `mini_batches`, a list of such dictionaries of at most m pairs. T and
    U are tokens of a row; all are int64 or bool.

    | key | own rows (layout None) | shared rows (a RowLayout) | what it is |
    |---|---|---|---|
    | `input_ids` | (B, T) | (R, T) | pair prompts; of shared rows several, and texts alone |
    | `attention_mask` | (B, T) | (R, 1, T, T) bool | what is no padding; where a token may look |
    | `position_ids` | | (R, T) | positions as in rows of their own |
    | `pair_row` | | (B,) | the row of each pair |
    | `answer_position` | (B,) | (B,) | where in its row the answer is predicted |
    | `read_positions` | | (R, k) | answer positions of each row, and |
    | `pair_slot` | | (B,) | which of them is the pair's |
    | `span_a`, `span_b` | (B, T) bool | (B, T) bool | the texts' own tokens in the pair's row |
    | `alone_input_ids`, `alone_attention_mask` | (B, U) | | text_b after the prompt's prefix (`encode_alone`) |
    | `alone_row` | | (B,) | its row |
    | `alone_span` | (B, U) bool | (B, T) bool | its own tokens there |

    Beside it there are

    - `labels` (B,) int64, 0 or 1, if the rows have labels; `rows` (B,) int64, if they are numbered;
    - of the teacher, for a matrix, `teacher_a`, `teacher_b` (B, d) float32 unit vectors and the texts' `keys_a`,
      `keys_b` (B,) int64; else `teacher_similarity` (B,) float32, T in [-1, 1];
    - with `hand_on_texts`, in their place, `texts_a`, `texts_b`, lists of B texts, and the keys.

    Args:
        prompt: how pairs and single texts become tokens.
        pad_token_id: id to pad with.
        teacher_scores: the teacher's cached vectors (bi-encoder) or pair scores (cross-encoder); None batches without
            a teacher.
        encode_alone: also give the texts b alone (not needed for representation "joint").
        matrix: give the teacher's vectors, from which T follows for every two texts, not T of the pairs alone.
        padding_side: "right" or "left".
        layout: how the student reads rows that several pairs and texts share (see `packing`); None gives each pair,
            and each text_b alone, a row of its own.
        mini_batch_size: m >= 1: what the student reads comes in mini-batches of so many pairs, pairs of like length
            together, each padded by itself (see `gradient_cache`); the batch's rows are then in the order of the
            mini-batches. None: in one.
        hand_on_texts: give the texts themselves too, for the main process to have the teacher score them (a streamed
            set, of which nothing was scored beforehand).

    Raises:
        ValueError: `matrix` with a cross-encoder's scores, a layout with padding on the left, or a mini_batch_size
            below 1.

    Examples:
        `tokenizer` is the student's own.

        >>> collator = TeacherScoringCollator(PairPrompt.from_preset(tokenizer), tokenizer.pad_token_id)
        >>> rows = [("where is my card", "cash", 0), ("a refund", "refund me", 1)]
        >>> batch = collator([{"text_a": a, "text_b": b, "label": label} for a, b, label in rows])
        >>> batch["labels"], batch["input_ids"].shape == batch["span_a"].shape
        (tensor([0, 1]), True)
        >>> tokenizer.decode(batch["input_ids"][0][batch["span_a"][0]])
        'where is my card'
    """

    prompt: PairPrompt
    pad_token_id: int
    teacher_scores: TeacherScores | None = None
    encode_alone: bool = True
    matrix: bool = True
    padding_side: Literal["right", "left"] = "right"
    layout: RowLayout | None = None
    mini_batch_size: int | None = None
    hand_on_texts: bool = False

    def __post_init__(self) -> None:
        if self.layout is not None and self.padding_side != "right":
            raise ValueError("shared rows are padded on the right: use padding_side='right' or layout=None.")
        if self.mini_batch_size is not None and self.mini_batch_size < 1:
            raise ValueError(f"mini_batch_size={self.mini_batch_size}: a mini-batch holds at least one pair.")
        self._check_teacher()

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Batch rows.

        Args:
            rows: B of them, each with text_a, text_b and, all or none, label and row (its number).

        Returns:
            Tensors by name, see the class.

        Raises:
            ValueError: a matrix is asked for of a cross-encoder's scores.
        """
        pairs = self.prompt.encode_pairs([row["text_a"] for row in rows], [row["text_b"] for row in rows])
        size = self.mini_batch_size
        if size is None:
            batch: dict[str, Any] = self._read_by_student(rows, pairs)
        else:  # also of a short batch: ranks that step in different ways would wait for each other for ever
            # Longest first: memory that is too small shows at once.
            order = sorted(range(len(rows)), key=lambda row: -len(pairs[row].input_ids))
            rows, pairs = [rows[row] for row in order], [pairs[row] for row in order]
            starts = range(0, len(rows), size)
            batch = {
                "mini_batches": [self._read_by_student(rows[i : i + size], pairs[i : i + size]) for i in starts],
                **_own(rows),
            }
        return batch | self._teacher([row["text_a"] for row in rows], [row["text_b"] for row in rows])

    def _read_by_student(self, rows: Sequence[Mapping[str, Any]], pairs: Sequence[PairTokens]) -> dict[str, Tensor]:
        """The pairs' tokens, spans, labels and numbers, as one forward takes them."""
        alone = self.prompt.encode_texts([row["text_b"] for row in rows]) if self.encode_alone else []
        if self.layout is not None:
            # First what has an entry a pair: Trainer counts the rows of a batch by its first tensor.
            return {**shared_rows(pairs, alone, self.pad_token_id, self.layout), **_own(rows)}
        batch = self._padded(pairs)
        if alone:
            batch |= {f"alone_{name}": value for name, value in self._padded(alone).items()}
            batch["alone_span"] = self._spans(alone, batch["alone_input_ids"].shape[1], [t.text_a for t in alone])
        length = batch["input_ids"].shape[1]
        batch["span_a"] = self._spans(pairs, length, [pair.text_a for pair in pairs])
        batch["span_b"] = self._spans(pairs, length, [pair.text_b or (0, 0) for pair in pairs])
        ends = [len(pair.input_ids) if self.padding_side == "right" else length for pair in pairs]
        return {"answer_position": torch.tensor(ends) - 1, **_own(rows), **batch}

    def _check_teacher(self) -> None:
        if self.matrix and self.teacher_scores is not None and not self.teacher_scores.has_vectors:
            raise ValueError(
                "a cross-encoder teacher scores given pairs only: matrix=True needs the vectors of a bi-encoder "
                "teacher; use matrix=False."
            )

    def _padded(self, tokens: Sequence[PairTokens]) -> dict[str, Tensor]:
        ids, mask = pad_batch([entry.input_ids for entry in tokens], self.pad_token_id, self.padding_side)
        return {"input_ids": ids, "attention_mask": mask}

    def _spans(self, tokens: Sequence[PairTokens], length: int, spans: Sequence[tuple[int, int]]) -> Tensor:
        left = self.padding_side == "left"
        return span_mask(spans, [length - len(entry.input_ids) if left else 0 for entry in tokens], length)

    def _teacher(self, texts_a: list[str], texts_b: list[str]) -> dict[str, Any]:
        self._check_teacher()  # the scores may have been set since
        keys_a, keys_b = text_keys(texts_a), text_keys(texts_b)
        keys = {"keys_a": torch.from_numpy(keys_a), "keys_b": torch.from_numpy(keys_b)}
        if self.hand_on_texts:
            return {"texts_a": texts_a, "texts_b": texts_b, **keys}
        scores = self.teacher_scores
        if scores is None:
            return {}
        if not self.matrix or not scores.has_vectors:
            return {"teacher_similarity": torch.from_numpy(scores.similarity(keys_a, keys_b))}
        vectors = {"teacher_a": scores.vectors(keys_a), "teacher_b": scores.vectors(keys_b)}
        return keys | {name: torch.from_numpy(value) for name, value in vectors.items()}


def _own(rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """What the rows themselves say, where they do: labels and numbers."""
    names = {"labels": "label", "rows": "row"}
    return {name: torch.tensor([int(row[key]) for row in rows]) for name, key in names.items() if key in rows[0]}
