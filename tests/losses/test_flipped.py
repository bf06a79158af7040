"""The composed loss: equal to a slow reference from vectors on, differentiable, finite at the extremes, weighted."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from flipped_kd.losses.answer import AnswerLoss
from flipped_kd.losses.contrastive import MarginAwareContrastiveLoss
from flipped_kd.losses.dual_threshold import DualThreshold, PairSelection
from flipped_kd.losses.flipped import CONTRAST_FILTERS, FlippedDistillationLoss
from flipped_kd.losses.similarity import SimilarityDistillationLoss
from flipped_kd.utils.angles import angle_matrix, paired_angles
from tests.losses.references import cells, reference_answer, reference_dist, reference_mcl, whole_batch


@pytest.mark.parametrize("contrast_filter", CONTRAST_FILTERS)
@pytest.mark.parametrize(
    ("contrast", "kind", "matrix"),
    [(*pair, True) for pair in itertools.product(("pairwise", "infonce"), ("mse", "kl"))]
    + [("pairwise", "mse", False)],
)
def test_the_whole_equals_the_reference_from_vectors_on(
    contrast: Any, kind: Any, matrix: bool, contrast_filter: Any
) -> None:
    loss = FlippedDistillationLoss(
        SimilarityDistillationLoss(kind, 0.4),
        MarginAwareContrastiveLoss(contrast, margin=0.3, temperature=0.2),
        DualThreshold(0.3, 0.7),
        weights=(0.5, 2.0, 3.0),
        contrast_filter=contrast_filter,
        sup=AnswerLoss(0.25),
    )
    for seed in range(3):
        batch = whole_batch(seed, matrix)
        a, b = (normalize(batch.pop(name), dim=-1) for name in ("vectors_a", "vectors_b"))
        output = loss(vectors_a=a, vectors_b=b, **batch)

        dots = [[math.fsum(x * y for x, y in zip(u, v, strict=True)) for v in b.tolist()] for u in a.tolist()]
        cosines = torch.tensor(dots, dtype=torch.float64)
        labels, p, excluded = batch["labels"].tolist(), batch["probability"], batch.get("excluded")
        if not matrix:
            cosines = cosines.diagonal()
        taught = 0.75 * batch["labels"].double() + 0.25 * (p.diagonal() if matrix else p)
        positive, negative = (torch.zeros(p.shape, dtype=torch.bool) for _ in range(2))
        for place, probability in cells(p).items():
            on_diagonal = len(set(place)) == 1
            out = excluded is not None and bool(excluded[place])
            is_match = on_diagonal and labels[place[0]] == 1
            positive[place] = is_match and probability >= 0.3 and not out
            negative[place] = not is_match and probability < 0.7 and not out
        contrasted = PairSelection(positive.clone(), negative.clone())
        for place in cells(p) if contrast_filter == "assumed" else ():
            if len(set(place)) == 1:
                contrasted.positive[place], contrasted.negative[place] = labels[place[0]] == 1, labels[place[0]] == 0
        expected = {
            "sup": reference_answer(batch["logits"], taught.tolist(), batch["answer_ids"]),
            "dist": reference_dist(loss.dist, cosines, batch["similarity"], positive | negative),
            "mcl": reference_mcl(loss.mcl, cosines.acos(), p, contrasted),
        }
        for name, value in expected.items():
            assert output.terms[name].item() == pytest.approx(value, rel=1e-8), name
        weighted = 0.5 * expected["sup"] + 2.0 * expected["dist"] + 3.0 * expected["mcl"]
        assert output.total.item() == pytest.approx(weighted, rel=1e-8)
        own = (positive | negative).diagonal().tolist() if matrix else (positive | negative).tolist()
        for label, name in ((1, "dropped_positive"), (0, "dropped_negative")):
            count = sum(y == label and not kept for y, kept in zip(labels, own, strict=True))
            assert output.dropped[name].item() == count


@pytest.mark.parametrize(("kind", "contrast", "matrix"), [("kl", "infonce", True), ("mse", "pairwise", False)])
def test_gradcheck_of_the_whole(kind: Any, contrast: Any, matrix: bool) -> None:
    loss = FlippedDistillationLoss(
        SimilarityDistillationLoss(kind, 0.5),
        MarginAwareContrastiveLoss(contrast, 0.2, temperature=0.3),
        DualThreshold(0.0, 1.0),
    )
    batch = whole_batch(1, matrix)
    inputs = tuple(batch.pop(name).requires_grad_() for name in ("logits", "vectors_a", "vectors_b"))

    def total(logits: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return loss(logits, vectors_a=normalize(a, dim=-1), vectors_b=normalize(b, dim=-1), **batch).total

    assert torch.autograd.gradcheck(total, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    ("kind", "contrast", "matrix"), [("mse", "pairwise", False), ("mse", "pairwise", True), ("kl", "infonce", True)]
)
def test_extreme_angles_give_finite_values_and_gradients(
    dtype: torch.dtype, autocast: bool, kind: Any, contrast: Any, matrix: bool
) -> None:
    loss = FlippedDistillationLoss(SimilarityDistillationLoss(kind), MarginAwareContrastiveLoss(contrast))
    a = torch.eye(4)[[0, 0, 1, 1]].to(dtype).requires_grad_()
    # Identical and opposite, for a positive and for a negative each; the rows repeat, so off the diagonal too.
    b = torch.eye(4)[[0, 0, 1, 1]].mul(torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])).to(dtype).requires_grad_()
    logits = torch.zeros(4, 3, dtype=dtype, requires_grad=True)
    labels = torch.tensor([1, 1, 0, 0])
    similarity = torch.ones(4, 4) if matrix else torch.ones(4)
    gold = torch.diag(labels) if matrix else labels
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        # Teacher certain to the last bit, and right, so that everything is kept.
        output = loss(logits, (0, 1), labels, a, b, similarity, gold.float())
        output.total.backward()
    assert output.total.dtype == torch.float32
    assert all(term.isfinite() and term.dtype == torch.float32 for term in output.terms.values())
    for tensor in (a, b, logits):
        assert tensor.grad is not None and tensor.grad.isfinite().all()
    assert sum(int(value) for value in output.dropped.values()) == 0


def test_autocast_changes_no_value() -> None:
    batch = {
        name: value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in whole_batch(0, True).items()
    }
    loss = FlippedDistillationLoss(sup=AnswerLoss(0.5))
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(**batch)
    outside = loss(**batch)
    for name, term in outside.terms.items():
        assert torch.equal(inside.terms[name], term)


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.3, 2.0, 5.0)])
def test_the_total_is_the_weighted_sum_and_keeps_zero_terms_in_the_graph(weights: tuple[float, float, float]) -> None:
    batch = whole_batch(0, matrix=True)
    inputs = [batch[name].requires_grad_() for name in ("logits", "vectors_a", "vectors_b")]
    output = FlippedDistillationLoss(weights=weights)(**batch)
    expected = sum(w * term.item() for w, term in zip(weights, output.terms.values(), strict=True))
    assert output.total.item() == pytest.approx(expected)
    for gradient, used in zip(
        torch.autograd.grad(output.total, inputs), (weights[0] > 0, *[weights[1] + weights[2] > 0] * 2), strict=True
    ):
        assert bool(gradient.abs().sum() > 0) == used


def test_configs_are_json_and_rebuild_the_same_loss() -> None:
    original = FlippedDistillationLoss(
        SimilarityDistillationLoss("kl", 0.3, 2.0),
        MarginAwareContrastiveLoss("infonce", 0.2, "constant", "none", 0.4, 1.5),
        DualThreshold(0.3, 0.6),
        weights=(0.1, 0.2, 0.3),
        contrast_filter="assumed",
        sup=AnswerLoss(0.6, 0.7),
    )
    config = json.loads(json.dumps(original.get_config_dict()))
    rebuilt = FlippedDistillationLoss(
        SimilarityDistillationLoss(**config["dist"]),
        MarginAwareContrastiveLoss(**config["mcl"]),
        DualThreshold(**config["threshold"]),
        weights=tuple(config["weights"][name] for name in ("sup", "dist", "mcl")),
        contrast_filter=config["contrast_filter"],
        sup=AnswerLoss(**config["sup"]),
    )
    batch = whole_batch(2, matrix=True)
    assert rebuilt.get_config_dict() == original.get_config_dict()
    assert torch.equal(rebuilt(**batch).total, original(**batch).total)
    for loss in (original, original.sup, original.dist, original.mcl):
        assert "2507.05617" in loss.citation


def test_second_texts_read_twice_give_the_sum_of_both_readings() -> None:
    loss = FlippedDistillationLoss(
        SimilarityDistillationLoss("mse"),
        MarginAwareContrastiveLoss(margin=0.3, temperature=0.2),
        DualThreshold(0.3, 0.7),
    )
    batch = whole_batch(5, matrix=True)
    joint_b = normalize(torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(9)), dim=-1)
    batch["vectors_a"], batch["vectors_b"] = (normalize(batch[name], dim=-1) for name in ("vectors_a", "vectors_b"))
    diagonal = {name: batch[name].diagonal() for name in ("similarity", "probability")}
    alone = loss(**batch)
    paired = loss(**{**batch, **diagonal, "vectors_b": joint_b, "excluded": None})
    both = loss(**batch, joint_b=joint_b)
    for name in ("dist", "mcl"):
        total = alone.terms[name].item() + paired.terms[name].item()
        assert both.terms[name].item() == pytest.approx(total, rel=1e-12)
    assert both.terms["sup"].item() == alone.terms["sup"].item()
    assert both.dropped == alone.dropped == paired.dropped


def test_matrix_and_paired_forms_agree_where_only_the_diagonal_is_kept() -> None:
    a, b = (normalize(torch.randn(4, 6, dtype=torch.float64), dim=-1) for _ in range(2))
    labels, p = torch.tensor([1, 0, 1, 0]), torch.tensor([0.9, 0.2, 0.6, 0.4], dtype=torch.float64)
    loss, paired = MarginAwareContrastiveLoss(), DualThreshold()(labels, p)
    full = PairSelection(torch.diag(paired.positive), torch.diag(paired.negative))
    off = torch.full((4, 4), 0.5, dtype=torch.float64).diagonal_scatter(p)
    assert loss(angle_matrix(a, b), off, full).item() == pytest.approx(loss(paired_angles(a, b), p, paired).item())


def test_weights_that_are_not_three_numbers_from_zero_on_are_refused() -> None:
    with pytest.raises(ValueError, match="dist_weight=-1 .*finite"):
        FlippedDistillationLoss(weights=(1, -1, 1))
    with pytest.raises(ValueError, match="mcl_weight=inf "):
        FlippedDistillationLoss(weights=(1, 1, math.inf))
    with pytest.raises(ValueError, match=r"weights=\(1, 1\): give three"):
        FlippedDistillationLoss(weights=(1, 1))  # type: ignore[arg-type]


def test_a_batch_whose_shapes_do_not_fit_is_refused() -> None:
    batch = whole_batch(0, matrix=True)
    with pytest.raises(ValueError, match="one shape"):
        FlippedDistillationLoss()(**{**batch, "probability": batch["probability"].diagonal()})
    with pytest.raises(ValueError, match="one shape"):
        FlippedDistillationLoss()(**{**batch, "vectors_b": batch["vectors_b"][:3]})
