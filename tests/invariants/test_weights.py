"""Which weights move, what moves A at the start, and that weights (1, 0, 0) are plain LoRA fine-tuning."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from peft import get_peft_model
from torch import Tensor
from transformers import Trainer, set_seed

from flipped_kd.prompts.pair_tokens import pad_batch
from tests.invariants.training import (
    EVERY_PAIR,
    PLAIN,
    STILL,
    Gradients,
    assert_close,
    assert_equal,
    frozen,
    logged,
    lora,
    new_trainer,
    settings,
    trainable,
)


def test_every_trainable_weight_moves_and_no_base_weight_does(build: Any) -> None:
    trainer = build(weight_decay=0.0)  # which would move A by itself
    base, adapter = frozen(trainer.model), trainable(trainer.model)
    assert all("lora_" in name for name in adapter) and not any("lora_" in name for name in base)
    trainer.train()
    assert_equal(frozen(trainer.model), base)
    moved = trainable(trainer.model)
    assert [name for name, start in adapter.items() if torch.equal(moved[name], start)] == []


@pytest.mark.parametrize(
    ("weights", "moves_a"),
    [((1.0, 0.0, 0.0), False), ((0.0, 1.0, 0.0), True), ((0.0, 0.0, 1.0), True)],
    ids=["sup", "dist", "mcl"],
)
def test_what_each_term_gives_a_while_b_is_zero(
    weights: tuple[float, float, float], moves_a: bool, build: Any
) -> None:
    gradients = Gradients()
    names = ("sup_weight", "dist_weight", "mcl_weight")
    weighted = dict(zip(names, weights, strict=True))
    trainer = build(max_steps=1, callbacks=[gradients], **weighted, **EVERY_PAIR, **STILL)
    assert all(not value.any() for name, value in trainable(trainer.model).items() if "lora_B" in name)
    trainer.train()
    (step,) = gradients.steps
    first_half = {name: value for name, value in step.items() if "lora_A" in name}
    second_half = {name: value for name, value in step.items() if "lora_B" in name}
    assert len(first_half) == len(second_half) == len(trainer.encoder.modules) == 14
    assert all(bool(value.any()) is moves_a for value in first_half.values())
    if not moves_a:
        assert all(value.any() for value in second_half.values())
        return
    # What the representation reads comes before the last layer's B: of that, it learns nothing.
    last = {name: value for name, value in second_half.items() if ".layers.1." in name and "down_proj" in name}
    assert last and not any(value.any() for value in last.values())


class AnswerRows:
    """Rows of token ids and the answer's id: what plain fine-tuning on the answer token takes."""

    def __init__(self, prompt: Any, pairs: datasets.Dataset) -> None:
        self.rows = [
            (tokens.input_ids, prompt.answer_ids[label])
            for tokens, label in zip(
                prompt.encode_pairs(pairs["text_a"], pairs["text_b"]), pairs["label"], strict=True
            )
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> tuple[list[int], int]:
        return self.rows[row]


def collate_answers(rows: list[tuple[list[int], int]]) -> dict[str, Tensor]:
    input_ids, attention_mask = pad_batch([[*ids, answer] for ids, answer in rows], 0)
    labels = torch.full_like(input_ids, -100)
    for row, (ids, answer) in enumerate(rows):
        labels[row, len(ids)] = answer
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


@pytest.mark.parametrize("steps", [1, 2], ids=["no_accumulation", "accumulation"])
def test_weights_1_0_0_are_plain_fine_tuning_on_the_answer_token(
    steps: int, _student: Any, tokenizer: Any, pairs: datasets.Dataset, tmp_path: Path
) -> None:
    shared: dict[str, Any] = {
        "learning_rate": 1e-4,
        "max_steps": 10,
        "max_grad_norm": 1.0,
        "gradient_accumulation_steps": steps,
        "train_sampling_strategy": "random",  # ours groups by characters, the other would by tokens
    }
    ours = new_trainer(
        settings(tmp_path / "ours", max_grad_value=0.0, answer_vocabulary_weight=1.0, **shared, **PLAIN),
        copy.deepcopy(_student),
        None,
        pairs,
        None,
        tokenizer,
    )
    set_seed(ours.args.seed)
    # A PeftModel as well, which Trainer's own annotation does not know.
    plain: Any = Trainer(
        get_peft_model(copy.deepcopy(_student), lora()),
        # The same kind of settings, hence the same optimizer, schedule and order; the loss is the model's own.
        settings(tmp_path / "plain", **shared),
        collate_answers,
        AnswerRows(ours.prompt, pairs),
    )
    assert_equal(trainable(plain.model), trainable(ours.model))
    start = trainable(ours.model)
    ours.train()
    plain.train()
    assert logged(ours) == pytest.approx(logged(plain), abs=1e-6 * max(logged(plain)))
    assert_close(trainable(ours.model), trainable(plain.model), atol=1e-6)
    moved = max(float((value - start[name]).abs().max()) for name, value in trainable(ours.model).items())
    assert moved > 1e-4  # far more than the tolerance
