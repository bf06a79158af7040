"""What is advised about a teacher, and what is warned of."""

from __future__ import annotations

import numpy as np
import pytest

from flipped_kd.teachers.calibration import DROPPED_SHARE_LIMIT
from flipped_kd.teachers.suitability import check_scores, warnings_of


def made_scores(share_right: float, n: int = 2000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores near their label for a share of the pairs, near the other one for the rest."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    shown = np.where(rng.random(n) < share_right, labels, 1 - labels)
    return shown + 0.1 * rng.standard_normal(n), labels


@pytest.mark.filterwarnings("ignore:The teacher contradicts the labels")
def test_what_must_not_be_overlooked_is_said_loudly() -> None:
    good, labels = made_scores(0.95)
    noisy, _ = made_scores(0.65)
    assert warnings_of(check_scores(good, labels, student=(noisy, None))) == []
    dropped = warnings_of(check_scores(noisy, labels))
    assert [words.split("%")[1] for words in dropped] == [
        " of the matches, more than 30",
        " of the others, more than 30",
    ]
    # Thresholds that were changed upon it are what is judged then.
    assert warnings_of(check_scores(noisy, labels, thresholds=(0.0, 1.0))) == []
    worse = warnings_of(check_scores(noisy, labels, student=(good, None)))
    assert "is worse than the LLM as it is" in worse[0] and worse[1:] == dropped
    (wrong,) = warnings_of(check_scores(-good, labels))
    assert wrong.startswith("Do not use this teacher")


@pytest.mark.filterwarnings("ignore:The teacher contradicts the labels")
def test_advice_says_what_the_numbers_say() -> None:
    good, labels = made_scores(0.95)
    advice = check_scores(good, labels, validation=made_scores(0.95, seed=1))["advice"]
    assert len(advice) == 1 and advice[0].startswith("Usable")
    noisy, labels = made_scores(0.65)
    report = check_scores(noisy, labels, validation=made_scores(0.65, seed=1))
    assert report["agreement"]["dropped_positive_share"] > DROPPED_SHARE_LIMIT
    assert any("of the matches" in words for words in report["advice"])
    assert any("of the others" in words for words in report["advice"])
    assert not any("Usable" in words for words in report["advice"])
    random = np.random.default_rng(0).standard_normal(2000)
    assert any(words.startswith("Weak") for words in check_scores(random, labels)["advice"])
    (only,) = check_scores(-good, labels)["advice"]
    assert only.startswith("Do not use this teacher")
    better = check_scores(noisy, labels, student=(good, None))["advice"]
    assert any("already matches as well" in words for words in better)
    worse = check_scores(good, labels, validation=made_scores(0.95, seed=1), student=(noisy, noisy))["advice"]
    assert worse[0].startswith("Usable") and "something to learn" in worse[1]
    shifted = check_scores(good + 0.45, labels, validation=made_scores(0.95, seed=1))["advice"]
    assert any("probabilities are off" in words for words in shifted)
