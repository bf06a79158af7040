"""How long a run has trained, over all its starts."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..utils.json_files import write_json

# In a checkpoint. With "_", as what no push takes along.
SECONDS_FILE = "_training_seconds.json"


class Stopwatch(TrainerCallback):
    """Counts the seconds of training up to the last step, those before an interruption among them.

    Each checkpoint tells how long the run had trained by then, so that steps which are made again after an
    interruption count once, as they do among the steps of the run.

    Attributes:
        seconds: of training, once it has ended.
        before: those of earlier starts, up to the checkpoint that this one went on from.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.before = 0.0
        self._begun = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        path = _path(args, state)
        if state.global_step and path.is_file():
            self.before = float(json.loads(path.read_text(encoding="utf-8"))["seconds"])
        self._begun = time.monotonic()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        path = _path(args, state)
        if args.should_save and path.parent.is_dir():
            write_json(path, {"seconds": self._until_now()})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.seconds = self._until_now()

    def _until_now(self) -> float:
        return self.before + time.monotonic() - self._begun


def _path(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / SECONDS_FILE
