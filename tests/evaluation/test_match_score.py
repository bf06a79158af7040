"""Match scores: the fits against independent ones, thresholds, saving."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from flipped_kd.evaluation.match_score import SCORE_FILE, LogOdds, MatchScore, fit_log_odds
from flipped_kd.utils.choices import SCORE_KINDS


def validation(seed: int = 0, count: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Answer log-odds, similarities and labels, both scores informative and on very different scales."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    answer = 6 * labels - 9 + 5 * rng.normal(size=count)
    similarity = np.clip(0.7 + 0.02 * labels + 0.02 * rng.normal(size=count), -1, 1)
    return answer, similarity, labels


def loss_of(features: np.ndarray, labels: np.ndarray, coefficients: np.ndarray, bias: float) -> float:
    """What a logistic regression with penalty 1/2 |w|^2 on standardised features minimises, by a plain sum."""
    spread = features.std(0)
    odds = features @ coefficients + bias
    signs = 2 * labels - 1
    return math.fsum(math.log1p(math.exp(-s * o)) for s, o in zip(signs, odds, strict=True)) + 0.5 * float(
        ((coefficients * spread) ** 2).sum()
    )


def test_the_fit_is_the_minimum_of_the_logistic_loss() -> None:
    answer, similarity, labels = validation()
    features = np.stack([answer, similarity], 1)
    coefficients, bias = fit_log_odds(features, labels)
    best = loss_of(features, labels, coefficients, bias)
    for step in (1e-2, -1e-2):
        for index in range(2):
            moved = coefficients.copy()
            moved[index] += step / features[:, index].std()
            # The bias follows, so that the move turns the line about the mean and is not a mere shift.
            shifted = bias + (coefficients - moved) @ features.mean(0)
            assert loss_of(features, labels, moved, shifted) > best
        assert loss_of(features, labels, coefficients, bias + step) > best


@settings(deadline=None, max_examples=10)
@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
def test_the_fit_does_not_depend_on_the_unit_of_a_feature(scale: float, shift: float) -> None:
    _, similarity, labels = validation(count=60)
    (first,), bias = fit_log_odds(similarity[:, None], labels)
    (second,), other = fit_log_odds(similarity[:, None] * scale + shift, labels)
    np.testing.assert_allclose((similarity * scale + shift) * second + other, similarity * first + bias, atol=1e-3)


def test_a_constant_feature_gets_no_say() -> None:
    answer, _, labels = validation(count=60)
    (first, constant), bias = fit_log_odds(np.stack([answer, np.full(60, 0.4)], 1), labels)
    (only,), only_bias = fit_log_odds(answer[:, None], labels)
    assert constant == pytest.approx(0, abs=1e-9)
    assert (first, bias) == pytest.approx((only, only_bias), abs=1e-6)


def test_one_class_cannot_be_fitted() -> None:
    with pytest.raises(ValueError, match="all 3 labels are 1.*both classes"):
        fit_log_odds(np.zeros((3, 1)), np.ones(3))


def test_the_answer_is_taken_as_it_is_and_the_other_scores_are_fitted() -> None:
    answer, similarity, labels = validation()
    score = MatchScore.fit(answer, similarity, labels)
    np.testing.assert_array_equal(score.log_odds(answer, similarity, "answer"), answer)
    coefficients, bias = fit_log_odds(np.stack([answer, similarity], 1), labels)
    both = answer * coefficients[0] + similarity * coefficients[1] + bias
    np.testing.assert_allclose(score.log_odds(answer, similarity), both)
    np.testing.assert_allclose(score.probability(answer, similarity), 1 / (1 + np.exp(-both)))
    assert score.kinds["similarity"].answer == 0 < score.kinds["similarity"].similarity


def test_thresholds_have_the_best_f1_of_all_cuts_on_validation() -> None:
    answer, similarity, labels = validation(count=40)
    score = MatchScore.fit(answer, similarity, labels)
    for kind in SCORE_KINDS:
        odds = score.log_odds(answer, similarity, kind)
        chosen = f1_score(labels, odds >= score.kinds[kind].threshold)
        assert chosen == pytest.approx(max(f1_score(labels, odds >= cut) for cut in odds))


def test_a_score_looks_at_what_it_needs_alone() -> None:
    answer, similarity, labels = validation()
    score, unknown = MatchScore.fit(answer, similarity, labels), np.full(len(labels), np.nan)
    alone = score.log_odds(answer, unknown, "answer"), score.log_odds(unknown, similarity, "similarity")
    np.testing.assert_array_equal(alone[0], score.log_odds(answer, similarity, "answer"))
    np.testing.assert_array_equal(alone[1], score.log_odds(answer, similarity, "similarity"))
    assert np.isnan(score.log_odds(answer, unknown, "both")).all()  # not taken for 0
    constant = LogOdds(0.0, 0.0, 0.5, threshold=0.0)
    np.testing.assert_array_equal(constant(answer, similarity), np.full(len(labels), 0.5))


def test_thresholds_have_the_precision_asked_for() -> None:
    answer, similarity, labels = validation()
    score = MatchScore.fit(answer, similarity, labels, min_precision=0.95)
    plain = MatchScore.fit(answer, similarity, labels)
    for kind in SCORE_KINDS:
        said = score.matches(answer, similarity, kind)
        assert labels[said].mean() >= 0.95 and score.threshold(kind) > plain.threshold(kind)
        np.testing.assert_array_equal(said, score.probability(answer, similarity, kind) >= score.threshold(kind))
        np.testing.assert_array_equal(
            score.log_odds(answer, similarity, kind), plain.log_odds(answer, similarity, kind)
        )
    assert plain.min_precision is None


def test_a_precision_that_only_another_score_reaches(caplog: pytest.LogCaptureFixture) -> None:
    _, similarity, labels = validation()
    useless = np.where(np.arange(300) == np.argmin(labels), 9.0, 0.0)  # its highest is no match
    score = MatchScore.fit(useless, similarity, labels, "similarity", min_precision=0.9)
    assert score.matches(useless, similarity).any() and not score.matches(useless, similarity, "answer").any()
    assert "score 'answer': no threshold has a precision of 0.9" in caplog.text
    with pytest.raises(ValueError, match="score 'answer': no threshold has a precision of 0.9"):
        MatchScore.fit(useless, similarity, labels, "answer", min_precision=0.9)


def test_the_answer_threshold_repairs_a_shifted_answer() -> None:
    answer, similarity, labels = validation()  # log-odds centred at -6: nearly all below the natural threshold
    score = MatchScore.fit(answer, similarity, labels)
    threshold = score.kinds["answer"].threshold
    assert f1_score(labels, answer >= threshold) > f1_score(labels, answer >= 0)


def test_a_saved_score_gives_the_same_probabilities(tmp_path: Path) -> None:
    answer, similarity, labels = validation()
    score = MatchScore.fit(answer, similarity, labels, default="similarity")
    score.save_pretrained(tmp_path / "new")
    loaded = MatchScore.from_pretrained(tmp_path / "new")
    assert loaded.to_dict() == score.to_dict() == json.loads((tmp_path / "new" / SCORE_FILE).read_text())
    assert loaded.default == "similarity"
    for kind in SCORE_KINDS:
        np.testing.assert_array_equal(
            loaded.probability(answer, similarity, kind), score.probability(answer, similarity, kind)
        )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format_version": 2}, "format_version 2.*upgrade"),
        ({"format_version": 1}, "no saved MatchScore.*log_odds"),
        ({"format_version": 1, "default": "both", "log_odds": {"both": {"answer": 1}}}, "no saved MatchScore"),
        ({"format_version": 1, "default": "both", "log_odds": {}}, "no saved MatchScore.*'both' is not one of"),
        ("cut", "no valid JSON.*save or download it again"),
        (None, f"holds no {SCORE_FILE}.*eval_dataset"),
    ],
)
def test_a_broken_newer_or_absent_file_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    if content is not None:
        (tmp_path / SCORE_FILE).write_text(json.dumps(content)[: None if isinstance(content, dict) else -1])
    with pytest.raises(ValueError, match=message):
        MatchScore.from_pretrained(tmp_path)


def test_an_unknown_default_is_refused() -> None:
    with pytest.raises(ValueError, match="score='mean' is not one of"):
        MatchScore({"answer": LogOdds(1, 0, 0, 0)}, default="mean")  # type: ignore[arg-type]
