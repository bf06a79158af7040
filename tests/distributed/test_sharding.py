"""Two ranks sharded by FSDP2 train the student that DDP trains, and one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from flipped_kd.students.lora_encoder import LoraEncoder
from tests.distributed.launching import configured, launch, launched_environment
from tests.distributed.left import RANKS, facts, tensors
from tests.distributed.sharded_run import RUNS
from tests.distributed.sharded_steps import NAMES
from tests.invariants.training import assert_close, assert_equal

EXACT = [name for name in RUNS if name != "bf16"]
pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def folder(inputs: Callable[..., Path]) -> Path:
    """What the ranks of sharded_run.py have left behind."""
    folder = inputs(odd=True)
    options = ("--num_processes", "2", "--main_process_port", "0")
    launch("tests.distributed.sharded_run", folder, **launched_environment(*configured("fsdp2"), *options))
    return folder


def test_sharding_that_does_not_take_place_is_refused(folder: Path) -> None:
    error = (folder / "refused").read_text("utf-8")
    assert "FSDP was asked for" in error and "MULTI_CPU" in error and "ddp.yaml" in error


@pytest.mark.parametrize("name", NAMES[1:])
def test_sharded_steps_are_those_of_the_whole_student(name: str, folder: Path) -> None:
    for rank in RANKS:
        expected, found = load_file(folder / f"whole_{rank}"), load_file(folder / f"{name}_{rank}")
        assert {"0.logits", "0.vectors", "0.loss", "2.loss"} < expected.keys()
        assert any(key.startswith("end.") and "lora_A" in key for key in expected)
        assert_close(found, expected, atol=1e-5, rtol=1e-5)
    # The ranks see other pairs: their mean is not what either has.
    losses = [float(load_file(folder / f"{name}_{rank}")["0.loss"]) for rank in RANKS]
    assert abs(losses[0] - losses[1]) > 1e-2


@pytest.mark.parametrize("name", RUNS)
def test_every_decoder_layer_is_a_shard(name: str, folder: Path) -> None:
    for rank in facts(folder, f"fsdp_{name}"):
        assert rank["distributed_type"] == "FSDP" and rank["fsdp2"]
        assert rank["sharded_layers"] == [True, True]
    for rank in facts(folder, f"ddp_{name}"):
        assert rank["distributed_type"] == "MULTI_CPU"
        assert rank["sharded_layers"] == [False, False]


@pytest.mark.parametrize("name", EXACT)
def test_trains_as_ddp_does(name: str, folder: Path) -> None:
    for what in ("start", "gradients", "end"):
        sharded, ddp = (tensors(folder, f"{kind}_{name}_{what}") for kind in ("fsdp", "ddp"))
        for found, expected in zip(sharded, ddp, strict=True):
            assert_close(found, expected, atol=1e-5, rtol=1e-5)
    start, end = (tensors(folder, f"fsdp_{name}_{what}")[0] for what in ("start", "end"))
    # B starts at 0 and A has no gradient from the answer then: every weight moves all the same.
    assert not [weight for weight in start if torch.equal(start[weight], end[weight])]
    for sharded, ddp in zip(facts(folder, f"fsdp_{name}"), facts(folder, f"ddp_{name}"), strict=True):
        for what in ("losses", "norms"):
            assert sharded[what] == pytest.approx(ddp[what], rel=1e-5)
        np.testing.assert_allclose(sharded["answer"], ddp["answer"], atol=1e-4)
        np.testing.assert_allclose(sharded["similarity"], ddp["similarity"], atol=1e-5)


def test_bf16_trains_near_ddp(folder: Path) -> None:
    # FSDP computes in bfloat16 and adds up gradients in it, DDP in float32: equal to bfloat16's 3 digits only.
    for sharded, ddp in zip(facts(folder, "fsdp_bf16"), facts(folder, "ddp_bf16"), strict=True):
        assert sharded["losses"] == pytest.approx(ddp["losses"], rel=1e-2)
        assert sharded["norms"] == pytest.approx(ddp["norms"], rel=1e-2)
    found, expected = tensors(folder, "fsdp_bf16_end")[0], tensors(folder, "ddp_bf16_end")[0]
    assert {weight.dtype for weight in found.values()} == {torch.float32}
    start = tensors(folder, "ddp_bf16_start")[0]
    # On average: Adam steps a weight whose gradient rounding turns about its full step to the other side.
    moved = sum(float((expected[key] - start[key]).abs().sum()) for key in expected)
    apart = sum(float((found[key] - expected[key]).abs().sum()) for key in expected)
    assert apart < moved / 50


def test_pairs_are_scored_before_training_too(folder: Path) -> None:
    for sharded, ddp in zip(facts(folder, "fsdp_packed"), facts(folder, "ddp_packed"), strict=True):
        assert len(sharded["before"]) == 23
        np.testing.assert_allclose(sharded["before"], ddp["before"], atol=1e-5)
        assert sharded["before"] != sharded["answer"]


def test_the_saved_adapter_is_the_gathered_one(folder: Path) -> None:
    saved = load_file(folder / "adapter" / "adapter_model.safetensors")
    end = tensors(folder, "fsdp_checkpointed_end")[0]
    trained = {key.replace(".default", ""): value for key, value in end.items()}
    assert_equal({key: saved[key] for key in trained}, trained)
    assert LoraEncoder.from_pretrained(folder / "adapter").dimension > 0


def test_resumed_sharded_run_ends_where_the_whole_one_does(folder: Path) -> None:
    for found, expected in zip(tensors(folder, "resumed"), tensors(folder, "fsdp_checkpointed_end"), strict=True):
        assert_equal(found, expected)
