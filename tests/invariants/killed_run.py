"""Train, and be killed right after a checkpoint: `python -m tests.invariants.killed_run FOLDER STEP`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import datasets
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tests.invariants.training import lora, new_trainer, settings


class KillAfterSave(TrainerCallback):
    """No clean-up, no atexit: as if the machine went away."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path, step: int) -> None:
    """Train on what test_resume.py has put into `folder`."""
    trainer = new_trainer(
        settings(folder / "out", save_strategy="steps", save_steps=3, max_steps=10),
        str(folder / "student"),
        str(folder / "teacher"),
        datasets.load_from_disk(str(folder / "pairs")),
        datasets.load_from_disk(str(folder / "held_out")),
        None,
        peft_config=lora(dropout=0.05),
        callbacks=[KillAfterSave(step)],
    )
    trainer.train()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
