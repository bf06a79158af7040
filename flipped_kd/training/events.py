"""What the trainer does at events of a training, after every other callback."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from .picklable import make_picklable

if TYPE_CHECKING:
    from .resume import ResumingTrainer


class LastCallback(TrainerCallback):
    """Makes the prepared student picklable, makes up for a missed evaluation, and logs before each checkpoint.

    Args:
        trainer: whose callbacks this one is the last of.
    """

    def __init__(self, trainer: ResumingTrainer) -> None:
        self.trainer = trainer
        self.resumed_at: int | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """When accelerate has prepared the student, and everyone else is ready."""
        make_picklable(cast(nn.Module, self.trainer.model), self.trainer.accelerator)
        self.resumed_at = state.global_step if self.trainer.resumed else None
        self.trainer.evaluate_if_missed()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Sums of losses that straddle a checkpoint would be lost when it is resumed."""
        saves = control.should_save or (args.save_strategy == SaveStrategy.BEST and control.should_evaluate)
        if saves and args.logging_strategy != IntervalStrategy.NO:
            control.should_log = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A stream is resumed in the pass of its last step: what its end had made already is not made again."""
        if state.global_step == self.resumed_at:
            control.should_save = False
            control.should_evaluate &= not evaluated(state)
        self.on_step_end(args, state, control)


def evaluated(state: TrainerState) -> bool:
    """Whether the log has an evaluation of the last step."""
    lines = (line for line in state.log_history if line["step"] == state.global_step)
    return any(name.startswith("eval_") for line in lines for name in line)


def stand_last(trainer: ResumingTrainer) -> None:
    """Put a new `LastCallback` behind all callbacks of `trainer`, those that were restored or added since too."""
    handler = trainer.callback_handler
    others = [callback for callback in handler.callbacks if not isinstance(callback, LastCallback)]
    handler.callbacks = [*others, LastCallback(trainer)]
