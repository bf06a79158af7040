"""Scores of single pairs in a row: what comes back is what went in, rounded to half precision."""

from __future__ import annotations

import numpy as np
import pytest

from flipped_kd.evaluation.comparison import SplitScores
from flipped_kd.experiments.ablation.pair_scores import packed, packed_splits, unpacked, unpacked_splits


def test_scores_come_back_rounded_and_labels_whole() -> None:
    scores = np.random.default_rng(0).normal(scale=10, size=1001)
    np.testing.assert_allclose(unpacked(packed(scores)), scores, rtol=2**-11)
    labels = np.array([0, 1, 1, 0], np.int8)
    np.testing.assert_array_equal(unpacked(packed(labels)), labels)
    assert len(packed(scores)) < 4 * len(scores)  # of a thousand pairs less than three kilobytes
    back = unpacked_splits(packed_splits({"answer": SplitScores(scores[:10], scores[10:30])}))["answer"]
    assert len(back.validation) == 10 and len(back.test) == 20


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e6])
def test_what_half_precision_cannot_hold_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="not finite or beyond half precision"):
        packed(np.array([0.5, bad]))
