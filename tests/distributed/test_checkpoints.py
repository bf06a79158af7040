"""Two ranks save one checkpoint, and go on from it as if they had not stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from flipped_kd.training.checkpoint_files import missing_from, read_manifest
from tests.distributed.checkpoint_run import SAMPLING, SAVED, STEPS
from tests.distributed.launching import launch
from tests.distributed.left import RANKS, facts, tensors
from tests.invariants.training import assert_equal

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def folder(inputs: Callable[..., Path]) -> Path:
    """What the ranks of checkpoint_run.py have left behind."""
    folder = inputs()
    launch("tests.distributed.checkpoint_run", folder)
    return folder


@pytest.mark.parametrize("sampling", SAMPLING)
def test_resumed_in_the_second_epoch(folder: Path, sampling: str) -> None:
    names = f"whole_{sampling}", f"resumed_{sampling}"
    for expected, found in zip(*(tensors(folder, name) for name in names), strict=True):
        assert_equal(found, expected)
    for whole, resumed in zip(*(facts(folder, name) for name in names), strict=True):
        assert resumed["rows"] == whole["rows"][SAVED:]
        assert resumed["log"] == whole["log"]
        assert resumed["held"] == [f"checkpoint-{SAVED}"]


@pytest.mark.parametrize("sampling", SAMPLING)
def test_every_row_comes_once_an_epoch(folder: Path, sampling: str) -> None:
    ranks = [whole["rows"] for whole in facts(folder, f"whole_{sampling}")]
    for epoch in (slice(0, 8), slice(8, STEPS)):
        rows = [row for rank in ranks for batch in rank[epoch] for row in batch]
        assert len(rows) == len(set(rows))


@pytest.mark.parametrize("sampling", SAMPLING)
def test_one_checkpoint_of_both_ranks(folder: Path, sampling: str) -> None:
    checkpoint = folder / f"whole_{sampling}" / f"checkpoint-{STEPS}"
    assert [path for path in checkpoint.parent.iterdir() if path.name != "_teacher_cache"] == [checkpoint]
    for rank in RANKS:
        assert missing_from(checkpoint, f"rng_state_{rank}.pth") == []
    manifest = read_manifest(checkpoint)
    assert manifest is not None and manifest["processes"] == len(RANKS)
    assert {f"rng_state_{rank}.pth" for rank in RANKS} < manifest["files"].keys()


def test_the_hook_is_called_on_every_rank(folder: Path) -> None:
    assert [fact["hooked"] for fact in facts(folder, "whole_random")] == [3, 3]  # steps 5, 10 and 12


def test_ranks_with_disks_of_their_own_agree_or_stop(folder: Path) -> None:
    for fact in facts(folder, "own"):
        assert fact["common"] == "checkpoint-5"
        assert "[[10], [12]]" in fact["error"] and "save_on_each_node=True" in fact["error"]
