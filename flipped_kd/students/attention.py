"""Attention: masks of one's own, and what is faster than scaled_dot_product_attention on a CPU.

- Dropout takes torch's fused kernel away there, and the plain one draws a Mersenne Twister number for each weight.
  Most decoders of today drop none; GPT-2 and causal readings of BERT do.
- Half precision: the backward of the fused kernel takes four times as long as plain products do on rows of a pair's
  length (measured, benchmarks/NOTES.md).
- Rows that stand one after the other without padding, which transformers has for flash attention's kernels only.
"""

from __future__ import annotations

import inspect
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .cpu_dropout import drop, drops

NAME = "sdpa_cpu"
# Attention weights that plain products may keep until the backward; the fused kernel keeps none.
MAX_WEIGHTS = 2**22


def speed_up_attention(model: PreTrainedModel) -> None:
    """Have a model with sdpa attention use `attend`; others stay as they are.

    So do architectures that ask for "sdpa" by its name, as some of those with masks of their own: under another one
    they would take another path.
    """
    if model.config._attn_implementation != "sdpa":
        return
    try:
        source = inspect.getsource(inspect.getmodule(type(model)) or type(model))
    except (OSError, TypeError):
        return
    if '"sdpa"' not in source:
        model.set_attn_implementation(NAME)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' `sdpa_attention_forward`, (batch, heads, rows, width) to (batch, rows, heads, width).

    In half precision scores are rounded before the softmax, as eager attention rounds them. With flash attention's
    `cu_seq_lens_q` the one row of a batch is read as several, see `_attend_rows`.
    """
    special = [name for name in ("position_bias", "cache", "softcap") if options.get(name) is not None]
    if (bounds := options.pop("cu_seq_lens_q", None)) is not None:
        if special or dropout:
            raise ValueError(f"rows that are read without padding take no {special or 'dropout'}: pad them.")
        return _attend_rows(module, query, key, value, bounds.tolist(), scaling), None
    if special or not (drops(query, dropout) or _slow_backward(query, key)):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal=is_causal, **options
        )
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scores = (query * (query.shape[-1] ** -0.5 if scaling is None else scaling)) @ key.transpose(-1, -2)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is None and causal and query.shape[2] > 1:  # one query, the newest, sees all that is cached
        attention_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            attention_mask = additive_mask(attention_mask, scores.dtype)
        # Clamped: float32's lowest number is minus infinity in bfloat16. In place: backward needs the softmax only.
        scores += attention_mask.clamp(min=torch.finfo(scores.dtype).min).to(scores.dtype)
    weights = scores.softmax(-1)
    if drops(query, dropout):
        weights = drop(weights, dropout)
    return (weights @ value).transpose(1, 2).contiguous(), None


def _attend_rows(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, bounds: list[int], scaling: float | None
) -> Tensor:
    """Attention within each of n rows that stand in a batch of one, one after the other; no row is empty.

    Args:
        module: whose attention it is.
        query: (1, heads, T, width).
        key: (1, heads, P + T, width); the first P are before each of the rows.
        value: as `key`.
        bounds: n + 1 places among T where the rows begin and the last one ends.
        scaling: of the products.

    Returns:
        (1, T, heads, width).
    """
    before = key.shape[2] - query.shape[2]
    lengths = [end - start for start, end in pairwise(bounds)]
    visible = None
    if before:
        ones = torch.ones(max(lengths), before + max(lengths), dtype=torch.bool, device=query.device)
        visible = additive_mask(ones.tril(before), query.dtype)
    outputs, start = [], 0
    # Rows of equal length that follow each other are a batch without a copy.
    for length, group in groupby(lengths):
        rows = len(list(group))
        end = start + rows * length
        q, k, v = (
            part[0, :, shift + start : shift + end].unflatten(1, (rows, length)).transpose(0, 1)
            for part, shift in ((query, 0), (key, before), (value, before))
        )
        if before:
            k, v = (
                torch.cat([whole[:, :, :before].expand(rows, -1, -1, -1), part], 2)
                for whole, part in ((key, k), (value, v))
            )
        mask = None if visible is None else visible[None, None, :length, : before + length]
        outputs.append(sdpa_attention_forward(module, q, k, v, mask, scaling=scaling)[0].flatten(0, 1))
        start = end
    return torch.cat(outputs)[None]


def _slow_backward(query: Tensor, key: Tensor) -> bool:
    weights = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2]
    if query.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    # Rotated queries are float32, and autocast casts them for the product.
    autocast = torch.is_autocast_enabled("cpu")
    half = (torch.get_autocast_dtype("cpu") if autocast else query.dtype) in (torch.bfloat16, torch.float16)
    return half and query.requires_grad and torch.is_grad_enabled() and weights <= MAX_WEIGHTS


# At import, so that the name is known whoever switches a model.
AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a query may look and the lowest number of `dtype` elsewhere: what both eager and sdpa attention take.

    No infinity, of which a row that sees nothing would make NaN.
    """
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(
        ~visible, torch.finfo(dtype).min
    )
