"""L_dist against a slow reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flipped_kd.losses.similarity import SimilarityDistillationLoss
from tests.losses.references import problem, reference_dist


@pytest.mark.parametrize(("kind", "matrix"), [("mse", True), ("mse", False), ("kl", True), ("kl", False)])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_distillation_equals_the_reference(kind: Any, matrix: bool, temperature: float) -> None:
    loss = SimilarityDistillationLoss(kind, temperature, scale=3.0)
    for seed in range(4):
        batch = problem(seed, matrix)
        kept = batch["selection"].kept
        found = loss(batch["s"], batch["t"], kept)
        assert found.item() == pytest.approx(reference_dist(loss, batch["s"], batch["t"], kept), rel=1e-9)


@pytest.mark.parametrize("kind", ["mse", "kl"])
def test_nothing_kept_gives_zero_distillation_with_zero_gradient(kind: Any) -> None:
    student = torch.linspace(-1, 1, 9).view(3, 3).requires_grad_()
    value = SimilarityDistillationLoss(kind)(student, torch.ones(3, 3), torch.zeros(3, 3, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(value, student)
    assert value.item() == 0
    assert (gradient == 0).all()
