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

from flipped_kd.students.answer_head import accepts_logits_to_keep, position_logits
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
