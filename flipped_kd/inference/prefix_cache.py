"""Read a beginning that many rows share once, and go on from its key/value cache in every row."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ..prompts.pair_tokens import pad_batch
from ..students.probing import HALF, HALF_TOLERANCE, attention_window, input_device, same_logits, unwrapped

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedPrefix:
    """Keys and values of a shared beginning.

    Attributes:
        length: its tokens.
        cache: keys and values (1, heads, length, head size) of each layer.
    """

    length: int
    cache: DynamicCache

    def inputs(self, ids: Tensor, mask: Tensor) -> dict[str, Any]:
        """What the model is called with to read rows on from here.

        No position numbers are among them: with padding on the right, models count on from the cache by themselves,
        each in its own way, and `continues` has seen this one do it.

        Args:
            ids: (B, R) the rows after the beginning, padded on the right.
            mask: (B, R) 1 on their tokens, 0 on padding.
        """
        rows = len(ids)
        cache = copy.copy(self.cache)
        # Views for all rows: each layer copies them once, when it appends the rows' own keys.
        cache.layers = [_expanded(layer, rows) for layer in self.cache.layers]
        return {
            "input_ids": ids,
            "attention_mask": torch.cat([mask.new_ones(rows, self.length), mask], dim=1),
            "past_key_values": cache,
        }


class _Beginning(DynamicLayer):
    """Keys and values before those of the rows, for one forward pass.

    What is joined is not kept, as in the usual cache, so that one layer's memory serves the next.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """The rows' keys and values with those before them."""
        assert self.keys is not None and self.values is not None
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)


def _expanded(layer: Any, rows: int) -> Any:
    if not layer.is_initialized:  # a layer that shares another's keys has none
        return copy.copy(layer)
    return _Beginning(*(part.expand(rows, -1, -1, -1) for part in (layer.keys, layer.values)))


def read_prefix(model: nn.Module, ids: Sequence[int], keep: bool) -> CachedPrefix | None:
    """Run `model` on one beginning and keep its keys and values.

    `keep`: the model can leave out logits (`answer_head.accepts_logits_to_keep`), which nobody reads here. None if the
    cache holds anything but keys and values by position (recurrent or compressed states).
    """
    inputs = torch.tensor([list(ids)], device=input_device(model))
    options = {"logits_to_keep": 1} if keep else {}
    output = model(input_ids=inputs, attention_mask=torch.ones_like(inputs), use_cache=True, **options)
    cache = getattr(output, "past_key_values", None)  # recurrent models have none
    if type(cache) is not DynamicCache or not cache.layers:
        return None
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers):
        return None
    return CachedPrefix(len(ids), cache)


@torch.inference_mode()
def continues(model: nn.Module, prefix: Sequence[int], rests: Sequence[Sequence[int]], max_length: int) -> bool:
    """Try whether `model`, going on from a cached beginning, gives the logits of whole rows.

    Args:
        model: the causal language model in evaluation mode, with or without adapter.
        prefix: token ids of a beginning, as they will occur.
        rests: token ids of rows after it, of unequal length, as they will occur.
        max_length: tokens of the longest whole row.
    """
    base = unwrapped(model)
    window = attention_window(model)
    if window is not None and window < max_length:
        return False  # the short rows tried here would not show what the window does
    device = input_device(model)
    whole = [torch.tensor([[*prefix, *rest]], device=device) for rest in rests]
    wanted = torch.cat(
        [
            model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits[0, len(prefix) :]
            for row in whole
        ]
    )
    ids, mask = (part.to(device) for part in pad_batch(rests, 0))
    try:
        cached = read_prefix(model, prefix, keep=False)
        if cached is None:
            return False
        found = model(**cached.inputs(ids, mask), use_cache=True).logits[mask.bool()]
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        logger.debug("%s cannot go on from a cache: %r", type(base).__name__, error)
        return False
    return same_logits(found, wanted, tolerance(model))


def tolerance(model: nn.Module) -> float | None:
    """What `same_logits` may allow where the dtype of the logits does not tell it.

    A Trainer in mixed precision puts autocast round the model's forward, and gives its outputs in float32. So does an
    output layer that `keep_head_precision` has seen to, of hidden states in half precision.
    """
    rounded = hasattr(model, "_original_forward") or unwrapped(model).dtype in HALF
    return HALF_TOLERANCE if rounded else None
