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

from flipped_kd.training.length_groups import EpochLengthGroupedSampler
from flipped_kd.training.trainer import FlippedDistillationTrainer
from tests.invariants.training import StopAt, Stopped, assert_equal, lora, new_trainer, settings, trainable

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


# Nothing improves at learning rate 0: the first evaluation is the best, each later one counts against the patience.
IMPATIENT: dict[str, Any] = {
    "learning_rate": 0.0,
    "max_steps": 12,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_steps": 2,
    "save_total_limit": 1,
    "metric_for_best_model": "eval_loss",
}


@pytest.mark.parametrize("restore", [False, True], ids=["by default", "as transformers restores"])
def test_a_run_that_ended_early_has_ended(make: Any, restore: bool) -> None:
    """The second evaluation ends the run."""
    out, changes = f"early-{restore}", IMPATIENT | {"restore_callback_states_from_checkpoint": restore}
    with pytest.raises(Stopped):
        make(out, EarlyStoppingCallback(1), StopAt(saved=4), **changes).train()
    trainer = make(out, EarlyStoppingCallback(1), **changes)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4


@pytest.mark.parametrize("patience", [(2,), (4, 2)], ids=["one callback", "two of a kind"])
def test_patience_goes_on_where_it_was(make: Any, patience: tuple[int, ...]) -> None:
    """Evaluations 4 and 6 are no better than 2: the run ends at 6, resumed after 4 or not."""
    out = f"patience-{len(patience)}"
    with pytest.raises(Stopped):
        make(out, *map(EarlyStoppingCallback, patience), StopAt(saved=4), **IMPATIENT).train()
    trainer = make(out, *map(EarlyStoppingCallback, patience), **IMPATIENT)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 6


def test_a_run_has_one_start(make: Any) -> None:
    """The evaluation at the start would count against the patience once more, and end the resumed run."""
    changes = IMPATIENT | {"eval_on_start": True, "max_steps": 6}
    with pytest.raises(Stopped):
        make("start", EarlyStoppingCallback(3), StopAt(saved=4), **changes).train()
    trainer = make("start", EarlyStoppingCallback(3), **changes)
    trainer.train(resume_from_checkpoint=True)
    assert [line["step"] for line in log(trainer, "eval_loss")] == [0, 2, 4, 6]
    assert trainer.args.eval_on_start


def test_more_patience_than_before_goes_on(make: Any) -> None:
    make("patient", EarlyStoppingCallback(1), **IMPATIENT).train()
    trainer = make("patient", EarlyStoppingCallback(3), **IMPATIENT)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 8  # one evaluation had been counted, the third one is at 8


def test_a_made_up_evaluation_ends_a_run_without_another_step(make: Any) -> None:
    """Killed between the checkpoint and the evaluation of the second epoch's end, which would have ended it."""
    changes = IMPATIENT | {"max_steps": 24, "eval_strategy": "epoch", "save_steps": 8}
    with pytest.raises(Stopped):
        make("late", EarlyStoppingCallback(1), StopAt(saved=16), **changes).train()
    trainer = make("late", EarlyStoppingCallback(1), **changes)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 16


class TimeIsUp(TrainerCallback):
    """Ends a run for a reason that is gone when it is resumed."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 4:
            control.should_training_stop = True


def test_a_run_that_another_callback_ended_goes_on(make: Any) -> None:
    """With an early stopping that had not run out, or that is new."""
    for name, before in (("counted", [EarlyStoppingCallback(9)]), ("new", [])):
        make(f"time-{name}", *before, TimeIsUp(), **IMPATIENT).train()
        trainer = make(f"time-{name}", EarlyStoppingCallback(9), **IMPATIENT)
        trainer.train(resume_from_checkpoint=True)
        assert trainer.state.global_step == 12


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
    assert list(EpochLengthGroupedSampler(4, lengths, seed=2)) not in orders  # nor the second epoch's of seed 1
    spread = [max(lengths[row] for row in batch) - min(lengths[row] for row in batch) for batch in _fours(orders[0])]
    assert sum(spread) / len(spread) < 4  # of 12 where batches are drawn blindly


def _fours(order: list[int]) -> list[list[int]]:
    return [order[start : start + 4] for start in range(0, len(order), 4)]
