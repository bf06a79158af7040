"""Train, stop and resume as one of several ranks; started by torchrun, see test_checkpoints.py."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import datasets
from safetensors.torch import save_file
from transformers import TrainerCallback

from flipped_kd.training.checkpoint_files import complete_checkpoints
from tests.distributed.leaving import leave_together
from tests.invariants.training import RecordingTrainer, StopAt, Stopped, lora, settings, trainable

# An epoch is 8 steps: the run stops in the middle of its second epoch.
STEPS, STOPPED_AT, SAVED = 12, 11, 10
SAMPLING = ("random", "group_by_length")


class Trainer(RecordingTrainer):
    """Counts the calls of the hook."""

    hooked = 0

    def before_checkpoint(self) -> None:
        self.hooked += 1


def make(folder: Path, out: str, sampling: str, *callbacks: TrainerCallback, **changes: Any) -> Trainer:
    args = settings(
        folder / out,
        per_device_train_batch_size=4,
        max_steps=STEPS,
        save_strategy="steps",
        save_steps=5,
        save_total_limit=1,
        train_sampling_strategy=sampling,
        lr_scheduler_type="constant",
        ddp_backend="gloo",
        **changes,
    )
    models = str(folder / "student"), str(folder / "teacher")
    parts = (datasets.load_from_disk(str(folder / name)) for name in ("pairs", "held_out"))
    return Trainer(*models, args, *parts, peft_config=lora(dropout=0.05), callbacks=list(callbacks))


def keep(folder: Path, name: str, trainer: Trainer, **facts: Any) -> None:
    rank = trainer.args.process_index
    save_file(trainable(trainer.model), folder / f"{name}_{rank}.safetensors")
    log = [line for line in trainer.state.log_history if "loss" in line]
    facts |= {"rows": [batch["rows"].tolist() for batch in trainer.batches], "log": log, "hooked": trainer.hooked}
    (folder / f"{name}_{rank}.json").write_text(json.dumps(facts), encoding="utf-8")


def main(folder: Path) -> None:
    """Each sampling: a run that goes through, one that stops and one that goes on from there."""
    if os.environ["RANK"] == "0":  # what ranks that hung have left; the other one waits for this one to begin
        for left in [*folder.glob("whole_*"), *folder.glob("out_*"), *folder.glob("own*")]:
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    for sampling in SAMPLING:
        trainer = make(folder, f"whole_{sampling}", sampling)
        trainer.train()
        keep(folder, f"whole_{sampling}", trainer)
        try:
            make(folder, f"out_{sampling}", sampling, StopAt(step=STOPPED_AT)).train(resume_from_checkpoint=True)
        except Stopped:
            pass
        trainer = make(folder, f"out_{sampling}", sampling)
        held = sorted(path.name for path in (folder / f"out_{sampling}").glob("*checkpoint*"))
        trainer.train(resume_from_checkpoint=True)
        keep(folder, f"resumed_{sampling}", trainer, held=held)
    refused(folder)
    leave_together()


def refused(folder: Path) -> None:
    """Each rank with a disk of its own, as two nodes: what they agree on, and what they cannot."""
    told = {}
    rank = int(make(folder, "own", "random").args.process_index)
    source, own = folder / "whole_random", folder / f"own_{rank}"
    newest = complete_checkpoints(source)[0]
    for step in ((5, 10), (5, 12))[rank]:
        copy = own / f"checkpoint-{step}"
        shutil.copytree(newest, copy)
        (copy / f"rng_state_{1 - rank}.pth").touch()  # of no use here
    trainer = make(folder, f"own_{rank}", "random")
    told["common"] = trainer._newest_of_all(own).name  # type: ignore[union-attr]
    shutil.rmtree(own / "checkpoint-5")
    try:
        trainer.train(resume_from_checkpoint=True)
    except ValueError as error:
        told["error"] = str(error)
    (folder / f"own_{rank}.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
