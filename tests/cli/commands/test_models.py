"""evaluate, merge, push, card, check-teacher and train of `flipped-kd` against the library they stand for."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import HfApi
from scipy.special import expit

from flipped_kd.cli.main import main
from flipped_kd.data.loading import load_pairs
from flipped_kd.evaluation.match_score import KINDS, MatchScore
from flipped_kd.evaluation.metrics import matching_metrics
from flipped_kd.inference.matcher import FlippedMatcher
from flipped_kd.teachers.calibration import PlattCalibration, agreement_report
from flipped_kd.teachers.loading import load_teacher
from flipped_kd.teachers.suitability import THRESHOLDS, warnings_of
from flipped_kd.training.trainer import FlippedDistillationTrainer
from tests.broken_files import break_file
from tests.cli.helpers import ODDS, adapter_with_scores, closed_pipe, pair_rows, write_rows
from tests.hub.server import LoopbackHub
from tests.invariants.training import PLAIN, settings


@pytest.fixture(scope="module")
def folder(student_dir: Path, tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter and labelled pairs."""
    folder = tmp_path_factory.mktemp("models")
    adapter_with_scores(folder / "adapter", student_dir, tokenizer)
    write_rows(folder / "pairs.jsonl", pair_rows(40))
    write_rows(folder / "validation.jsonl", pair_rows(24, seed=1))
    return folder


def run(*arguments: object) -> int:
    return main([*(str(argument) for argument in arguments)])


# ---- evaluate ----


def test_evaluate_is_the_metrics_of_the_matchers_scores(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "metrics.json"
    assert run("evaluate", folder / "adapter", folder / "pairs.jsonl", "-o", report, "--quiet") == 0
    table = capsys.readouterr().out
    found = json.loads(report.read_text())
    pairs = load_pairs(folder / "pairs.jsonl")
    answer, similarity = FlippedMatcher.from_pretrained(folder / "adapter", device="cpu").scores(pairs)
    assert list(found["scores"]) == list(ODDS) and found["pairs"] == 40 and found["default_score"] == "both"
    for kind, odds in ODDS.items():
        log_odds = odds(answer, similarity)
        expected = matching_metrics(log_odds, pairs["label"], threshold=0.0, tuned_threshold=odds.threshold)
        assert {name: found["scores"][kind][name] for name in expected} == pytest.approx(expected, abs=1e-6)
        assert found["scores"][kind]["threshold_tuned"] == pytest.approx(expit(odds.threshold))
        assert f"{expected['f1_tuned']:.4f} | " in table and f"{expected['roc_auc']:.4f} | " in table
    assert "both, default" in table and str(folder) not in report.read_text()
    assert run("evaluate", folder / "adapter", folder / "pairs.jsonl", "--score", "answer", "-o", "-", "--quiet") == 0
    assert list(json.loads(capsys.readouterr().out)["scores"]) == ["answer"]


# ---- calibrate ----


def test_calibrate_fits_on_the_pairs_given_and_leaves_the_model(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(folder / "adapter", adapter)
    before = {path.name: path.read_bytes() for path in adapter.iterdir()}
    pairs = load_pairs(folder / "pairs.jsonl")
    scores = FlippedMatcher.from_pretrained(adapter, device="cpu").scores(pairs)
    asked = ("calibrate", adapter, folder / "pairs.jsonl", "--quiet")
    assert run(*asked) == 0
    table = capsys.readouterr().out
    expected = MatchScore.fit(*scores, np.asarray(pairs["label"]))
    found = MatchScore.from_pretrained(adapter)
    for kind in KINDS:
        np.testing.assert_allclose(found.log_odds(*scores, kind), expected.log_odds(*scores, kind), atol=1e-4)
        assert f"{found.threshold(kind):.4f} (validation)" in table
    after = {path.name: path.read_bytes() for path in adapter.iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"match_score.json"}
    # By a precision, as the card says then, and for another default.
    assert run(*asked, "--min-precision", 0.6, "--score", "similarity") == 0
    matcher = FlippedMatcher.from_pretrained(adapter, device="cpu")
    assert matcher.match_score is not None and matcher.match_score.default == "similarity"
    said = matcher.matches(pairs)
    assert np.asarray(pairs["label"])[said].mean() >= 0.6
    assert run("card", adapter, "--print") == 0
    assert "the most recall at a precision of 0.6 on the validation pairs" in capsys.readouterr().out
    # What cannot be had changes nothing.
    whole = (adapter / "match_score.json").read_bytes()
    assert run("calibrate", adapter, folder / "pairs.jsonl", "--min-precision", 0) == 2
    assert run("calibrate", "me/on-the-hub", folder / "pairs.jsonl") == 2
    assert "download it first, or name the file by --output" in capsys.readouterr().err
    assert (adapter / "match_score.json").read_bytes() == whole
    assert run(*asked, "-o", tmp_path / "other.json") == 0
    assert (adapter / "match_score.json").read_bytes() == whole != (tmp_path / "other.json").read_bytes()


# ---- merge ----


def test_merge_of_one_and_of_several(
    folder: Path, student_dir: Path, tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merged = tmp_path / "merged"
    assert run("merge", folder / "adapter", "-o", merged) == 0
    out, err = capsys.readouterr()
    assert out == f"{merged}\n" and "differ by at most" in err
    pairs = [(row["text_a"], row["text_b"]) for row in pair_rows(5)]
    expected = FlippedMatcher.from_pretrained(folder / "adapter", device="cpu").scores(pairs)
    np.testing.assert_allclose(FlippedMatcher.from_pretrained(merged, device="cpu").scores(pairs), expected, atol=1e-4)
    scored = []
    for model in (folder / "adapter", merged):
        out_file = tmp_path / f"{model.name}.jsonl"
        assert run("predict", model, folder / "pairs.jsonl", "-o", out_file, "--quiet") == 0
        scored.append([json.loads(line)["score"] for line in out_file.read_text().splitlines()])
    assert len(scored[0]) == 40
    np.testing.assert_allclose(scored[1], scored[0], atol=1e-5)
    capsys.readouterr()
    assert run("merge", folder / "adapter", "-o", merged) == 2
    assert "not empty" in capsys.readouterr().err
    # The adapter with itself, half and half, is itself.
    both = ("merge", folder / "adapter", folder / "adapter", "--weights", 0.5, 0.5)
    assert run(*both, "--adapter-only", "-o", tmp_path / "combined") == 0
    assert run(*both, "-o", tmp_path / "combined-merged") == 0
    for name in ("combined", "combined-merged"):
        answer, _ = FlippedMatcher.from_pretrained(tmp_path / name, device="cpu").scores(pairs, kind="answer")
        np.testing.assert_allclose(answer, expected[0], atol=1e-4)


# ---- card and push ----


def test_card(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("card", folder / "adapter", "--repo-id", "me/matcher", "--print") == 0
    text = capsys.readouterr().out
    assert text.startswith("---\n") and "me/matcher" in text and not (folder / "adapter" / "README.md").exists()
    assert run("card", folder / "adapter", "--repo-id", "me/matcher") == 0
    card = folder / "adapter" / "README.md"
    assert capsys.readouterr().out == f"{card}\n" and card.read_text() == text
    card.write_text("mine")
    assert run("card", folder / "adapter") == 0 and card.read_text() == "mine"
    assert run("card", folder / "adapter", "--overwrite") == 0 and card.read_text() != "mine"


def test_push(folder: Path, tmp_path: Path, hub: LoopbackHub, online: HfApi, capsys) -> None:
    adapter, merged = folder / "adapter", tmp_path / "merged"
    assert run("push", adapter, "tester/one", "--merged", "--merged-dir", merged, "--private", "--quiet") == 0
    urls = capsys.readouterr().out.splitlines()
    assert urls == [f"{hub.endpoint}/tester/one", f"{hub.endpoint}/tester/one-merged"]
    assert hub.repositories["tester/one"].private and hub.repositories["tester/one-merged"].private
    assert run("push", merged, "tester/two", "--message", "again") == 0
    assert "model.safetensors" in hub.repositories["tester/two"].at("main").files
    assert capsys.readouterr().out == f"{hub.endpoint}/tester/two\n"
    # What was pushed is used by its name.
    assert run("evaluate", "tester/one", folder / "pairs.jsonl", "--score", "answer", "-o", "-", "--quiet") == 0
    pushed = json.loads(capsys.readouterr().out)
    assert run("evaluate", adapter, folder / "pairs.jsonl", "--score", "answer", "-o", "-", "--quiet") == 0
    local = json.loads(capsys.readouterr().out)
    assert pushed["scores"] == local["scores"] and pushed["model"] == "tester/one"


def test_push_that_fails_says_so_without_the_token(
    folder: Path, hub: LoopbackHub, online: HfApi, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    adapter = folder / "adapter"
    wrong = "hf_" + "w" * 34
    with monkeypatch.context() as patch:
        patch.setenv("HF_TOKEN", wrong)
        assert run("push", adapter, "tester/three", "--debug") == 1
    out, err = capfd.readouterr()
    assert err.splitlines()[-1].startswith("flipped-kd: error: ") and wrong not in out + err and "hf auth login" in err
    hub.faults.answer("/commit/", status=500, times=1000)
    assert run("push", adapter, "tester/three", "--debug") == 1
    out, err = capfd.readouterr()
    assert "Repeat the command" in err.splitlines()[-1] and hub.token not in out + err
    hub.faults.clear()
    assert run("push", adapter, "tester/three") == 0
    assert "adapter_model.safetensors" in hub.repositories["tester/three"].at("main").files


# ---- check-teacher ----


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


# ---- train ----


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
    assert report["data"]["train"] == 40 and report["optimizer"]["learning_rate"] == 2e-4
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
    assert run("train", *files, *options, *budget) == 0
    assert json.loads((out / "report.json").read_text())["systems"]
    assert "| LLM, flipped: both |" in (out / "README.md").read_text(encoding="utf-8")
    if screen == "cp1252":
        assert "\\u0394F1" in shown.getvalue().decode("cp1252")
