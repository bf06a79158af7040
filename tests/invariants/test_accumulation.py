"""Gradient accumulation: k micro-batches of b are a batch of k * b for L_sup, and a mean of k losses for all terms."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from tests.invariants.training import (
    PLAIN,
    STILL,
    UNCLIPPED,
    Gradients,
    RecordingTrainer,
    assert_close,
    gradients_of,
    logged,
    lora,
    new_trainer,
    settings,
    trainable,
)


def test_accumulated_micro_batches_are_one_batch_for_the_answer_loss(
    _student: Any, tokenizer: Any, pairs: datasets.Dataset, tmp_path: Path
) -> None:

    runs = []
    for size, steps in ((8, 1), (4, 2), (2, 4)):
        gradients = Gradients()
        args = settings(
            tmp_path / str(size),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            **PLAIN,
            **UNCLIPPED,
        )
        trainer = new_trainer(args, copy.deepcopy(_student), None, pairs, None, tokenizer, callbacks=[gradients])
        trainer.train()
        runs.append((gradients.steps, logged(trainer), trainable(trainer.model)))
    whole, *parts = runs
    assert len(whole[0]) == 4
    for accumulated in parts:
        for found, expected in zip(accumulated[0], whole[0], strict=True):
            assert_close(found, expected, atol=2e-5, rtol=1e-4)
        assert accumulated[1] == pytest.approx(whole[1], abs=1e-4)
        assert_close(accumulated[2], whole[2], atol=1e-4)


def test_full_loss_of_an_accumulated_step_is_the_mean_of_its_micro_batches(
    student: Any,
    teacher_dir: Path,
    tokenizer: Any,
    pairs: datasets.Dataset,
    held_out: datasets.Dataset,
    tmp_path: Path,
) -> None:
    gradients = Gradients()
    args = settings(tmp_path, gradient_accumulation_steps=2, max_steps=2, **STILL)
    trainer = RecordingTrainer(
        student, str(teacher_dir), args, pairs, held_out, tokenizer, lora(), callbacks=[gradients]
    )
    trainer.train()
    assert len(trainer.losses) == 4
    assert logged(trainer) == pytest.approx([sum(trainer.losses[:2]) / 2, sum(trainer.losses[2:]) / 2], rel=1e-6)

    trainer.model.train()
    for step, found in enumerate(gradients.steps):
        halves = [
            gradients_of(trainer.compute_loss(trainer.model, batch), trainer.model)
            for batch in trainer.batches[2 * step : 2 * step + 2]
        ]
        mean = {name: (halves[0][name] + halves[1][name]) / 2 for name in halves[0]}
        assert any(torch.count_nonzero(value) for value in mean.values())
        assert_close(found, mean, atol=1e-5, rtol=1e-5)
