"""recipes/ablation.py: which mini models it builds, and that it shows tables of rows that are there."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import recipes.ablation as recipe
from flipped_kd.experiments.ablation.plan import read_plan

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "recipes" / "configs"


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, Any]]:
    """What would be built: (folder, rows or texts, width)."""
    made: list[tuple[str, int, Any]] = []

    def teacher(pairs: Any, folder: Path, seed: int) -> Path:
        made.append((folder.name, len(pairs), None))
        return folder

    def student(texts: Any, folder: Path, seed: int, settings: Any) -> Path:
        made.append((folder.name, len(texts), settings.hidden_size))
        return folder

    monkeypatch.setattr(recipe, "build_mini_teacher", teacher)
    monkeypatch.setattr(recipe, "build_mini_student", student)
    return made


def test_mini_models_are_built_once_a_set_and_named_in_every_run(built: list[tuple[str, int, Any]]) -> None:
    plan = read_plan(CONFIGS / "ablation_sweeps.yaml", ROOT)
    ready = recipe.with_mini_models(plan)
    assert built == [
        *(("mini", 4800, 128), ("mini", 2400, None)),
        *(("mini", 4800, 128), ("mini-med_mini", 1800, None)),
        *(("mini-64", 4800, 64), ("mini", 2400, None)),
        *(("mini-256", 4800, 256), ("mini", 2400, None)),
    ]
    for job in ready.jobs:
        for role in ("student", "teacher"):
            assert Path(job.settings[role]).parts[-3:-1] == (job.set, role)


def test_sets_that_name_their_models_are_left_alone(built: list[tuple[str, int, Any]]) -> None:
    plan = read_plan(CONFIGS / "ablation_main.yaml", ROOT)
    assert recipe.with_mini_models(plan).jobs == plan.jobs and built == []


def test_a_run_may_take_a_mini_model_of_its_own(built: list[tuple[str, int, Any]]) -> None:
    plan = read_plan(CONFIGS / "ablation_quick.yaml", ROOT)
    runs = {"mini-64": {"student": "mini-64"}, "another": {"student": "minilm-x", "teacher": "my/teacher"}}
    jobs = tuple(
        dataclasses.replace(plan.jobs[0], name=name, settings={**plan.jobs[0].settings, **changes})
        for name, changes in runs.items()
    )
    small, other = recipe.with_mini_models(dataclasses.replace(plan, jobs=jobs)).jobs
    assert Path(small.settings["student"]).name == "mini-64" and built == [("mini-64", 4800, 64), ("mini", 2400, None)]
    assert (other.settings["student"], other.settings["teacher"]) == ("minilm-x", "my/teacher")


def test_tables_of_finished_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = read_plan(CONFIGS / "ablation_quick.yaml", ROOT)
    metrics = {name: {"f1": 0.5, "auc": 0.75} for name in ("teacher", "answer", "similarity", "both")}
    rows: list[dict[str, Any]] = [
        {"set": job.set, "name": job.name, "seed": job.seed, "resolved": job.resolved, "metrics": metrics}
        for job in recipe.with_mini_models(plan, build=False).jobs
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe.main(["--quick", "--tables", "--rows", str(tmp_path / "rows.jsonl"), "--output_dir", str(tmp_path)])
    assert "| full | 2 | | 0.5000 ± 0.0000 |" in capsys.readouterr().out
    assert "| full | 2 |" in (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["runs_1_fin_mini.png"]
    rows[0]["resolved"]["margin"] = 0.5
    (tmp_path / "other.jsonl").write_text(json.dumps(rows[0]) + "\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="made with margin=0.5, which is now 0.06"):
        recipe.main(["--quick", "--tables", "--rows", str(tmp_path / "other.jsonl"), "--output_dir", str(tmp_path)])
    with pytest.raises(SystemExit, match="no such file"):
        recipe.main(["--config", str(tmp_path / "absent.yaml")])
    with pytest.raises(SystemExit):
        recipe.main([])
