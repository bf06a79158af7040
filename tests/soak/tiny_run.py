"""A training run of a second, and what is kept of it to compare: every number of its log, and its weights."""

from __future__ import annotations

import inspect
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import torch
from safetensors.torch import load_file, save_file

from tests import conftest
from tests.invariants.training import lora, new_trainer, settings, trainable

# An epoch is 4 steps: saves fall at its end and in its middle, evaluations and logs between them.
SAVED = (2, 4, 6, 7)
SETTINGS: dict[str, Any] = {
    "max_steps": SAVED[-1],
    "per_device_train_batch_size": 16,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 2,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "logging_steps": 5,
    "lr_scheduler_type": "constant",  # the last steps move the weights too
}


def prepare(folder: Path) -> None:
    """Write what a run needs: the tests' tiny student, teacher and pairs."""
    places = SimpleNamespace(mktemp=lambda name: _made(folder / name))
    tokenizer = inspect.unwrap(conftest.tokenizer)()
    student = inspect.unwrap(conftest._student)(tokenizer)
    inspect.unwrap(conftest.student_dir)(student, tokenizer, places)
    inspect.unwrap(conftest.teacher_dir)(tokenizer, places)
    conftest.make_pairs(64).save_to_disk(str(folder / "pairs"))
    conftest.make_pairs(24, seed=1).save_to_disk(str(folder / "held_out"))


def _made(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def train(folder: Path, out: Path, resume: str | bool = True) -> None:
    """Train, from the newest complete checkpoint in `out` if there is one, and keep log and weights beside it."""
    logging.basicConfig(level=logging.INFO, force=True)
    trainer = new_trainer(
        settings(out, teacher_cache_dir=str(folder / "cache"), **SETTINGS),
        str(folder / "student"),
        str(folder / "teacher" / "model"),
        datasets.load_from_disk(str(folder / "pairs")),
        datasets.load_from_disk(str(folder / "held_out")),
        None,
        peft_config=lora(dropout=0.05),
    )
    trainer.train(resume_from_checkpoint=resume)
    save_file(trainable(trainer.model), out / "weights.safetensors")
    (out / "log.json").write_text(json.dumps(trainer.state.log_history), encoding="utf-8")


def differences(found: Path, expected: Path) -> list[str]:
    """Where two finished runs differ, bit for bit; clocks do not count."""
    one, other = (load_file(path / "weights.safetensors") for path in (found, expected))
    told = sorted(one.keys() ^ other.keys())
    told += [name for name in one.keys() & other.keys() if not torch.equal(one[name], other[name])]
    logs = [_log(path) for path in (found, expected)]
    told += [f"log: {mine} instead of {whole}" for mine, whole in zip(*logs, strict=False) if mine != whole]
    if len(logs[0]) != len(logs[1]):
        told.append(f"{len(logs[0])} lines of log instead of {len(logs[1])}")
    return told


def _log(out: Path) -> list[dict[str, Any]]:
    """The training and evaluation lines; the closing one is about the last process alone."""
    lines = json.loads((out / "log.json").read_text(encoding="utf-8"))
    clocks = ("_runtime", "_per_second")
    return [
        {name: value for name, value in line.items() if not name.endswith(clocks)}
        for line in lines
        if "train_loss" not in line
    ]
