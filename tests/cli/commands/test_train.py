"""train is the recipes' comparison, and says at once what cannot be trained."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from flipped_kd.cli.main import main
from tests.cli.helpers import (
    closed_pipe,
    run,
)


def test_train_is_the_recipes_comparison(
    folder: Path, student_dir: Path, teacher_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text('max_steps: 2\nper_device_train_batch_size: 8\nsave_strategy: "no"\nuse_cpu: true\n')
    out = tmp_path / "out"
    files = {"train": "pairs", "validation": "validation", "test": "validation"}
    flags = [flag for split, name in files.items() for flag in (f"--{split}_file", folder / f"{name}.jsonl")]
    flags += ["--student", student_dir, "--teacher", teacher_dir, "--config", config, "--output_dir", out]
    assert main(["--quiet", "train", *map(str, flags)]) == 0
    screen = capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert report["data"]["train"] == 40 and report["optimizer"]["learning_rate"] == 1e-3
    assert "| LLM, flipped: both |" in screen
    # The adapter serves the other verbs.
    assert main(["evaluate", str(out), str(folder / "validation.jsonl"), "-o", "-", "--quiet"]) == 0
    metrics: dict[str, Any] = json.loads(capsys.readouterr().out)["scores"]
    for kind, system in (("answer", "llm_flipped"), ("both", "llm_flipped_both")):
        # The pair whose score is the threshold may fall to either side of it in batches of other widths.
        assert metrics[kind]["f1_tuned"] == pytest.approx(report["systems"][system]["f1"], abs=0.05)
        assert metrics[kind]["roc_auc"] == pytest.approx(report["systems"][system]["auc"], abs=0.02)
    assert main(["train", *map(str, flags), "--learning_rate", "0.5"]) == 2
    assert "other settings" in capsys.readouterr().err


@pytest.mark.parametrize("screen", ["cp1252", "closed"])
def test_the_screen_does_not_decide_how_a_training_ends(
    screen: str, folder: Path, student_dir: Path, teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table has letters that not every encoding has; a reader such as `head` leaves early, of both streams."""
    shown = io.BytesIO()
    for name in ("stdout", "stderr"):
        stream = io.TextIOWrapper(shown, encoding="cp1252") if screen == "cp1252" else closed_pipe()
        monkeypatch.setattr(sys, name, stream)
    out = tmp_path / "out"
    files = [part for name in ("train", "validation", "test") for part in (f"--{name}_file", folder / "pairs.jsonl")]
    options = ["--student", student_dir, "--teacher", teacher_dir, "--output_dir", out, "--use_cpu", "True"]
    budget = ["--max_steps", 2, "--logging_steps", 1, "--per_device_train_batch_size", 8, "--save_strategy", "no"]
    budget += ["--baseline", "False"]
    assert run("train", *files, *options, *budget) == 0
    assert json.loads((out / "report.json").read_text())["systems"]
    assert "| LLM, flipped: both |" in (out / "README.md").read_text(encoding="utf-8")
    if screen == "cp1252":
        assert "\\u0394F1" in shown.getvalue().decode("cp1252")
