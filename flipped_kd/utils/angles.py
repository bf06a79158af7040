"""Cosines and angles between unit vectors, in float32 or wider whatever the inputs' dtype and autocast."""

from __future__ import annotations

import torch
from torch import Tensor

# Numbers of a tensor of differences, at most: 256 MB in float32.
DIFFERENCES = 1 << 26


def wide(tensor: Tensor) -> Tensor:
    """`tensor` in float32 unless it is wider already (float64 references stay float64)."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def cosine_matrix(a: Tensor, b: Tensor) -> Tensor:
    """Cosines S_ij of unit vectors `a` (N, D) and `b` (M, D): (N, M)."""
    with torch.autocast(a.device.type, enabled=False):
        return wide(a) @ wide(b).T


def distance_matrix(a: Tensor, b: Tensor, p: float = 2.0) -> Tensor:
    """Distances |a_i - b_j| in the p-norm between rows of `a` (N, D) and `b` (M, D): (N, M).

    No tensor of all differences is made, nor backward, where CUDA's `cdist` allocates one for the rows it is given.
    """
    rows = max(1, DIFFERENCES // max(1, len(b) * b.shape[1]))
    mode = "donot_use_mm_for_euclid_dist"  # its matrix-product short cut loses small distances
    return torch.cat([torch.cdist(part, b, p=p, compute_mode=mode) for part in a.split(rows)])


def angle_matrix(a: Tensor, b: Tensor) -> Tensor:
    """Angles theta_ij in [0, pi] (radians) between unit vectors `a` (N, D) and `b` (M, D): (N, M).

    theta = 2 atan2(|a - b|, |a + b|). `acos` of a float32 cosine has an infinite or dead gradient near 0 and pi, and
    broadcasting the difference takes gigabytes at a few hundred texts. Where a = b or a = -b the gradient of that
    distance is 0.
    """
    with torch.autocast(a.device.type, enabled=False):
        a, b = wide(a), wide(b)
        return 2 * torch.atan2(distance_matrix(a, b), distance_matrix(a, -b))


def paired_cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of unit vectors row by row: `a` (N, D), `b` (N, D) -> (N,)."""
    with torch.autocast(a.device.type, enabled=False):
        return (wide(a) * wide(b)).sum(-1)


def paired_angles(a: Tensor, b: Tensor) -> Tensor:
    """Angles in [0, pi] (radians) of unit vectors row by row: `a` (N, D), `b` (N, D) -> (N,)."""
    with torch.autocast(a.device.type, enabled=False):
        a, b = wide(a), wide(b)
        # vector_norm has a zero, not NaN, sub-gradient at 0, so identical texts are safe.
        return 2 * torch.atan2(torch.linalg.vector_norm(a - b, dim=-1), torch.linalg.vector_norm(a + b, dim=-1))


def extended_cosine(angle: Tensor) -> Tensor:
    """cos on [0, pi], going on linearly with slope -1 outside (`angle` in radians, any shape).

    Margins push angles out of [0, pi]. Clamping there would give the worst negatives (theta < margin) a zero gradient,
    and the bare cosine would turn round and reward them.
    """
    inside = angle.clamp(0.0, torch.pi)
    return torch.cos(inside) - (angle - inside)
