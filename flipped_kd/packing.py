"""Two texts' worth of encoding in one forward: the pair, and text_b alone as a packed branch of the same row.

A row is `prefix text_a middle text_b suffix | text_b`. The branch's tokens see the prefix and themselves, at the
positions they would have alone, so their hidden states are those of a second forward over `prefix text_b`, for the
price of text_b's tokens only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .prompts import PairTokens, pad_batch

# Decoders number positions from 0; RoBERTa-like ones from padding_idx + 1.
CANDIDATE_OFFSETS = (0, 1, 2)
PROBE_TOLERANCE = 1e-3


def pack_rows(
    pairs: Sequence[PairTokens], alone: Sequence[PairTokens], pad_token_id: int, offset: int
) -> dict[str, Tensor]:
    """Pack each pair with its text_b alone.

    Args:
        pairs: B pairs.
        alone: B texts encoded alone.
        pad_token_id: id to pad with, on the right.
        offset: what the model's position numbers begin with.

    Returns:
        `input_ids` (B, T), `position_ids` (B, T), `attention_mask` (B, 1, T, T) bool, True where a query may look, and
        `alone_span` (B, T).
    """
    rows = []
    for pair, text in zip(pairs, alone, strict=True):
        rows.append(pair.input_ids + text.input_ids[text.text_a[0] : text.text_a[1]])
    input_ids, real = pad_batch(rows, pad_token_id)
    batch, length = input_ids.shape
    prefix = torch.tensor([text.text_a[0] for text in alone])[:, None]
    branch_start = torch.tensor([len(pair.input_ids) for pair in pairs])[:, None]
    place = torch.arange(length)[None].expand(batch, -1)
    in_branch = (place >= branch_start) & real.bool()
    positions = torch.where(in_branch, place - branch_start + prefix, place).clamp(max=int(branch_start.max()))
    causal = place[:, :, None] >= place[:, None, :]
    # Both queries and keys: a branch token sees the prefix and its branch, the others never see the branch.
    same_part = in_branch[:, :, None] == in_branch[:, None, :]
    sees_prefix = in_branch[:, :, None] & (place < prefix)[:, None, :]
    visible = causal & (same_part | sees_prefix)
    return {
        "input_ids": input_ids,
        "position_ids": positions + offset,
        "attention_mask": visible[:, None],
        "alone_span": in_branch,
    }


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a query may look and the lowest number of `dtype` elsewhere: what both eager and sdpa attention take."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, torch.finfo(dtype).min)


@torch.no_grad()
def packing_offset(model: PreTrainedModel, max_length: int) -> int | None:
    """Find out by trying whether `model` gives packed rows the hidden states of separate ones.

    Architectures differ in how they number positions and read masks (ALiBi, sliding windows, flash attention ...), and
    some ignore what they are given without a word, so the logits of a packed row are compared with those of its two
    parts.

    Args:
        model: the causal language model.
        max_length: tokens of the longest row that is not packed.

    Returns:
        The offset of its position numbers, or None where rows cannot be packed.
    """
    config = model.config.get_text_config()
    if model.config._attn_implementation not in ("sdpa", "eager"):
        return None
    window = config.to_dict().get("sliding_window")
    if window is not None and window < max_length:
        return None  # a mask of one's own takes the window's place, in layers that should not see so far back
    if any(parameter.is_meta or parameter.numel() == 0 for parameter in model.parameters()):
        return None  # sharded at load time
    training = model.training
    model.eval()
    low = min(100, config.vocab_size // 4)
    ids = torch.randint(low, config.vocab_size, (10,), generator=torch.Generator().manual_seed(0)).tolist()
    pair = PairTokens(ids, (2, 4), (5, 8), False)
    text = PairTokens(ids[:2] + ids[5:8], (2, 5), None, False)
    try:
        return _working_offset(model, pair, text)
    finally:
        model.train(training)


def _working_offset(model: PreTrainedModel, pair: PairTokens, text: PairTokens) -> int | None:
    def logits(ids: list[int]) -> Tensor:
        inputs = torch.tensor([ids], device=model.device)
        return model(input_ids=inputs, attention_mask=torch.ones_like(inputs), use_cache=False).logits[0].float()

    wanted = torch.cat([logits(pair.input_ids), logits(text.input_ids)[text.text_a[0] :]])
    for offset in CANDIDATE_OFFSETS:
        packed = {name: value.to(model.device) for name, value in pack_rows([pair], [text], 0, offset).items()}
        try:
            found = model(
                input_ids=packed["input_ids"],
                position_ids=packed["position_ids"],
                attention_mask=additive_mask(packed["attention_mask"], model.dtype),
                use_cache=False,
            ).logits[0]
        except (TypeError, ValueError, RuntimeError, IndexError):
            return None  # it takes no position numbers, or no mask of this shape
        scale = float(wanted.abs().max())
        if torch.allclose(found.float(), wanted, rtol=0, atol=PROBE_TOLERANCE * scale):
            return offset
    return None
