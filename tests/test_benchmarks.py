"""The benchmarks' own arithmetic, and the two that need no data."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sentence_transformers.util import cos_sim, dot_score, semantic_search

from benchmarks import __main__ as command
from benchmarks import contrast_memory, cost_per_pair, encoder_start, harness, searching, startup, training_step
from benchmarks.harness import Row, elsewhere, machine, ratios, save, take_turns
from flipped_kd.teachers import loading
from flipped_kd.teachers.bi_encoder import BiEncoderTeacher
from tests import warm_python
from tests.cli.helpers import ROOT, environment
from tests.conftest import make_pairs


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
    path = tmp_path / "new" / "rows.json"
    save(path, "a", [Row("w", "o", "p", 2.0, ">= 1", [1.5, 2.5])], 3.0, quick=True)
    kept = json.loads(path.read_text())["benchmarks"]["a"]
    (row,) = kept["rows"]
    assert row == {
        **{"work": "w", "ours": "o", "peer": "p", "ratio": 2.0, "reach": ">= 1"},
        **{"rounds": [1.5, 2.5], "met": True},
    }
    assert kept["machine"] == machine() and kept["quick"] and kept["seconds"] == 3.0 and "torch" in kept["machine"]


def test_a_benchmark_run_by_name_leaves_the_rows_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "rows.json"
    ratio = {"inference": 2.0, "searching": 1.0}
    for name in ratio:
        monkeypatch.setitem(command.TABLE, name, lambda quick, name=name: [Row(name, "o", "p", ratio[name], ">= 2")])

    def run(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["benchmarks", "--json", str(path), *arguments])
        command.main()
        return capsys.readouterr().out.splitlines()[-1]

    assert run("inference", "searching") == f"Rows: {path}. Not reached: searching."
    monkeypatch.setattr(harness, "machine", lambda: {"processor": "another"})
    ratio["inference"] = 3.0
    assert run("inference", "--quick") == f"Rows: {path}. All reached."
    kept = json.loads(path.read_text())["benchmarks"]
    assert {name: (entry["quick"], entry["rows"][0]["ratio"]) for name, entry in kept.items()} == {
        "inference": (True, 3.0),
        "searching": (False, 1.0),
    }
    assert kept["inference"]["machine"] == {"processor": "another"} != kept["searching"]["machine"]
    assert list(tmp_path.iterdir()) == [path]
    for content in ("{", '{"results": {}}'):
        path.write_text(content)
        with pytest.raises(SystemExit):
            run("inference")
        assert "remove it, or give another file by --json" in capsys.readouterr().err and path.read_text() == content


def test_what_was_skipped_is_neither_reached_nor_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "rows.json"
    monkeypatch.setitem(command.TABLE, "inference", lambda quick: [])
    monkeypatch.setitem(command.TABLE, "searching", lambda quick: [Row("work", "o", "p", 2.0, ">= 2")])
    monkeypatch.setattr("sys.argv", ["benchmarks", "--json", str(path), "inference"])
    command.main()
    said = capsys.readouterr().out
    assert said.endswith("Nothing was measured: the data of inference are not there.\n") and "reached" not in said
    assert not path.exists()
    monkeypatch.setattr("sys.argv", ["benchmarks", "--json", str(path), "inference", "searching"])
    command.main()
    *_, rows, skipped = capsys.readouterr().out.splitlines()
    assert rows.endswith("All reached.") and skipped == "Not measured: the data of inference are not there."
    assert list(json.loads(path.read_text())["benchmarks"]) == ["searching"]


def test_a_system_that_tells_no_memory_is_refused_before_anything_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (training_step, contrast_memory):
        monkeypatch.setattr(module, "missing", lambda *_: False)
        for name in ("take_turns", "elsewhere"):
            monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("timed"), raising=False)
    monkeypatch.setattr(training_step, "STUDENT", training_step.STAND_IN)
    (tmp_path / "other").write_text("VmHWM: 1 kB\n")
    for absent in ("status", "other"):
        monkeypatch.setattr(harness, "STATUS", tmp_path / absent)
        for module in (training_step, contrast_memory):
            with pytest.raises(RuntimeError, match="does not tell RssAnon in .*: run on Linux 4.5 or later"):
                module.main(quick=True)


def test_the_peer_of_a_search_takes_dot_products_as_we_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Ours:
        encoder = SimpleNamespace(dimension=4)

        def search(self, *_: Any, **__: Any) -> None:
            time.sleep(0.001)

    class Peer:
        def get_embedding_dimension(self) -> int:
            return 4

        def encode(self, queries: list[str], **_: Any) -> torch.Tensor:
            return torch.nn.functional.normalize(torch.ones(len(queries), 4), dim=-1)

    scored: list[Any] = []

    def recorded(queries: Any, corpus: Any, score_function: Any = cos_sim, **options: Any) -> Any:
        scored.append(score_function)
        return semantic_search(queries, corpus, score_function=score_function, **options)

    for name, value in {
        "TEXTS": 100,
        "missing": lambda *_: False,
        "json_lines": lambda _: [{"query": "where is my card"}],
        "merged_model": lambda _: tmp_path,
        "FlippedMatcher": SimpleNamespace(from_pretrained=lambda *_, **__: Ours()),
        "CrossEncoder": lambda *_, **__: SimpleNamespace(rank=lambda *_: None),
        "SentenceTransformer": lambda *_, **__: Peer(),
        "semantic_search": recorded,
    }.items():
        monkeypatch.setattr(searching, name, value)
    assert len(searching.main(quick=True)) == 3
    assert scored and set(scored) == {dot_score}


def test_no_row_of_the_start_of_a_counts_the_teacher(
    student_dir: Path,
    teacher_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    for seed, name in enumerate(("train", "validation", "test")):
        make_pairs(40, seed=seed).to_json(tmp_path / f"{name}.jsonl")
    computed: list[bool] = []
    counting = [False]
    compute = BiEncoderTeacher.compute

    def recorded(self: BiEncoderTeacher, *arguments: Any, **options: Any) -> Any:
        computed.append(counting[0])
        return compute(self, *arguments, **options)

    @contextmanager
    def growth() -> Iterator[dict[str, int]]:
        monkeypatch.setattr(loading, "model_class_of", lambda *_: pytest.fail("the teacher is loaded"))
        counting[0] = True
        yield {"peak": 0}
        counting[0] = False

    monkeypatch.setattr(BiEncoderTeacher, "compute", recorded)
    monkeypatch.setattr(encoder_start, "growth", growth)
    monkeypatch.setattr(encoder_start, "use_cpu_threads", lambda _: None)
    monkeypatch.setattr(encoder_start, "ENCODERS", {name: {"encoder_rank": 8} for name in ("first", "second")})
    models = ["--teacher", str(teacher_dir), "--student", str(student_dir)]
    monkeypatch.setattr("sys.argv", ["encoder_start", "--data", str(tmp_path), *models])
    encoder_start.main()
    assert capsys.readouterr().out.count("\n") == 4
    assert computed and not any(computed)


def test_help_loads_no_heavy_library() -> None:
    rows = {row.work: row for row in startup.main(quick=True)}
    assert rows["flipped-kd --help loads torch, transformers or numpy"].ratio == 0


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs elsewhere is forked from a warm Python."""

    def run(command: list[str], **options: Any) -> Any:
        assert command[0] == sys.executable
        return warm_python.run(command[1:], env=environment(), **options)

    monkeypatch.setattr(harness, "subprocess", SimpleNamespace(run=run))


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("stage", cost_per_pair.STAGES)
def test_each_stage_of_the_cost_of_a_pair_runs(stage: str) -> None:
    found = elsewhere("cost_per_pair", stage, cost_per_pair.WARM_UP)
    assert found["seconds"] > 0 and found["peak"] >= 0


@pytest.mark.usefixtures("forked")
def test_a_benchmark_that_fails_elsewhere_says_why() -> None:
    with pytest.raises(RuntimeError, match="invalid choice: 'nothing'"):
        elsewhere("cost_per_pair", "nothing", 1)


def test_the_command_refuses_unknown_names(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks", "speed"])
    with pytest.raises(SystemExit):
        command.main()
    assert "there is no benchmark 'speed'" in capsys.readouterr().err
