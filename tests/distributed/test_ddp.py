"""Two ranks on the CPU: equal weights everywhere, the mean of the ranks' gradients, every pair scored in order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from peft import set_peft_model_state_dict

from flipped_kd.data.keys import text_keys
from tests.distributed.ddp_run import RUNS, STEPS, make
from tests.distributed.launching import launch_by_torchrun
from tests.distributed.left import facts, tensors
from tests.invariants.training import Gradients, assert_close, assert_equal, gradients_of, uneven_stream

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def folder(inputs: Callable[..., Path]) -> Path:
    """The files two ranks have left behind after training with every setting of ddp_run.py."""
    folder = inputs(odd=True)
    launch_by_torchrun("tests.distributed.ddp_run", folder)
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_ranks_keep_equal_weights_and_train_on_different_rows(name: str, folder: Path) -> None:
    (first, second), (start, other_start) = tensors(folder, f"{name}_end"), tensors(folder, f"{name}_start")
    assert_equal(start, other_start)
    assert_equal(first, second)
    assert any((first[weight] != start[weight]).any() for weight in start)
    one, other = facts(folder, f"{name}_facts")
    assert one["world_size"] == 2
    batches = STEPS * RUNS[name].get("gradient_accumulation_steps", 1)
    assert [len(rows) for rows in one["rows"]] == [len(rows) for rows in other["rows"]] == [4] * batches
    # An epoch is 8 steps of 8: no row came twice within it.
    seen = [row for rank in (one, other) for rows in rank["rows"][:8] for row in rows]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("name", RUNS)
def test_gradient_is_the_mean_of_the_ranks(name: str, folder: Path) -> None:
    trainer = make(folder, name, Gradients())
    assert trainer.encoder_start is not None  # from the teacher, on two ranks as on one
    start, _ = tensors(folder, f"{name}_start")
    assert_equal({key: value for key, value in trainer.model.named_parameters() if value.requires_grad}, start)
    micro_batches = RUNS[name].get("gradient_accumulation_steps", 1)
    parts, losses = [], []
    for rank in facts(folder, f"{name}_facts"):
        for rows in rank["rows"][:micro_batches]:
            batch = trainer.data_collator([trainer.train_dataset[row] for row in rows])  # type: ignore[index]
            loss = trainer.compute_loss(trainer.model, batch)
            losses.append(float(loss.detach()))
            parts.append(gradients_of(loss, trainer.model))
        assert rank["losses"][:micro_batches] == pytest.approx(losses[-micro_batches:], abs=1e-5)
    mean = {key: torch.stack([part[key] for part in parts]).mean(0) for key in parts[0]}
    for found in tensors(folder, f"{name}_gradients"):
        assert_close(found, mean, atol=1e-5, rtol=1e-5)
    # The ranks' batches differ enough for the test to tell their mean from either.
    assert any((parts[0][key] - parts[-1][key]).abs().max() > 1e-3 for key in mean)
    (first, _) = facts(folder, f"{name}_facts")
    assert first["log"][0]["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)


@pytest.mark.parametrize("name", RUNS)
def test_logged_terms_are_those_of_all_ranks(name: str, folder: Path) -> None:
    first, second = facts(folder, f"{name}_facts")
    terms = ("sup", "dist", "mcl")
    for entry, other in zip(first["log"], second["log"], strict=True):
        if "loss" in entry:
            assert {key: entry[key] for key in entry if "loss" in key} == {
                key: other[key] for key in other if "loss" in key
            }
            total = sum(RUNS[name].get(f"{term}_weight", 1.0) * entry[f"loss_{term}"] for term in terms)
            assert entry["loss"] == pytest.approx(total, abs=1e-5)
            assert entry["dropped_positive"] == entry["dropped_negative"] == 0


def test_every_pair_is_scored_once_and_in_order(folder: Path) -> None:
    first, second = facts(folder, "default_facts")
    trainer = make(folder, "default", Gradients())
    end, _ = tensors(folder, "default_end")
    set_peft_model_state_dict(trainer.model, {key.replace(".default", ""): value for key, value in end.items()})
    answer, similarity = trainer.score_pairs(datasets.load_from_disk(str(folder / "held_out")))
    assert len(answer) == 23
    for rank in (first, second):
        np.testing.assert_allclose(rank["answer"], answer, atol=1e-4)
        np.testing.assert_allclose(rank["similarity"], similarity, atol=1e-5)


def test_shards_of_unlike_length_keep_the_ranks_together(folder: Path) -> None:
    """A rank's pass over a stream ends where the other's does not: neither may wait for the other there."""
    first, second = tensors(folder, "streamed_end")
    assert_equal(first, second)
    shards = shards_of(uneven_stream(datasets.load_from_disk(str(folder / "pairs"))))
    seen = []
    for rank, shard in zip(facts(folder, "streamed_facts"), shards, strict=True):
        assert rank["sizes"] == [4] * 12
        seen.append({tuple(pair) for pair in rank["pairs"]})
        # Its own shard and nothing of the other's; all of it but what has filled no batch in any pass.
        assert seen[-1] <= shard and len(seen[-1]) >= len(shard) // 4 * 4
    assert not seen[0] <= shards[1] and not seen[1] <= shards[0]  # some pairs are in both


def shards_of(stream: datasets.IterableDataset) -> list[set[tuple[int, int]]]:
    """Keys of the texts of each shard's pairs."""
    found = []
    for number in range(stream.num_shards):
        rows = list(stream.shard(stream.num_shards, number))
        keys = (text_keys([row[name] for row in rows]).tolist() for name in ("text_a", "text_b"))
        found.append(set(zip(*keys, strict=True)))
    return found


def test_a_model_that_was_trained_before_is_trained_and_scored_again(folder: Path) -> None:
    one, other = facts(folder, "twice_facts")
    np.testing.assert_allclose(one["answers"], other["answers"], rtol=0, atol=1e-5)
    for rank in (one, other):
        first, second = rank["answers"]
        assert len(first) == 23 and first != second and np.isfinite([first, second]).all()
