"""Table commands go on where they were killed, in one process and in several."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flipped_kd.cli.main import main
from flipped_kd.data.table_jobs import TableJob
from tests.cli.helpers import (
    failing_at,
    pair_rows,
    quietly,
    start,
    write_rows,
)
from tests.distributed.launching import Ranks

# Enough that a process is killed long before it has read them all.
ROWS = 120


def wait_for_parts(folder: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 120
    while len(list(folder.glob("part-*"))) < count:
        assert process.poll() is None, process.communicate()[1].decode()[-3000:]
        assert time.monotonic() < until
        time.sleep(0.005)


def test_killed_and_repeated(adapter: Path, tmp_path: Path) -> None:
    """kill -9 in the middle; the same command computes the rest and gives the same bytes."""
    pairs = write_rows(tmp_path / "pairs.jsonl", pair_rows(ROWS))
    target = tmp_path / "out.parquet"
    command = ("predict", adapter, pairs, "-o", target, "--part-rows", 3, "--batch-size", 2, "--quiet")
    process = start(*command)
    wait_for_parts(tmp_path / "out.parquet.partial", 3, process)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    folder = tmp_path / "out.parquet.partial"
    finished = {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*")}
    assert 3 <= len(finished) < ROWS // 3 and not target.exists()
    # Before it goes on: other options, another model, other input are refused and touch nothing.
    assert quietly(*command[:-1], "--score", "answer") == 2
    other = write_rows(tmp_path / "other.jsonl", pair_rows(ROWS, seed=1))
    assert quietly("predict", adapter, other, *command[3:-1]) == 2
    changed = tmp_path / "changed"
    shutil.copytree(adapter, changed)
    contract = json.loads((changed / "match_score.json").read_text())
    contract["log_odds"]["both"]["bias"] += 1
    (changed / "match_score.json").write_text(json.dumps(contract))
    assert quietly("predict", changed, *command[2:-1]) == 2
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*")} == finished
    # A smaller batch is allowed: that is what one does after running out of memory.
    assert main([*map(str, command)]) == 0
    assert not folder.exists()
    whole = tmp_path / "whole.parquet"
    assert quietly("predict", adapter, pairs, "-o", whole, *command[5:-1]) == 0
    assert target.read_bytes() == whole.read_bytes()
    assert pq.read_table(target)["number"].to_pylist() == list(range(ROWS))


def test_several_processes_need_files(adapter: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert quietly("predict", adapter, pairs) == 2
    assert "give both input and --output a name" in capsys.readouterr().err


@pytest.mark.distributed
def test_two_processes_go_on_where_one_has_stopped(adapter: Path, tmp_path: Path) -> None:
    """Two ranks on the CPU give the bytes of one process; parts belong to no rank."""
    pairs = write_rows(tmp_path / "pairs.jsonl", pair_rows(43))
    target, folder = tmp_path / "two.jsonl", tmp_path / "two.jsonl.partial"
    command = ["predict", adapter, pairs, "--part-rows", 4]
    assert quietly(*command, "-o", tmp_path / "one.jsonl") == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TableJob, "_write", failing_at(3))
        assert quietly(*command, "-o", target) == 1
    begun = {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*")}
    assert len(begun) == 3
    on_cpu = {"ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": "no"}
    said = Ranks("flipped_kd", *command, "-o", target, **on_cpu).finish()
    assert target.read_bytes() == (tmp_path / "one.jsonl").read_bytes() and not folder.exists()
    assert said.count("two.jsonl: 43 rows") == 1  # said by the main process alone
