"""A run that was stopped and resumed is the run that was not, bit for bit on a CPU, dropout included."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from flipped_kd.trainer import FlippedDistillationTrainer
from tests.invariants.training import assert_equal, logged, lora, new_trainer, settings, trainable

REPOSITORY = Path(__file__).parents[2]


class Stopped(Exception):
    """What the interrupted run dies of."""


class StopAt(TrainerCallback):
    """Raises when a step begins."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == self.step:
            raise Stopped


@pytest.fixture(scope="module")
def folder(
    student_dir: Path,
    teacher_dir: Path,
    pairs: datasets.Dataset,
    held_out: datasets.Dataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """All a run needs, as files, so that another process can make the same one."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "student").symlink_to(student_dir)
    (folder / "teacher").symlink_to(teacher_dir)
    pairs.save_to_disk(str(folder / "pairs"))
    held_out.save_to_disk(str(folder / "held_out"))
    return folder


def make(folder: Path, out: str, callbacks: list[TrainerCallback]) -> FlippedDistillationTrainer:
    return new_trainer(
        settings(folder / out, save_strategy="steps", save_steps=3, max_steps=10),
        str(folder / "student"),
        str(folder / "teacher"),
        datasets.load_from_disk(str(folder / "pairs")),
        datasets.load_from_disk(str(folder / "held_out")),
        None,
        peft_config=lora(dropout=0.05),
        callbacks=callbacks,
    )


@pytest.fixture(scope="module")
def uninterrupted(folder: Path) -> tuple[list[float], dict[str, Tensor]]:
    """Losses and weights of 10 steps, one more epoch than the 8 batches of the set fill."""
    trainer = make(folder, "whole", [])
    trainer.train()
    return logged(trainer), trainable(trainer.model)


def test_resumed_after_an_exception(folder: Path, uninterrupted: tuple[list[float], dict[str, Tensor]]) -> None:
    with pytest.raises(Stopped):
        make(folder, "raised", [StopAt(5)]).train()  # checkpoint-3 is the last: two steps are lost
    trainer = make(folder, "raised", [])
    trainer.train(resume_from_checkpoint=True)
    losses, weights = uninterrupted
    assert trainer.state.global_step == 10 and len(losses) == 10
    assert logged(trainer) == losses
    assert_equal(trainable(trainer.model), weights)


def test_resumed_after_a_kill(folder: Path, uninterrupted: tuple[list[float], dict[str, Tensor]]) -> None:
    killed = subprocess.run(
        [sys.executable, "-m", "tests.invariants.killed_run", str(folder), "6"],
        cwd=REPOSITORY,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert sorted(path.name for path in (folder / "out").glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]
    trainer = make(folder, "out", [])
    trainer.train(resume_from_checkpoint=True)
    losses, weights = uninterrupted
    assert logged(trainer) == losses
    assert_equal(trainable(trainer.model), weights)
