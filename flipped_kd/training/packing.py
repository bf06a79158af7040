"""A batch of texts in few rows: the prompt's prefix stands once in a row, and what follows it branches.

A row is `prefix | text_a middle text_b suffix | text_a middle text_b suffix | text_b`. The tokens of a branch see
the prefix and themselves, at the positions they would have in a row of their own, so their hidden states are those of
separate rows, while the prefix is read once for several texts, hardly anything is padded, and a text_b that is also
encoded alone costs its own tokens only.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..prompts.pair_tokens import PairTokens, pad_batch, span_mask
from ..students.attention import NAME as CPU_ATTENTION
from ..students.attention import additive_mask
from ..students.probing import HALF, HALF_TOLERANCE, attention_window, is_sharded, same_logits

# Decoders number positions from 0; RoBERTa-like ones from padding_idx + 1.
CANDIDATE_OFFSETS = (0, 1, 2)
PROBE_TOLERANCE = 1e-3  # in half precision HALF_TOLERANCE: a wrong offset differs by a tenth and more
# In hidden sizes: see `RowLayout.attention_width`. By counting products it would be 6; attention reaches a part of the
# speed of a linear layer (measured on a CPU; benchmarks/NOTES.md).
ATTENTION_SHARE = 2
# Numbers of rows that are tried for a batch, at most.
TRIED = 16


@dataclass(frozen=True)
class RowLayout:
    """How a student reads several texts from one row.

    Attributes:
        offset: what the model's position numbers begin with.
        attention_width: tokens of a row from which on its attention costs more than all else.
        longest: tokens of a row at most; None without such a limit.
    """

    offset: int = 0
    attention_width: int = 1024
    longest: int | None = None


def shared_rows(
    pairs: Sequence[PairTokens], alone: Sequence[PairTokens], pad_token_id: int, layout: RowLayout
) -> dict[str, Tensor]:
    """Lay pairs and texts out in rows that share the prefix.

    Args:
        pairs: B pairs, at least one.
        alone: texts encoded alone, B or none.
        pad_token_id: id to pad with, on the right.
        layout: of the student.

    Returns:
        - `input_ids`, `position_ids` (R, T), and `attention_mask` (R, 1, T, T) bool, True where a query may look;
        - `pair_row` (B,): the row of each pair; `answer_position` (B,): the place of its last token there;
        - `read_positions` (R, k): the places of the last tokens of each row's pairs, the first one's repeated to fill
          it up; `pair_slot` (B,): where in it a pair's is;
        - `span_a`, `span_b` (B, T) bool: the texts' own tokens in the pair's row;
        - with `alone`, `alone_row` (B,) and `alone_span` (B, T) bool likewise.
    """
    start = pairs[0].text_a[0]
    prefix = pairs[0].input_ids[:start]
    branches = [entry.input_ids[start:] for entry in (*pairs, *alone)]
    lengths = [len(branch) for branch in branches]
    row_of = row_numbers(lengths, start, layout)
    rows = [list(prefix) for _ in range(max(row_of) + 1)]
    parts = [[0] * start for _ in rows]
    positions = [list(range(start)) for _ in rows]
    # Where a branch's tokens moved to, in its row.
    shifts = []
    for number, (branch, row) in enumerate(zip(branches, row_of, strict=True)):
        shifts.append(len(rows[row]) - start)
        rows[row] += branch
        parts[row] += [number + 1] * len(branch)
        positions[row] += range(start, start + len(branch))
    # Padding is a part of its own, or no softmax over it would have anything to look at.
    part, position = (pad_batch(values, fill)[0] for values, fill in ((parts, -1), (positions, 0)))
    width = part.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    queries, keys = part[:, :, None], part[:, None, :]
    visible = causal & ((queries == keys) | ((queries > 0) & (keys == 0)))
    count = len(pairs)
    ends = [start + shift + length - 1 for shift, length in zip(shifts, lengths, strict=True)][:count]
    slots, kept = _slots(row_of[:count], ends, len(rows))
    laid_out = {
        "pair_row": torch.tensor(row_of[:count]),
        "pair_slot": torch.tensor(slots),
        "answer_position": torch.tensor(ends),
        "read_positions": kept,
        "input_ids": pad_batch(rows, pad_token_id)[0],
        "position_ids": position + layout.offset,
        "attention_mask": visible[:, None],
        "span_a": span_mask([pair.text_a for pair in pairs], shifts[:count], width),
        "span_b": span_mask([pair.text_b or (0, 0) for pair in pairs], shifts[:count], width),
    }
    if alone:
        laid_out["alone_row"] = torch.tensor(row_of[count:])
        laid_out["alone_span"] = span_mask([text.text_a for text in alone], shifts[count:], width)
    return laid_out


def row_numbers(lengths: Sequence[int], start: int, layout: RowLayout) -> list[int]:
    """The row of each branch of so many tokens, as the cheapest of some numbers of rows divides them.

    Args:
        lengths: of the branches, at least one.
        start: tokens of the prefix.
        layout: of the student.
    """
    # What one more token costs at the width w is least at w = start + (start^2 + start x attention_width)^(1/2).
    ideal = (start * (start + layout.attention_width)) ** 0.5
    if layout.longest is not None:
        ideal = min(ideal, layout.longest - start)
    ideal = max(ideal, max(lengths))
    likely = sum(lengths) / ideal
    fewest, most = max(1, int(likely / 2)), min(len(lengths), int(2 * likely) + 1)
    best: tuple[float, list[int]] | None = None
    for count in np.unique(np.linspace(fewest, most, TRIED).round().astype(int)).tolist():
        row_of, fullest = _divided(lengths, count)
        width = start + fullest
        cost = count * width * (1 + width / layout.attention_width)
        if (layout.longest is None or width <= layout.longest) and (best is None or cost < best[0]):
            best = cost, row_of
    # A row a branch is always short enough.
    return best[1] if best is not None else list(range(len(lengths)))


def _divided(lengths: Sequence[int], count: int) -> tuple[list[int], int]:
    """The longest first, each into the row that is shortest so far; and the tokens of the fullest row."""
    rows = [(0, row) for row in range(count)]
    row_of = [0] * len(lengths)
    for branch in sorted(range(len(lengths)), key=lambda branch: -lengths[branch]):
        tokens, row = rows[0]
        row_of[branch] = row
        heapq.heapreplace(rows, (tokens + lengths[branch], row))
    return row_of, max(tokens for tokens, _ in rows)


def _slots(row_of: Sequence[int], ends: Sequence[int], rows: int) -> tuple[list[int], Tensor]:
    """For each pair its number among those of its row, and (rows, k) the ends of each row's pairs."""
    of_row: list[list[int]] = [[] for _ in range(rows)]
    slots = []
    for row, end in zip(row_of, ends, strict=True):
        slots.append(len(of_row[row]))
        of_row[row].append(end)
    most = max(len(found) for found in of_row)
    return slots, torch.tensor([found + [found[0] if found else 0] * (most - len(found)) for found in of_row])


@torch.no_grad()
def find_layout(model: PreTrainedModel, max_length: int) -> RowLayout | None:
    """Find out by trying whether `model` gives the branches of a row the hidden states of separate rows.

    Architectures differ in how they number positions and read masks (ALiBi, sliding windows, flash attention ...), and
    some ignore what they are given without a word, so the logits of a shared row are compared with those of its parts.

    Args:
        model: the causal language model.
        max_length: tokens of the longest pair.

    Returns:
        How it reads shared rows, or None where it cannot.
    """
    config = model.config.get_text_config()
    if model.config._attn_implementation not in ("sdpa", "eager", CPU_ATTENTION):
        return None
    window = attention_window(model)
    if window is not None and window < max_length:
        return None  # a mask of one's own takes the window's place, in layers that should not see so far back
    if is_sharded(model):
        return None
    training = model.training
    model.eval()
    low = min(100, config.vocab_size // 4)
    ids = torch.randint(low, config.vocab_size, (10,), generator=torch.Generator().manual_seed(0)).tolist()
    pair = PairTokens(ids, (2, 4), (5, 8), False)
    text = PairTokens(ids[:2] + ids[5:8], (2, 5), None, False)
    try:
        offset = _working_offset(model, pair, text)
    finally:
        model.train(training)
    if offset is None:
        return None
    # GPT-Neo lays its own mask, by places in the row, over ours.
    longest = window if config.model_type == "gpt_neo" else None
    return RowLayout(offset, ATTENTION_SHARE * getattr(config, "hidden_size", 512), longest)


def _working_offset(model: PreTrainedModel, pair: PairTokens, text: PairTokens) -> int | None:
    def logits(ids: list[int]) -> Tensor:
        inputs = torch.tensor([ids], device=model.device)
        return model(input_ids=inputs, attention_mask=torch.ones_like(inputs), use_cache=False).logits[0].float()

    wanted = torch.cat([logits(pair.input_ids), logits(text.input_ids)[text.text_a[0] :]])
    tolerance = HALF_TOLERANCE if model.dtype in HALF else PROBE_TOLERANCE
    for offset in CANDIDATE_OFFSETS:
        # So wide that everything is in one row, longest branch first.
        laid_out = shared_rows([pair], [text], 0, RowLayout(offset, attention_width=10**9))
        row = {name: laid_out[name].to(model.device) for name in ("input_ids", "position_ids", "attention_mask")}
        row["attention_mask"] = additive_mask(row["attention_mask"], model.dtype)
        try:
            found = model(**row, use_cache=False).logits[0]
        except Exception:  # whatever a model's code raises: it takes no position numbers, or no mask of this shape
            return None
        if same_logits(found.float(), wanted, tolerance):
            return offset
    return None
