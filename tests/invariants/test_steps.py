"""Single optimizer steps: clipping by value and by norm, and the stop on a loss that is not a number."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tests.invariants.training import (
    UNCLIPPED,
    Gradients,
    RecordingTrainer,
    assert_close,
    logged,
    lora,
    settings,
    trainable,
)


@pytest.fixture
def first_step(build: Any) -> Any:
    """Runs one step with the settings given; returns the gradients the optimizer saw and the logged norm."""

    def run(**changes: Any) -> tuple[dict[str, torch.Tensor], float]:
        gradients = Gradients()
        trainer = build(max_steps=1, callbacks=[gradients], **changes)
        trainer.train()
        (step,), (norm,) = gradients.steps, logged(trainer, "grad_norm")
        return step, norm

    return run


def total_norm(gradients: dict[str, torch.Tensor]) -> float:
    return float(torch.linalg.vector_norm(torch.stack([value.norm() for value in gradients.values()])))


def largest(gradients: dict[str, torch.Tensor]) -> float:
    return max(float(value.abs().max()) for value in gradients.values())


def test_clipping(first_step: Any) -> None:
    raw, raw_norm = first_step(**UNCLIPPED)
    assert raw_norm == pytest.approx(total_norm(raw), rel=1e-5)
    bound = largest(raw) / 10
    # By value, whatever the norm's bound says; the logged norm is that before clipping.
    for max_grad_norm in (1.0, 0.0):
        clipped, norm = first_step(max_grad_value=bound, max_grad_norm=max_grad_norm)
        assert_close(clipped, {name: value.clamp(-bound, bound) for name, value in raw.items()}, atol=1e-7)
        assert norm == pytest.approx(raw_norm, rel=1e-5)
    # The default is the paper's bound of 1.
    assert largest(raw) > 1
    default, _ = first_step()
    assert_close(default, {name: value.clamp(-1, 1) for name, value in raw.items()}, atol=1e-7)
    # By norm where clipping by value is switched off.
    by_norm, norm = first_step(max_grad_value=0.0, max_grad_norm=raw_norm / 4)
    assert_close(by_norm, {name: value / 4 for name, value in raw.items()}, atol=1e-6)
    assert norm == pytest.approx(raw_norm, rel=1e-5)


class Spoil(TrainerCallback):
    """Makes one weight of the adapter NaN before the second step."""

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None
        if state.global_step == 1:
            next(weight for weight in model.parameters() if weight.requires_grad).data[0, 0] = float("nan")


@pytest.mark.parametrize(
    ("changes", "callbacks"),
    [({}, [Spoil()]), ({"learning_rate": 1e30}, []), ({"dist_weight": 0.0, "mcl_weight": 0.0}, [Spoil()])],
    ids=["weight", "learning_rate", "plain"],
)
def test_training_stops_on_a_loss_that_is_not_finite(
    changes: dict[str, Any],
    callbacks: list[TrainerCallback],
    student: Any,
    teacher_dir: Path,
    tokenizer: Any,
    pairs: datasets.Dataset,
    held_out: datasets.Dataset,
    tmp_path: Path,
) -> None:
    args = settings(tmp_path, save_strategy="steps", save_steps=1, **changes)
    trainer = RecordingTrainer(
        student, str(teacher_dir), args, pairs, held_out, tokenizer, lora(), callbacks=callbacks
    )
    with pytest.raises(FloatingPointError, match="nan|inf") as error:
        trainer.train()
    (listed,) = re.findall(r"\[([\d, ]+)\]", str(error.value))
    rows = [int(row) for row in listed.split(",")]
    assert rows == trainer.batches[-1]["rows"].tolist() and len(set(rows)) == 8
    # They are numbers of the user's own rows.
    prompts = trainer.prompt.encode_pairs(
        [pairs[row]["text_a"] for row in rows], [pairs[row]["text_b"] for row in rows]
    )
    batch, start = trainer.batches[-1], len(trainer.prompt.prefix_ids)
    for tokens, row, last in zip(prompts, batch["pair_row"], batch["answer_position"].tolist(), strict=True):
        after_prefix = tokens.input_ids[start:]
        assert batch["input_ids"][row].tolist()[last + 1 - len(after_prefix) : last + 1] == after_prefix
    assert f"step {trainer.state.global_step + 1} " in str(error.value)
    assert len(trainer.losses) == trainer.state.global_step  # not one step more was taken
    assert not (tmp_path / f"checkpoint-{trainer.state.global_step + 1}").exists()


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(build: Any) -> None:
    trainer = build()
    before = trainable(trainer.model)
    weight = next(weight for weight in trainer.model.parameters() if weight.requires_grad)
    weight.register_hook(lambda gradient: torch.full_like(gradient, float("nan")))
    with pytest.raises(FloatingPointError, match="gradient"):
        trainer.train()
    assert_close(trainable(trainer.model), before, atol=0.0)
