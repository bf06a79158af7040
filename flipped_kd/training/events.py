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
        trial: of a search of hyperparameters, else None.
    """

    def __init__(self, trainer: ResumingTrainer, trial: Any = None) -> None:
        self.trainer, self.trial = trainer, trial

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """When accelerate has prepared the student, and everyone else is ready."""
        make_picklable(cast(nn.Module, self.trainer.model), self.trainer.accelerator)
        self.trainer.evaluate_if_missed(self.trial)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Sums of losses that straddle a checkpoint would be lost when it is resumed."""
        saves = control.should_save or (args.save_strategy == SaveStrategy.BEST and control.should_evaluate)
        if saves and args.logging_strategy != IntervalStrategy.NO:
            control.should_log = True

    on_epoch_end = on_step_end


def stand_last(trainer: ResumingTrainer, trial: Any = None) -> None:
    """Put a new `LastCallback` behind all callbacks of `trainer`, those that were restored or added since too."""
    handler = trainer.callback_handler
    others = [callback for callback in handler.callbacks if not isinstance(callback, LastCallback)]
    handler.callbacks = [*others, LastCallback(trainer, trial)]
