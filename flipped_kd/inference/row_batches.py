"""Rows of tokens as a model is given them: padded to one length, or one after the other without padding.

Without padding all but attention computes the rows' own tokens only. transformers passes where rows begin on to the
attention (`cu_seq_lens_q`, for flash attention), and `students.attention` reads it on a CPU.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from ..prompts.pair_tokens import pad_batch
from ..students.attention import NAME, speed_up_attention
from ..students.probing import attention_window, first_position, input_device, same_logits, unwrapped
from .prefix_cache import CachedPrefix, read_prefix, tolerance

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RowBatch:
    """B rows, ready to be read.

    Attributes:
        inputs: what the model is called with.
        last: (B, 1), or (1, B) without padding: each row's last token.
        spans: (B, T) 1 at each row's tokens, without those that were to be skipped.
    """

    inputs: dict[str, Any]
    last: Tensor
    spans: Tensor


def padded_batch(
    rows: Sequence[Sequence[int]], pad_id: int, device: torch.device, cached: CachedPrefix | None = None, skip: int = 0
) -> RowBatch:
    """Rows of token ids padded on the right, which go on from `cached` if that is given."""
    ids, mask = (part.to(device) for part in pad_batch(rows, pad_id))
    inputs = {"input_ids": ids, "attention_mask": mask} if cached is None else cached.inputs(ids, mask)
    spans = mask.clone()
    spans[:, :skip] = 0
    return RowBatch(inputs, mask.sum(1, keepdim=True) - 1, spans)


def unpadded_batch(
    rows: Sequence[Sequence[int]], first: int, device: torch.device, cached: CachedPrefix | None = None, skip: int = 0
) -> RowBatch:
    """The same rows in one, for a model that `reads_unpadded`; `first` is its `first_position`."""
    bounds = torch.tensor([0, *accumulate(map(len, rows))], device=device)
    starts, lengths = bounds[:-1], bounds.diff()
    place = torch.arange(int(bounds[-1]), device=device)
    number = torch.repeat_interleave(torch.arange(len(rows), device=device), lengths)
    within = place - starts[number]
    ids = torch.tensor([[token for row in rows for token in row]], device=device)
    inputs = {"input_ids": ids} if cached is None else cached.inputs(ids, torch.ones_like(ids))
    inputs |= {
        "position_ids": (within + first + (0 if cached is None else cached.length))[None],
        # Of four dimensions it is passed on as it is: none is made, and the attention needs none.
        "attention_mask": torch.zeros(1, 1, 1, 1, device=device),
        "cu_seq_lens_q": bounds.int(),
    }
    spans = torch.zeros(len(rows), len(place), dtype=torch.long, device=device)
    spans[number, place] = (within >= skip).long()
    return RowBatch(inputs, bounds[None, 1:] - 1, spans)


@torch.inference_mode()
def reads_unpadded(
    model: nn.Module, prefix: Sequence[int], rests: Sequence[Sequence[int]], max_length: int, caches: bool
) -> bool:
    """Try whether `model` gives the logits of padded rows when they are read without padding.

    Args:
        model: the causal language model in evaluation mode, with or without adapter. Its attention becomes
            `students.attention.attend`, where it is transformers' sdpa.
        prefix: token ids of a beginning, as they will occur.
        rests: token ids of rows after it, of unequal length, as they will occur.
        max_length: tokens of the longest whole row.
        caches: it can go on from the cache of a prefix, and is tried so.
    """
    base: Any = unwrapped(model)
    window = attention_window(model)
    if window is not None and window < max_length:
        return False  # the short rows tried here would not show what the window does
    try:
        speed_up_attention(base)
        if base.config._attn_implementation != NAME:
            return False
        device, first = input_device(model), first_position(model)
        whole = [[*prefix, *rest] for rest in rests]
        padded = padded_batch(whole, 0, device, skip=len(prefix))
        wanted = model(**padded.inputs, use_cache=False).logits[padded.spans.bool()]
        if caches:
            joined = unpadded_batch(rests, first, device, read_prefix(model, prefix, keep=False))
        else:
            joined = unpadded_batch(whole, first, device, skip=len(prefix))
        logits = model(**joined.inputs, use_cache=caches).logits[0]
        return same_logits(logits[joined.spans.any(0)], wanted, tolerance(model))
    except Exception as error:  # whatever a model's code raises
        logger.debug("%s reads rows with padding: %r", type(base).__name__, error)
        return False
