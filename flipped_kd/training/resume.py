"""The part of the trainer that goes on where a killed run stopped, to the trajectory of a run that never was."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from torch.utils.data import DataLoader, IterableDataset
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import IntervalStrategy, TrainOutput, has_length

from .checkpoint_files import (
    checkpoints_in,
    complete_checkpoints,
    finish_interrupted,
    missing_from,
    read_manifest,
    step_of,
)
from .events import evaluated, stand_last
from .length_groups import EpochLengthGroupedSampler
from .random_states import random_states_kept
from .streams import stream_loader

logger = logging.getLogger(__name__)


class ResumingTrainer(Trainer):
    """A Trainer whose `train(resume_from_checkpoint=True)` serves the first start and every other.

    It goes on from the newest complete checkpoint, or starts at step 0 where there is none. On a CPU the weights and
    the log are then those of a run that was never stopped, bit for bit; only the last line, with times and the mean
    loss of training, is of the steps since. Callbacks go on with what they had counted; their own settings, such as a
    greater patience, are those of the new call.

    Attributes:
        resumed: the training that runs goes on from a checkpoint.
    """

    resumed = False
    _ended_early = False
    _saved_steps: set[int] = set()  # of this run, whose checkpoints may be its best

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as Trainer does.

        Args:
            resume_from_checkpoint: True for the newest complete checkpoint in the output folder, or a start from step
                0 where there is none; incomplete ones are named in the log. A path for just that one.
            *args: as in Trainer.
            **kwargs: as in Trainer.

        Raises:
            ValueError: the checkpoint at the path is incomplete, or the processes see different checkpoints.
        """
        run = Path(str(self.args.output_dir))
        self._clear_leftovers(run)
        checkpoint = self._find_checkpoint(run, resume_from_checkpoint)
        if checkpoint is not None:
            self.check_contracts(checkpoint)
        self.resumed = checkpoint is not None
        self._ended_early = checkpoint is not None and self._stopped_at(checkpoint)
        at_start = self.args.eval_on_start
        self.args.eval_on_start = at_start and not self.resumed  # a run has one start
        try:
            return super().train(str(checkpoint) if checkpoint else None, *args, **kwargs)
        finally:
            self.args.eval_on_start = at_start

    def check_contracts(self, checkpoint: Path) -> None:
        """Refuse a checkpoint that this trainer would read otherwise than it was written; nothing here."""

    def _find_checkpoint(self, run: Path, wanted: str | Path | bool | None) -> Path | None:
        if not wanted:
            self._warn_of_later(run, 0)
            return None
        if wanted is True:
            checkpoint = self._newest_of_all(run)
            if checkpoint is None:
                logger.info("no complete checkpoint in %s: training starts at step 0", run)
                return None
        else:
            checkpoint = Path(wanted)
            lacks = missing_from(checkpoint, self._rng_file(checkpoint))
            if lacks:
                raise ValueError(
                    f"resume_from_checkpoint={str(wanted)!r} is no complete checkpoint, it lacks {', '.join(lacks)}: "
                    "give another one, or True for the newest complete one in the output folder."
                )
            self._warn_of_later(run, _state_of(checkpoint).global_step)
        logger.info("resuming from %s", checkpoint)
        manifest = read_manifest(checkpoint)
        if manifest and manifest["processes"] != self.args.world_size:
            logger.warning(
                "%s was written by %d processes and is resumed by %d: batches and random numbers will be others",
                checkpoint,
                manifest["processes"],
                self.args.world_size,
            )
        return checkpoint

    def _warn_of_later(self, run: Path, start: int) -> None:
        later = [path.name for path in checkpoints_in(run) if step_of(path) > start]
        if later and self.args.should_save:
            logger.warning(
                "%s holds %s of an earlier run, while this one starts at step %d: resume_from_checkpoint=True would "
                "take them for its own; use another output_dir, or remove them",
                run,
                ", ".join(later),
                start,
            )

    def _newest_of_all(self, run: Path) -> Path | None:
        """The newest checkpoint that is complete for every process: their nodes may have disks of their own."""
        warn = self.args.local_process_index == 0
        own = [
            step_of(path)
            for path in complete_checkpoints(run, warn=warn)
            if not missing_from(path, self._rng_file(path))
        ]
        seen = gather_object([own])
        common = set.intersection(*map(set, seen))
        if not common and any(seen):
            raise ValueError(
                f"the processes see different checkpoints in {run}: steps by process {seen}. Nodes without a shared "
                "disk need save_on_each_node=True; copy a complete checkpoint to every node, or remove them all to "
                "start at step 0."
            )
        return run / f"checkpoint-{max(common)}" if common else None

    def _rng_file(self, checkpoint: Path) -> str | None:
        """The file of this process's random state, where as many processes wrote the checkpoint as run now."""
        manifest = read_manifest(checkpoint)
        if manifest is None or manifest["processes"] != self.args.world_size:
            return None
        return "rng_state.pth" if self.args.world_size == 1 else f"rng_state_{self.args.process_index}.pth"

    def _stopped_at(self, checkpoint: Path) -> bool:
        """Whether a restored callback, such as early stopping, had ended the run at this checkpoint."""
        state = _state_of(checkpoint)
        callbacks: Any = state.stateful_callbacks or {}  # names and values in a file, where transformers says a list
        if not self.args.restore_callback_states_from_checkpoint:
            # Others may have ended it for a reason that is gone, such as the time that was up.
            return any(
                saved["attributes"].get("early_stopping_patience_counter", 0) >= callback.early_stopping_patience
                for callback, saved in self._saved_callbacks(callbacks)
                if isinstance(callback, EarlyStoppingCallback)
            )
        control = callbacks.get("TrainerControl", {}).get("args", {})
        return bool(control.get("should_training_stop")) and state.global_step < state.max_steps

    # ---- Going on ----

    def _restore_callbacks(self) -> None:
        """Give callbacks back what they had counted, such as early stopping's patience.

        transformers does so only where restore_callback_states_from_checkpoint asks for it, and then takes their
        settings from the checkpoint too, and the wish to stop of whatever callback had ended the run.
        """
        states: Any = self.state.stateful_callbacks
        for callback, saved in self._saved_callbacks(states):
            for name, value in saved["attributes"].items():
                setattr(callback, name, value)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ExportableState):  # Trainer's next checkpoint expects a place for each
                states.setdefault(type(callback).__name__, callback.state())

    def _saved_callbacks(self, states: Mapping[str, Any]) -> list[tuple[TrainerCallback, dict[str, Any]]]:
        """Each callback of this trainer that a checkpoint holds a state of, and that state."""
        found: list[tuple[TrainerCallback, dict[str, Any]]] = []
        for name, saved in states.items():
            own = [callback for callback in self.callback_handler.callbacks if type(callback).__name__ == name]
            # Of several of one kind Trainer adds the states to a list at each save: the last ones are the newest.
            kept = saved[-len(own) :] if isinstance(saved, list) else [saved]
            found += [(callback, {"attributes": {}, **state}) for callback, state in zip(own, kept, strict=False)]
        return found

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        """As in Trainer, with the callbacks' counts; a stream's passes have no length, so its epoch is the place."""
        epochs, batches = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        stand_last(self)
        self._saved_steps = set()
        if resume_from_checkpoint is None:
            return epochs, batches
        steps = map(step_of, checkpoints_in(Path(resume_from_checkpoint).parent))
        self._saved_steps = {step for step in steps if step <= self.state.global_step}
        # Trainer forgets the best checkpoint where the folder that it was written into has moved.
        best = Path(resume_from_checkpoint).with_name(f"checkpoint-{self.state.best_global_step}")
        if self.state.best_global_step and best.is_dir():
            self.state.best_model_checkpoint = str(best)
        if not self.args.restore_callback_states_from_checkpoint:
            self._restore_callbacks()
        if self._nothing_left():
            return num_train_epochs, 0
        if has_length(self.train_dataset):
            return epochs, batches
        # Trainer counts a batch of a stream as one of max_steps * accumulation, and a new pass as the next integer.
        old = _state_of(Path(resume_from_checkpoint))
        passes, part = divmod(old.epoch or 0.0, 1)
        batches = round(part * old.max_steps * self.args.gradient_accumulation_steps)
        return int(passes), 0 if self.args.ignore_data_skip else batches

    def _run_epoch(self, **kwargs: Any) -> None:  # type: ignore[override]
        # Trainer would make a step before it looks; an evaluation that was made up for may have ended the run.
        if self.control.should_training_stop:
            return
        # Trainer sets the epoch after it has wrapped the loader to skip batches, and then does not reach the sampler
        # where several processes share it: they would repeat the first epoch's order.
        loader = kwargs["train_dataloader"]
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(kwargs["epoch"])
        super()._run_epoch(**kwargs)

    def _nothing_left(self) -> bool:
        """Whether the run was killed between its last checkpoint and its end."""
        return self.state.global_step >= self.state.max_steps or self._ended_early

    def evaluate_if_missed(self) -> None:
        """Evaluate once more as the killed run was about to, or had: at an epoch's end, after its last checkpoint."""
        if not self.resumed:
            return
        epoch = self.state.epoch or 0.0
        wanted = self.args.eval_strategy == IntervalStrategy.EPOCH and self.args.eval_delay <= epoch
        at_end = epoch == int(epoch) or self._nothing_left()
        if wanted and at_end and not evaluated(self.state):
            self._determine_best_metric(metrics=self._evaluate(None, None), trial=None)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in Trainer, without drawing from training's random numbers: how often a run looks does not change it."""
        with random_states_kept():
            return super().evaluate(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """As in Trainer; groups of like length are drawn by seed and epoch, and a stream gives whole batches only."""
        if self.train_dataset is None:
            return super().get_train_dataloader()  # which refuses
        if isinstance(self.train_dataset, IterableDataset):
            return stream_loader(
                self.train_dataset, self._train_batch_size, self.data_collator, self.accelerator, self.args
            )
        return self._get_dataloader(
            self.train_dataset, "Training", self._train_batch_size, self._by_seed_and_epoch, is_training=True
        )

    def _by_seed_and_epoch(self, dataset: Any) -> Any:
        sampler = self._get_train_sampler(dataset)
        if isinstance(sampler, LengthGroupedSampler):
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            return EpochLengthGroupedSampler(sampler.batch_size, list(sampler.lengths), seed)
        return sampler

    def _clear_leftovers(self, run: Path) -> None:
        """Finish or remove what a killed process left: first on the writer's disk, then on nodes with their own."""
        for mine in (self.args.should_save, self.args.local_process_index == 0):
            if mine:
                finish_interrupted(run)
            self.accelerator.wait_for_everyone()


def _state_of(checkpoint: Path) -> TrainerState:
    return TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
