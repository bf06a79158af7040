"""The recipe as a user runs it: through accelerate launch, on the embedded pairs, with tiny models."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from peft import PeftModel
from safetensors.torch import load_file

from flipped_kd import FlippedMatcher
from flipped_kd.evaluation.comparison import SYSTEMS, markdown_table
from flipped_kd.experiments.arguments import DataArguments, StudentArguments
from flipped_kd.experiments.compare import run_comparison
from flipped_kd.experiments.report.page import write_page
from flipped_kd.experiments.splits import SPLITS, load_splits
from flipped_kd.training.config import FlippedDistillationConfig
from flipped_kd.utils.locking import sole_writer
from tests import warm_python
from tests.broken_files import break_file
from tests.cli.helpers import closed_pipe, environment
from tests.conftest import comparison_settings
from tests.distributed.launching import launched_environment

ROOT = Path(__file__).parents[2]
RECIPE = "recipes/train_fin.py"
ONE_PROCESS = ("--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")


def launch(*flags: object) -> subprocess.CompletedProcess[str]:
    """Run the recipe by accelerate launch with these flags, offline, from the repository root."""
    command = [sys.executable, "-m", "accelerate.commands.launch", *ONE_PROCESS, RECIPE, "--cpu_threads", "1"]
    command += map(str, flags)
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)


def recipe(*flags: object, **streams: Any) -> subprocess.CompletedProcess[str]:
    """Run it as `launch` does, forked from a warm Python, in the environment that accelerate launch makes."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    command = [RECIPE, "--cpu_threads", 1, *flags]
    launched = environment(**launched_environment(*ONE_PROCESS))
    return warm_python.run(command, cwd=ROOT, env=launched, text=True, timeout=300, **streams)


@pytest.fixture(scope="module")
def finished(
    student_dir: Path, teacher_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[object], str]:
    """(output folder, flags, screen) of one run of two steps."""
    out = tmp_path_factory.mktemp("recipe") / "out"
    flags = ["--student", student_dir, "--teacher", teacher_dir, "--output_dir", out, "--max_train_pairs", 64]
    flags += [
        "--max_validation_pairs",
        100,
        "--max_test_pairs",
        200,
        "--max_steps",
        2,
        "--per_device_train_batch_size",
        8,
        "--save_strategy",
        "no",
    ]
    run = launch(*flags)
    assert run.returncode == 0, run.stderr[-3000:]
    return out, flags, run.stdout


@pytest.mark.slow
def test_everything_promised_is_written(finished: tuple[Path, list[object], str]) -> None:
    out, _, screen = finished
    report = json.loads((out / "report.json").read_text())
    # The tiny teacher has fewer numbers than the adapter has rows, so A starts at random.
    assert list(report["systems"]) == [name for name in SYSTEMS if name != "llm_flipped_start"]
    for name, system in report["systems"].items():
        for metric in ("f1", "accuracy", "auc", "average_precision"):
            assert 0 <= system[metric] <= 1, (name, metric)
            assert system[metric] == pytest.approx(np.mean(system["by_seed"][metric]))
    assert report["seeds"] == [42]
    assert report["data"]["train"] == 64 and report["data"]["test"] == 200
    assert set(report["runs"][0]["llm_flipped"]["dropped_share"]) == {"positive", "negative"}
    assert report["seconds"] > 0 and report["runs"][0]["llm_sft"]["steps"] == 2
    assert markdown_table(report) in screen and markdown_table(report) in (out / "report.md").read_text()
    names = {"adapter_model.safetensors", "adapter_config.json", "pair_prompt.json", "lora_encoder.json"}
    assert names | {"match_score.json", "tokenizer.json"} <= {path.name for path in out.iterdir()}
    assert not list(out.rglob("training_args.bin")) and not list(out.rglob(".tmp-*"))


@pytest.mark.slow
def test_report_names_no_path_of_the_machine(finished: tuple[Path, list[object], str]) -> None:
    out, _, _ = finished
    assert str(out.parent) not in (out / "report.json").read_text().replace(json.dumps(str(out)), "")
    assert str(ROOT) not in (out / "report.json").read_text()


@pytest.mark.slow
def test_a_finished_run_is_not_repeated_and_others_are_not_overwritten(
    finished: tuple[Path, list[object], str],
) -> None:
    out, flags, screen = finished
    before = load_file(out / "adapter_model.safetensors")
    again = recipe(*flags)
    assert again.returncode == 0 and again.stdout.count("finished before") == 2
    assert again.stdout.split("| system")[1] == screen.split("| system")[1]
    after = load_file(out / "adapter_model.safetensors")
    assert all((before[name] == after[name]).all() for name in before)
    other = recipe(*flags, "--learning_rate", 0.5)
    assert other.returncode != 0 and "other settings" in other.stderr


@pytest.mark.slow
def test_a_recipe_whose_reader_has_gone_ends_as_its_work_does(finished: tuple[Path, list[object], str]) -> None:
    out, flags, _ = finished
    for name in ("report.json", "README.md"):
        (out / name).unlink()
    with closed_pipe() as gone:
        run = recipe(*flags, stdout=gone, stderr=gone)
    assert run.returncode == 0
    assert (out / "report.json").is_file() and "flipped: both" in (out / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_adapter_loads_with_peft_alone(finished: tuple[Path, list[object], str], student) -> None:
    model = PeftModel.from_pretrained(student, finished[0])
    assert model.peft_config["default"].r == 32


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train_file", "pairs.jsonl"], "Give --validation_file and --test_file, labelled pairs."),
        (["--seeds", "0"], "seeds=0"),
        (["--learning_rte", "1"], "learning_rte"),
    ],
)
def test_bad_flags_are_refused_before_any_work(flags: list[str], message: str, tmp_path: Path) -> None:
    run = recipe(*flags, "--output_dir", tmp_path / "out", "--student", "x", "--teacher", "x")
    assert run.returncode != 0 and message in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "out" / "runs").exists()


def test_all_settings_that_are_missing_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="settings are missing") as found:
        run_comparison(StudentArguments(), DataArguments(test_file="t.csv"), FlippedDistillationConfig(str(tmp_path)))
    wanted = ("--student", "--teacher", "--train_file and --validation_file,")
    assert all(name in str(found.value) for name in wanted) and "--test_file" not in str(found.value)


def test_unknown_key_of_the_yaml_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("learning_rte: 0.1\n")
    run = recipe("--config", config)
    assert run.returncode != 0 and "learning_rate" in run.stderr


def test_pairs_that_splits_share_are_warned_of_and_told(
    student_dir: Path, teacher_dir: Path, pairs: datasets.Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {}
    for split, rows in (("train", range(64)), ("validation", range(40, 64)), ("test", range(0, 24))):
        files[f"{split}_file"] = str(tmp_path / f"{split}.jsonl")
        pairs.select(rows).to_json(files[f"{split}_file"])
    config = FlippedDistillationConfig(
        output_dir=str(tmp_path / "out"), max_steps=1, per_device_train_batch_size=8, disable_tqdm=True
    )
    data = DataArguments(**files, teacher=str(teacher_dir))
    report = run_comparison(StudentArguments(student=str(student_dir), lora_r=4), data, config)
    shared = report["data"]["shared_pairs"]
    assert set(shared) >= {"train, validation", "train, test"} and shared["train, test"] >= 20
    told = capsys.readouterr().err
    assert "WARNING: train and test share " in told and f" and {shared['train, test']} pairs: " in told
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert f"train and test have {shared['train, test']} pairs in common" in card


def test_without_plain_fine_tuning_the_rest_is_compared(
    comparison_dir: Path,
    student_dir: Path,
    teacher_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The flipped run is the same; table, card and page do without the other. With the first of two seeds."""
    whole = json.loads((comparison_dir / "report.json").read_text(encoding="utf-8"))
    of_first = {
        name: {metric: of_seeds[:1] for metric, of_seeds in values["by_seed"].items()}
        for name, values in whole["systems"].items()
    }
    files = {f"{split}_file": str(comparison_dir.parent / f"{split}.jsonl") for split in SPLITS}
    config = comparison_settings(tmp_path / "out")
    data = DataArguments(**files, teacher=str(teacher_dir), seeds=1, baseline=False)
    student = StudentArguments(student=str(student_dir), lora_r=4)
    report = run_comparison(student, data, config)
    assert "[1/1] seed 42: flipped distillation" in capsys.readouterr().out
    assert list(report["systems"]) == [name for name in SYSTEMS if not name.startswith("llm_sft")]
    for name, values in report["systems"].items():
        assert values["by_seed"] == of_first[name], name
    assert list(report["differences"]) == ["llm_flipped_both - teacher"]
    assert report["teacher_check"] == whole["teacher_check"] and "student" in report["teacher_check"]
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "LLM, flipped: both" in card and "plain fine-tuning" not in card
    page = write_page(tmp_path / "out").read_text(encoding="utf-8")
    assert "LLM, flipped: both" in page and "adds them" not in page and "another --output_dir" not in page
    # Asked for later, the baseline is added and the finished runs are taken as they are.
    again = run_comparison(student, replace(data, baseline=True), config)
    assert capsys.readouterr().out.count("finished before") == 1
    assert {name: values["by_seed"] for name, values in again["systems"].items()} == of_first
    # How long it took in all, not how long it took to find what was finished.
    of_runs = [run[system]["seconds"] for run in again["runs"] for system in ("llm_sft", "llm_flipped")]
    assert again["seconds"] > sum(of_runs) > 0


def test_splits_are_drawn_by_the_seed() -> None:
    data = ROOT / "recipes" / "data" / "fin_mini"
    files = {f"{split}_file": str(data / f"{split}.jsonl") for split in ("train", "validation", "test")}
    arguments = DataArguments(**files, max_train_pairs=50)
    first, again, other = (load_splits(arguments, seed).train["text_a"][:] for seed in (0, 0, 1))
    assert len(first) == 50 and first == again and first != other


def test_a_baseline_with_nothing_to_learn_is_refused(student_dir: Path, teacher_dir: Path, tmp_path: Path) -> None:
    """It was told of as if the flipped student's own weights were 0."""
    student = StudentArguments(str(student_dir))
    data = DataArguments(teacher=str(teacher_dir), dataset_name="nobody/asks")
    config = dataclasses.replace(comparison_settings(tmp_path / "out"), sup_weight=0.0, answer_teacher_weight=0.0)
    with pytest.raises(ValueError, match="sup_weight=0 leaves plain fine-tuning.*--baseline False"):
        run_comparison(student, data, config)


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_broken_models_are_named_before_the_teacher_scores(
    student_dir: Path, teacher_dir: Path, tmp_path: Path, role: str
) -> None:
    models = {"student": student_dir, "teacher": teacher_dir}
    models[role] = Path(shutil.copytree(models[role], tmp_path / role))
    break_file(models[role] / "model.safetensors", "pointer")
    student = StudentArguments(str(models["student"]))
    data = DataArguments(teacher=str(models["teacher"]), dataset_name="nobody/asks")
    config = comparison_settings(tmp_path / "out")
    with pytest.raises(ValueError, match=rf"{role}/model\.safetensors is a pointer of Git LFS"):
        run_comparison(student, data, config)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_another_command_writes_into_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    data = ROOT / "recipes" / "data" / "fin_mini"
    files = {f"{split}_file": str(data / f"{split}.jsonl") for split in ("train", "validation", "test")}
    arguments = DataArguments(**files, teacher=str(tmp_path / "none"))
    config = FlippedDistillationConfig(output_dir=str(tmp_path / "out"))
    with sole_writer(tmp_path / "out"), pytest.raises(RuntimeError, match="is being written by another process"):
        run_comparison(StudentArguments(student=str(tmp_path / "none")), arguments, config)


def test_without_a_step_the_start_is_saved_scored_and_reported(
    student_dir: Path, teacher_dir: Path, pairs: datasets.Dataset, held_out: datasets.Dataset, tmp_path: Path
) -> None:
    files = {}
    for split, part in (("train", pairs), ("validation", held_out), ("test", held_out)):
        files[f"{split}_file"] = str(tmp_path / f"{split}.jsonl")
        part.to_json(files[f"{split}_file"])
    (tmp_path / "more.txt").write_text("is my card lost\nwhere do I top up\n", encoding="utf-8")
    data = DataArguments(**files, teacher=str(teacher_dir), unlabelled_file=str(tmp_path / "more.txt"))
    config = FlippedDistillationConfig(
        output_dir=str(tmp_path / "out"), max_steps=0, max_length=64, precision="fp32", disable_tqdm=True
    )
    report = run_comparison(StudentArguments(student=str(student_dir), lora_r=4), data, config)
    systems = report["systems"]
    beside = ["llm_flipped_similarity", "llm_flipped_both"]
    # Plain fine-tuning would be the bare LLM; the trained student's similarity is that of the start.
    assert list(systems) == ["teacher", "llm", "llm_flipped_start", "llm_flipped", *beside]
    assert (
        systems["llm_flipped_start"] == systems["llm_flipped_similarity"] and systems["llm"] == systems["llm_flipped"]
    )
    facts = report["runs"][0]["llm_flipped"]
    texts = {*pairs["text_a"], *pairs["text_b"], "is my card lost", "where do I top up"}
    assert facts["steps"] == 0 and facts["encoder_start"]["texts"] == len(texts)
    assert "LLM, flipped, before any step: similarity" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert (tmp_path / "out" / "README.md").is_file()
    assert "</html>" in write_page(tmp_path / "out").read_text(encoding="utf-8")
    vectors = FlippedMatcher.from_pretrained(tmp_path / "out").encode(["cash", "my card"])
    assert vectors.shape == (2, 4)
