"""A packed row gives what two rows give; architectures that cannot pack are found out."""

from __future__ import annotations

import dataclasses

import pytest
import torch
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
from flipped_kd.training.packing import pack_rows, packing_offset, stack_rows
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
    assert packing_offset(model_class(config).eval(), max_length=64) == expected


def test_flash_attention_is_not_packed(student) -> None:
    student.config._attn_implementation = "flash_attention_2"
    assert packing_offset(student, max_length=64) is None


def test_a_window_shorter_than_a_row_is_not_packed() -> None:
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**SIZES, intermediate_size=32, num_key_value_heads=2, sliding_window=16))
    assert packing_offset(model, max_length=16) == 0
    assert packing_offset(model, max_length=17) is None


def test_visibility_and_positions() -> None:
    pair, alone = PairTokens([5, 6, 7, 8, 9], (1, 2), (3, 4), False), PairTokens([5, 8], (1, 2), None, False)
    longer = PairTokens([5, 6, 6, 7, 8, 8, 9], (1, 3), (4, 6), False), PairTokens([5, 8, 8], (1, 3), None, False)
    packed = pack_rows([pair, longer[0]], [alone, longer[1]], pad_token_id=0, offset=2)
    assert packed["input_ids"].tolist() == [[5, 6, 7, 8, 9, 8, 0, 0, 0], [5, 6, 6, 7, 8, 8, 9, 8, 8]]
    assert (packed["position_ids"][1] - 2).tolist() == [0, 1, 2, 3, 4, 5, 6, 1, 2]
    visible = packed["attention_mask"][1, 0]
    for query in range(9):
        seen = set(range(query + 1)) if query < 7 else {0, *range(7, query + 1)}
        assert set(visible[query].nonzero().flatten().tolist()) == seen
    assert packed["alone_span"][0].nonzero().flatten().tolist() == [5]
    # Padding sees something, so no softmax is empty.
    assert visible.any(-1).all() and packed["attention_mask"][0].any(-1).all()


def test_stacked_texts_see_themselves_only() -> None:
    pairs = [PairTokens([5, 6, 7, 8, 9], (1, 2), (3, 4), False), PairTokens([5, 6, 9], (1, 2), (1, 2), False)]
    alone = [PairTokens([5, 8], (1, 2), None, False), PairTokens([5, 6, 7], (1, 3), None, False)]
    stacked = stack_rows(pairs, [*alone, alone[0]], pad_token_id=0, offset=2)
    # The longest first; the last one has no room beside the others.
    assert stacked["input_ids"].tolist() == [[5, 6, 7, 8, 9], [5, 6, 9, 0, 0], [5, 6, 7, 5, 8], [5, 8, 0, 0, 0]]
    assert (stacked["position_ids"][2] - 2).tolist() == [0, 1, 2, 0, 1]
    assert stacked["alone_row"].tolist() == [2, 2, 3]
    assert [span.nonzero().flatten().tolist() for span in stacked["alone_span"]] == [[4], [1, 2], [1]]
    visible = stacked["attention_mask"][:, 0]
    assert torch.equal(visible[0], torch.ones(5, 5).tril().bool())
    assert [row.nonzero().flatten().tolist() for row in visible[2]] == [[0], [0, 1], [0, 1, 2], [3], [3, 4]]
    assert visible.any(-1).all()
    assert not visible[1, 3:, :3].any() and not visible[1, :3, 3:].any()


@pytest.mark.parametrize("share_prefix", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_batch_equals_two_forwards(student, tokenizer, pairs, attention: str, share_prefix: bool) -> None:
    """Logits at the answer, representations and gradients are those of separate rows."""
    student.set_attn_implementation(attention)
    model = get_peft_model(student, LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.0)).eval()
    fill_b(model, std=0.1)
    prompt = PairPrompt.from_preset(tokenizer, max_length=40)  # short enough to cut some texts
    encoder = LoraEncoder.from_model(model, layers="last:1")
    packed = TeacherScoringCollator(
        prompt, tokenizer.pad_token_id, position_offset=packing_offset(student, 40), share_prefix=share_prefix
    )
    separate = dataclasses.replace(packed, position_offset=None)
    rows = [pairs[i] for i in range(8)]

    reader = PairForward(encoder, "independent", True, model.dtype)

    def run(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        assert ("alone_row" in batch) is (batch["attention_mask"].ndim == 4 and not share_prefix)
        logits, vectors = reader(model, batch)
        assert vectors is not None
        first, second = vectors.text_a, vectors.text_b
        model.zero_grad()
        (logits.logsumexp(-1).sum() + (first * second.roll(1, 0)).sum()).backward()
        gradient = torch.cat([w.grad.flatten() for w in model.parameters() if w.grad is not None])
        return logits.detach(), first.detach(), second.detach(), gradient

    for one, other in zip(run(packed(rows)), run(separate(rows)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_left_padding_is_refused(tokenizer) -> None:
    with pytest.raises(ValueError, match="padding_side='right'"):
        TeacherScoringCollator(PairPrompt.from_preset(tokenizer), 0, padding_side="left", position_offset=0)
