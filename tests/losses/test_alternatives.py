"""Every objective in the place of L_dist: equal to a slow reference, finite everywhere, trained by any path."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flipped_kd.evaluation.plots import DIST_UNITS
from flipped_kd.losses.alternatives import AlternativeObjective
from flipped_kd.losses.base import Compared
from flipped_kd.losses.build import OBJECTIVES, build_objective
from flipped_kd.training.config import FlippedDistillationConfig
from flipped_kd.utils.angles import cosine_matrix, paired_cosines
from tests.losses.alternative_references import REFERENCES

RIVALS = [name for name in OBJECTIVES if name not in ("mse", "kl")]
DOCUMENT = Path(__file__).parents[2] / "docs" / "objectives.md"
T = 0.3


def compared(matrix: bool, seed: int = 0, n: int = 6, dtype: torch.dtype = torch.float64) -> Compared:
    """Random unit vectors, similarities and masks; some entries left out, both classes there."""
    draw = torch.Generator().manual_seed(seed)
    a, b = (torch.nn.functional.normalize(torch.randn(n, 8, generator=draw, dtype=dtype), dim=-1) for _ in range(2))
    student = cosine_matrix(a, b) if matrix else paired_cosines(a, b)
    teacher = torch.rand(student.shape, generator=draw, dtype=torch.float64) * 2 - 1
    kept = torch.rand(student.shape, generator=draw) < 0.8
    labels = torch.tensor([1, 0, 1, 0, 0, 1]).repeat(n)[:n].bool()
    positive = torch.diag(labels) if matrix else labels
    kept = kept | positive
    return Compared(student, teacher.to(dtype), kept, positive & kept, a, b)


@pytest.mark.parametrize("matrix", [True, False], ids=["matrix", "pairs"])
@pytest.mark.parametrize("name", RIVALS)
def test_equals_the_slow_reference(name: str, matrix: bool) -> None:
    for seed in range(3):
        given = compared(matrix, seed)
        expected = REFERENCES[name](given, T)
        assert float(build_objective(name, T).align(given)) == pytest.approx(expected, rel=1e-8)
        assert expected > 0


@pytest.mark.parametrize("matrix", [True, False], ids=["matrix", "pairs"])
@pytest.mark.parametrize("name", RIVALS)
def test_gradcheck(name: str, matrix: bool) -> None:
    given = compared(matrix, n=4)
    objective = build_objective(name, T)

    def loss(a: Tensor, b: Tensor) -> Tensor:
        student = cosine_matrix(a, b) if matrix else paired_cosines(a, b)
        return objective.align(replace(given, student=student, vectors_a=a, vectors_b=b))

    inputs = [part.detach().clone().requires_grad_() for part in (given.vectors_a, given.vectors_b)]
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("matrix", [True, False], ids=["matrix", "pairs"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_nothing_to_compare_is_zero_with_a_graph(name: str, matrix: bool) -> None:
    given = compared(matrix)
    none = torch.zeros_like(given.kept)
    one = none.clone()
    one[(0, 0) if matrix else 0] = True
    for kept in (none, one):
        student = given.student.clone().requires_grad_()
        loss = build_objective(name, T).align(
            replace(given, student=student, kept=kept, positive=given.positive & kept, teacher=given.student.detach())
        )
        loss.backward()
        assert loss.item() == pytest.approx(0.0, abs=1e-12)
        assert student.grad is not None and not student.grad.any()


@pytest.mark.parametrize("matrix", [True, False], ids=["matrix", "pairs"])
@pytest.mark.parametrize("name", ["margin_mse", "pairwise_logistic", "plackett_luce", "cosent", "angle"])
def test_neither_order_nor_positives_is_zero_with_a_graph(name: str, matrix: bool) -> None:
    given = compared(matrix)
    a, b = (part.clone().requires_grad_() for part in (given.vectors_a, given.vectors_b))
    student = cosine_matrix(a, b) if matrix else paired_cosines(a, b)
    flat, none = torch.full_like(given.teacher, 0.5), torch.zeros_like(given.positive)
    loss = build_objective(name, T).align(Compared(student, flat, given.kept, none, a, b))
    loss.backward()
    assert loss.item() == 0.0
    assert a.grad is not None and not a.grad.any()


def test_shapes_that_differ_are_refused() -> None:
    given = compared(True)
    with pytest.raises(ValueError, match=r"one shape.*'teacher': \(6,\)"):
        replace(given, teacher=given.teacher.diagonal())


@pytest.mark.parametrize("matrix", [True, False], ids=["matrix", "pairs"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_float32_is_close_to_float64_near_the_teacher(name: str, matrix: bool) -> None:
    """Where differences are small beside the similarities, and exponents large."""
    given = compared(matrix, n=24)
    student = given.teacher * 0.98 - 0.01 + 0.02 * given.teacher.square()  # no line, which `pearson` takes for perfect
    values, gradients = [], []
    for dtype in (torch.float64, torch.float32):
        part = student.to(dtype).detach().requires_grad_()
        vectors = given.vectors_a.to(dtype), given.vectors_b.to(dtype)
        loss = build_objective(name, 0.01).align(
            Compared(part, given.teacher.to(dtype), given.kept, given.positive, *vectors)
        )
        (gradient,) = torch.autograd.grad(loss, part)
        values.append(loss.item())
        gradients.append(gradient.double())
    assert values[1] == pytest.approx(values[0], rel=1e-3)
    assert float((gradients[1] - gradients[0]).norm()) < 1e-3 * float(gradients[0].norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("matrix", [True, False], ids=["matrix", "pairs"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_finite_at_equal_and_opposite_texts_and_at_a_small_temperature(
    name: str, matrix: bool, dtype: torch.dtype
) -> None:
    given = compared(matrix, dtype=torch.float32)
    for sign in (1.0, -1.0):
        a = given.vectors_a.to(dtype).requires_grad_()
        b = (sign * given.vectors_a).to(dtype)
        student = cosine_matrix(a, b) if matrix else paired_cosines(a, b)
        loss = build_objective(name, 0.01).align(replace(given, student=student, vectors_a=a, vectors_b=b))
        loss.backward()
        assert loss.dtype == torch.float32 and math.isfinite(float(loss))
        assert a.grad is not None and torch.isfinite(a.grad).all()


@pytest.mark.parametrize("matrix", [True, False], ids=["matrix", "pairs"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_order_of_the_batch_does_not_matter(name: str, matrix: bool) -> None:
    given = compared(matrix)
    order = torch.tensor([4, 2, 0, 5, 1, 3])

    def moved(part: Tensor) -> Tensor:
        return part[order][:, order] if matrix and part.shape == given.student.shape else part[order]

    parts = (given.student, given.teacher, given.kept, given.positive)
    shuffled = Compared(*map(moved, parts), given.vectors_a[order], given.vectors_b[order])  # type: ignore[call-arg]
    objective = build_objective(name, T)
    assert float(objective.align(shuffled)) == pytest.approx(float(objective.align(given)), rel=1e-9)


@pytest.mark.parametrize("name", ["margin_mse", "pairwise_logistic", "cosent", "angle", "pearson"])
def test_only_differences_of_the_teacher_count(name: str) -> None:
    given = compared(True)
    objective = build_objective(name, T)
    raised = objective.align(replace(given, teacher=given.teacher + 0.25))
    assert float(raised) == pytest.approx(float(objective.align(given)), rel=1e-9)


@pytest.mark.parametrize("name", ["pairwise_logistic", "plackett_luce", "cosent"])
def test_no_other_order_is_as_good_as_the_teachers(name: str) -> None:
    """Of all ways to give five pairs five similarities; positives are those the teacher ranks first."""
    teacher = torch.tensor([0.9, 0.7, 0.4, 0.1, -0.3], dtype=torch.float64)
    kept, vectors = torch.ones(5, dtype=torch.bool), torch.zeros(5, 2)
    objective = build_objective(name, T)
    losses = {
        order: objective.align(Compared(torch.tensor(order).double(), teacher, kept, teacher > 0.6, vectors, vectors))
        for order in itertools.permutations((0.8, 0.5, 0.3, 0.2, -0.1))
    }
    best, second = sorted(losses, key=lambda order: losses[order].item())[:2]
    assert best == (0.8, 0.5, 0.3, 0.2, -0.1)
    assert losses[best] < losses[second]


@pytest.mark.parametrize("matrix", [True, False], ids=["matrix", "pairs"])
@pytest.mark.parametrize(
    ("name", "shift"), [("mse", 0.0), ("kl", 0.0), ("kl", 0.3), ("margin_mse", 0.3), ("pearson", 0.3)]
)
def test_the_teachers_own_values_are_the_minimum(name: str, shift: float, matrix: bool) -> None:
    given = compared(matrix)
    objective = build_objective(name, T)
    student = (given.teacher + shift).requires_grad_()
    loss = objective.align(replace(given, student=student))
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == pytest.approx(0.0, abs=1e-12) and float(gradient.abs().max()) < 1e-12
    assert objective.align(given) > 0.01


@pytest.mark.parametrize("name", ["margin_mse", "pairwise_logistic", "cosent", "pearson"])
def test_descent_brings_the_student_into_the_teachers_order(name: str) -> None:
    """Not so AnglE, which looks at the vectors too, Sinkhorn, which compares the values of all pairs as a set, and
    Plackett-Luce, which hardly weighs low ranks."""
    given = compared(False)
    given = replace(given, kept=torch.ones_like(given.kept))
    objective = build_objective(name, 0.1)

    def agreement(student: Tensor) -> Tensor:
        gaps = (student[:, None] - student[None]) * (given.teacher[:, None] - given.teacher[None])
        return gaps.sign().sum()

    student = given.student.clone().requires_grad_()
    for _ in range(500):
        (gradient,) = torch.autograd.grad(objective.align(replace(given, student=student)), student)
        student = (student - 0.05 * gradient).detach().requires_grad_()
    assert agreement(student) > agreement(given.student)


def test_settings_name_all_objectives_and_the_document_too() -> None:
    assert set(DIST_UNITS) == set(OBJECTIVES)
    text = DOCUMENT.read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in OBJECTIVES)
    assert isinstance(build_objective("cosent", 0.5).get_config_dict()["temperature"], float)
    with pytest.raises(ValueError, match="dist_loss='none'.*margin_mse"):
        build_objective("none", T)
    with pytest.raises(ValueError, match="temperature=0"):
        build_objective("cosent", 0)


def test_the_documents_example_is_an_objective_of_its_own() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    before = dict(OBJECTIVES)
    try:
        exec(block, names)
        made = [name for name in OBJECTIVES if name not in before]
        assert len(made) == 1
        objective = build_objective(made[0], T)
        assert isinstance(objective, AlternativeObjective)
        assert math.isfinite(float(objective.align(compared(True))))
        # The one line is all: it is a setting too.
        assert FlippedDistillationConfig(dist_loss=made[0], use_cpu=True).dist_loss == made[0]
    finally:
        OBJECTIVES.clear()
        OBJECTIVES.update(before)
