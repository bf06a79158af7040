"""Logits at one position a row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
)

from flipped_kd.students import answer_head
from flipped_kd.students.answer_head import accepts_logits_to_keep, keep_head_precision, position_logits
from flipped_kd.students.lora import add_adapter, default_lora
from tests.students.small_models import QWEN, SIZES, bert


@pytest.mark.parametrize(
    "model",
    [
        Qwen2ForCausalLM(QWEN),
        LlamaForCausalLM(LlamaConfig(**SIZES)),
        GPT2LMHeadModel(GPT2Config(vocab_size=120, n_embd=16, n_layer=2, n_head=2)),
        bert(is_decoder=True),
    ],
    ids=lambda model: type(model).__name__,
)
def test_logits_of_kept_positions_equal_those_of_all(model: PreTrainedModel) -> None:
    model.eval()
    ids = torch.randint(5, 120, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 9, [1] * 4 + [0] * 5, [1] * 7 + [0] * 2])
    positions = mask.sum(1) - 1
    inputs = {"input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        everything = model(**inputs).logits
        full = position_logits(model, inputs, positions, keep=False)
        assert torch.equal(full, torch.stack([everything[row, place] for row, place in enumerate(positions.tolist())]))
        assert accepts_logits_to_keep(model)
        kept = position_logits(model, inputs, positions, keep=True)
        torch.testing.assert_close(kept, full, rtol=0, atol=1e-6)
        for row, place in enumerate(positions.tolist()):
            alone = model(input_ids=ids[row : row + 1, : place + 1]).logits[0, -1]
            torch.testing.assert_close(kept[row], alone, rtol=0, atol=1e-5)


def test_kept_positions_survive_the_adapter(student: Qwen2ForCausalLM) -> None:
    model = add_adapter(student, default_lora(rank=2)).eval()
    assert accepts_logits_to_keep(model)
    inputs = {"input_ids": torch.arange(10, 22).view(2, 6), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    positions = torch.tensor([5, 2])
    kept, full = (position_logits(model, inputs, positions, keep=keep) for keep in (True, False))
    torch.testing.assert_close(kept, full, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
def test_a_head_in_half_precision_computes_in_full_without_a_whole_copy(
    bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).bfloat16().requires_grad_(False)
    if bias:
        model.lm_head = torch.nn.Linear(model.config.hidden_size, 120, dtype=torch.bfloat16).requires_grad_(False)
    keep_head_precision(model)
    vocabulary, width = model.lm_head.weight.shape
    monkeypatch.setattr(answer_head, "COPIED_NUMBERS", 50 * width)
    copied: list[int] = []
    wide = answer_head.wide
    monkeypatch.setattr(answer_head, "wide", lambda tensor: copied.append(len(tensor)) or wide(tensor))
    hidden = torch.randn(4, width, dtype=torch.bfloat16, requires_grad=True)
    weights = torch.randn(4, vocabulary)
    logits = model.lm_head(hidden)
    (found,) = torch.autograd.grad((logits * weights).sum(), hidden)
    expected = hidden.float() @ model.lm_head.weight.float().T + (model.lm_head.bias.float() if bias else 0)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), hidden)
    assert logits.dtype == torch.float32 and vocabulary > 100
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-3)
    assert max(size for size in copied if size != vocabulary or not bias) <= 50


class OneListForAllRows(LlamaForCausalLM):
    """As code of models was before transformers took positions of each row."""

    def forward(self, input_ids: Any = None, logits_to_keep: Any = 0, **options: Any) -> Any:
        found = super().forward(input_ids, **options)
        if not isinstance(logits_to_keep, int):
            found.logits = found.logits[:, logits_to_keep, :]
        return found


def test_one_list_of_positions_for_all_rows_is_none_for_each() -> None:
    assert not accepts_logits_to_keep(OneListForAllRows(LlamaConfig(**SIZES)).eval())

    class AsItWas(LlamaForCausalLM):
        pass

    assert accepts_logits_to_keep(AsItWas(LlamaConfig(**SIZES)).eval())
