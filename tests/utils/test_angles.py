"""Cosines and angles: against slow references, at the ends of the range, in low precision, and in memory."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from flipped_kd.utils import angles
from flipped_kd.utils.angles import (
    angle_matrix,
    cosine_matrix,
    distance_matrix,
    extended_cosine,
    paired_angles,
    paired_cosines,
)


def unit(count: int, size: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    vectors = torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(vectors, dim=-1).to(dtype)


def rotated(angles: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of unit vectors in the plane at the given angles: two tensors (N, 2)."""
    a = torch.tensor([[1.0, 0.0]], dtype=angles.dtype).repeat(len(angles), 1)
    return a, torch.stack([angles.cos(), angles.sin()], -1)


@settings(deadline=None, max_examples=25)
@given(rows=st.integers(1, 5), columns=st.integers(1, 5), size=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_matrices_equal_loops_over_dot_products(rows: int, columns: int, size: int, seed: int) -> None:
    a, b = unit(rows, size, seed), unit(columns, size, seed + 1)
    cosines, angles = cosine_matrix(a, b), angle_matrix(a, b)
    assert cosines.shape == angles.shape == (rows, columns)
    for i in range(rows):
        for j in range(columns):
            dot = math.fsum(x * y for x, y in zip(a[i].tolist(), b[j].tolist(), strict=True))
            assert cosines[i, j].item() == pytest.approx(dot, abs=1e-12)
            # acos loses half the digits near its ends, so the reference is that inaccurate there.
            assert angles[i, j].item() == pytest.approx(math.acos(max(-1.0, min(1.0, dot))), abs=1e-7)


def test_paired_values_are_the_diagonal_of_the_matrix() -> None:
    a, b = unit(7, 5, 0), unit(7, 5, 1)
    torch.testing.assert_close(paired_angles(a, b), angle_matrix(a, b).diagonal(), rtol=0, atol=1e-14)
    torch.testing.assert_close(paired_cosines(a, b), cosine_matrix(a, b).diagonal(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("angle", [1e-6, 1e-4, 1e-2, 1.0, math.pi - 1e-2, math.pi - 1e-4])
def test_small_angles_survive_float32_and_keep_a_gradient_of_one(angle: float) -> None:
    theta = torch.tensor([angle], dtype=torch.float64, requires_grad=True)
    a, b = rotated(theta)
    for function in (angle_matrix, paired_angles):
        found = function(a.float(), b.float())
        (gradient,) = torch.autograd.grad(found.sum(), theta, retain_graph=True)
        assert found.item() == pytest.approx(angle, rel=1e-4, abs=1e-7)
        assert gradient.item() == pytest.approx(1.0, rel=1e-2)


@pytest.mark.parametrize("function", [angle_matrix, paired_angles])
def test_gradcheck(function) -> None:  # type: ignore[no-untyped-def]
    a, b = unit(4, 3, 0).requires_grad_(), unit(4, 3, 1).requires_grad_()
    assert torch.autograd.gradcheck(function, (a, b))


@pytest.mark.parametrize("function", [angle_matrix, paired_angles])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_identical_and_opposite_vectors_are_finite(function, dtype: torch.dtype, autocast: bool) -> None:  # type: ignore[no-untyped-def]
    a = unit(4, 8, 0, dtype).requires_grad_()
    b = torch.cat([a[:2].detach(), -a[2:].detach()]).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        angles = function(a, b)
        angles.sum().backward()
    expected = torch.tensor([0.0, 0.0, math.pi, math.pi])
    own = angles.diagonal() if angles.ndim == 2 else angles
    assert angles.dtype == torch.float32
    torch.testing.assert_close(own.detach(), expected, rtol=0, atol=1e-6)
    assert a.grad is not None and a.grad.isfinite().all()
    assert b.grad is not None and b.grad.isfinite().all()


def test_autocast_changes_nothing() -> None:
    a, b = unit(6, 16, 0, torch.float32), unit(6, 16, 1, torch.float32)
    for function in (cosine_matrix, angle_matrix, paired_cosines, paired_angles):
        with torch.autocast("cpu", torch.bfloat16):
            inside = function(a, b)
        assert inside.dtype == torch.float32
        assert torch.equal(inside, function(a, b))


def test_extended_cosine_falls_everywhere_and_has_no_jump() -> None:
    angles = torch.linspace(-1.0, math.pi + 1, 20001, dtype=torch.float64)
    steps = extended_cosine(angles).diff()
    width = float(angles[1] - angles[0])
    assert (steps < 0).all()
    # Slope at most 1 everywhere, so a jump would show as a larger step.
    assert steps.abs().max() <= width * (1 + 1e-9)


@given(st.floats(0.0, math.pi))
def test_extended_cosine_is_the_cosine_inside(angle: float) -> None:
    assert extended_cosine(torch.tensor(angle, dtype=torch.float64)).item() == pytest.approx(
        math.cos(angle), abs=1e-15
    )


def test_extended_cosine_is_linear_outside() -> None:
    angles = torch.tensor([-0.7, -0.1, math.pi + 0.1, math.pi + 0.7], dtype=torch.float64, requires_grad=True)
    values = extended_cosine(angles)
    torch.testing.assert_close(values, torch.tensor([1.7, 1.1, -1.1, -1.7], dtype=torch.float64))
    (slope,) = torch.autograd.grad(values.sum(), angles)
    assert slope.tolist() == [-1.0] * 4


class LargestOutput(TorchDispatchMode):
    """Records every operation run in the context and the largest tensor any of them gave."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.operations: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        self.operations.add(str(func))
        return result


def test_distances_in_parts_are_those_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backward allocates differences for the rows of a part on CUDA: parts bound them."""
    a, b = unit(7, 5, 0).requires_grad_(), unit(6, 5, 1).requires_grad_()
    calls: list[int] = []
    cdist = torch.cdist

    def counted(x: Tensor, *rest: Any, **named: Any) -> Tensor:
        calls.append(len(x))
        return cdist(x, *rest, **named)

    for p in (1.0, 2.0):
        whole = torch.autograd.grad(distance_matrix(a, b, p).square().sum(), (a, b))
        with monkeypatch.context() as patch:
            patch.setattr(angles, "DIFFERENCES", 2 * 6 * 5)
            patch.setattr(torch, "cdist", counted)
            parts = torch.autograd.grad(distance_matrix(a, b, p).square().sum(), (a, b))
        assert calls == [2, 2, 2, 1]
        calls.clear()
        torch.testing.assert_close(parts, whole)


def test_no_tensor_of_all_differences_is_ever_made() -> None:
    rows, columns, size = 96, 80, 64
    a = unit(rows, size, 0, torch.float32).requires_grad_()
    b = unit(columns, size, 1, torch.float32).requires_grad_()
    with LargestOutput() as seen:
        angle_matrix(a, b).sum().backward()
    assert any("cdist_backward" in name for name in seen.operations)
    assert seen.largest <= rows * columns
