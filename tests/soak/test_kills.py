"""Runs killed at every stage of saving and at random moments end as the one that was not: see kills.py."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from tests import warm_python
from tests.cli.helpers import ROOT, environment
from tests.soak.kills import Kill, table
from tests.soak.stages import FIRST, LAST, REPLACING, SECOND, STAGES, THIRD

KILLS = 3
# What each kill leaves in the staging folder; "checkpoint-*" there is a save that was not finished.
LEFT = {
    "nothing written": [],
    "all, nothing old removed": [],
    "half of an old one removed": [f"removed-{FIRST}"],
    REPLACING.name: [LAST, f"replaced-{LAST}"],
}
# Whole but for their names: the next process gives them these.
WHOLE = ("all but the name", REPLACING.name)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the soak found, in a process of its own: this one may have threads, which no fork survives."""
    folder = tmp_path_factory.mktemp("soak")
    command = ["-m", "tests.soak.kills", "--kills", KILLS, "--stages"]
    run = warm_python.run(
        [*command, "--folder", folder / "runs", "--report", folder / "report.json"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (folder / "report.json").is_file(), run.stderr[-3000:]
    return json.loads((folder / "report.json").read_text(encoding="utf-8")) | {"status": run.returncode}


@pytest.mark.slow
def test_random_kills(report: dict[str, Any]) -> None:
    assert len(report["kills"]) == KILLS
    assert report["outcomes"] and not any(report["outcomes"])
    assert report["status"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(STAGES) + 1), ids=[stage.name for stage in (*STAGES, REPLACING)])
def test_killed_while_saving(report: dict[str, Any], number: int) -> None:
    fact, stage = report["stages"][number], (*STAGES, REPLACING)[number]
    assert fact["stage"] == stage.name and fact["killed"] == -signal.SIGKILL
    # A folder with a checkpoint's name is a checkpoint, whatever the process was doing.
    assert fact["named"] and not any(fact["named"].values())
    assert fact["left"] == LEFT.get(stage.name, [THIRD])
    # The incomplete one is named in the log, the newest complete one is taken, nothing is left over.
    unfinished = [name for name in fact["left"] if name.startswith("checkpoint-")]
    assert fact["told"] == ([] if stage.name in WHOLE else unfinished)
    assert fact["resumed"]
    assert fact["kept"] == [THIRD, LAST]
    assert fact["differences"] == []


def test_stages_differ_in_what_is_resumed() -> None:
    assert {stage.newest for stage in (*STAGES, REPLACING)} == {SECOND, THIRD, LAST}


def test_the_table_counts_what_was_hit() -> None:
    kills = [
        Kill(0, 1.0, "saving checkpoint-2", True, "step 0"),
        Kill(0, 1.0, "saving checkpoint-4", False, "checkpoint-2"),
        Kill(1, 1.0, "training", False, "checkpoint-2"),
    ]
    lines = [line.rsplit(maxsplit=1) for line in table(kills, [[], ["a weight"]]).splitlines()]
    found = {name.strip(): int(count) for name, count in lines}
    assert found["kills"] == 3 and found["while saving"] == 2 and found["while training"] == 1
    assert found["that left an incomplete checkpoint"] == found["before the first checkpoint"] == 1
    assert found["runs killed and resumed"] == 2 and found["equal bit for bit"] == 1
