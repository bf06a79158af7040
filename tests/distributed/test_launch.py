"""The launch configurations that a CPU can run: what they start, and what is left when a rank dies."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from tests.distributed.config_run import SAVED, STEPS
from tests.distributed.launching import accelerate_launch, configured, finish, launch, launched_environment
from tests.distributed.left import RANKS, facts, tensors
from tests.invariants.training import assert_equal

ON_CPU = ("--num_processes", "2", "--main_process_port", "0")
pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def folder(inputs: Callable[..., Path], pairs: datasets.Dataset, held_out: datasets.Dataset) -> Path:
    """All that config_run.py needs."""
    folder = inputs()
    for split, rows in (("train", pairs), ("validation", held_out), ("test", held_out)):
        rows.to_json(str(folder / f"{split}.jsonl"))
    return folder


@pytest.fixture(scope="module")
def ddp(folder: Path) -> Path:
    """What ddp.yaml has left: a run that lost a rank, its repetition, two that went through, and a recipe.

    The first is started by accelerate launch itself, the others are told what it tells its ranks.
    """
    log = finish(accelerate_launch("ddp", ON_CPU, "tests.distributed.config_run", folder, "killed"), succeeds=False)
    assert "SIGKILL" in log
    assert sorted(path.name for path in (folder / "resumed").glob("checkpoint-*")) == [f"checkpoint-{SAVED}"]
    told = launched_environment(*configured("ddp"), *ON_CPU)
    launch("tests.distributed.config_run", folder, "resumed,whole,scored,recipe", **told)
    return folder


@pytest.fixture(scope="module")
def nodes(folder: Path) -> Path:
    """What multi_node.yaml has left, started twice on this machine as if on two."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = ("--num_processes", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", port)
    launchers = [
        accelerate_launch(
            "multi_node", (*shared, "--machine_rank", str(rank)), "tests.distributed.config_run", folder, "nodes"
        )
        for rank in RANKS
    ]
    for launcher in launchers:
        finish(launcher)
    return folder


def test_ddp_starts_two_ranks_that_keep_together(ddp: Path) -> None:
    first, second = facts(ddp, "whole")
    assert first["distributed_type"] == second["distributed_type"] == "MULTI_CPU"
    assert first["world_size"] == second["world_size"] == 2
    assert (first["local_index"], second["local_index"]) == RANKS
    assert first["wrapped"] == "DistributedDataParallel"
    assert not {row for rows in first["rows"] for row in rows} & {row for rows in second["rows"] for row in rows}
    assert_equal(*tensors(ddp, "whole"))


def test_a_run_that_lost_a_rank_goes_on_as_if_it_had_not(ddp: Path) -> None:
    for whole, resumed in zip(facts(ddp, "whole"), facts(ddp, "resumed"), strict=True):
        assert len(whole["losses"]) == STEPS
        assert resumed["losses"] == whole["losses"][SAVED:]
    assert_equal(tensors(ddp, "resumed")[0], tensors(ddp, "whole")[0])


def test_scoring_before_training_changes_nothing(ddp: Path) -> None:
    for whole, scored in zip(facts(ddp, "whole"), facts(ddp, "scored"), strict=True):
        assert scored["wrapped"] == "DistributedDataParallel"
        assert scored["losses"] == whole["losses"]
    for scored in tensors(ddp, "scored"):
        assert_equal(scored, tensors(ddp, "whole")[0])


def test_a_recipe_shares_its_pairs_over_the_ranks(ddp: Path) -> None:
    report = json.loads((ddp / "recipe" / "report.json").read_text("utf-8"))
    assert report["device"]["processes"] == 2
    # 16 pairs, 4 a rank and step.
    assert [report["runs"][0][system]["steps"] for system in ("llm_sft", "llm_flipped")] == [2, 2]
    assert (ddp / "recipe" / "adapter_model.safetensors").is_file()


def test_two_nodes_train_as_one(ddp: Path, nodes: Path) -> None:
    for whole, node in zip(facts(ddp, "whole"), facts(nodes, "nodes"), strict=True):
        assert node["distributed_type"] == "MULTI_CPU"
        assert (node["world_size"], node["local_index"]) == (2, 0)
        assert node["losses"] == whole["losses"]
    for node in tensors(nodes, "nodes"):
        assert_equal(node, tensors(ddp, "whole")[0])
