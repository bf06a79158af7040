"""Rows read without padding give what rows by themselves give."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase, RobertaConfig, RobertaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from flipped_kd.inference.model_runner import ModelRunner, TokenRows
from flipped_kd.inference.prefix_cache import read_prefix
from flipped_kd.inference.row_batches import padded_batch, reads_unpadded, unpadded_batch
from flipped_kd.students.attention import attend
from flipped_kd.students.probing import first_position, unwrapped
from flipped_kd.utils.token_batches import unpadded_batches
from tests.inference.test_last_feed_forward import PAIRS, reader_of
from tests.invariants.decoders import BERT, DECODERS, Decoder

CPU = torch.device("cpu")
# Not recurrent ones, nor those with ALiBi, windows that rows of 64 tokens leave, or attention that is told of no rows.
UNPADDED = {"Qwen2", "Qwen3", "Llama", "Gemma", "Phi", "Phi-3", "GLM", "GLM-4", "OLMo 2", "SmolLM3", "Granite"}
UNPADDED |= {"Starcoder2", "GPT-2", "GPT-NeoX", "OPT", "BERT as a decoder", "Mixtral", "Qwen2-MoE", "Qwen3-MoE"}
UNPADDED |= {"DeepSeek-V3"}


def padded(reader: ModelRunner) -> ModelRunner:
    """The reader, which pads from now on and tries anew what depends on it."""
    reader.shortcuts.__dict__.pop("feed_forward", None)
    reader.shortcuts.__dict__["_tried_unpadded"] = False
    return reader


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda decoder: decoder.family)
def test_scores_and_vectors_are_those_with_padding(decoder: Decoder, tokenizer: PreTrainedTokenizerBase) -> None:
    reader = reader_of(decoder, tokenizer)
    assert reader.shortcuts.unpadded is (decoder.family in UNPADDED)
    texts = [text for _, text in PAIRS]
    found = reader.answers(PAIRS, 8, tqdm(disable=True)), reader.vectors(texts, 8, tqdm(disable=True))
    padded(reader)
    wanted = reader.answers(PAIRS, 8, tqdm(disable=True)), reader.vectors(texts, 8, tqdm(disable=True))
    np.testing.assert_allclose(found[0], wanted[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[1], wanted[1], atol=1e-5, rtol=0)


def test_only_the_rows_own_tokens_are_computed(tokenizer: PreTrainedTokenizerBase) -> None:
    reader = reader_of(DECODERS[0], tokenizer)
    rows = TokenRows([5], [[6, 7, 8], [9], [10, 11]])
    reader.row_answers(rows, 8, tqdm(disable=True))  # at first use the model is tried
    shapes = []
    network: Any = unwrapped(reader.model).model.layers[0].mlp  # type: ignore[union-attr]
    network.register_forward_hook(lambda _module, inputs, _output: shapes.append(tuple(inputs[0].shape[:2])))
    reader.row_answers(rows, 8, tqdm(disable=True))
    assert shapes == [(1, 4 + 2 + 3)]
    shapes.clear()
    reader.row_answers(TokenRows([5], [[6, 7], [8, 9]]), 8, tqdm(disable=True))
    assert shapes == [(2, 3)]  # rows of one length need no padding


@pytest.mark.parametrize("before", [0, 1, 5])
@pytest.mark.parametrize("lengths", [[1], [3, 3, 2], [1, 7, 7, 7, 2, 1], [4, 1, 4]])
@pytest.mark.parametrize("groups", [1, 2])
def test_attention_of_each_row_is_its_own(before: int, lengths: list[int], groups: int) -> None:
    """As transformers computes it for the row alone, whatever is before all rows."""
    torch.manual_seed(0)
    module = nn.Module()
    module.num_key_value_groups, module.is_causal = groups, True  # type: ignore[assignment]
    heads, total = 4, sum(lengths)
    query = torch.randn(1, heads, total, 8)
    key, value = torch.randn(2, 1, heads // groups, before + total, 8)
    bounds = [0, *itertools.accumulate(lengths)]
    found, _ = attend(module, query, key, value, None, scaling=0.3, cu_seq_lens_q=torch.tensor(bounds))
    for start, end in itertools.pairwise(bounds):
        # The first queries are of the tokens before, so that the usual causal attention sees the row whole.
        places = [*range(before), *range(before + start, before + end)]
        queries = torch.cat([torch.zeros(1, heads, before, 8), query[:, :, start:end]], 2)
        wanted, _ = sdpa_attention_forward(module, queries, key[:, :, places], value[:, :, places], None, scaling=0.3)
        torch.testing.assert_close(found[:, start:end], wanted[:, before:])


def test_positions_that_begin_elsewhere() -> None:
    """RoBERTa numbers its tokens from padding_idx + 1."""
    torch.manual_seed(0)
    config = RobertaConfig(**BERT | {"pad_token_id": 3, "is_decoder": True})
    model = RobertaForCausalLM(config).eval()
    assert first_position(model) == 4
    assert reads_unpadded(model, [5, 6], [[7, 8, 9], [10]], 8, caches=True)


def test_batches_say_where_rows_end_and_which_tokens_count() -> None:
    rows = [[5, 6, 7], [5, 8]]
    alone, joined = padded_batch(rows, 0, CPU, skip=1), unpadded_batch(rows, 0, CPU, skip=1)
    assert alone.last.tolist() == [[2], [1]] and joined.last.tolist() == [[2, 4]]
    assert alone.spans.tolist() == [[0, 1, 1], [0, 1, 0]]
    assert joined.spans.tolist() == [[0, 1, 1, 0, 0], [0, 0, 0, 0, 1]]
    assert joined.inputs["input_ids"].tolist() == [[5, 6, 7, 5, 8]]
    assert joined.inputs["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert joined.inputs["cu_seq_lens_q"].tolist() == [0, 3, 5]


def test_rows_go_on_from_a_cached_beginning(tokenizer: PreTrainedTokenizerBase) -> None:
    model = reader_of(DECODERS[0], tokenizer).model
    cached = read_prefix(model, [5, 6], keep=False)
    assert cached is not None
    assert unpadded_batch([[7], [8, 9]], 4, CPU, cached).inputs["position_ids"].tolist() == [[6, 6, 7]]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_an_attention_that_is_changed_later_gets_padded_rows(
    attention: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    """It would mix the rows, without an error."""
    reader = reader_of(DECODERS[0], tokenizer)
    wanted = reader.answers(PAIRS, 8, tqdm(disable=True))
    assert reader.shortcuts.unpadded
    unwrapped(reader.model).set_attn_implementation(attention)
    assert not reader.shortcuts.unpadded
    np.testing.assert_allclose(reader.answers(PAIRS, 8, tqdm(disable=True)), wanted, atol=1e-4, rtol=1e-4)


def test_in_half_precision_a_layout_is_compared_with_itself(tokenizer: PreTrainedTokenizerBase) -> None:
    """Padded rows round otherwise: the last feed-forward network is left out all the same."""
    reader = reader_of(DECODERS[0], tokenizer)
    reader.model.to(torch.bfloat16)
    assert reader.shortcuts.unpadded
    assert reader.shortcuts.feed_forward.inputs


@pytest.mark.parametrize("change", ["window", "eager", "error"])
def test_where_it_cannot_be_rows_are_padded(change: str, tokenizer: PreTrainedTokenizerBase) -> None:
    reader = reader_of(DECODERS[0], tokenizer)
    base: Any = unwrapped(reader.model)
    if change == "window":
        base.config.sliding_window = 60  # the prompt's rows have 64 tokens
    elif change == "eager":
        base.set_attn_implementation("eager")
    else:

        def refuse(_module: nn.Module, _args: tuple[Any, ...], options: dict[str, Any]) -> None:
            if options.get("cu_seq_lens_q") is not None:
                raise AssertionError("unknown")

        base.model.layers[0].register_forward_pre_hook(refuse, with_kwargs=True)
    assert not reader.shortcuts.unpadded
    found = reader.answers(PAIRS, 8, tqdm(disable=True))
    other = padded(reader_of(DECODERS[0], tokenizer))
    np.testing.assert_allclose(found, other.answers(PAIRS, 8, tqdm(disable=True)), atol=1e-4, rtol=1e-4)


def test_batches_hold_no_more_than_they_may() -> None:
    lengths = [9, 4, 4, 30, 1, 5, 5]
    batches = list(unpadded_batches(lengths, 3, 12))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert [[lengths[row] for row in batch] for batch in batches] == [[30], [9], [5, 5], [4, 4, 1]]
    assert list(unpadded_batches([], 3, 12)) == []
    assert [len(batch) for batch in unpadded_batches([1] * 7, 3, 12)] == [3, 3, 1]
