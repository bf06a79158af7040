"""A cached step is the plain step of the same batch: every term, every gradient, dropout included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flipped_kd.losses.build import OBJECTIVES
from flipped_kd.students import attention
from flipped_kd.students.cpu_bfloat16 import fast_bfloat16
from flipped_kd.training.trainer import FlippedDistillationTrainer
from tests.invariants.training import (
    EVERY_PAIR,
    PLAIN,
    UNCLIPPED,
    Gradients,
    assert_close,
    assert_equal,
    gradients_of,
    logged,
    lora,
    trainable,
)

SETTINGS: dict[str, dict[str, Any]] = {
    "both": {},
    "thresholds": {"positive_threshold": 0.5, "negative_threshold": 0.5},
    "joint": {"representation": "joint"},
    "lists": {"representation": "independent", "contrast": "infonce", "dist_loss": "kl"},
    **{name: {"dist_loss": name, "mcl_weight": 0.0} for name in OBJECTIVES},
    "no_answer_loss": {"sup_weight": 0.0},
    "taught_answer": {"answer_teacher_weight": 0.4},
    "taught_answer_joint": {"answer_teacher_weight": 1.0, "representation": "joint"},
    "plain": PLAIN,
    "checkpointed": {"activation_checkpointing": True},
}


def batch_of(trainer: FlippedDistillationTrainer, rows: range) -> dict[str, Any]:
    loader = trainer.get_train_dataloader()
    return loader.collate_fn([trainer.train_dataset[row] for row in rows])  # type: ignore[index]


def stepped(
    trainer: FlippedDistillationTrainer, batch: dict[str, Any], seed: int = 0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of a step on `batch` by the cache."""
    trainer.model.zero_grad()
    trainer.current_gradient_accumulation_steps = 1
    torch.manual_seed(seed)
    loss = trainer.training_step(trainer.model, batch)
    return loss, {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


def uncached(
    trainer: FlippedDistillationTrainer, batch: dict[str, Any], seed: int = 0
) -> tuple[Tensor, dict[str, Tensor]]:
    """The same with the whole graph held at once."""
    trainer.model.train()
    torch.manual_seed(seed)
    loss = trainer.compute_loss(trainer.model, batch)
    return loss.detach(), gradients_of(loss, trainer.model)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "two_forwards"])
@pytest.mark.parametrize("name", SETTINGS)
def test_cached_step_equals_the_plain_step_of_the_same_batch(name: str, packed: bool, build: Any) -> None:
    options = EVERY_PAIR | SETTINGS[name]
    teacher = {"teacher": None} if name == "plain" else {}
    plain = build(**options, **teacher)
    cached = build(**options, **teacher, mini_batch_size=3)
    for trainer in (plain, cached):
        if not packed:
            trainer.data_collator.layout = None
    batch = batch_of(cached, range(8))
    assert [len(part["labels"]) for part in batch["mini_batches"]] == [3, 3, 2]
    loss, gradients = stepped(cached, batch)
    whole, expected = uncached(plain, batch_of(plain, range(8)))
    torch.testing.assert_close(loss, whole, atol=1e-5, rtol=1e-5)
    assert_close(gradients, expected, atol=1e-5, rtol=1e-4)
    assert sum(float(value.norm()) for value in gradients.values()) > 0.1
    found, terms = cached.loss_log.flush(cached.accelerator), plain.loss_log.flush(plain.accelerator)
    assert found == pytest.approx(terms, abs=1e-5)


def test_dropout_of_both_readings_is_the_same(build: Any) -> None:
    trainer = build(mini_batch_size=2, **EVERY_PAIR, peft_config=lora(dropout=0.4))
    batch = batch_of(trainer, range(8))
    # Read at once, the mini-batches draw the same random numbers one after the other.
    (loss, gradients), (whole, expected) = stepped(trainer, batch), uncached(trainer, batch)
    torch.testing.assert_close(loss, whole, atol=1e-5, rtol=1e-5)
    assert_close(gradients, expected, atol=1e-5, rtol=1e-4)
    _, other = uncached(trainer, batch, seed=1)
    assert any((other[name] - expected[name]).abs().max() > 1e-2 for name in expected)  # dropout there is
    # Afterwards as many numbers are drawn as by one reading.
    stepped(trainer, batch)
    after = torch.rand(3)
    uncached(trainer, batch)
    assert torch.equal(torch.rand(3), after)


@pytest.mark.parametrize("shared", [True, False])
def test_cached_step_under_bf16_autocast(build: Any, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Pearson divides by the spread of similarities, which is small in a tiny student: rounding then shows more.
    objective = {"dist_loss": "mse"}
    trainer = build(mini_batch_size=2, precision="bf16", **EVERY_PAIR, **objective)
    if not shared:  # nor with attention whose rounding goes by the width of a batch
        trainer.data_collator.layout = None
        monkeypatch.setattr(attention, "MAX_WEIGHTS", 0)
    batch = batch_of(trainer, range(8))
    model = trainer.accelerator.prepare_model(trainer.model)  # autocast is wrapped round its forward
    loss, gradients = stepped(trainer, batch)
    model.train()
    with fast_bfloat16(torch.bfloat16, torch.device("cpu")):  # as in a step
        whole = trainer.compute_loss(model, batch)
        compared = gradients_of(whole, trainer.model)
    if not shared:
        torch.testing.assert_close(loss, whole.detach(), atol=1e-6, rtol=1e-6)
        assert_close(gradients, compared, atol=2e-3, rtol=2e-2)
        return
    # The pairs of a mini-batch share other rows than those of the batch, which bfloat16 rounds otherwise.
    torch.testing.assert_close(loss, whole.detach(), atol=0, rtol=5e-3)
    apart = sum(float((gradients[name] - compared[name]).square().sum()) for name in compared)
    assert apart**0.5 < 0.05 * sum(float(value.square().sum()) for value in compared.values()) ** 0.5
    in_float32 = build(**EVERY_PAIR, **objective)
    exact = uncached(in_float32, batch_of(in_float32, range(8)))[0]
    assert float(loss) != float(exact) and float(loss) == pytest.approx(float(exact), rel=0.05)


def test_cached_training_equals_plain_training_with_accumulation(build: Any) -> None:
    runs = []
    for size in (None, 2):
        gradients = Gradients()
        trainer = build(
            mini_batch_size=size,
            gradient_accumulation_steps=4,
            max_steps=3,
            callbacks=[gradients],
            **EVERY_PAIR,
            **UNCLIPPED,
        )
        trainer.train()
        runs.append((gradients.steps, logged(trainer), trainable(trainer.model)))
    (steps, losses, weights), (cached_steps, cached_losses, cached_weights) = runs
    assert len(steps) == len(cached_steps) == 3
    assert_close(cached_steps[0], steps[0], atol=1e-5, rtol=1e-4)
    assert cached_losses == pytest.approx(losses, rel=1e-3)
    assert_close(cached_weights, weights, atol=1e-3)


def test_a_mini_batch_as_large_as_the_batch_is_plain_training(build: Any) -> None:
    runs = []
    for size in (None, 8):
        trainer = build(mini_batch_size=size)
        trainer.train()
        runs.append(trainable(trainer.model))
    assert_equal(*runs)


def test_a_loss_that_is_not_finite_stops_the_cached_step(build: Any) -> None:
    trainer = build(mini_batch_size=2)
    next(weight for weight in trainer.model.parameters() if weight.requires_grad).data[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="the loss is nan at step 1"):
        trainer.train()
    plain = build(mini_batch_size=2, teacher=None, **PLAIN)
    plain.model.get_base_model().lm_head.weight.data[:, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"on rows \[\d+, \d+\] of"):  # those of the mini-batch
        plain.train()
