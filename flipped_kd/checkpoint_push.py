"""Pushing a checkpoint in mid-training: as transformers does, but with our contracts and without its pickle."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress, hf_api

RESUME_FILES = ("optimizer", "scheduler", "scaler", "rng_state", "trainer_state")


def push_checkpoint(trainer: Trainer, checkpoint_folder: str) -> None:
    """Upload what `checkpoint_folder` holds for use, in the background, as `trainer.args.hub_strategy` says.

    transformers copies a fixed list of file names, which leaves out the prompt, encoder and score contracts, and adds
    training_args.bin, a pickle that holds the Hub token in clear.
    """
    args = trainer.args
    if not trainer.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
        return
    busy = trainer.push_in_progress is not None and not trainer.push_in_progress.is_done()
    if busy and not args.hub_always_push:
        return
    trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
    folder, out = Path(checkpoint_folder), Path(str(args.output_dir))
    for path in folder.iterdir():
        if path.is_file() and not path.name.startswith(RESUME_FILES):
            shutil.copy(path, out / path.name)
    common: dict[str, Any] = {
        "repo_id": trainer.hub_model_id,
        "token": args.hub_token,
        "revision": args.hub_revision,
        "run_as_future": True,
    }
    message = f"Training in progress, step {trainer.state.global_step}"
    hub = hf_api()
    # Names with a leading underscore are ours and local: the teacher's cache.
    jobs = [
        hub.upload_folder(folder_path=out, commit_message=message, ignore_patterns=["_*", "checkpoint-*"], **common)
    ]
    if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        place = "last-checkpoint" if args.hub_strategy == HubStrategy.CHECKPOINT else folder.name
        jobs.append(
            hub.upload_folder(
                folder_path=folder, path_in_repo=place, commit_message=f"{message}, checkpoint", **common
            )
        )
    state: Any = trainer  # transformers declares push_in_progress as None
    if busy:
        state.push_in_progress.jobs.extend(jobs)
    else:
        state.push_in_progress = PushInProgress(jobs)  # type: ignore[arg-type]
