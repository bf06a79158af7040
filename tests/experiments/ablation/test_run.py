"""An ablation: its plan is checked first, finished runs are rows, interrupted ones go on, tables say what rows say."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats
from sklearn.metrics import roc_auc_score

from flipped_kd.evaluation.comparison import SplitScores
from flipped_kd.experiments.ablation import run as ablation
from flipped_kd.experiments.ablation.pair_scores import unpacked_splits
from flipped_kd.experiments.ablation.plan import Group, Plan, read_plan, settings_of
from flipped_kd.experiments.ablation.rows import append_row, read_rows
from flipped_kd.experiments.ablation.run import judge_run, pending, run_folder, run_plan
from flipped_kd.experiments.ablation.tables import (
    Difference,
    compare,
    differences_table,
    group_tables,
    of_run,
    overview,
)
from flipped_kd.utils.locking import sole_writer
from tests import warm_python
from tests.broken_files import break_file
from tests.cli.helpers import closed_pipe, environment, pair_rows, write_rows

ROOT = Path(__file__).parents[3]
PLANS = sorted((ROOT / "recipes" / "configs").glob("ablation_*.yaml"))
PLAIN = {"dist_weight": 0.0, "mcl_weight": 0.0}


@pytest.fixture
def content(student_dir: Path, teacher_dir: Path, tmp_path: Path) -> dict[str, Any]:
    """A plan of one tiny set, as a YAML file would hold it."""
    for name, seed in (("train", 0), ("validation", 1), ("test", 2)):
        write_rows(tmp_path / f"{name}.jsonl", pair_rows(24, seed=seed))
    return {
        "output_dir": str(tmp_path / "out"),
        "seed": 5,
        "base": {
            **{"student": str(student_dir), "teacher": str(teacher_dir), "max_steps": 2, "use_cpu": True},
            **{"per_device_train_batch_size": 8, "save_strategy": "no", "learning_rate": 0.003, "lora_r": 4},
        },
        "sets": {"tiny": {f"{name}_file": f"{name}.jsonl" for name in ("train", "validation", "test")}},
        "groups": [
            {"title": "Main", "seeds": 2, "runs": {"plain": PLAIN, "full": {}}},
            {"title": "Margins", "seeds": 1, "sweeps": {"margin": [0.0, 0.08]}, "runs": {"full": {}}},
        ],
    }


def plan_of(content: dict[str, Any], folder: Path) -> Plan:
    (folder / "plan.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return read_plan(folder / "plan.yaml", folder)


def test_a_row_that_stands_twice_is_one(content: dict[str, Any], tmp_path: Path) -> None:
    metrics = {"teacher": {"f1": 0.5, "auc": 0.6}, "both": {"f1": 0.7, "auc": 0.8}}
    row = {"set": "tiny", "name": "full", "seed": 5, "metrics": metrics}
    assert of_run([row, row | {"seed": 6}, row], "tiny", "full") == [row, row | {"seed": 6}]


def row_with(name: str, seed: int, systems: list[str]) -> dict[str, Any]:
    found = {system: {"f1": 0.7 + seed / 10, "auc": 0.8 + seed / 20} for system in ("teacher", *systems)}
    return {"set": "tiny", "name": name, "seed": seed, "metrics": found}


def test_runs_with_more_seeds_than_all_share_are_shown_once_more() -> None:
    group = Group("Main", ("tiny",), (0, 1), ("full", "new", "old"), "full")
    rows = [row_with(name, seed, ["both"]) for name in ("full", "new", "old") for seed in (0, 1)]
    assert "with more seeds" not in group_tables(rows, group)
    shown = group_tables(rows[:-1], group).split("### tiny")
    assert shown[2].startswith(", the runs with more seeds") and "| new | 2 |" in shown[2] and "old" not in shown[2]
    assert "| old | 1 |" in shown[1] and "| new | 1 |" in shown[1]
    assert "with more seeds" not in group_tables(rows[:-3], group)  # nothing to compare with


def test_a_model_of_vectors_alone_is_compared_by_its_similarity() -> None:
    rows = [row_with("full", seed, ["answer", "similarity", "both"]) for seed in (0, 1)]
    group = Group("Main", ("tiny",), (0, 1), ("full", "vectors"), "full")
    assert "| similarity | tiny F1 |" not in group_tables(rows, group)
    shown = group_tables([*rows, *(row_with("vectors", seed, ["similarity"]) for seed in (0, 1))], group)
    assert "| similarity | tiny F1 | tiny AUC |" in shown and "| vectors | 0.750 ± 0.071 |" in shown


# ---- Plan ----


def test_a_plan_is_its_jobs_seeds_outermost(content: dict[str, Any], tmp_path: Path) -> None:
    plan = plan_of(content, tmp_path)
    assert [job.key for job in plan.jobs] == [
        *(("tiny", name, 5) for name in ("plain", "full", "margin=0.0", "margin=0.08")),
        *(("tiny", name, 6) for name in ("plain", "full")),
    ]
    student, data, config = settings_of(plan.jobs[0], tmp_path / "run", tmp_path / "cache")
    assert not config.distils and config.seed == 5 and student.lora_r == 4
    assert data.train_file == str(tmp_path / "train.jsonl")
    assert settings_of(plan.jobs[3], tmp_path / "run", tmp_path / "cache")[2].margin == 0.08
    assert [group.reference for group in plan.groups] == ["full", "full"]


def test_values_of_a_plan_have_the_types_of_their_settings(content: dict[str, Any], tmp_path: Path) -> None:
    """In settings of all runs, of a set and of a run, and in sweeps."""
    text = yaml.safe_dump(content, sort_keys=False)
    text = text.replace("base:\n", "base:\n  lr_scheduler_kwargs: {min_lr: 1e-6}\n  skip_bad_rows: off\n")
    text = text.replace("  tiny:\n", "  on:\n    text_a_column: on\n")
    text = text.replace("plain:\n", "no:\n      learning_rate: 1e-4\n      teacher_revision: 0012345\n")
    text = text.replace("    margin:\n", "    max_grad_norm:\n    - 2e-1\n    label_column: [yes]\n    margin:\n")
    (tmp_path / "plan.yaml").write_text(text, encoding="utf-8")
    plan = read_plan(tmp_path / "plan.yaml", tmp_path)
    assert {job.set for job in plan.jobs} == {"on"}
    runs = {job.name: job for job in plan.jobs}
    assert set(runs) == {"no", "full", "max_grad_norm=0.2", "label_column=yes", "margin=0.0", "margin=0.08"}
    assert runs["no"].settings["learning_rate"] == 1e-4 and runs["no"].settings["teacher_revision"] == "0012345"
    student, data, config = settings_of(runs["no"], tmp_path / "run", tmp_path / "cache")
    assert (data.text_a_column, data.teacher_revision, data.skip_bad_rows) == ("on", "0012345", False)
    assert config.lr_scheduler_kwargs == {"min_lr": 1e-6} and config.learning_rate == 1e-4
    assert json.loads(json.dumps(runs["no"].resolved))["lr_scheduler_kwargs"] == {"min_lr": 1e-6}


def test_pair_limits_of_an_faq_are_refused_before_anything_is_trained(content: dict[str, Any], tmp_path: Path) -> None:
    content["base"]["max_test_pairs"] = 100
    content["sets"]["faq"] = content["sets"]["tiny"] | {"questions_file": "questions.jsonl"}
    with pytest.raises(ValueError, match=r"of faq: max_test_pairs=100: an FAQ's .* bounded by max_eval_queries"):
        plan_of(content, tmp_path)
    content["sets"]["faq"] |= {"max_test_pairs": None, "max_eval_queries": 20}
    assert {job.set for job in plan_of(content, tmp_path).jobs} == {"tiny", "faq"}


def test_rows_made_elsewhere_count_and_other_settings_do_not(content: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a text\n")
    content["base"]["unlabelled_file"] = "texts.txt"
    plan = plan_of(content, tmp_path)
    assert plan.jobs[0].settings["unlabelled_file"] == str(tmp_path / "texts.txt")
    (tmp_path / "elsewhere").mkdir()
    for name in ("train.jsonl", "validation.jsonl", "test.jsonl", "texts.txt"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    (tmp_path / "elsewhere" / "plan.yaml").write_bytes((tmp_path / "plan.yaml").read_bytes())
    moved = read_plan(tmp_path / "elsewhere" / "plan.yaml", tmp_path / "elsewhere")
    assert [job.resolved for job in moved.jobs] == [job.resolved for job in plan.jobs]
    rows: list[dict[str, Any]] = [
        {"set": job.set, "name": job.name, "seed": job.seed, "resolved": job.resolved} for job in plan.jobs[:2]
    ]
    assert pending(plan, rows) == list(plan.jobs[2:])
    # Whatever has come to be a setting since, and whatever was given for a default.
    del rows[0]["resolved"]["contrast_filter"]
    content["base"]["margin"] = 0.06
    assert len(pending(plan_of(content, tmp_path), rows)) == len(plan.jobs) - 2
    content["base"]["margin"] = 0.1
    with pytest.raises(ValueError, match="run 'plain' of tiny, seed 5 was made with margin=0.06, which is now 0.1"):
        pending(plan_of(content, tmp_path), rows)


@pytest.mark.parametrize("setting", [{"max_steps": 7}, {"num_train_epochs": 10}, {"gradient_accumulation_steps": 4}])
def test_rows_of_another_budget_are_refused_though_one_side_does_not_name_it(
    content: dict[str, Any], tmp_path: Path, setting: dict[str, Any]
) -> None:
    """transformers' own settings are in a row only where they were given."""
    short = {**content, "base": content["base"] | setting}
    for row_of, asked in ((short, content), (content, short)):
        job = plan_of(row_of, tmp_path).jobs[0]
        rows = [{"set": job.set, "name": job.name, "seed": job.seed, "resolved": job.resolved}]
        with pytest.raises(ValueError, match=f"made with {next(iter(setting))}=.* remove that line and the folder "):
            pending(plan_of(asked, tmp_path), rows)
    logs = plan_of({**content, "base": content["base"] | {"logging_steps": 7}}, tmp_path)
    rows[0]["resolved"] = plan_of(content, tmp_path).jobs[0].resolved
    assert len(pending(logs, rows)) == len(logs.jobs) - 1


def test_every_run_has_a_folder_that_every_system_takes(content: dict[str, Any], tmp_path: Path) -> None:
    job = plan_of(content, tmp_path).jobs[0]
    names = ["full", "plain, 250 pairs", "a/b", "a_b", "encoder_layers=last:2", "first:50%?", "ends."]
    folders = [run_folder(replace(job, name=name), tmp_path).parent.name for name in names]
    assert folders[:2] == names[:2] and len(set(folders)) == len(names)
    assert not set('<>:"/\\|?*') & set("".join(folders)) and not any(folder.endswith(".") for folder in folders)


def test_rows_of_other_defaults_are_refused(content: dict[str, Any], tmp_path: Path) -> None:
    """Nothing in the YAML has changed, but what it leaves open."""
    plan = plan_of(content, tmp_path)
    job = plan.jobs[1]
    made = job.resolved | {"contrast_filter": "all"}
    assert (
        job.resolved["contrast_filter"] == "assumed" and job.resolved["train_sampling_strategy"] == "group_by_length"
    )
    with pytest.raises(ValueError, match="contrast_filter='all', which is now 'assumed'"):
        pending(plan, [{"set": job.set, "name": job.name, "seed": job.seed, "resolved": made}])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grops": []}, "unknown key 'grops'"),
        ({"groups": [{"runs": {"full": {}, "plain": {}}, "reference": "ful"}]}, "no run is named 'ful'.*plain"),
        ({"groups": [{"sets": ["other"], "runs": {"full": {}}}]}, "no set is named 'other'.*tiny"),
        ({"groups": [{"runs": {"full": {"margn": 0.1}}}]}, "run 'full' of tiny.*margn.*margin"),
        ({"groups": [{"runs": {"full": {"margin": -1}}}]}, "run 'full' of tiny.*margin=-1"),
        ({"groups": [{"runs": {"full": {"seed": 3}}}]}, "seed is not a setting of a run"),
        ({"groups": [{"runs": {"full": {}}, "seeds": 0}]}, "seeds=0"),
        ({"groups": []}, "names no runs"),
        ({"groups": [{"runs": {"full": {}}}, {"runs": {"full": {"margin": 0.1}}}]}, "in another group with other"),
        ({"sets": "tiny"}, "expected 'key: value' lines"),
        ({"groups": [{"runs": ["plain", "full"]}]}, "group 1: expected 'key: value' lines, found .'plain', 'full'."),
        ({"groups": [{"runs": {"full": {}}, "sweeps": {"margin": 0.1}}]}, "group 1: margin: give a list.*found 0.1"),
        ({"groups": [{"runs": {"full": {}}, "sets": "tiny"}]}, "group 1: sets: give a list.*found 'tiny'"),
        ({"groups": [{"runs": {"full": {}}, "seeds": "two"}]}, "group 1: seeds='two'"),
        ({"groups": [{"runs": {"full": {}}, "seeds": 1.5}]}, "group 1: seeds=1.5"),
        ({"seed": "first"}, "seed='first'"),
        ({"groups": {"main": {"runs": {"full": {}}}}}, "groups: give a list.*found"),
    ],
)
def test_a_wrong_plan_is_refused_before_anything_runs(
    change: dict[str, Any], message: str, content: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        plan_of(content | change, tmp_path)


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.name)
def test_the_plans_of_the_repository_can_be_read(path: Path) -> None:
    plan = read_plan(path, ROOT)
    assert plan.jobs and all(group.reference in group.runs for group in plan.groups)


# ---- Runs ----


@pytest.mark.slow
def test_runs_side_by_side_and_goes_on(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content["groups"] = [{"title": "Main", "seeds": 1, "runs": {"plain": PLAIN, "full": {}, "bad": {"lora_r": 3}}}]
    content["groups"][0]["runs"]["bad"] = {"student": str(tmp_path / "train.jsonl")}
    plan = plan_of(content, tmp_path)
    said: list[str] = []
    with pytest.raises(RuntimeError, match="1 runs have failed: tiny bad, seed 5"):
        run_plan(plan, workers=2, emit=said.append)
    rows = read_rows(plan.output_dir / "rows.jsonl")
    assert sorted(row["name"] for row in rows) == ["full", "plain"]
    by_name = {row["name"]: row for row in rows}
    assert {"teacher", "answer", "similarity", "both", "answer_plus_teacher"} <= by_name["full"]["metrics"].keys()
    assert "llm" in by_name["plain"]["metrics"] and "llm" not in by_name["full"]["metrics"]
    # Of single pairs a row keeps enough to compute its metrics again, and others.
    for row in rows:
        kept = unpacked_splits(row["scores"])
        labels = kept["label"].validation, kept["label"].test
        again = judge_run(kept["answer"], kept["similarity"], kept["teacher"], *labels)
        for system in ("teacher", "answer", "similarity"):
            assert again[system]["auc"] == pytest.approx(row["metrics"][system]["auc"], abs=0.02)
            chosen_by = row["metrics"]["validation_auc"][system]
            assert chosen_by == pytest.approx(roc_auc_score(labels[0], kept[system].validation), abs=0.02)
        assert row["made"]["device"] == "CPU" and row["metrics"]["run"]["steps"] > 0
    assert by_name["plain"]["settings"] == PLAIN
    assert by_name["plain"]["metrics"]["teacher"] == by_name["full"]["metrics"]["teacher"]
    # The same run in this process gives the same numbers; a finished one is not made again.
    later = replace(plan.jobs[1], looks_before=False)  # as the jobs of further seeds
    again = ablation.run_job(later, tmp_path / "again")
    assert set(again["scores"]) == {"answer", "similarity"} and "start" not in again["metrics"]
    assert again["metrics"]["both"] == pytest.approx(by_name["full"]["metrics"]["both"], abs=1e-5)
    monkeypatch.setattr(ablation, "_outcomes", lambda jobs, *rest: iter(()))
    good = Plan(plan.output_dir, tuple(job for job in plan.jobs if job.name != "bad"), plan.groups)
    assert run_plan(good, emit=said.append) == rows
    assert "2 of 2 runs are finished" in said[-1]


def test_settings_are_chosen_by_the_validation_pairs_alone() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2
    # Of normal scores whose means lie d apart, the AUC is Phi(d / sqrt(2)): 0.9 on validation and 0.6 on test.
    systems = {
        name: SplitScores(*(rng.normal(size=400) + distance * labels for distance in (1.81, 0.36)))
        for name in ("answer", "similarity", "teacher")
    }
    metrics = judge_run(systems["answer"], systems["similarity"], systems["teacher"], labels, labels)
    assert metrics["validation_auc"].keys() == {*systems, "both"}
    for name, scores in systems.items():
        assert metrics["validation_auc"][name] == pytest.approx(roc_auc_score(labels, scores.validation))
        assert metrics["validation_auc"][name] == pytest.approx(0.9, abs=0.05)
        assert metrics[name]["auc"] == pytest.approx(roc_auc_score(labels, scores.test))
        assert metrics[name]["auc"] == pytest.approx(0.6, abs=0.06)
    assert metrics["validation_auc"]["both"] > 0.9 > 0.75 > metrics["both"]["auc"]


@pytest.mark.slow
def test_its_reader_may_leave(content: dict[str, Any], tmp_path: Path) -> None:
    """The command and its worker processes show on one pipe, which nobody reads any more."""
    content["groups"] = [{"title": "Main", "seeds": 1, "runs": {"plain": PLAIN | {"logging_steps": 1}}}]
    plan = plan_of(content, tmp_path)
    command = ["recipes/ablation.py", "--workers", 1, "--config", tmp_path / "plan.yaml", "--root", tmp_path]
    with closed_pipe() as gone:
        run = warm_python.run(command, cwd=ROOT, env=environment(), stdout=gone, stderr=gone, timeout=300)
    assert run.returncode == 0
    assert [row["name"] for row in read_rows(plan.output_dir / "rows.jsonl")] == ["plain"]
    assert "plain" in (plan.output_dir / "tables.md").read_text(encoding="utf-8")


def test_broken_models_are_named_before_any_run(content: dict[str, Any], tmp_path: Path) -> None:
    student = Path(shutil.copytree(content["base"]["student"], tmp_path / "student"))
    break_file(student / "model.safetensors", "cut")
    content["groups"][0]["runs"]["full"] = content["groups"][1]["runs"]["full"] = {"student": str(student)}
    with pytest.raises(ValueError, match=r"student/model\.safetensors is broken or truncated"):
        run_plan(plan_of(content, tmp_path))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="processes are looked up in /proc")
def test_a_worker_ends_with_the_ablation_that_was_killed(content: dict[str, Any], tmp_path: Path) -> None:
    """Else it would train on, beside the worker of the command that goes on."""
    content["base"]["max_steps"] = 1_000_000
    plan_of(content, tmp_path)
    command = [sys.executable, "recipes/ablation.py", "--config", tmp_path / "plan.yaml", "--root", tmp_path]
    process = subprocess.Popen([*map(str, command)], cwd=ROOT, env=environment())
    begun: list[Path] = []
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        runs = tmp_path / "out" / "runs"
        assert _comes_true(lambda: any(runs.rglob("fingerprint.txt")), 240)
        begun = [Path("/proc", pid) for pid in children.read_text().split()]
        assert len(begun) >= 1
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert _comes_true(lambda: not any(_runs(child) for child in begun), 30)
    finally:
        process.kill()
        for child in begun:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child.name), signal.SIGKILL)


def _comes_true(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()


def _runs(process: Path) -> bool:
    """Not gone, and not a zombie that nobody has waited for."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_rows_that_end_beside_a_killed_process_are_kept(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool breaks for all that still run; what was finished at the same moment counts."""
    plan = plan_of(content, tmp_path)
    killed, finished, beside, *_ = plan.jobs

    class Pool(contextlib.nullcontext):
        def submit(self, function: Any, job: Any, *rest: Any) -> Future:
            future: Future = Future()
            if job is finished:
                row = {"set": job.set, "name": job.name, "seed": job.seed, "resolved": job.resolved}
                future.set_result(row | {"metrics": {"answer": {"f1": 0.5, "auc": 0.5}}})
            else:
                future.set_exception(BrokenProcessPool("killed"))
            return future

    monkeypatch.setattr(ablation, "ProcessPoolExecutor", lambda *options: Pool(Pool()))
    monkeypatch.setattr(ablation, "wait", lambda running, **_: SimpleNamespace(done=list(running)))
    with pytest.raises(RuntimeError, match=rf"2 runs have failed: .* {killed.name}, .*; .* {beside.name}, "):
        run_plan(plan, workers=3, emit=[].append)
    assert [row["name"] for row in read_rows(plan.output_dir / "rows.jsonl")] == [finished.name]


def test_a_pool_that_breaks_before_a_run_is_submitted_is_told_of(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(content, tmp_path)

    class Pool(contextlib.nullcontext):
        def submit(self, function: Any, job: Any, *rest: Any) -> Future:
            raise BrokenProcessPool("killed")

    monkeypatch.setattr(ablation, "ProcessPoolExecutor", lambda *options: Pool(Pool()))
    with pytest.raises(RuntimeError, match=rf"1 runs? ha.* failed: .* {plan.jobs[0].name}, "):
        run_plan(plan, workers=2, emit=[].append)


def test_no_run_starts_after_the_time(content: dict[str, Any], tmp_path: Path) -> None:
    said: list[str] = []
    plan = plan_of(content, tmp_path)
    assert run_plan(plan, max_minutes=0, emit=said.append) == []
    assert "6 runs are left" in said[-1]


def test_two_ablations_do_not_share_a_folder(content: dict[str, Any], tmp_path: Path) -> None:
    plan = plan_of(content, tmp_path)
    with sole_writer(plan.output_dir), pytest.raises(RuntimeError, match="is being written by another process"):
        run_plan(plan, max_minutes=0)


def test_unknown_peers_and_no_workers_are_refused(content: dict[str, Any], tmp_path: Path) -> None:
    content["groups"] = [{"runs": {"full": {}, "theirs": {"peer": "nobody"}}}]
    with pytest.raises(ValueError, match="no peer is named 'nobody'"):
        run_plan(plan_of(content, tmp_path))
    with pytest.raises(ValueError, match="workers=0"):
        run_plan(plan_of(content, tmp_path), workers=0)


def test_a_line_that_a_kill_has_cut_is_no_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"set": "a", "name": "b", "seed": seed, "resolved": {}} for seed in range(3)]
    for row in rows[:2]:
        append_row(path, row)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(rows[2])[:20])
    assert read_rows(path) == rows[:2]
    append_row(path, rows[2])
    assert read_rows(path) == rows
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))  # as an editor may leave it: a whole row all the same
    append_row(path, rows[0])
    assert read_rows(path) == [*rows, rows[0]]
    path.write_text("nonsense\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(ValueError, match="line 1 is no row"):
        read_rows(path)


# ---- Tables ----


def row(name: str, seed: int, both: float, teacher: float = 0.8) -> dict[str, Any]:
    metrics: dict[str, Any] = {
        system: {"f1": value, "auc": value + 0.01}
        for system, value in (("teacher", teacher), ("answer", both - 0.1), ("both", both), ("similarity", both))
    }
    metrics["run"] = {"dropped_share": {"positive": 0.04, "negative": 0.2}}
    return {"set": "tiny", "name": name, "seed": seed, "metrics": metrics}


def test_a_difference_is_the_paired_t_test() -> None:
    first, second = [0.7, 0.8, 0.75, 0.9], [0.6, 0.75, 0.76, 0.7]
    found = Difference.of(first, second)
    assert found.mean == pytest.approx(np.mean(np.subtract(first, second)))
    assert found.p == pytest.approx(stats.ttest_rel(first, second).pvalue)
    assert (found.wins, found.seeds) == (3, 4)
    assert Difference.of([0.5], [0.4]).p is None
    # Equal gaps, but for rounding, are no spread that a t-test could judge by.
    assert Difference.of([0.8, 0.9, 0.7], [0.7, 0.8, 0.6]).p is None
    with pytest.raises(ValueError, match="2 and 1 seeds"):
        Difference.of([0.5, 0.6], [0.4])


def test_only_seeds_that_both_have_are_compared() -> None:
    rows = [row("full", seed, 0.8 + 0.01 * seed) for seed in range(3)]
    rows += [row("plain", seed, 0.6) for seed in (1, 2, 7)]
    found = compare(of_run(rows, "tiny", "full"), of_run(rows, "tiny", "plain"), ("both", "both"), "f1")
    assert found is not None and found.seeds == 2 and found.mean == pytest.approx(0.215)
    assert compare(rows[:1], rows[-1:], ("both", "both"), "f1") is None


def test_tables_say_what_the_rows_say(content: dict[str, Any], tmp_path: Path) -> None:
    group = plan_of(content, tmp_path).groups[0]
    rows = [row(name, seed, value) for seed in (5, 6) for name, value in (("plain", 0.6), ("full", 0.7 + seed / 100))]
    text = group_tables(rows, group)
    assert "## Main" in text and "### tiny" in text
    assert "| full | 2 | 4%, 20% | 0.6550 ± 0.0071 |" in text
    assert "| plain | +0.1550 ± 0.0071 (2/2" in text  # answer with answer
    assert "| its teacher |" in text
    assert differences_table({"plain": rows}, "full") == ""
    assert group_tables([], group) == "## Main"


def test_the_overview_has_a_column_for_each_set_and_stars_what_is_significant() -> None:
    """By hand: gains of .10 and .1001 over two seeds have p = .0003, less than .05 / 8 of eight cells."""
    group = Group("Main", ("easy", "hard", "not run"), (0, 1), ("plain", "full", "to come"), "full")
    rows = [row("plain", seed, 0.6) | {"set": name} for seed in (0, 1) for name in ("easy", "hard")]
    gains = {"easy": (0.10, 0.1001), "hard": (0.05, -0.03)}
    rows += [row("full", seed, 0.6 + gain) | {"set": name} for name in gains for seed, gain in enumerate(gains[name])]
    rows.append(row("full", 2, 0.9) | {"set": "easy"})  # a seed that the others do not have yet
    lines = overview(rows, group).splitlines()
    assert lines[0] == "| both | easy F1 | easy AUC | hard F1 | hard AUC |"
    assert lines[2] == "| seeds | 2 | 2 | 2 | 2 |"
    assert lines[5].startswith("| full | 0.700 ± 0.000 | ")
    assert lines[9].startswith("| plain | +0.100 ± 0.000 (2/2)\\* | +0.100 ± 0.000 (2/2)\\* | +0.010 ± 0.057 (1/2) |")
    for one in rows:
        one["metrics"] |= {
            "answer_plus_teacher": {"f1": 0.81, "auc": 0.82},
            "both_plus_teacher": {"f1": 0.9, "auc": 0.91},
        }
    rows[4]["metrics"]["start"] = {"f1": 0.77, "auc": 0.78}  # the first seed looks before any step
    more = overview(rows, group).splitlines()
    assert "| full: before any step | 0.770 (1 of 2) | 0.780 (1 of 2) | | |" in more
    assert "| plain: answer + teacher | 0.810 ± 0.000 | 0.820 ± 0.000 | 0.810 ± 0.000 | 0.820 ± 0.000 |" in more
    assert "| full: both + teacher | 0.900 ± 0.000 | 0.910 ± 0.000 | 0.900 ± 0.000 | 0.910 ± 0.000 |" in more
    assert not [line for line in overview(rows, group, "answer").splitlines() if "before any step" in line]
    assert overview([], group) == "" and "minus" not in overview(rows[:4], group)
