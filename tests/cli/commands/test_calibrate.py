"""calibrate fits on the pairs given and leaves the model."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from flipped_kd.data.loading import load_pairs
from flipped_kd.evaluation.match_score import MatchScore
from flipped_kd.inference.matcher import FlippedMatcher
from flipped_kd.utils.choices import SCORE_KINDS
from tests.cli.helpers import (
    run,
)


def test_calibrate_fits_on_the_pairs_given_and_leaves_the_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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
    for kind in SCORE_KINDS:
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
    # On the screen, alone, and no file of that name.
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert run(*asked, "-o", "-") == 0 and not Path("-").exists()
    assert capsys.readouterr().out == (tmp_path / "other.json").read_text()


def test_the_hubs_cache_is_not_written_into(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its snapshots are links to files that other revisions share."""
    snapshot = tmp_path / "models--me--matcher" / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(folder / "adapter", snapshot)
    before = {path.name: path.read_bytes() for path in snapshot.iterdir()}
    commands = {"--output": ("calibrate", snapshot, folder / "pairs.jsonl"), "--print": ("card", snapshot)}
    for remedy, command in commands.items():
        assert run(*command) == 2
        said = capsys.readouterr().err
        assert "lies in the Hub's cache" in said and remedy in said
    assert run("calibrate", snapshot, folder / "pairs.jsonl", "--output", tmp_path / "score.json", "--quiet") == 0
    assert run("card", snapshot, "--print") == 0
    assert {path.name: path.read_bytes() for path in snapshot.iterdir()} == before
