"""What a training shows on the screen: named bars that end, and lines that fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import ProgressCallback

from flipped_kd.training.progress import PairProgress, loss_line


def test_bars_are_named_and_end_and_lines_fit(
    build: Any, held_out: datasets.Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = build(max_steps=4, logging_steps=2, disable_tqdm=False)
    capsys.readouterr()
    trainer.score_pairs(held_out)
    trainer.train()
    trainer.score_pairs(held_out)
    shown = capsys.readouterr()
    lines = [line for line in (shown.out + shown.err).replace("\r", "\n").splitlines() if line.strip()]
    losses = [line for line in lines if "loss" in line]
    assert any(line.startswith("4 steps in ") and line.endswith(" pairs a second") for line in lines)
    assert [line.split(":")[0] for line in losses] == ["step 2/4", "step 4/4"]
    assert all(len(line) <= 80 and "teacher" in line for line in losses)
    assert any(line.startswith("training: 100%") for line in lines)
    # Each scoring has a bar of its own, up to its own end: before, for the match score, and after.
    assert sum(line.startswith("scoring: 100%") for line in lines) >= 3
    assert not any("it [" in line for line in lines)  # a bar that went on beyond its end has no length


def test_a_resumed_bar_goes_on_from_its_step(build: Any, capsys: pytest.CaptureFixture[str]) -> None:
    every = {"save_strategy": "steps", "save_steps": 3, "max_steps": 4, "disable_tqdm": False}
    build(**every).train()
    resumed = build(**every)
    (Path(resumed.args.output_dir) / "checkpoint-4").rename(Path(resumed.args.output_dir) / "gone")
    capsys.readouterr()
    resumed.train(resume_from_checkpoint=True)
    shown = capsys.readouterr()
    lines = (shown.out + shown.err).replace("\r", "\n").splitlines()
    assert any(line.startswith("1 steps in ") for line in lines)  # not the four of the whole run
    assert any(line.startswith("training:  75%") and "| 3/4 " in line for line in lines)


def test_the_longest_line_fits() -> None:
    logs = {"loss": 123.4567, "loss_sup": 123.4567, "loss_dist": 123.4567, "loss_mcl": 123.4567}
    assert len(loss_line(10_000, 10_000, logs)) <= 80
    assert loss_line(5, 10, {"loss": 0.5}) == "step 5/10: loss 0.5"


def test_a_callback_of_the_user_stays(build: Any) -> None:
    class Mine(ProgressCallback):
        pass

    kinds = [type(one) for one in build(disable_tqdm=False, callbacks=[Mine()]).callback_handler.callbacks]
    assert Mine in kinds
    quiet = [type(one) for one in build(disable_tqdm=True).callback_handler.callbacks]
    assert PairProgress not in quiet and PairProgress in kinds
