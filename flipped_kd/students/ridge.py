"""Where A starts, as algebra: arrays in, A matrices out (docs/choices.md has what was measured).

The encoder is linear in the mean of a module's inputs over a text's tokens, so the best A before any step is a
regression. Let x_k(t) be that mean at module k of the bare LLM and e(t) the teacher's vector. With
C_k = (x_k - mu_k) / s_k, s_k the root mean square norm of x_k - mu_k, and K = mean over k of C_k C_k^T:

    alpha = (K + lambda I)^-1 (E - mean E)          kernel ridge regression, one for all modules
    V     = the first r principal directions of the fitted K alpha
    A_k   = V^T alpha^T C_k / (s_k |K|), less its part along mu_k

so that the sum over k of A_k x_k is the fitted vector in r numbers, and A_k mu_k = 0: no bias is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# lambda, in units of the mean diagonal of K; tried on held-out texts.
PENALTIES = tuple(10 ** (step / 2) for step in range(-8, 3))
HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class RidgeFit:
    """A start of A and how it was found.

    Attributes:
        matrices: A by module, (r, width) float32, in the scale of the regression.
        penalty: the lambda that was chosen.
        held_out_error: its squared error on held-out texts, as a share of their variance: 0 is perfect, 1 is no better
            than the mean.
    """

    matrices: dict[str, Tensor]
    penalty: float
    held_out_error: float


def fit_start(
    inputs: Mapping[str, Tensor],
    read_by: Mapping[str, Sequence[str]],
    targets: Tensor,
    rank: int,
) -> RidgeFit:
    """Fit A of several modules jointly, so that the sum of their outputs gives the teacher's vectors.

    Args:
        inputs: by name of an input, x (n, width): its mean over each text's tokens. Texts must stand in an order that
            has nothing to do with what they say: the last tenth is held out.
        read_by: by name of an input, the modules that are given it (q, k and v share theirs); each gets an A.
        targets: the teacher's vectors (n, d).
        rank: r, rows of each A; at most n and d.

    Raises:
        ValueError: too few texts or dimensions for the rank, inputs or targets that are constant or not finite.
    """
    count, width = targets.shape
    if rank > min(count, width):
        raise ValueError(
            f"A of rank {rank} cannot start from {count} texts and vectors of {width} numbers: give more texts, or a "
            "smaller rank."
        )
    targets = targets.double()
    check_spread(targets, "the teacher's vectors")
    modules = sum(len(names) for names in read_by.values())
    kernel = torch.zeros(count, count, dtype=torch.float64, device=targets.device)
    means, spreads = {}, {}
    for name, x in inputs.items():
        check_spread(x, f"the inputs of {read_by[name][0]}")
        means[name] = x.mean(0)
        centred = x - means[name]
        spreads[name] = centred.square().sum(1).mean().sqrt()
        centred /= spreads[name]
        kernel += (centred @ centred.T).double() * (len(read_by[name]) / modules)
    penalty, error = choose_penalty(kernel, targets, PENALTIES)
    offset = targets.mean(0)
    alpha = solve_ridge(kernel, targets - offset, penalty)
    fitted = kernel @ alpha
    directions = torch.linalg.eigh(fitted.T @ fitted).eigenvectors[:, -rank:].flip(1)  # (d, r), the strongest first
    weights = (alpha @ directions).T  # (r, n)
    matrices: dict[str, Tensor] = {}
    for name, x in inputs.items():
        mean = means[name]
        # The centred inputs themselves are not kept: V^T alpha^T (x - mu) = V^T alpha^T x - (sum of the weights) mu^T.
        raw = (weights.to(x.dtype) @ x).double() - torch.outer(weights.sum(1), mean.double())
        matrix = raw / (spreads[name].double() ** 2 * modules)
        unit = mean.double() / mean.double().norm().clamp(min=torch.finfo(torch.float64).tiny)
        matrix = (matrix - torch.outer(matrix @ unit, unit)).float()
        matrices |= {module: matrix.clone() for module in read_by[name]}
    return RidgeFit(matrices, penalty, error)


def choose_penalty(kernel: Tensor, targets: Tensor, penalties: Sequence[float]) -> tuple[float, float]:
    """The lambda with the least squared error on the last tenth of the texts, and that error (see `RidgeFit`).

    Args:
        kernel: K (n, n), float64.
        targets: (n, d), float64.
        penalties: to choose from, each > 0.
    """
    count = len(kernel)
    kept = count - max(1, round(HELD_OUT_SHARE * count))
    offset = targets[:kept].mean(0)
    wanted = targets[kept:] - offset
    variance = wanted.square().sum().clamp(min=torch.finfo(torch.float64).tiny)
    errors = []
    for penalty in penalties:
        alpha = solve_ridge(kernel[:kept, :kept], targets[:kept] - offset, penalty)
        errors.append(float((kernel[kept:, :kept] @ alpha - wanted).square().sum() / variance))
    best = min(range(len(penalties)), key=errors.__getitem__)
    return penalties[best], errors[best]


def solve_ridge(kernel: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """alpha (n, d) = (K + lambda I)^-1 targets, by Cholesky decomposition."""
    penalised = kernel + penalty * torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    return torch.cholesky_solve(targets, torch.linalg.cholesky(penalised))


def scaled_to(matrices: Mapping[str, Tensor], norm: float) -> dict[str, Tensor]:
    """All matrices times one factor, so that their joint Frobenius norm is `norm`."""
    found = torch.stack([matrix.double().square().sum() for matrix in matrices.values()]).sum().sqrt()
    return {name: matrix * float(norm / found) for name, matrix in matrices.items()}


def check_spread(rows: Tensor, what: str) -> None:
    """Raise ValueError unless `rows` (n, width) are finite and not all alike."""
    if not bool(rows.isfinite().all()):
        raise ValueError(f"{what} are not all finite: check the model's weights, or load it in float32.")
    spread = (rows - rows[:1]).abs().max()
    if float(spread) <= 1e-6 * float(rows.abs().max()):
        raise ValueError(f"{what} are the same for every text: give texts that differ, and a model that tells them.")
