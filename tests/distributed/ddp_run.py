"""Train, score and save as one of several ranks; started by torchrun, see test_ddp.py.

For each setting it writes what the test compares: each rank's adapter, the first step's gradients, the rows of each
step, the log and the scores.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
from safetensors.torch import save_file

from tests.distributed.leaving import leave_together
from tests.invariants.training import (
    EVERY_PAIR,
    UNCLIPPED,
    Gradients,
    RecordingTrainer,
    lora,
    settings,
    trainable,
    uneven_stream,
)

# Settings by name.
RUNS: dict[str, dict[str, Any]] = {
    "default": {},
    "two_forwards": {},
    "no_answer_loss": {"sup_weight": 0.0},
    "taught_answer": {"answer_teacher_weight": 0.5},
    "accumulated": {"gradient_accumulation_steps": 2, "representation": "joint"},
}
STEPS = 5


OTHER_RUNS: dict[str, dict[str, Any]] = {
    "streamed": {"max_steps": 12, "lr_scheduler_type": "constant"},
    "twice": {"precision": "bf16", "eval_strategy": "steps", "eval_steps": 2},
}


def make(folder: Path, name: str, gradients: Gradients, stream: Any = None) -> RecordingTrainer:
    """The trainer of one setting, the same in every rank and in the test's own process."""
    options: dict[str, Any] = {"max_steps": STEPS, **EVERY_PAIR, **UNCLIPPED, **(RUNS | OTHER_RUNS)[name]}
    args = settings(
        folder / f"out_{name}",
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        # The test makes the same trainer in one process, which has no process group to choose a backend for.
        ddp_backend="gloo" if "LOCAL_RANK" in os.environ else None,
        **options,
    )
    trainer = RecordingTrainer(
        str(folder / "student"),
        str(folder / "teacher"),
        args,
        datasets.load_from_disk(str(folder / "pairs")) if stream is None else stream,
        datasets.load_from_disk(str(folder / "held_out")),
        peft_config=lora(),
        callbacks=[gradients],
    )
    if name == "two_forwards":
        trainer.data_collator.layout = None
    return trainer


def train_on_a_stream(folder: Path) -> None:
    """Over several passes of both shards, one for each rank, which end at other steps."""
    gradients = Gradients()
    stream = uneven_stream(datasets.load_from_disk(str(folder / "pairs")))
    trainer = make(folder, "streamed", gradients, stream)
    trainer.train()
    rank = trainer.args.process_index
    save_file(trainable(trainer.model), folder / f"streamed_end_{rank}.safetensors")
    facts = {
        "sizes": [len(batch["labels"]) for batch in trainer.batches],
        "pairs": [pair for batch in trainer.batches for pair in _pairs_of(batch)],
    }
    (folder / f"streamed_facts_{rank}.json").write_text(json.dumps(facts), encoding="utf-8")


def _pairs_of(batch: dict[str, Any]) -> list[list[int]]:
    """Keys of the two texts of each pair."""
    return torch.stack([batch["keys_a"], batch["keys_b"]], 1).tolist()


def train_twice(folder: Path) -> None:
    """In bfloat16, under which accelerate wraps the forward pass too."""
    trainer = make(folder, "twice", Gradients())
    answers = []
    for _ in range(2):
        trainer.train()
        answers.append(trainer.score_pairs(trainer.eval_dataset)[0].tolist())
    trainer.evaluate()
    rank = trainer.args.process_index
    (folder / f"twice_facts_{rank}.json").write_text(json.dumps({"answers": answers}), encoding="utf-8")


def main(folder: Path) -> None:
    """Run every setting one after the other."""
    train_on_a_stream(folder)
    train_twice(folder)
    for name in RUNS:
        gradients = Gradients()
        trainer = make(folder, name, gradients)
        start = trainable(trainer.model)
        trainer.train()
        rank = trainer.args.process_index
        answer, similarity = trainer.score_pairs(trainer.eval_dataset)
        save_file(start, folder / f"{name}_start_{rank}.safetensors")
        save_file(trainable(trainer.model), folder / f"{name}_end_{rank}.safetensors")
        save_file(gradients.steps[0], folder / f"{name}_gradients_{rank}.safetensors")
        facts = {
            "world_size": trainer.args.world_size,
            "rows": [batch["rows"].tolist() for batch in trainer.batches],
            "losses": trainer.losses,
            "log": trainer.state.log_history,
            "answer": answer.tolist(),
            "similarity": similarity.tolist(),
        }
        (folder / f"{name}_facts_{rank}.json").write_text(json.dumps(facts), encoding="utf-8")
    leave_together()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
