"""The benchmarks' own arithmetic, and the two that need no data."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import cost_per_pair, harness, startup
from benchmarks.harness import Row, elsewhere, machine, ratios, save, take_turns
from tests import warm_python
from tests.cli.helpers import ROOT, environment


@pytest.mark.parametrize(
    ("ratio", "reach", "met"),
    [(1.2, ">= 1.2", True), (1.19, ">= 1.2", False), (0.3, "<= 0.3", True), (0.31, "<= 0.3", False), (5.0, "", None)],
)
def test_a_row_says_whether_it_reaches(ratio: float, reach: str, met: bool | None) -> None:
    row = Row("work", "ours 1 s", "peer 2 s", ratio, reach)
    assert row.met is met
    assert ("MISSES" in str(row)) == (met is False)


def test_systems_take_turns_in_changing_order_and_the_first_round_warms_up() -> None:
    calls: list[str] = []

    def system(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    found = take_turns({name: lambda name=name: system(name) for name in "abc"}, rounds=2)  # type: ignore[misc]
    assert "".join(calls) == "abcbcacab"
    assert found == {"a": [6.0, 8.0], "b": [4.0, 9.0], "c": [5.0, 7.0]}
    assert ratios(found["a"], found["b"]) == (pytest.approx((1.5 + 8 / 9) / 2), [1.5, 8 / 9])


def test_growth_sees_a_peak_that_is_gone_and_what_stays() -> None:
    """In a process of its own: what others have left here may be freed meanwhile, more than is kept."""
    code = """
import json, time
from benchmarks.harness import SAMPLE_SECONDS, growth
with growth() as grown:
    # More than glibc ever takes from memory that was freed before (32 MiB): it would be no growth.
    kept = bytearray(b"x" * (40 << 20))
    # Written to, or it would be no resident memory; held for a hundred samples: the sampler is a thread.
    gone = bytearray(b"y" * (128 << 20))
    time.sleep(100 * SAMPLE_SECONDS)
    del gone
print(json.dumps(grown))
"""
    done = warm_python.run(["-c", code], cwd=ROOT, env=environment(), stdout=subprocess.PIPE, check=True)
    grown = json.loads(done.stdout)
    assert 40 << 20 <= grown["kept"] < 56 << 20
    assert grown["peak"] >= 158 << 20


def test_what_is_saved_tells_rows_machine_and_versions(tmp_path: Path) -> None:
    save(tmp_path / "new" / "rows.json", {"a": [Row("w", "o", "p", 2.0, ">= 1", [1.5, 2.5])]}, {"a": 3.0}, quick=True)
    saved = json.loads((tmp_path / "new" / "rows.json").read_text())
    (row,) = saved["results"]["a"]
    assert row == {
        **{"work": "w", "ours": "o", "peer": "p", "ratio": 2.0, "reach": ">= 1"},
        **{"rounds": [1.5, 2.5], "met": True},
    }
    assert saved["machine"] == machine() and saved["quick"] and "torch" in saved["machine"]


def test_help_loads_no_heavy_library() -> None:
    rows = {row.work: row for row in startup.main(quick=True)}
    assert rows["flipped-kd --help loads torch, transformers or numpy"].ratio == 0


@pytest.mark.parametrize("stage", cost_per_pair.STAGES)
def test_each_stage_of_the_cost_of_a_pair_runs(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forked(command: list[str], **options: Any) -> Any:
        return warm_python.run(command[1:], env=environment(), **options)

    monkeypatch.setattr(harness, "subprocess", SimpleNamespace(run=forked))
    found = elsewhere("cost_per_pair", stage, cost_per_pair.WARM_UP)
    assert found["seconds"] > 0 and found["peak"] >= 0


def test_a_benchmark_that_fails_elsewhere_says_why() -> None:
    with pytest.raises(RuntimeError, match="invalid choice: 'nothing'"):
        elsewhere("cost_per_pair", "nothing", 1)


def test_the_command_refuses_unknown_names(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks", "speed"])
    with pytest.raises(SystemExit):
        command.main()
    assert "there is no benchmark 'speed'" in capsys.readouterr().err
