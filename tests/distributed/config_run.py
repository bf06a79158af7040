"""Train as recipes/accelerate/*.yaml launch it, on the CPU; see test_launch.py."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
from safetensors.torch import save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from flipped_kd.experiments.recipe import run_recipe
from tests.distributed.leaving import leave, leave_together
from tests.invariants.training import RecordingTrainer, lora, settings, trainable

STEPS, SAVED, KILLED_AT = 6, 3, 5


class KillRank(TrainerCallback):
    """The last rank goes without a word; the others wait for its gradients."""

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if args.process_index == args.world_size - 1 and state.global_step == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)


def make(folder: Path, out: str, *callbacks: TrainerCallback) -> RecordingTrainer:
    args = settings(
        folder / out,
        per_device_train_batch_size=4,
        max_steps=STEPS,
        save_strategy="steps",
        save_steps=SAVED,
        teacher_cache_dir=str(folder / "cache"),
        ddp_backend="gloo",
    )
    models = str(folder / "student"), str(folder / "teacher")
    parts = (datasets.load_from_disk(str(folder / name)) for name in ("pairs", "held_out"))
    return RecordingTrainer(*models, args, *parts, peft_config=lora(dropout=0.05), callbacks=list(callbacks))


def keep(folder: Path, name: str, trainer: RecordingTrainer) -> None:
    """What the test compares, of this rank."""
    args = trainer.args
    facts = {
        "distributed_type": trainer.accelerator.distributed_type.value,
        "world_size": args.world_size,
        "local_index": args.local_process_index,
        "wrapped": type(trainer.model_wrapped).__name__,
        "rows": trainer.rows,
        "losses": trainer.losses,
    }
    (folder / f"{name}_{args.process_index}.json").write_text(json.dumps(facts), encoding="utf-8")
    save_file(trainable(trainer.model), folder / f"{name}_{args.process_index}.safetensors")


def recipe(folder: Path) -> None:
    """Two steps of plain fine-tuning and of distillation, with everything that a recipe does around them."""
    files = [(f"--{split}_file", str(folder / f"{split}.jsonl")) for split in ("train", "validation", "test")]
    options = {"teacher": folder / "teacher", "student": folder / "student", "output_dir": folder / "recipe"}
    options |= {"max_train_pairs": 16, "num_train_epochs": 1, "per_device_train_batch_size": 4}
    flags = [(f"--{name}", str(value)) for name, value in options.items()]
    on_cpu = ("--use_cpu", "True", "--ddp_backend", "gloo")
    unused: Any = None  # models are named
    run_recipe(
        [part for pair in (*files, *flags) for part in pair] + list(on_cpu),
        output_dir="unused",
        mini_config=unused,
        mini_data=unused,
        build_teacher=unused,
        build_student=unused,
    )


def main(folder: Path, task: str) -> None:
    """`killed`: a run that loses a rank; `resumed`: that run again; `whole` and `nodes`: one that goes through;
    `scored`: the same after the pairs have been scored; `recipe`, the last: a recipe's comparison."""
    for name in task.split(","):
        if name == "recipe":
            recipe(folder)  # which ends with end_together
            leave()
        if name == "killed":
            make(folder, "resumed", KillRank()).train(resume_from_checkpoint=True)
        trainer = make(folder, name)
        if name == "scored":
            with torch.random.fork_rng():  # data loaders draw from the random state that dropout draws from
                trainer.score_pairs(trainer.eval_dataset)  # type: ignore[arg-type]
        trainer.train(resume_from_checkpoint=True)
        keep(folder, name, trainer)
    leave_together()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
