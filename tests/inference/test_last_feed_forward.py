"""Answers are those of whole rows where the last feed-forward network is computed at one position a row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import Lfm2Config, Lfm2ForCausalLM, PreTrainedTokenizerBase

from flipped_kd.inference.last_feed_forward import LastFeedForward, input_layers
from flipped_kd.inference.model_runner import ModelRunner
from flipped_kd.inference.shortcuts import Shortcuts
from flipped_kd.prompts.pair_prompt import PairPrompt
from flipped_kd.students.lora import add_adapter, default_lora
from flipped_kd.students.lora_encoder import LoraEncoder
from flipped_kd.students.probing import unwrapped
from tests.adapters import fill_b
from tests.invariants.decoders import DECODERS, LLAMA, Decoder

PAIRS = [("Can I pay by card?", text) for text in ("yes", "is card payment possible at all?", "no cards, only cash")]
PAIRS += [("Where is it?", "where?")]
# There the layers found mix positions, or the sum with attention's output is made in place.
WHOLE = {"Mamba", "RecurrentGemma", "Falcon", "Falcon with ALiBi"}
# No layer of the network is given whole rows: all tokens are one list of rows there.
FLAT = {"OPT", "Mixtral", "Qwen2-MoE", "Qwen3-MoE", "gpt-oss", "Llama 4, text", "Qwen3-Next", "Jamba"}


def reader_of(decoder: Decoder, tokenizer: PreTrainedTokenizerBase) -> ModelRunner:
    model = add_adapter(decoder.build(), default_lora(4, target_modules=decoder.target_modules)).eval()
    fill_b(model, std=0.1)
    return ModelRunner(model, PairPrompt.from_preset(tokenizer, max_length=64), LoraEncoder.from_model(model), 0)


@contextmanager
def widths(model: nn.Module) -> Iterator[set[int]]:
    """Positions a row that the layers found compute."""
    seen: set[int] = set()

    def record(_layer: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.ndim == 3:
            seen.add(output.shape[1])

    handles = [layer.register_forward_hook(record) for layer in input_layers(model)]
    yield seen
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda decoder: decoder.family)
def test_answers_are_those_of_whole_rows(decoder: Decoder, tokenizer: PreTrainedTokenizerBase) -> None:
    reader = reader_of(decoder, tokenizer)
    reader.model.train()
    reader.answers(PAIRS[:3], 8, tqdm(disable=True))  # at first use the model is tried, which reads whole rows
    assert reader.shortcuts.caches is Shortcuts.caches.func(reader.shortcuts)  # type: ignore[attr-defined]
    used = bool(reader.shortcuts.feed_forward.inputs)
    assert used is (decoder.family not in WHOLE) or decoder.family in FLAT
    with widths(reader.model) as narrow:
        found = reader.answers(PAIRS, 8, tqdm(disable=True))
    # A position a row; without padding all rows are one.
    assert narrow and narrow <= {1, len(PAIRS)} or decoder.family in WHOLE | FLAT
    texts = [text for _, text in PAIRS]
    with widths(reader.model) as seen:
        vectors = reader.vectors(texts, 8, tqdm(disable=True))
    assert 1 not in seen  # of texts every position is read
    reader.shortcuts.feed_forward = LastFeedForward()
    with widths(reader.model) as wide:
        wanted = reader.answers(PAIRS, 8, tqdm(disable=True))
    assert 1 not in wide
    np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=1e-4)
    assert torch.equal(reader.vectors(texts, 8, tqdm(disable=True)), vectors)


@pytest.mark.parametrize("seed", [0, 1])
def test_half_precision_hides_no_layer_that_mixes(seed: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Of 24 layers the last one gives little, and its short convolution is called by no name of attention."""
    options = LLAMA | {"num_hidden_layers": 24, "layer_types": ["full_attention", "conv"] * 12, "conv_L_cache": 3}
    torch.manual_seed(seed)
    model = Lfm2ForCausalLM(Lfm2Config(**options)).to(torch.bfloat16).eval()
    adapted = add_adapter(model, default_lora(4)).eval()
    reader = ModelRunner(adapted, PairPrompt.from_preset(tokenizer, max_length=64), LoraEncoder.from_model(adapted), 0)
    assert input_layers(adapted) and not reader.shortcuts.feed_forward.inputs


@pytest.mark.parametrize("error", [ValueError, TypeError, AssertionError, AttributeError])
def test_a_network_that_wants_whole_rows_gets_them(error: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    reader = reader_of(DECODERS[0], tokenizer)

    def check(_network: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        if output.shape != inputs[0].shape:
            raise error("a position is missing")

    unwrapped(reader.model).model.layers[-1].mlp.register_forward_hook(check)  # type: ignore[union-attr]
    assert np.isfinite(reader.answers(PAIRS, 8, tqdm(disable=True))).all()
    assert not reader.shortcuts.feed_forward.inputs


def test_nothing_is_left_behind(tokenizer: PreTrainedTokenizerBase) -> None:
    reader = reader_of(DECODERS[0], tokenizer)
    feed_forward = reader.shortcuts.feed_forward
    with pytest.raises(KeyboardInterrupt), feed_forward.reading():
        feed_forward.positions = torch.tensor([1])
        raise KeyboardInterrupt
    assert feed_forward.positions is None
    assert not any(layer._forward_pre_hooks for layer in feed_forward.inputs)


def test_attention_and_adapters_are_no_part_of_it(tokenizer: PreTrainedTokenizerBase) -> None:
    model = reader_of(DECODERS[0], tokenizer).model
    names = {id(module): name for name, module in model.named_modules()}
    assert [names[id(layer)] for layer in input_layers(model)] == [
        f"base_model.model.model.layers.1.mlp.{name}_proj" for name in ("gate", "up")
    ]
