"""merge of one adapter and of several, against the library."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from flipped_kd.inference.matcher import FlippedMatcher
from tests.cli.helpers import (
    pair_rows,
    run,
)


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
