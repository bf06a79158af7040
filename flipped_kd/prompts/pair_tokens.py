"""Pairs as rows of tokens, and a batch of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class PairTokens:
    """A tokenised pair or single text.

    Attributes:
        input_ids: Token ids without padding. For a pair the last one is the answer position.
        text_a: Half-open token span (start, end) of text_a; never empty.
        text_b: The same for text_b; None where a text is encoded alone.
        truncated: Whether a text lost tokens to the budget.
    """

    input_ids: list[int]
    text_a: tuple[int, int]
    text_b: tuple[int, int] | None
    truncated: bool

    @property
    def start_of_b(self) -> int:
        """Tokens of a pair before its second text."""
        assert self.text_b is not None
        return self.text_b[0]


def pad_batch(
    sequences: Sequence[Sequence[int]], pad_id: int, side: Literal["right", "left"] = "right"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad B token sequences to the longest of them, at the `side` "right" or "left".

    Returns (input_ids, attention_mask), int64 (B, longest); the mask is 1 on tokens and 0 on padding. ValueError: no
    sequence, an empty one, or an unknown side.
    """
    if side not in ("right", "left"):
        raise ValueError(f"side must be 'right' or 'left', got {side!r}.")
    if not sequences or not all(sequences):
        raise ValueError(f"pad_batch needs at least one sequence and none empty, got {len(sequences)} sequences.")
    longest = max(len(sequence) for sequence in sequences)
    input_ids = torch.full((len(sequences), longest), pad_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row, sequence in enumerate(sequences):
        columns = slice(len(sequence)) if side == "right" else slice(longest - len(sequence), longest)
        input_ids[row, columns] = torch.tensor(sequence, dtype=torch.long)
        attention_mask[row, columns] = 1
    return input_ids, attention_mask


def span_mask(spans: Sequence[tuple[int, int]], shifts: Sequence[int], width: int) -> torch.Tensor:
    """Bool (B, width): true in the half-open span of each row, which is moved to the right by its shift."""
    mask = torch.zeros(len(spans), width, dtype=torch.bool)
    for row, ((first, last), shift) in enumerate(zip(spans, shifts, strict=True)):
        mask[row, first + shift : last + shift] = True
    return mask
