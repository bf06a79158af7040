"""Two texts' worth of encoding in one forward: the pair, and text_b alone as a packed branch of the same row.

A row is `prefix text_a middle text_b suffix | text_b`. The branch's tokens see the prefix and themselves, at the
positions they would have alone, so their hidden states are those of a second forward over `prefix text_b`, for the
price of text_b's tokens only.

After a short prefix there is little to share, and branches make every row longer. Then the texts are stacked: further
rows below those of the pairs hold `prefix text_b` several times, each seeing itself only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..prompts.pair_tokens import PairTokens, pad_batch
from ..students.attention import NAME as CPU_ATTENTION
from ..students.attention import additive_mask
from ..students.probing import attention_window, is_sharded

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


def stack_rows(
    pairs: Sequence[PairTokens], alone: Sequence[PairTokens], pad_token_id: int, offset: int
) -> dict[str, Tensor]:
    """Put the texts alone into further rows below those of the pairs, as many into one as fit.

    Takes what `pack_rows` takes.

    Returns:
        `input_ids`, `position_ids` (B + R, T), `attention_mask` (B + R, 1, T, T) bool, True where a query may look;
        `alone_row` (B,), the row that each text stands in, and `alone_span` (B, T), its own tokens there.
    """
    width = max(len(tokens.input_ids) for tokens in (*pairs, *alone))
    rows: list[list[int]] = [pair.input_ids for pair in pairs]
    parts = [[0] * len(row) for row in rows]
    positions = [list(range(len(row))) for row in rows]
    alone_row = torch.zeros(len(alone), dtype=torch.long)
    alone_span = torch.zeros(len(alone), width, dtype=torch.bool)
    # The longest first, each into the first row that has room.
    for number in sorted(range(len(alone)), key=lambda number: -len(alone[number].input_ids)):
        text = alone[number]
        length = len(text.input_ids)
        fitting = (row for row in range(len(pairs), len(rows)) if len(rows[row]) + length <= width)
        row = next(fitting, len(rows))
        if row == len(rows):
            rows.append([])
            parts.append([])
            positions.append([])
        start = len(rows[row])
        parts[row] += [parts[row][-1] + 1 if start else 0] * length
        rows[row] += text.input_ids
        positions[row] += range(length)
        alone_row[number] = row
        alone_span[number, start + text.text_a[0] : start + text.text_a[1]] = True
    # Padding is a part of its own, or no softmax over it would have anything to look at.
    part, position = (pad_batch(values, fill)[0] for values, fill in ((parts, -1), (positions, 0)))
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    return {
        "input_ids": pad_batch(rows, pad_token_id)[0],
        "position_ids": position + offset,
        "attention_mask": (causal & (part[:, :, None] == part[:, None, :]))[:, None],
        "alone_row": alone_row,
        "alone_span": alone_span,
    }


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
    if model.config._attn_implementation not in ("sdpa", "eager", CPU_ATTENTION):
        return None
    window = attention_window(model)
    # GPT-Neo lays its own mask, by places in the row, over ours; a packed row has up to 1.5 times as many.
    longest = 2 * max_length if config.model_type == "gpt_neo" else max_length
    if window is not None and window < longest:
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
        except Exception:  # whatever a model's code raises: it takes no position numbers, or no mask of this shape
            return None
        scale = float(wanted.abs().max())
        if torch.allclose(found.float(), wanted, rtol=0, atol=PROBE_TOLERANCE * scale):
            return offset
    return None
