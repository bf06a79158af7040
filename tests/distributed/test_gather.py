"""Contrasts over ranks: two ranks train as one process with the whole global batch does, exactly."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.distributed.gather_run import AWKWARD, RUNS, STEPS, awkward_batches, make, step_gradients
from tests.distributed.launching import launch
from tests.distributed.left import facts, tensors
from tests.invariants.training import assert_equal, gradients_of

TOLERANCE = 1e-5
pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def folder(inputs: Callable[..., Path]) -> Path:
    """The files two ranks have left behind after gather_run.py."""
    folder = inputs()
    launch("tests.distributed.gather_run", folder)
    return folder


def assert_same_gradient(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Cosine 1 and norm ratio 1 over all weights; a weight that no gradient has reached counts as zero."""
    one = torch.cat([found.get(name, torch.zeros_like(value)).double().flatten() for name, value in expected.items()])
    other = torch.cat([value.double().flatten() for value in expected.values()])
    assert found.keys() <= expected.keys() and other.norm() > 1e-3
    assert float(torch.nn.functional.cosine_similarity(one, other, dim=0)) == pytest.approx(1, abs=TOLERANCE)
    assert float(one.norm() / other.norm()) == pytest.approx(1, abs=TOLERANCE)


@pytest.mark.parametrize("name", RUNS)
def test_first_gradient_is_that_of_one_process(name: str, folder: Path) -> None:
    """Gathered: of the global batch. Alone: of the mean of the ranks' losses."""
    trainer = make(folder, name, mini_batch_size=None, activation_checkpointing=False)
    trainer.model.train()
    steps = RUNS[name].get("gradient_accumulation_steps", 1)
    ranks = facts(folder, f"{name}_facts")
    losses = []
    for micro in range(steps):
        parts = [rank["rows"][micro] for rank in ranks]
        for rows in [parts[0] + parts[1]] if "gathered" in name else parts:
            batch = trainer.data_collator([trainer.train_dataset[row] for row in rows])  # type: ignore[index]
            losses.append(trainer.compute_loss(trainer.model, batch))
    loss = torch.stack(losses).mean()
    expected = gradients_of(loss, trainer.model)
    for found in tensors(folder, f"{name}_gradients"):
        assert_same_gradient(found, expected)
    for rank in ranks:
        assert rank["world_size"] == 2
        assert rank["log"][0]["loss"] == pytest.approx(float(loss.detach()), abs=1e-4)
    terms = trainer.loss_log.flush(trainer.accelerator)
    assert {key: ranks[0]["log"][0][key] for key in terms} == pytest.approx(terms, abs=1e-5)


@pytest.mark.parametrize("name", RUNS)
def test_ranks_have_equal_weights_after_the_last_step(name: str, folder: Path) -> None:
    first, second = tensors(folder, f"{name}_end")
    assert_equal(first, second)
    assert len([entry for entry in facts(folder, f"{name}_facts")[0]["log"] if "loss" in entry]) == STEPS


def test_gathering_and_not_gathering_differ(folder: Path) -> None:
    """Else the tests above could not tell them apart."""
    (gathered, _), (alone, _) = tensors(folder, "gathered_gradients"), tensors(folder, "alone_gradients")
    assert facts(folder, "gathered_facts")[0]["rows"][0] == facts(folder, "alone_facts")[0]["rows"][0]
    with pytest.raises(AssertionError):
        assert_same_gradient(gathered, alone)


@pytest.fixture(scope="module")
def of_one_process(folder: Path) -> Callable[[str], dict[str, dict[str, Tensor]]]:
    """The gradients of each awkward batch as a whole, by one of the settings."""

    @cache
    def gradients(name: str) -> dict[str, dict[str, Tensor]]:
        trainer = make(folder, name)
        return {
            case: step_gradients(trainer, trainer.model, first + second, case)
            for case, (first, second) in awkward_batches(trainer).items()
        }

    return gradients


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_batches_give_the_gradient_of_one_process(
    name: str, folder: Path, of_one_process: Callable[[str], dict[str, dict[str, Tensor]]]
) -> None:
    for case, expected in of_one_process(AWKWARD[name]).items():
        for found in tensors(folder, f"{name}_{case}"):
            assert all(value.isfinite().all() for value in found.values()), case
            assert_same_gradient(found, expected)
