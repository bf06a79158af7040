"""A run that was stopped and resumed is the run that was not, bit for bit on a CPU: weights and every line of the log.

Stops by exceptions here; kills, at every stage of saving, in tests/soak.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch import Tensor
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from flipped_kd.training.resume import EpochLengthGroupedSampler
from flipped_kd.training.trainer import FlippedDistillationTrainer
from tests.invariants.training import assert_equal, lora, new_trainer, settings, trainable

# All that a resumed run could see otherwise: an epoch is 8 steps, so checkpoints fall at the end of the first and into
# the middle of the second, logs between checkpoints, an evaluation between a checkpoint and the next step; batches are
# grouped anew each epoch, dropout draws random numbers, and a step too many would move the weights.
HARD: dict[str, Any] = {
    "max_steps": 18,
    "save_strategy": "steps",
    "save_steps": 4,
    "logging_steps": 3,
    "eval_strategy": "epoch",
    "train_sampling_strategy": "group_by_length",
    "lr_scheduler_type": "constant",
}


class Stopped(Exception):
    """What the interrupted run dies of."""


class StopAt(TrainerCallback):
    """Raises when a step begins, or when a checkpoint has been saved."""

    def __init__(self, step: int = -1, saved: int = -1) -> None:
        self.step, self.saved = step, saved

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == self.step:
            raise Stopped

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step == self.saved:
            raise Stopped


@pytest.fixture(scope="module")
def make(
    student_dir: Path, teacher_dir: Path, pairs: datasets.Dataset, held_out: datasets.Dataset, tmp_path_factory: Any
) -> Any:
    """Makes trainers as new processes would."""
    root = tmp_path_factory.mktemp("runs")

    def make(out: str, *callbacks: TrainerCallback, **changes: Any) -> FlippedDistillationTrainer:
        args = settings(root / out, **(HARD | changes))
        models, dropout = (str(student_dir), str(teacher_dir)), lora(dropout=0.05)
        return new_trainer(args, *models, pairs, held_out, None, peft_config=dropout, callbacks=callbacks)

    return make


def log(trainer: FlippedDistillationTrainer, what: str = "loss") -> list[dict[str, Any]]:
    """The lines of the training log, or of the evaluations."""
    clocks = ("_runtime", "_per_second")
    lines = [line for line in trainer.state.log_history if what in line]
    return [{name: value for name, value in line.items() if not name.endswith(clocks)} for line in lines]


@pytest.fixture(scope="module")
def whole(make: Any) -> tuple[FlippedDistillationTrainer, dict[str, Tensor]]:
    trainer = make("whole")
    trainer.train()
    return trainer, trainable(trainer.model)


@pytest.mark.parametrize(
    "stop",
    [
        pytest.param(StopAt(step=3), id="before the first checkpoint"),
        pytest.param(StopAt(step=7), id="in the middle of the first epoch"),
        pytest.param(StopAt(saved=8), id="between checkpoint and evaluation"),
        pytest.param(StopAt(step=14), id="in the middle of the second epoch"),
        pytest.param(StopAt(saved=18), id="after the last checkpoint"),
    ],
)
def test_resumed(make: Any, whole: tuple[FlippedDistillationTrainer, dict[str, Tensor]], stop: StopAt) -> None:
    expected, weights = whole
    out = f"stopped-{stop.step}-{stop.saved}"
    with pytest.raises(Stopped):
        make(out, stop).train(resume_from_checkpoint=True)
    trainer = make(out)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 18
    assert log(trainer) == log(expected)
    assert log(trainer, "eval_loss") == log(expected, "eval_loss")
    assert_equal(trainable(trainer.model), weights)


def test_an_epoch_that_was_whole_is_evaluated_once(make: Any) -> None:
    """Killed after the last step of the last epoch was saved, before its evaluation: no epoch is left to run."""
    for saved, strategy in ((16, "steps"), (16, "epoch")):
        out, changes = f"ended-{strategy}", {"max_steps": 16, "save_strategy": strategy}
        with pytest.raises(Stopped):
            make(out, StopAt(saved=saved), **changes).train()
        trainer = make(out, **changes)
        trainer.train(resume_from_checkpoint=True)
        assert [line["step"] for line in log(trainer, "eval_loss")] == [8, 16]


def test_evaluating_does_not_change_what_is_trained(
    make: Any, whole: tuple[FlippedDistillationTrainer, dict[str, Tensor]]
) -> None:
    trainer = make("evaluated", eval_strategy="steps", eval_steps=2, save_strategy="no")
    trainer.train()
    assert_equal(trainable(trainer.model), whole[1])


def test_a_run_that_ended_early_has_ended(make: Any) -> None:
    """Nothing improves at learning rate 0, so the second evaluation ends the run."""
    changes = {
        "learning_rate": 0.0,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "metric_for_best_model": "eval_loss",
        "restore_callback_states_from_checkpoint": True,
    }
    with pytest.raises(Stopped):
        make("early", EarlyStoppingCallback(1), StopAt(saved=4), **changes).train()
    trainer = make("early", EarlyStoppingCallback(1), **changes)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4


def test_groups_of_like_length_are_drawn_by_seed_and_epoch() -> None:
    lengths = [number % 13 for number in range(64)]
    sampler = EpochLengthGroupedSampler(4, lengths, seed=1)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        torch.rand(1)  # the global random state has no say
        orders.append(list(sampler))
        assert sorted(orders[-1]) == list(range(64))
    assert orders[0] == orders[2] != orders[1]
    assert list(EpochLengthGroupedSampler(4, lengths, seed=2)) != orders[0]
    spread = [max(lengths[row] for row in batch) - min(lengths[row] for row in batch) for batch in _fours(orders[0])]
    assert sum(spread) / len(spread) < 4  # of 12 where batches are drawn blindly


def _fours(order: list[int]) -> list[list[int]]:
    return [order[start : start + 4] for start in range(0, len(order), 4)]
