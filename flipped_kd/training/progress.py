"""The trainer's bars and log lines on a screen of 80 columns."""

from __future__ import annotations

from typing import Any

from transformers import ProgressCallback, TrainerControl, TrainerState, TrainingArguments

# What a log line calls the terms.
TERMS = {"loss_sup": "answer", "loss_dist": "teacher", "loss_mcl": "contrast"}


class PairProgress(ProgressCallback):
    """Transformers' bars, named, with log lines that fit: `step 25/250: loss 2.841, answer 2.310, ...`.

    Logs of evaluations, and of other things, are shown as transformers shows them.
    """

    _first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A bar over the steps, from where a resumed run goes on."""
        super().on_train_begin(args, state, control, **kwargs)
        self._first_step = self.current_step = state.global_step
        if self.training_bar is not None:
            self.training_bar.initial = self.training_bar.n = state.global_step
            self.training_bar.set_description("training")

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """A bar over the batches that are scored."""
        fresh = self.prediction_bar is None
        super().on_prediction_step(args, state, control, eval_dataloader=eval_dataloader, **kwargs)
        if fresh and self.prediction_bar is not None:
            self.prediction_bar.set_description("scoring")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """A line for the losses of some steps, and one at the end."""
        logs = logs or {}
        if "loss" in logs:
            line = loss_line(state.global_step, state.max_steps, logs)
        elif "train_runtime" in logs:
            steps = state.global_step - self._first_step
            # Trainer counts the whole set an epoch, also what fills no batch.
            pairs = steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            speed = pairs / max(logs["train_runtime"], 1e-9)
            line = f"{steps} steps in {logs['train_runtime']:.0f} s, {speed:.2f} pairs a second"
        else:
            super().on_log(args, state, control, logs=logs, **kwargs)
            return
        if state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.write(line)


def loss_line(step: int, steps: int, logs: dict[str, Any]) -> str:
    """The losses in `logs` as one line of at most 80 characters.

    Args:
        step: how many steps are done.
        steps: of how many.
        logs: with "loss"; of "loss_sup", "loss_dist", "loss_mcl" those that there are.
    """
    terms = [f"{shown} {logs[name]:.4g}" for name, shown in TERMS.items() if name in logs]
    return ", ".join([f"step {step}/{steps}: loss {logs['loss']:.4g}", *terms])
