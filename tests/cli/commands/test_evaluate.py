"""evaluate gives the metrics of the matcher's scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scipy.special import expit

from flipped_kd.data.loading import load_pairs
from flipped_kd.evaluation.metrics import matching_metrics
from flipped_kd.inference.matcher import FlippedMatcher
from tests.cli.helpers import (
    ODDS,
    run,
)


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


def test_pairs_of_one_class_are_judged_by_what_they_tell(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a sample of production without a match: how many false alarms?"""
    lines = (folder / "pairs.jsonl").read_text().splitlines()
    others = [line for line in lines if json.loads(line)["label"] == 0]
    (tmp_path / "others.jsonl").write_text("\n".join(others) + "\n")
    assert run("evaluate", folder / "adapter", tmp_path / "others.jsonl", "-o", "-", "--quiet") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["positive_share"] == 0 and found["scores"]["both"]["roc_auc"] is None
    assert 0 <= found["scores"]["both"]["accuracy_tuned"] <= 1
