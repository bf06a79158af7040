"""The part of the trainer that saves checkpoints: each is whole or absent, whenever the process is killed."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

from .checkpoint_files import STAGING_FOLDER, name_checkpoint, rotate, write_manifest
from .resume import ResumingTrainer


class CheckpointingTrainer(ResumingTrainer):
    """A Trainer that can be killed at any moment, while it saves too, and goes on as if it had not been.

    A checkpoint is written into `_saving/` beside its place and renamed when every file is on the disk, so a folder
    `checkpoint-N` is whole or absent. Pushes and rotation see it under its name.
    """

    def before_checkpoint(self) -> None:
        """Called on every process right before a checkpoint is written; does nothing unless overridden."""

    def push_checkpoint(self, checkpoint: Path) -> None:
        """Called on every process when a checkpoint has its name and is to be pushed; nothing here."""

    def uploading(self) -> set[str]:
        """Names of checkpoints that an upload has yet to read, which are not removed meanwhile; none here."""
        return set()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint into the staging folder, give it its name when it is whole, then push and rotate."""
        self.before_checkpoint()
        run = Path(self._get_output_dir(trial))
        final = run / f"checkpoint-{self.state.global_step}"
        staged = run / STAGING_FOLDER / final.name
        writes, wait = self.args.should_save, self.accelerator.wait_for_everyone
        self._clear_leftovers(run)
        try:
            with self._staged(staged.parent):
                super()._save_checkpoint(model, None)  # a trial would have a folder of its own in the staging folder
            best = self._record_best(final, staged)
            wait()  # every process has written its random state
            if writes:
                write_manifest(staged, self.args.world_size)
        except Exception as error:
            shutil.rmtree(staged, ignore_errors=True)
            free = shutil.disk_usage(str(self.args.output_dir)).free / 1e9
            error.add_note(f"{final} was not saved ({free:.2f} GB are free); earlier checkpoints are whole.")
            raise
        wait()  # on nodes with disks of their own, no checkpoint gets its name before each node has it whole
        if writes:
            name_checkpoint(staged, run)
        if self.args.push_to_hub:
            self.push_checkpoint(final)
        if writes:
            rotate(final, self.args.save_total_limit, best, self.uploading())
        wait()
        if self.args.local_process_index == 0 and staged.exists():
            # A node with a disk of its own, without save_on_each_node: it holds the random states of its processes.
            with contextlib.suppress(OSError):
                name_checkpoint(staged, run)

    @contextmanager
    def _staged(self, folder: Path) -> Iterator[None]:
        """Within it Trainer saves into the staging folder; pushing waits until the checkpoint has its name."""
        keep = self.args.output_dir, self.args.push_to_hub
        self.args.output_dir, self.args.push_to_hub = str(folder), False
        try:
            yield
        finally:
            self.args.output_dir, self.args.push_to_hub = keep

    def _record_best(self, final: Path, staged: Path) -> Path | None:
        """Name the best saved checkpoint by its place, which Trainer has looked for in the staging folder only.

        The best step of all may not have been saved: then it is the one that was found before.
        """
        best = final.with_name(f"checkpoint-{self.state.best_global_step}")
        self._saved_steps.add(self.state.global_step)
        # A folder of that name may be an earlier run's.
        if self.state.best_global_step in self._saved_steps and (best == final or best.is_dir()):
            self.state.best_model_checkpoint = str(best)
            if self.args.should_save:
                self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
        recorded = self.state.best_model_checkpoint
        return None if recorded is None else final.with_name(Path(recorded).name)  # the folder may have moved
