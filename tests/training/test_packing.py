"""Shared rows give what separate ones give; architectures that cannot share are found out."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    RobertaConfig,
    RobertaForCausalLM,
)

from flipped_kd.prompts.pair_prompt import PairPrompt
from flipped_kd.prompts.pair_tokens import PairTokens
from flipped_kd.students.lora_encoder import LoraEncoder
from flipped_kd.training.collator import TeacherScoringCollator
from flipped_kd.training.packing import RowLayout, find_layout, row_numbers, shared_rows
from flipped_kd.training.pair_forward import PairForward
from tests.adapters import fill_b

SIZES = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES, intermediate_size=32), 0),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config(**SIZES, intermediate_size=32, num_key_value_heads=2, head_dim=8), 0),
    "gpt2": (GPT2LMHeadModel, GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, **SPECIAL), 0),
    "roberta": (
        RobertaForCausalLM,
        RobertaConfig(**SIZES, intermediate_size=32, is_decoder=True, bos_token_id=1, eos_token_id=2, pad_token_id=1),
        2,
    ),
    # ALiBi takes distances from the mask, so a branch would stand at the wrong place.
    "bloom": (BloomForCausalLM, BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=4, **SPECIAL), None),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_offset_is_found_by_trying(family: str) -> None:
    model_class, config, expected = FAMILIES[family]
    torch.manual_seed(0)
    layout = find_layout(model_class(config).eval(), max_length=64)
    assert (None if layout is None else layout.offset) == expected


def test_flash_attention_is_not_shared(student) -> None:
    student.config._attn_implementation = "flash_attention_2"
    assert find_layout(student, max_length=64) is None


def test_a_window_shorter_than_a_row_is_not_shared() -> None:
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**SIZES, intermediate_size=32, num_key_value_heads=2, sliding_window=16))
    assert find_layout(model, max_length=16) is not None
    assert find_layout(model, max_length=17) is None


PAIRS = [PairTokens([5, 6, 7, 8, 9], (1, 2), (3, 4), False), PairTokens([5, 6, 6, 7, 8, 8, 9], (1, 3), (4, 6), False)]
ALONE = [PairTokens([5, 8], (1, 2), None, False), PairTokens([5, 8, 8], (1, 3), None, False)]


def test_branches_see_the_prefix_and_themselves() -> None:
    rows = shared_rows(PAIRS, ALONE, pad_token_id=0, layout=RowLayout(2, attention_width=10**9))
    assert rows["input_ids"].tolist() == [[5, 6, 7, 8, 9, 6, 6, 7, 8, 8, 9, 8, 8, 8]]
    assert (rows["position_ids"][0] - 2).tolist() == [0, 1, 2, 3, 4, 1, 2, 3, 4, 5, 6, 1, 1, 2]
    visible = rows["attention_mask"][0, 0]
    for first, end in ((1, 5), (5, 11), (11, 12), (12, 14)):
        for query in range(first, end):
            assert set(visible[query].nonzero().flatten().tolist()) == {0, *range(first, query + 1)}
    assert rows["pair_row"].tolist() == rows["alone_row"].tolist() == [0, 0]
    assert rows["answer_position"].tolist() == [4, 10] and rows["read_positions"].tolist() == [[4, 10]]
    assert rows["pair_slot"].tolist() == [0, 1]
    spans = {name: [span.nonzero().flatten().tolist() for span in rows[name]] for name in rows if "span" in name}
    assert spans == {"span_a": [[1], [5, 6]], "span_b": [[3], [8, 9]], "alone_span": [[11], [12, 13]]}


def test_rows_are_padded_and_hold_unequal_numbers_of_pairs() -> None:
    rows = shared_rows([*PAIRS, PAIRS[0]], [], pad_token_id=0, layout=RowLayout(0, 10**9, longest=9))
    assert rows["input_ids"].tolist() == [[5, 6, 6, 7, 8, 8, 9, 0, 0], [5, 6, 7, 8, 9, 6, 7, 8, 9]]
    assert rows["pair_row"].tolist() == [1, 0, 1] and rows["pair_slot"].tolist() == [0, 0, 1]
    assert rows["read_positions"].tolist() == [[6, 6], [4, 8]]
    visible = rows["attention_mask"][:, 0]
    # Padding sees something, so no softmax is empty, and nobody sees padding.
    assert visible.any(-1).all() and not visible[0, 7:, :7].any() and not visible[0, :7, 7:].any()
    assert "alone_row" not in rows


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(0, 50), st.integers(1, 3000))
def test_every_branch_has_a_row_and_no_row_is_empty(lengths: list[int], start: int, width: int) -> None:
    longest = start + max(lengths) + 5
    for layout in (RowLayout(0, width), RowLayout(0, width, longest)):
        row_of = row_numbers(lengths, start, layout)
        assert len(row_of) == len(lengths) and set(row_of) == set(range(max(row_of) + 1))
        if layout.longest is not None:
            loads = [sum(n for n, row in zip(lengths, row_of, strict=True) if row == one) for one in set(row_of)]
            assert start + max(loads) <= longest


@pytest.mark.parametrize("width", [1, 50, 10**9])
@pytest.mark.parametrize("keeps_logits", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_shared_rows_equal_separate_ones(
    student, tokenizer, pairs, attention: str, keeps_logits: bool, width: int
) -> None:
    """Logits at the answer, representations and gradients are those of separate rows."""
    student.set_attn_implementation(attention)
    model = get_peft_model(student, LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.0)).eval()
    fill_b(model, std=0.1)
    prompt = PairPrompt.from_preset(tokenizer, max_length=40)  # short enough to cut some texts
    encoder = LoraEncoder.from_model(model, layers="last:1")
    layout = find_layout(student, 40)
    assert layout is not None
    layout = dataclasses.replace(layout, attention_width=width)
    packed = TeacherScoringCollator(prompt, tokenizer.pad_token_id, layout=layout)
    separate = dataclasses.replace(packed, layout=None)
    rows = [pairs[i] for i in range(8)]

    reader = PairForward(encoder, "both", keeps_logits, model.dtype)

    def run(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        assert ("pair_row" in batch) is (batch["attention_mask"].ndim == 4)
        logits, vectors = reader(model, batch)
        assert vectors is not None and vectors.joint_b is not None
        first, second, joint = vectors.text_a, vectors.text_b, vectors.joint_b
        model.zero_grad()
        (logits.logsumexp(-1).sum() + (first * second.roll(1, 0)).sum() + (first * joint).sum()).backward()
        gradient = torch.cat([w.grad.flatten() for w in model.parameters() if w.grad is not None])
        return logits.detach(), first.detach(), second.detach(), joint.detach(), gradient

    counts = len(packed(rows)["input_ids"])
    assert counts == 1 if width == 10**9 else counts > 1
    for one, other in zip(run(packed(rows)), run(separate(rows)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_left_padding_is_refused(tokenizer) -> None:
    with pytest.raises(ValueError, match="padding_side='right'"):
        TeacherScoringCollator(PairPrompt.from_preset(tokenizer), 0, padding_side="left", layout=RowLayout())


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_rounds_more_and_shares_as_well(family: str) -> None:
    model_class, config, expected = FAMILIES[family]
    torch.manual_seed(0)
    layout = find_layout(model_class(config).eval().bfloat16(), max_length=64)
    assert (None if layout is None else layout.offset) == expected
