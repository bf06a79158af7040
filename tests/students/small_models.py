"""Sizes and configurations of small decoders."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    Qwen2Config,
)

SIZES: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


QWEN = Qwen2Config(**SIZES, num_key_value_heads=2)


def bert(is_decoder: bool, scale: float = 0.02) -> BertLMHeadModel:
    torch.manual_seed(0)
    return BertLMHeadModel(BertConfig(**SIZES, initializer_range=scale, is_decoder=is_decoder))
