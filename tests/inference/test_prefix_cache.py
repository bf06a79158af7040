"""Rows that go on from the cache of a shared beginning give the logits of whole rows, for each kind of decoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertLMHeadModel,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    RobertaConfig,
    RobertaForCausalLM,
)

from flipped_kd.inference.prefix_cache import CachedPrefix, continues, read_prefix
from flipped_kd.prompts.pair_tokens import pad_batch

SIZES: dict[str, Any] = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE: dict[str, Any] = {**SIZES, "intermediate_size": 32, "initializer_range": 0.3}
SPECIAL: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
PREFIX, RESTS = [11, 12, 13, 14, 15], [[21, 22, 23, 24], [31, 32], [41, 42, 43]]
MAX_LENGTH = 64
ROBERTA: dict[str, Any] = {**WIDE, "is_decoder": True, "bos_token_id": 1, "eos_token_id": 2}
# Whether they can: positions from 0 or counted from the pad, rotary, ALiBi, soft caps, windows, recurrent states.
FAMILIES: dict[str, Any] = {
    "gemma2": (Gemma2ForCausalLM, Gemma2Config(**WIDE, num_key_value_heads=2, head_dim=8), True),
    "gpt2": (GPT2LMHeadModel, GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, **SPECIAL), True),
    "roberta": (RobertaForCausalLM, RobertaConfig(**ROBERTA, pad_token_id=1), True),
    "roberta, pad in the prefix": (RobertaForCausalLM, RobertaConfig(**ROBERTA, pad_token_id=PREFIX[0]), False),
    "bert": (BertLMHeadModel, BertConfig(**WIDE, is_decoder=True), True),
    "opt": (OPTForCausalLM, OPTConfig(**SIZES, ffn_dim=32, word_embed_proj_dim=32, init_std=0.3, **SPECIAL), True),
    "bloom": (BloomForCausalLM, BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=4, **SPECIAL), True),
    "window": (MistralForCausalLM, MistralConfig(**WIDE, num_key_value_heads=2, sliding_window=MAX_LENGTH), True),
    "short window": (MistralForCausalLM, MistralConfig(**WIDE, num_key_value_heads=2, sliding_window=16), False),
    "mamba": (MambaForCausalLM, MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2), False),
}


def model_of(family: str) -> Any:
    model_class, config, _ = FAMILIES[family]
    torch.manual_seed(0)
    return model_class(config).eval()


def cached_logits(model: Any, cached: CachedPrefix, rests: list[list[int]]) -> list[Tensor]:
    ids, mask = pad_batch(rests, 0)
    logits = model(**cached.inputs(ids, mask), use_cache=True).logits
    return [row[: len(rest)] for row, rest in zip(logits, rests, strict=True)]


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_whether_a_model_can_is_found_by_trying(family: str) -> None:
    """And where it can, the logits of rows of unequal length are those of whole rows, batch after batch."""
    model, possible = model_of(family), FAMILIES[family][2]
    assert continues(model, PREFIX, RESTS, MAX_LENGTH) is possible
    if not possible:
        return
    cached = read_prefix(model, PREFIX, keep=False)
    assert cached is not None and cached.length == len(PREFIX)
    for batch in (RESTS, RESTS[:1], RESTS[1:]):  # the cache stays as it was
        for found, rest in zip(cached_logits(model, cached, batch), batch, strict=True):
            wanted = model(input_ids=torch.tensor([PREFIX + rest])).logits[0, len(PREFIX) :]
            torch.testing.assert_close(found, wanted, atol=1e-5 * float(wanted.abs().max()), rtol=0)


@torch.inference_mode()
def test_the_prefix_is_copied_for_no_row_beforehand() -> None:
    model = model_of("gpt2")
    cached = read_prefix(model, PREFIX, keep=True)
    assert cached is not None
    ids, mask = pad_batch(RESTS, 0)
    inputs = cached.inputs(ids, mask)
    assert inputs["attention_mask"].sum(1).tolist() == [len(PREFIX) + len(rest) for rest in RESTS]
    layers: Any = cached.cache.layers
    for layer, kept in zip(inputs["past_key_values"].layers, layers, strict=True):
        assert len(layer.keys) == len(RESTS) and layer.keys.data_ptr() == kept.keys.data_ptr()
        assert layer.values.stride(0) == 0


def test_a_model_that_errs_after_a_cache_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that loses a key, and one that will take no cache."""
    model = model_of("gpt2")
    forward = model.forward

    def forgets(**inputs: Any) -> Any:
        if "past_key_values" in inputs:
            inputs["attention_mask"][:, 0] = 0
        return forward(**inputs)

    def refuses(**inputs: Any) -> Any:
        if "past_key_values" in inputs:
            raise ValueError("no cache")
        return forward(**inputs)

    assert continues(model, PREFIX, RESTS, MAX_LENGTH)
    for broken in (forgets, refuses):
        monkeypatch.setattr(model, "forward", broken)
        assert not continues(model, PREFIX, RESTS, MAX_LENGTH)
