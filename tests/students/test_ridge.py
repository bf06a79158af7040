"""The regression that A starts from: equal to a float64 reference, and what it must hold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flipped_kd.students.ridge import choose_penalty, fit_start, scaled_to, solve_ridge

COUNT, RANK, WIDTH = 60, 4, 12
READ_BY = {"q": ["q", "k", "v"], "down": ["down"]}


def example(dtype: torch.dtype = torch.float64) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs of two modules, with a large mean, from which vectors follow but for some noise."""
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(COUNT, 6, generator=random, dtype=torch.float64)
    inputs = {
        name: hidden @ torch.randn(6, width, generator=random, dtype=torch.float64) + 5 * torch.ones(width)
        for name, width in (("q", 10), ("down", 17))
    }
    noise = 0.1 * torch.randn(COUNT, WIDTH, generator=random, dtype=torch.float64)
    targets = hidden @ torch.randn(6, WIDTH, generator=random, dtype=torch.float64) + noise
    return {name: x.to(dtype) for name, x in inputs.items()}, targets.to(dtype)


def reference(inputs: dict[str, Tensor], targets: Tensor, penalty: float) -> dict[str, np.ndarray]:
    """The formulas of the module, by NumPy in float64, module by module."""
    modules = [(name, inputs[source].double().numpy()) for source, names in READ_BY.items() for name in names]
    centred, means, spreads = {}, {}, {}
    for name, x in modules:
        means[name] = x.mean(0)
        spreads[name] = math.sqrt(((x - means[name]) ** 2).sum(1).mean())
        centred[name] = (x - means[name]) / spreads[name]
    kernel = sum(c @ c.T for c in centred.values()) / len(modules)
    wanted = targets.double().numpy()
    wanted = wanted - wanted.mean(0)
    alpha = np.linalg.inv(kernel + penalty * np.eye(COUNT)) @ wanted
    _, _, directions = np.linalg.svd(kernel @ alpha, full_matrices=False)
    found = {}
    for name, c in centred.items():
        matrix = directions[:RANK] @ alpha.T @ c / (spreads[name] * len(modules))
        found[name] = matrix - np.outer(matrix @ means[name], means[name]) / (means[name] @ means[name])
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_start_equals_the_reference(dtype: torch.dtype) -> None:
    inputs, targets = example(dtype)
    fit = fit_start(inputs, READ_BY, targets, RANK)
    expected = reference(inputs, targets, fit.penalty)
    assert fit.matrices.keys() == expected.keys() == {"q", "k", "v", "down"}
    for name, matrix in fit.matrices.items():
        wanted = torch.from_numpy(expected[name])
        # A principal direction is one up to its sign.
        sign = (matrix.double() * wanted).sum(1, keepdim=True).sign()
        torch.testing.assert_close(matrix.double() * sign, wanted, atol=1e-4, rtol=1e-3)


def test_the_means_of_the_inputs_give_nothing() -> None:
    inputs, targets = example()
    fit = fit_start(inputs, READ_BY, targets, RANK)
    for source, names in READ_BY.items():
        mean = inputs[source].mean(0)
        for name in names:
            product = fit.matrices[name].double() @ mean
            assert product.norm() < 1e-5 * fit.matrices[name].double().norm() * mean.norm()


def test_the_sum_of_the_outputs_resembles_the_targets() -> None:
    inputs, targets = example()
    fit = fit_start(inputs, READ_BY, targets, RANK)
    vectors = sum(
        inputs[source].double() @ fit.matrices[name].double().T for source, names in READ_BY.items() for name in names
    )
    assert isinstance(vectors, Tensor) and vectors.shape == (COUNT, RANK)

    def cosines(rows: Tensor) -> Tensor:
        rows = torch.nn.functional.normalize(rows, dim=1)
        return (rows @ rows.T)[torch.triu_indices(COUNT, COUNT, 1).unbind()]

    found, wanted = cosines(vectors), cosines(targets - targets.mean(0))
    assert torch.corrcoef(torch.stack([found, wanted]))[0, 1] > 0.9
    assert 0 < fit.held_out_error < 0.2


def test_the_penalty_is_the_one_with_the_least_error_on_texts_that_were_held_out() -> None:
    inputs, targets = example()
    kernel = inputs["q"] @ inputs["q"].T / 100
    penalties = (1e-3, 1e-1, 10.0)
    chosen, error = choose_penalty(kernel, targets, penalties)
    errors = []
    for penalty in penalties:
        offset = targets[:54].mean(0)
        alpha = torch.linalg.solve(kernel[:54, :54] + penalty * torch.eye(54), targets[:54] - offset)
        wrong = kernel[54:, :54] @ alpha - (targets[54:] - offset)
        errors.append(float(wrong.square().sum() / (targets[54:] - offset).square().sum()))
    assert chosen == penalties[int(np.argmin(errors))] and error == pytest.approx(min(errors))
    identity = solve_ridge(kernel, kernel + 0.5 * torch.eye(COUNT), 0.5)
    torch.testing.assert_close(identity, torch.eye(COUNT, dtype=torch.float64), atol=1e-8, rtol=0)


def test_noise_is_penalised_more_than_a_pattern() -> None:
    inputs, targets = example()
    noise = torch.randn(targets.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    of_pattern, of_noise = (fit_start(inputs, READ_BY, wanted, RANK) for wanted in (targets, noise))
    assert of_noise.penalty > of_pattern.penalty and of_noise.held_out_error > 0.8


def test_one_factor_brings_all_matrices_to_the_norm_wanted() -> None:
    matrices = {"a": torch.tensor([[3.0, 0.0]]), "b": torch.tensor([[0.0, 4.0]])}
    scaled = scaled_to(matrices, 10.0)
    assert scaled["a"].tolist() == [[6.0, 0.0]] and scaled["b"].tolist() == [[0.0, 8.0]]


def spoilt(**changes: Any) -> tuple[dict[str, Tensor], Tensor, int]:
    inputs, targets = example()
    inputs = inputs | changes.get("inputs", {})
    return inputs, changes.get("targets", targets), changes.get("rank", RANK)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": COUNT + 1}, f"rank {COUNT + 1} cannot start from {COUNT} texts"),
        ({"rank": WIDTH + 1}, f"vectors of {WIDTH} numbers"),
        ({"inputs": {"q": torch.ones(COUNT, 10)}}, "inputs of q are the same for every text"),
        ({"inputs": {"down": torch.full((COUNT, 17), torch.nan)}}, "inputs of down are not all finite"),
        ({"targets": torch.ones(COUNT, WIDTH)}, "teacher's vectors are the same for every text"),
        ({"targets": torch.full((COUNT, WIDTH), torch.inf)}, "teacher's vectors are not all finite"),
    ],
)
def test_what_cannot_be_fitted_is_refused(changes: dict[str, Any], message: str) -> None:
    inputs, targets, rank = spoilt(**changes)
    with pytest.raises(ValueError, match=message):
        fit_start(inputs, READ_BY, targets, rank)
