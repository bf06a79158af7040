"""check-teacher is the agreement report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from flipped_kd.data.loading import load_pairs
from flipped_kd.evaluation.metrics import matching_metrics
from flipped_kd.teachers.calibration import PlattCalibration, agreement_report
from flipped_kd.teachers.loading import load_teacher
from flipped_kd.teachers.suitability import THRESHOLDS, warnings_of
from flipped_kd.training.trainer import FlippedDistillationTrainer
from tests.broken_files import break_file
from tests.cli.helpers import (
    run,
)
from tests.invariants.training import PLAIN, settings


def test_check_teacher_is_the_agreement_report(
    folder: Path, teacher_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "check.json"
    command = ("check-teacher", teacher_dir, folder / "pairs.jsonl", "--quiet")
    taus = ("--positive-threshold", "0.2", "--negative-threshold", "0.9")
    assert run(*command, *taus, "--validation", folder / "validation.jsonl", "-o", report) == 0
    table, loud = capsys.readouterr()
    found = json.loads(report.read_text())
    assert [line for line in loud.splitlines() if line.startswith("WARNING: ")] == [
        f"WARNING: {words}" for words in warnings_of(found)
    ]
    teacher = load_teacher(str(teacher_dir))
    parts = [load_pairs(folder / name) for name in ("pairs.jsonl", "validation.jsonl")]
    scores = []
    for part in parts:
        first, second = (
            teacher.model.encode(part[name][:], normalize_embeddings=True) for name in ("text_a", "text_b")
        )
        scores.append((np.asarray(first, np.float64) * second).sum(1))
    calibration = PlattCalibration.fit(scores[1], np.array(parts[1]["label"]))
    expected = agreement_report(scores[0], np.array(parts[0]["label"]), calibration, tau_pos=0.2, tau_neg=0.9)
    assert found["agreement"] == pytest.approx(expected, abs=1e-4)
    assert found["calibrated_on"] == {"pairs": 24, "held_out": True}
    for row in found["threshold_curve"]:
        tau = row["threshold"]
        at = agreement_report(scores[0], np.array(parts[0]["label"]), calibration, tau_pos=tau, tau_neg=tau)
        assert row["dropped_positive_share"] == pytest.approx(at["dropped_positive_share"])
        assert row["dropped_negative_share"] == pytest.approx(at["dropped_negative_share"])
    assert [row["threshold"] for row in found["threshold_curve"]] == list(THRESHOLDS)
    assert f"{expected['roc_auc']:.4f}" in table and all(f"- {words}" in table for words in found["advice"])
    assert str(folder) not in report.read_text() and str(teacher_dir) not in report.read_text()


def test_calibrating_on_the_judged_pairs_is_not_called_held_out(
    folder: Path, teacher_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = folder / "pairs.jsonl"
    command = ("check-teacher", teacher_dir, pairs, "--quiet")
    assert run(*command, "--validation", pairs) == 2
    assert "names the very pairs that are judged" in capsys.readouterr().err
    assert run(*command, "--validation-split", "train") == 2
    # The split of the judged pairs is not that of the others.
    split = ("--split", "train", "--validation-split", "train")
    assert run(*command, *split, "--validation", folder / "validation.jsonl") == 0


def test_a_broken_student_is_named_before_the_teacher_scores(
    folder: Path, teacher_dir: Path, student_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = Path(shutil.copytree(student_dir, tmp_path / "student"))
    break_file(student / "model.safetensors", "pointer")
    command = ("check-teacher", teacher_dir, folder / "pairs.jsonl", "--student", student, "--quiet")
    assert run(*command, "--teacher-cache-dir", tmp_path / "cache") != 0
    assert "model.safetensors is a pointer of Git LFS" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_the_bare_llm_is_that_of_a_training_run(
    folder: Path, teacher_dir: Path, student_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("check-teacher", teacher_dir, folder / "pairs.jsonl", "--student", student_dir, "-o", "-", "--quiet")
    assert run(*command) == 0
    found = json.loads(capsys.readouterr().out)
    pairs = load_pairs(folder / "pairs.jsonl")
    trainer = FlippedDistillationTrainer(str(student_dir), None, settings(tmp_path, **PLAIN), pairs, pairs)
    answer, _ = trainer.score_pairs(pairs)
    expected = matching_metrics(answer, pairs["label"], threshold=0.0)
    # The rows are read in other batches, whose rounding orders equal scores otherwise: of these alone it is a matter.
    ranked = expected.pop("average_precision")
    assert found["student"]["average_precision"] == pytest.approx(ranked, abs=2e-3)
    assert {name: found["student"][name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert not found["calibrated_on"]["held_out"]
    assert any("The LLM as it is" in words for words in found["advice"])
    assert any("--validation" in words for words in found["advice"])
