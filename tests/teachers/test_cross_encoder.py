"""A teacher of pairs: each ordered pair is scored once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from flipped_kd.data.keys import text_keys
from flipped_kd.teachers.cross_encoder import CrossEncoderTeacher
from tests.teachers.recording import TEXTS, spy


def test_a_cross_encoder_scores_each_ordered_pair_once(
    cross: CrossEncoderTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = TEXTS[:4], TEXTS[4:]
    logits = cross.model.predict(list(zip(first, second, strict=True)), activation_fn=torch.nn.Identity())
    cross.model.activation_fn = torch.nn.Identity()  # the model's own activation does not matter
    seen = spy(monkeypatch, cross.model, "predict")
    scores = cross.score(first * 2, second * 2, cache_dir=tmp_path, batch_size=3, show_progress=False)
    assert sorted(seen) == sorted(zip(first, second, strict=True))
    probabilities = scores.probability(text_keys(first), text_keys(second))
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-logits)), atol=1e-6)
    np.testing.assert_allclose(scores.similarity(text_keys(first), text_keys(second)), 2 * probabilities - 1)
    swapped = cross.score(second, first, cache_dir=tmp_path, show_progress=False)
    assert len(seen) == 8 and len(swapped) == 8
    assert (swapped.probability(text_keys(second), text_keys(first)) != probabilities).any()
    cross.score(first, second, cache_dir=tmp_path, show_progress=False)
    assert len(seen) == 8


def test_a_cross_encoder_has_no_vectors_and_wants_pairs(cross: CrossEncoderTeacher, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'tiny-cross' is a cross-encoder.*bi-encoder teacher"):
        cross.embed(TEXTS, cache_dir=tmp_path)
    with pytest.raises(ValueError, match="pairs_a has 2 texts and pairs_b 1"):
        cross.score(["a", "b"], ["c"], cache_dir=tmp_path)
    with pytest.raises(TypeError, match=r"pairs_b\[0\] is None"):
        cross.score(["a"], [None], cache_dir=tmp_path)  # type: ignore[list-item]
