"""The soak of the server's memory: briefly, and with a leak, which it sees. The hour is in docs/results.md."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.soak.serving_memory import Sample, draw, growth

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="RssAnon is read from /proc")


@pytest.mark.slow
def test_every_route_is_asked_and_nothing_fails(tmp_path: Path) -> None:
    """Half a minute: enough for every kind of request, not to tell a leak from what pools and caches take at first."""
    report, plot = tmp_path / "report.json", tmp_path / "plot.svg"
    options = ["--minutes", "0.5", "--pause", "0.02", "--allowed", "30", "--report", report, "--plot", plot]
    run = subprocess.run(
        [sys.executable, "-m", "tests.soak.serving_memory", *map(str, options)],
        cwd=REPOSITORY,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert run.returncode == 0, (run.stdout + run.stderr)[-3000:]
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    assert found["faults"] == [] and plot.read_text(encoding="utf-8").count("<svg") == 1
    assert {name.rpartition(" ")[0] for name in found["statuses"]} >= {"rerank", "search", "reload", "too large"}
    assert max(sample["threads"] for sample in found["samples"]) < 40
    assert max(sample["files"] for sample in found["samples"]) < 60


def test_a_leak_shows_as_growth() -> None:
    flat = [Sample(minute / 10, 400 + 20 * min(1, minute / 100), 5, 9, 10 * minute) for minute in range(601)]
    assert growth(flat) == 0
    leaking = [Sample(s.minutes, s.memory + s.requests / 500, 5, 9, s.requests) for s in flat]
    assert growth(leaking) == pytest.approx(8, abs=0.1)


def test_it_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw([Sample(n, 400.0, 5, 9, n) for n in range(10)], "a title", tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").read_text(encoding="utf-8").count("<svg") == 1
