"""The calibration of teacher scores and the report of its agreement with the labels, against slow references."""

import json
import math

import numpy as np
import pytest
import torch

from flipped_kd.losses.dual_threshold import DualThreshold
from flipped_kd.teachers.calibration import PlattCalibration, agreement_report


def pairs_of_scores(n_positive: int, n_negative: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    scores = np.concatenate([generator.normal(0.6, 0.2, n_positive), generator.normal(0.3, 0.2, n_negative)])
    return np.clip(scores, -1, 1), np.repeat([1, 0], [n_positive, n_negative])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_the_fit_is_the_minimum_of_the_balanced_loss(spread: float) -> None:
    scores, labels = pairs_of_scores(60, 240)
    scores = 0.99 - spread * (0.99 - scores)  # a weak teacher's cosines differ little
    fitted = PlattCalibration.fit(scores, labels)
    parameters = torch.tensor([fitted.scale, fitted.offset], dtype=torch.float64, requires_grad=True)
    classes = scores[labels == 1], scores[labels == 0]
    centre = np.mean([part.mean() for part in classes])
    variance = np.mean([np.mean((part - centre) ** 2) for part in classes])

    def loss(values: torch.Tensor) -> torch.Tensor:
        logits = values[0] * torch.tensor(scores) + values[1]
        by_pair = torch.nn.functional.binary_cross_entropy_with_logits(
            logits, torch.tensor(labels, dtype=torch.float64), reduction="none"
        )
        positive = torch.tensor(labels == 1)
        return 0.5 * by_pair[positive].mean() + 0.5 * by_pair[~positive].mean() + variance * values[0] ** 2 / 2e5

    loss(parameters).backward()
    assert parameters.grad is not None and (parameters.grad / torch.tensor([1 / spread, 1])).abs().max() < 1e-7
    for step in ([0.5, 0], [-0.5, 0], [0, 0.3], [0, -0.3]):
        assert loss(parameters + torch.tensor(step) / spread) > loss(parameters)


def test_a_teacher_whose_scores_lie_close_together_is_calibrated_as_well() -> None:
    """T = 2 sigmoid(logit) - 1 of a cross-encoder that denies nearly all pairs, but orders them well."""
    generator = np.random.default_rng(0)
    logits = np.concatenate([generator.normal(-6, 1, 400), generator.normal(-10, 1, 400)])
    scores, labels = 2 / (1 + np.exp(-logits)) - 1, np.repeat([1, 0], 400)
    fitted = PlattCalibration.fit(scores, labels)
    found = agreement_report(scores, labels, fitted)
    assert found["roc_auc"] > 0.99
    assert found["dropped_positive_share"] < 0.08 and found["expected_calibration_error"] < 0.05
    other_units = PlattCalibration.fit(1000 * scores - 3, labels)
    np.testing.assert_allclose(other_units.probability(1000 * scores - 3), fitted.probability(scores), atol=1e-9)


@pytest.mark.parametrize("times", [2, 30])
def test_undecided_stays_undecided_whatever_the_share_of_positives(times: int) -> None:
    scores, labels = pairs_of_scores(40, 50)
    even = PlattCalibration.fit(scores, labels)
    positive = labels == 1
    for repeated in (positive, ~positive):
        more_scores = np.concatenate([scores, np.tile(scores[repeated], times)])
        more_labels = np.concatenate([labels, np.tile(labels[repeated], times)])
        skewed = PlattCalibration.fit(more_scores, more_labels)
        np.testing.assert_allclose([skewed.scale, skewed.offset], [even.scale, even.offset], rtol=1e-5)
    undecided = -even.offset / even.scale
    assert even.probability(np.array([undecided]))[0] == pytest.approx(0.5)
    assert 0.35 < undecided < 0.55  # between the means of the two classes, .3 and .6


def test_separable_scores_give_a_finite_steep_slope() -> None:
    for gap in (0.001, 0.1, 1.0):
        scores = np.concatenate([np.linspace(0.5 + gap / 2, 0.9, 20), np.linspace(0.1, 0.5 - gap / 2, 20)])
        fitted = PlattCalibration.fit(np.clip(scores, -1, 1), np.repeat([1, 0], 20))
        assert 5 < fitted.scale < 1e4 and math.isfinite(fitted.offset)


def test_probability_of_arrays_and_tensors_agree() -> None:
    calibration = PlattCalibration(scale=8.0, offset=-3.0)
    scores = np.linspace(-1, 1, 12).reshape(3, 4)
    expected = 1 / (1 + np.exp(-(8 * scores - 3)))
    np.testing.assert_allclose(calibration.probability(scores), expected, rtol=1e-12)
    for dtype, kept in (
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
    ):
        tensor = calibration.probability(torch.tensor(scores).to(dtype))
        assert tensor.dtype == kept and tensor.shape == (3, 4)
        np.testing.assert_allclose(tensor.double(), expected, atol=2e-2 if dtype == torch.bfloat16 else 1e-6)
    assert calibration.probability(scores.astype(np.float16)).dtype == np.float32
    assert PlattCalibration.from_dict(json.loads(json.dumps(calibration.to_dict()))) == calibration


def test_a_calibration_that_cannot_be_trusted_is_refused_or_warned_of() -> None:
    scores, labels = pairs_of_scores(30, 30)
    with pytest.raises(ValueError, match="both classes.*all 60 labels are 1"):
        PlattCalibration.fit(scores, np.ones(60, dtype=int))
    with pytest.raises(ValueError, match="score 2 is inf, .*check the teacher"):
        PlattCalibration.fit(np.where(np.arange(60) == 2, np.inf, scores), labels)
    with pytest.raises(ValueError, match="label 0 is .*2"):
        PlattCalibration.fit(scores, labels + 1)
    with pytest.raises(ValueError, match="one of each per pair"):
        PlattCalibration.fit(scores, labels[:-1])
    with pytest.raises(ValueError, match="scale=nan"):
        PlattCalibration(scale=math.nan, offset=0.0)
    with pytest.raises(ValueError, match="scale.*offset|offset.*scale"):
        PlattCalibration.from_dict({"scale": 1.0})
    with pytest.warns(UserWarning, match="contradicts the labels"):
        assert PlattCalibration.fit(-scores, labels).scale < 0
    with pytest.raises(ValueError, match="all 60 pairs the same score"):
        PlattCalibration.fit(np.full(60, 0.5), labels)


# Agreement report


def test_the_report_equals_slow_references() -> None:
    scores, labels = pairs_of_scores(50, 120, seed=3)
    calibration = PlattCalibration(scale=10.0, offset=-4.4)
    report = agreement_report(scores, labels, calibration, tau_pos=0.6, tau_neg=0.4)
    probabilities = [1 / (1 + math.exp(-(10 * score - 4.4))) for score in scores]
    positives = [p for p, label in zip(probabilities, labels, strict=True) if label]
    negatives = [p for p, label in zip(probabilities, labels, strict=True) if not label]
    wins = sum((p > q) + 0.5 * (p == q) for p in positives for q in negatives)
    assert report["roc_auc"] == pytest.approx(wins / (50 * 120))
    assert report["dropped_positive_share"] == pytest.approx(sum(p < 0.6 for p in positives) / 50)
    assert report["dropped_negative_share"] == pytest.approx(sum(p >= 0.4 for p in negatives) / 120)
    true = sum(p >= 0.5 for p in positives)
    false = sum(p >= 0.5 for p in negatives)
    assert report["f1"] == pytest.approx(2 * true / (true + false + 50))
    assert report["accuracy"] == pytest.approx((true + 120 - false) / 170)
    error = 0.0
    for low in range(15):
        inside = [
            (p, y, 0.5 / 50 if y else 0.5 / 120)
            for p, y in zip(probabilities, labels, strict=True)
            if low / 15 <= p < (low + 1) / 15
        ]
        if inside:
            weight = sum(w for _, _, w in inside)
            share = sum(w * y for _, y, w in inside) / weight
            mean = sum(w * p for p, _, w in inside) / weight
            error += weight * abs(share - mean)
    assert report["expected_calibration_error"] == pytest.approx(error)
    assert (report["n"], report["positive_share"]) == (170, pytest.approx(50 / 170))
    json.dumps(report, allow_nan=False)


def test_a_threshold_of_one_drops_no_negative() -> None:
    """As in the losses, whatever a steep calibration rounds to 1."""
    scores, labels, steep = np.array([0.9, 0.1]), np.array([0, 1]), PlattCalibration(scale=300.0, offset=0.0)
    kept = DualThreshold(0.0, 1.0)(torch.tensor(labels), steep.probability(torch.tensor(scores))).kept
    report = agreement_report(scores, labels, steep, tau_pos=0.0, tau_neg=1.0)
    assert steep.probability(scores)[0] == 1.0 and kept.all() and report["dropped_negative_share"] == 0.0


def test_the_report_of_one_class_says_nan_and_bad_thresholds_are_refused() -> None:
    calibration = PlattCalibration(scale=10.0, offset=-4.4)
    report = agreement_report(np.array([0.1, 0.9]), np.array([1, 1]), calibration)
    assert math.isnan(report["roc_auc"]) and math.isnan(report["dropped_negative_share"])
    assert report["dropped_positive_share"] == 0.5
    with pytest.raises(ValueError, match="tau_neg=1.5"):
        agreement_report(np.array([0.1]), np.array([1]), calibration, tau_neg=1.5)
