"""Train with contrasts over two ranks, and take single steps of awkward batches; started by torchrun, see
test_gather.py, which repeats all of it in one process."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.distributed.leaving import leave_together
from tests.invariants.training import EVERY_PAIR, UNCLIPPED, Gradients, RecordingTrainer, lora, settings, trainable

GATHERED: dict[str, Any] = {"gather_across_devices": True}
CACHED: dict[str, Any] = {"mini_batch_size": 3}
LISTS: dict[str, Any] = {"representation": "independent", "contrast": "infonce", "dist_loss": "kl"}
RUNS: dict[str, dict[str, Any]] = {
    "gathered": GATHERED,
    "gathered_thresholds": GATHERED | {"positive_threshold": 0.5, "negative_threshold": 0.5},
    "gathered_taught": GATHERED | {"answer_teacher_weight": 0.5},
    "gathered_cached_taught": GATHERED | CACHED | {"answer_teacher_weight": 0.5},
    "gathered_lists": GATHERED | LISTS,
    "gathered_joint": GATHERED | {"representation": "joint"},
    "gathered_accumulated": GATHERED | {"gradient_accumulation_steps": 4},
    "gathered_cached": GATHERED | CACHED,
    "gathered_cached_checkpointed": GATHERED | CACHED | {"activation_checkpointing": True},
    "gathered_cached_accumulated": GATHERED | CACHED | {"gradient_accumulation_steps": 4},
    "alone": {},
    "alone_accumulated": {"gradient_accumulation_steps": 4},
    "alone_cached": CACHED,
    "alone_cached_accumulated": CACHED | {"gradient_accumulation_steps": 4},
}
# Settings that read awkward batches too, and what each must be equal to in one process.
AWKWARD = {
    "gathered": "gathered",
    "gathered_cached": "gathered",
    "gathered_taught": "gathered_taught",
    "gathered_cached_taught": "gathered_taught",
}
STEPS = 3


def make(folder: Path, name: str, *callbacks: Any, **changes: Any) -> RecordingTrainer:
    """The trainer of one setting, the same in every rank and in the test's own process."""
    options = {**EVERY_PAIR, **UNCLIPPED, **RUNS[name], **changes}
    args = settings(
        folder / f"out_{name}",
        per_device_train_batch_size=4,
        max_steps=STEPS,
        teacher_cache_dir=str(folder / "cache"),
        ddp_backend="gloo" if "LOCAL_RANK" in os.environ else None,
        **options,
    )
    return RecordingTrainer(
        str(folder / "student"),
        str(folder / "teacher"),
        args,
        datasets.load_from_disk(str(folder / "pairs")),
        datasets.load_from_disk(str(folder / "held_out")),
        peft_config=lora(),
        callbacks=list(callbacks),
    )


def awkward_batches(trainer: RecordingTrainer) -> dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """By name, the rows of rank 0 and of rank 1."""
    rows: list[dict[str, Any]] = list(trainer.train_dataset)  # type: ignore[arg-type]
    matches = [row for row in rows if row["label"] == 1]
    others = [row for row in rows if row["label"] == 0]
    same = [{**row, "text_b": row["text_a"]} for row in rows[:3]]
    return {
        "uneven": (rows[:6], rows[6:8]),
        "one_pair_on_a_rank": (rows[:4], rows[4:5]),
        "one_pair_on_each": (matches[:1], others[:1]),
        "no_positive_on_a_rank": (matches[:2] + others[:2], others[2:6]),
        "all_positive": (matches[:4], matches[4:8]),
        "all_negative": (others[:4], others[4:8]),
        "the_same_pairs_on_both": (rows[:4], rows[:4]),
        "identical_texts_on_both_sides": (same, rows[3:6]),
        "nothing_kept": (rows[:4], rows[4:8]),
    }


def step_gradients(
    trainer: RecordingTrainer, model: nn.Module, rows: list[dict[str, Any]], name: str
) -> dict[str, Tensor]:
    """Gradients that one training step on these rows leaves."""
    keeps_nothing = name == "nothing_kept"
    trainer.loss.threshold.positive = 1.0 if keeps_nothing else 0.0
    trainer.loss.threshold.negative = 0.0 if keeps_nothing else 1.0
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.zero_grad()
    collate = trainer.get_train_dataloader().collate_fn
    trainer.training_step(model, collate(rows))
    return {key: weight.grad.clone() for key, weight in trainer.model.named_parameters() if weight.grad is not None}


def train(folder: Path, name: str) -> None:
    """One setting's whole run."""
    gradients = Gradients()
    trainer = make(folder, name, gradients)
    trainer.train()
    rank = trainer.args.process_index
    save_file(gradients.steps[0], folder / f"{name}_gradients_{rank}.safetensors")
    save_file(trainable(trainer.model), folder / f"{name}_end_{rank}.safetensors")
    facts = {"world_size": trainer.args.world_size, "rows": trainer.rows, "log": trainer.state.log_history}
    (folder / f"{name}_facts_{rank}.json").write_text(json.dumps(facts), encoding="utf-8")
    trainer.accelerator.wait_for_everyone()


def main(folder: Path) -> None:
    """Every setting one after the other, then every awkward batch, read at once and in mini-batches."""
    for name in RUNS:
        train(folder, name)
    for name in AWKWARD:
        trainer = make(folder, name)
        trainer._wrap_model(trainer.model)  # decides how DDP wraps it, as train() does
        model = trainer.accelerator.prepare_model(trainer.model)
        rank = trainer.args.process_index
        for case, parts in awkward_batches(trainer).items():
            save_file(step_gradients(trainer, model, parts[rank], case), folder / f"{name}_{case}_{rank}.safetensors")
    leave_together()
    assert torch.get_num_threads() == 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
