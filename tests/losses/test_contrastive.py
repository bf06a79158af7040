"""The three losses: equal to slow references, differentiable, finite at the extremes, with the divisors they state."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from flipped_kd.losses.answer import AnswerLoss
from flipped_kd.losses.contrastive import MarginAwareContrastiveLoss
from flipped_kd.losses.dual_threshold import PairSelection
from flipped_kd.losses.similarity import SimilarityDistillationLoss
from tests.losses.references import problem, reference_mcl

MARGINS = ("teacher", "constant", "none")
SHAPES = [("pairwise", True), ("pairwise", False), ("infonce", True)]


@pytest.mark.parametrize(("contrast", "matrix"), SHAPES)
@pytest.mark.parametrize("positive_margin", MARGINS)
@pytest.mark.parametrize("negative_margin", MARGINS)
def test_contrast_equals_the_reference(
    contrast: Any, matrix: bool, positive_margin: Any, negative_margin: Any
) -> None:
    for seed, (margin, temperature) in enumerate([(0.06, 0.05), (0.5, 0.3), (math.pi, 1.0)]):
        loss = MarginAwareContrastiveLoss(contrast, margin, positive_margin, negative_margin, temperature, scale=1.7)
        batch = problem(seed, matrix)
        found = loss(batch["angles"], batch["p"], batch["selection"])
        expected = reference_mcl(loss, batch["angles"], batch["p"], batch["selection"])
        assert found.item() == pytest.approx(expected, rel=1e-9)
        assert expected > 0


def test_infonce_without_margin_is_plain_cross_entropy() -> None:
    cosines = torch.tensor([[0.9, 0.1, -0.3], [0.2, 0.5, 0.4], [-0.6, 0.3, 0.7]], dtype=torch.float64)
    eye = torch.eye(3).bool()
    loss = MarginAwareContrastiveLoss("infonce", margin=0.0, temperature=0.1)
    found = loss(cosines.acos(), torch.full((3, 3), 0.5), PairSelection(eye, ~eye))
    classes = torch.arange(3)
    expected = (cross_entropy(cosines / 0.1, classes) + cross_entropy(cosines.T / 0.1, classes)) / 2
    assert found.item() == pytest.approx(0.1 * expected.item(), rel=1e-10)


@pytest.mark.parametrize(("contrast", "matrix"), SHAPES)
@pytest.mark.parametrize("margins", [("teacher", "teacher"), ("constant", "none"), ("none", "constant")])
def test_gradcheck_of_the_contrast(contrast: Any, matrix: bool, margins: tuple[Any, Any]) -> None:
    loss = MarginAwareContrastiveLoss(contrast, 0.3, *margins, temperature=0.3)
    batch = problem(3, matrix, count=4)
    angles = batch["angles"].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, batch["p"], batch["selection"]), (angles,))


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), shape=st.sampled_from(SHAPES), margin=st.floats(0, math.pi))
def test_the_contrast_pulls_kept_positives_and_pushes_kept_negatives(
    seed: int, shape: tuple[Any, bool], margin: float
) -> None:
    loss = MarginAwareContrastiveLoss(shape[0], margin, temperature=0.5)
    batch = problem(seed, shape[1])
    angles = batch["angles"].requires_grad_()
    (gradient,) = torch.autograd.grad(loss(angles, batch["p"], batch["selection"]), angles)
    selection = batch["selection"]
    assert (gradient[selection.positive] >= 0).all()
    assert (gradient[selection.negative] <= 0).all()
    assert (gradient[~selection.kept] == 0).all()
    if shape[0] == "pairwise" and selection.positive.any() and selection.negative.any():
        # The worst negative, nearer than its margin, still has one: clamping would have killed it.
        assert gradient.abs().max() > 0


def test_a_negative_inside_its_margin_keeps_its_gradient() -> None:
    angles = torch.tensor([0.5, 0.02], requires_grad=True)
    selection = PairSelection(torch.tensor([True, False]), torch.tensor([False, True]))
    MarginAwareContrastiveLoss(margin=0.06)(angles, torch.tensor([0.9, 0.1]), selection).backward()
    assert angles.grad is not None
    assert angles.grad[1] < -0.5


@pytest.mark.parametrize("temperature", [1e-3, 100.0])
@pytest.mark.parametrize("contrast", ["pairwise", "infonce"])
def test_extreme_temperatures_stay_finite(contrast: Any, temperature: float) -> None:
    angles = torch.tensor([[0.0, math.pi], [math.pi, 0.0]], requires_grad=True)
    for eye in (torch.eye(2).bool(), ~torch.eye(2).bool()):
        loss = MarginAwareContrastiveLoss(contrast, temperature=temperature)
        value = loss(angles, torch.rand(2, 2), PairSelection(eye, ~eye))
        (gradient,) = torch.autograd.grad(value, angles)
        assert value.isfinite() and gradient.isfinite().all()


NOTHING, ALL = torch.zeros(3, 3, dtype=torch.bool), torch.ones(3, 3, dtype=torch.bool)
EMPTY: list[tuple[Callable[..., Tensor], Tensor, Tensor]] = [
    (MarginAwareContrastiveLoss("pairwise"), NOTHING, ALL),
    (MarginAwareContrastiveLoss("pairwise"), ALL, NOTHING),
    (MarginAwareContrastiveLoss("pairwise"), NOTHING, NOTHING),
    (MarginAwareContrastiveLoss("infonce"), NOTHING, ALL),
    (MarginAwareContrastiveLoss("infonce"), ALL, NOTHING),
    (MarginAwareContrastiveLoss("infonce"), NOTHING, NOTHING),
]


@pytest.mark.parametrize(("loss", "positive", "negative"), EMPTY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_empty_class_gives_zero_with_zero_gradient(
    loss: Callable[..., Tensor], positive: Tensor, negative: Tensor, dtype: torch.dtype
) -> None:
    angles = torch.linspace(0, math.pi, 9, dtype=dtype).view(3, 3).requires_grad_()
    value = loss(angles, torch.full((3, 3), 0.5, dtype=dtype), PairSelection(positive, negative))
    (gradient,) = torch.autograd.grad(value, angles)
    assert value.item() == 0
    assert (gradient == 0).all()


def test_means_do_not_change_when_every_pair_comes_twice() -> None:
    batch = problem(0, matrix=False)
    twice = [torch.cat([batch[name], batch[name]]) for name in ("s", "t")]
    kept = batch["selection"].kept
    mse = SimilarityDistillationLoss("mse")
    assert mse(*twice, torch.cat([kept, kept])).item() == pytest.approx(mse(batch["s"], batch["t"], kept).item())
    logits, labels = torch.randn(3, 5, dtype=torch.float64), torch.tensor([0, 1, 1])
    doubled = AnswerLoss()(torch.cat([logits, logits]), torch.cat([labels, labels]), (0, 4))
    assert doubled.item() == pytest.approx(AnswerLoss()(logits, labels, (0, 4)).item())


def test_pairwise_has_no_divisor_and_sums_over_pairs_of_pairs() -> None:
    loss, batch = MarginAwareContrastiveLoss(temperature=0.2), problem(1, matrix=False)
    angles, p, selection = batch["angles"], batch["p"], batch["selection"]
    inner = math.expm1(loss(angles, p, selection).item() / 0.2)
    both = PairSelection(torch.cat([selection.positive] * 2), torch.cat([selection.negative] * 2))
    twice = loss(torch.cat([angles, angles]), torch.cat([p, p]), both)
    assert math.expm1(twice.item() / 0.2) == pytest.approx(4 * inner)  # twice the positives times twice the negatives


def test_the_gradient_does_not_grow_as_the_temperature_falls() -> None:
    angles = torch.tensor([1.5, 1.4], dtype=torch.float64, requires_grad=True)
    selection = PairSelection(torch.tensor([True, False]), torch.tensor([False, True]))
    for temperature in (1.0, 0.05, 0.001):
        value = MarginAwareContrastiveLoss(temperature=temperature)(angles, torch.full((2,), 0.5), selection)
        (gradient,) = torch.autograd.grad(value, angles)
        assert gradient.abs().max() <= 1


def test_presets_are_settings_of_one_loss() -> None:
    assert {
        name: (loss.positive_margin, loss.negative_margin)
        for name, loss in ((n, MarginAwareContrastiveLoss.preset(n)) for n in ("arccse", "kdmcse", "mcl"))
    } == {"arccse": ("constant", "none"), "kdmcse": ("none", "teacher"), "mcl": ("teacher", "teacher")}
    preset = MarginAwareContrastiveLoss.preset("arccse", contrast="infonce", margin=0.2, temperature=0.1)
    batch = problem(0, matrix=True)
    eye = PairSelection(torch.eye(5).bool(), ~torch.eye(5).bool())
    # ArcCSE as published: the margin on the positive alone, the same for every pair.
    classes = torch.arange(5)
    inside = batch["angles"].clamp(max=math.pi - 0.2)
    shifted = (inside + 0.2 * torch.eye(5)).cos() / 0.1
    expected = (cross_entropy(shifted, classes) + cross_entropy(shifted.T, classes)) / 2
    assert preset(inside, batch["p"], eye).item() == pytest.approx(0.1 * expected.item())


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: SimilarityDistillationLoss("cosine"), "dist_loss='cosine'.*mse.*kl"),  # type: ignore[arg-type]
    (lambda: SimilarityDistillationLoss(temperature=0), r"temperature=0 .*\(0, 100\]"),
    (lambda: SimilarityDistillationLoss(scale=math.inf), "scale=inf .*finite"),
    (lambda: MarginAwareContrastiveLoss("triplet"), "contrast='triplet'.*pairwise.*infonce"),  # type: ignore[arg-type]
    (lambda: MarginAwareContrastiveLoss(margin=-0.1), r"margin=-0.1 .*\[0, 3.14159\]"),
    (lambda: MarginAwareContrastiveLoss(margin=3.2), "margin=3.2 "),
    (lambda: MarginAwareContrastiveLoss(margin=math.nan), "margin=nan "),
    (lambda: MarginAwareContrastiveLoss(positive_margin="some"), "positive_margin='some'"),  # type: ignore[arg-type]
    (lambda: MarginAwareContrastiveLoss(negative_margin="some"), "negative_margin='some'"),  # type: ignore[arg-type]
    (lambda: MarginAwareContrastiveLoss(temperature=101), "temperature=101 "),
    (lambda: MarginAwareContrastiveLoss.preset("cosent"), "preset='cosent'.*arccse"),  # type: ignore[arg-type]
    (lambda: SimilarityDistillationLoss()(torch.ones(2, 2), torch.ones(2), torch.ones(2, 2).bool()), "one shape"),
    (
        lambda: MarginAwareContrastiveLoss()(torch.ones(2), torch.ones(1), PairSelection(ALL[0, :2], ALL[0, :2])),
        "shape",
    ),
    (
        lambda: MarginAwareContrastiveLoss("infonce")(torch.ones(3), torch.ones(3), PairSelection(ALL[0], ALL[0])),
        "contrast='pairwise'",
    ),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_bad_settings_and_shapes_are_refused_by_name_and_remedy(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
