"""B's learning rate apart from A's: the step that each makes, and that nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from flipped_kd.students.lora import add_adapter, default_lora
from flipped_kd.training.config import FlippedDistillationConfig
from tests.invariants.training import trainable

# Without momentum, decay, clipping and schedule a step is the rate times the gradient.
BARE: dict[str, Any] = {
    "optim": "sgd",
    "lr_scheduler_type": "constant",
    "weight_decay": 0.0,
    "max_steps": 1,
    "learning_rate": 0.01,
    "max_grad_value": 0.0,
    "max_grad_norm": 0.0,
}


def moved(trainer: Any) -> dict[str, torch.Tensor]:
    before = {name: weight.clone() for name, weight in trainable(trainer.model).items()}
    trainer.train()
    return {name: weight - before[name] for name, weight in trainable(trainer.model).items()}


def test_b_makes_larger_steps_by_the_ratio_and_a_the_same(build: Any) -> None:
    one, four = moved(build(**BARE)), moved(build(loraplus_lr_ratio=4.0, **BARE))
    assert one.keys() == four.keys() and any(delta.abs().max() > 0 for delta in one.values())
    for name, delta in one.items():
        torch.testing.assert_close(four[name], delta * (4 if "lora_B" in name else 1), rtol=1e-4, atol=1e-9)


def test_every_weight_is_in_one_group_and_the_schedule_holds_for_both(build: Any) -> None:
    trainer = build(loraplus_lr_ratio=4.0, max_steps=4, learning_rate=1e-3, lr_scheduler_type="linear")
    trainer.train()
    groups = trainer.optimizer.param_groups
    held = [id(weight) for group in groups for weight in group["params"]]
    assert sorted(held) == sorted(id(weight) for weight in trainer.model.parameters() if weight.requires_grad)
    assert {group["initial_lr"] for group in groups} == {1e-3, 4e-3}
    assert {group["weight_decay"] for group in groups} == {trainer.args.weight_decay}


def test_a_run_that_was_interrupted_goes_on_with_both_rates(build: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"loraplus_lr_ratio": 4.0, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = build(output_dir=str(tmp_path / "whole"), **options)
    whole.train()
    begun = build(output_dir=str(tmp_path / "begun"), **options)
    begun.train()
    for checkpoint in (tmp_path / "begun").glob("checkpoint-4"):
        checkpoint.rename(tmp_path / "gone")
    again = build(output_dir=str(tmp_path / "begun"), **options)
    again.train(resume_from_checkpoint=True)
    expected = trainable(whole.model)
    assert all(torch.equal(weight, expected[name]) for name, weight in trainable(again.model).items())


def test_an_optimizer_of_ones_own_keeps_its_rates(build: Any, student: Any) -> None:
    model = add_adapter(student, default_lora(rank=4))
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    own = torch.optim.SGD(weights, lr=0.02)
    trainer = build(model=model, peft_config=None, optimizers=(own, None), loraplus_lr_ratio=4.0, max_steps=1)
    trainer.train()
    assert [group["initial_lr"] for group in own.param_groups] == [0.02]


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("inf"), float("nan")])
def test_a_ratio_that_is_none_is_refused(ratio: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="loraplus_lr_ratio=.*above 0"):
        FlippedDistillationConfig(output_dir=str(tmp_path), loraplus_lr_ratio=ratio)
