"""Models written by an earlier state of the package load and give the scores they gave then.

`release_0_1` holds a tiny base, an adapter that was trained on it for six steps, its merge, and in expected.json what
`FlippedMatcher` gave for some pairs: written at commit 69e9964, before the package was divided into packages.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import CrossEncoder

from flipped_kd import FlippedMatcher

FOLDER = Path(__file__).parent / "release_0_1"
EXPECTED = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
PAIRS = [tuple(pair) for pair in EXPECTED["pairs"]]


@pytest.mark.parametrize("name", ["adapter", "merged"])
def test_scores_and_vectors_are_those_of_then(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)  # the adapter names its base "base"
    matcher = FlippedMatcher.from_pretrained(name)
    for kind, scores in EXPECTED[name]["scores"].items():
        assert np.std(scores) > 0.01
        np.testing.assert_allclose(matcher.predict(PAIRS, score=kind), scores, atol=1e-5)
    vectors = matcher.encode([text for text, _ in PAIRS])
    np.testing.assert_allclose(vectors, EXPECTED[name]["vectors"], atol=1e-5)


def test_the_stock_cross_encoder_reads_the_merged_model_of_then() -> None:
    scores = CrossEncoder(str(FOLDER / "merged"), device="cpu").predict(PAIRS)
    np.testing.assert_allclose(scores, EXPECTED["merged"]["scores"]["answer"], atol=1e-5)
