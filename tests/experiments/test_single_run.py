"""A run's folder belongs to one run: with other settings, pairs or models nothing of it is gone on from."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from flipped_kd.experiments import single_run as training_run
from flipped_kd.experiments.arguments import DataArguments, StudentArguments
from flipped_kd.experiments.splits import Splits
from flipped_kd.teachers.loading import load_teacher
from flipped_kd.training.config import FlippedDistillationConfig
from flipped_kd.training.trainer import FlippedDistillationTrainer
from flipped_kd.utils.json_files import write_json


@pytest.fixture
def run(
    student_dir: Path, teacher_dir: Path, pairs: datasets.Dataset, held_out: datasets.Dataset, tmp_path: Path
) -> Any:
    """Trains two steps in `tmp_path` / "run", a checkpoint after the first; settings and student can be changed."""
    teacher = load_teacher(str(teacher_dir))

    def train(student: Path = student_dir, looks: dict[str, Any] | None = None, **changes: Any) -> Any:
        settings: dict[str, Any] = {
            "output_dir": str(tmp_path / "run"),
            "teacher_cache_dir": str(tmp_path / "cache"),
            "max_steps": 2,
            "per_device_train_batch_size": 8,
            "save_strategy": "steps",
            "save_steps": 1,
            "disable_tqdm": True,
        }
        return training_run.train_once(
            StudentArguments(student=str(student), lora_r=4),
            DataArguments(teacher=str(teacher_dir)),
            FlippedDistillationConfig(**(settings | changes)),
            Splits(pairs, held_out, held_out),
            teacher,
            **(looks or {}),
        )

    return train


class Killed(BaseException):
    """In the place of a signal."""


@pytest.fixture
def killed(run: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Trains until `saved` checkpoints are written."""

    def train(saved: int) -> None:
        save = FlippedDistillationTrainer._save_checkpoint
        written = 0

        def save_and_die(self: Any, *args: Any, **kwargs: Any) -> None:
            nonlocal written
            if written == saved:
                raise Killed
            save(self, *args, **kwargs)
            written += 1

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(FlippedDistillationTrainer, "_save_checkpoint", save_and_die)
            run()

    return train


def test_a_killed_run_is_gone_on_from_with_its_own_settings_alone(run: Any, killed: Any, tmp_path: Path) -> None:
    killed(1)
    for changes in ({"learning_rate": 0.5}, {"dist_loss": "kl"}, {"max_steps": 1}):
        with pytest.raises(ValueError, match=r"holds the checkpoints of a run with other settings.*--output_dir"):
            run(**changes)
    assert not (tmp_path / "run" / "run.json").exists()
    # What changes nothing that is learned: after memory was short, say.
    assert run(eval_accumulation_steps=1, ddp_timeout=7200).facts["steps"] == 2
    with pytest.raises(ValueError, match=r"holds a finished run with other settings"):
        run(learning_rate=0.5)


def test_the_time_before_an_interruption_counts(run: Any, killed: Any, tmp_path: Path) -> None:
    killed(1)
    (kept,) = (tmp_path / "run").glob("checkpoint-1/_training_seconds.json")
    assert json.loads(kept.read_text())["seconds"] > 0
    kept.write_text('{"seconds": 5000}')
    facts = run().facts
    # Kept to a tenth of a second, and a step of this model may take less.
    assert facts["steps"] == 2 and 5000 <= facts["training_seconds"] <= facts["seconds"]


def test_a_finished_run_of_other_processes_is_told_of(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = run().facts
    assert facts["processes"] == 1 and "WARNING" not in capsys.readouterr().err
    (tmp_path / "run" / "run.json").write_text(json.dumps(facts | {"processes": 4}))
    run()
    assert "was made by 4 processes, and there are 1" in capsys.readouterr().err


def test_a_run_that_nobody_has_named_is_not_taken_for_this_one(run: Any, killed: Any, tmp_path: Path) -> None:
    killed(1)
    (tmp_path / "run" / "fingerprint.txt").unlink()
    with pytest.raises(ValueError, match="holds the checkpoints of a run"):
        run()


def test_a_run_killed_before_its_first_checkpoint_binds_nobody(run: Any, killed: Any) -> None:
    killed(0)
    assert run(learning_rate=0.5, max_steps=3).facts["steps"] == 3


def test_where_something_is_written_may_change(run: Any, killed: Any) -> None:
    killed(1)
    assert run(save_total_limit=1, logging_steps=1).facts["steps"] == 2
    # And to whom: the same command, given again to push what it has made.
    again = run(hub_model_id="me/matcher", hub_private_repo=True, hub_revision="next", report_to="none")
    assert again.facts["steps"] == 2


def test_when_is_looked_may_change_unless_it_decides_what_is_learned(run: Any, killed: Any) -> None:
    killed(1)
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    with pytest.raises(ValueError, match="other settings"):
        run(**best)
    assert run(eval_strategy="steps", eval_steps=1).facts["steps"] == 2


def test_the_adapter_that_is_kept_is_that_of_the_run(run: Any, tmp_path: Path) -> None:
    """The same output folder was used with other first seeds in between."""
    kept = tmp_path / "kept"
    first = run(looks={"keep_in": kept})
    own = (tmp_path / "run" / "adapter_model.safetensors").read_bytes()
    assert (kept / "adapter_model.safetensors").read_bytes() == own
    # Results that stand beside the adapter go with it.
    write_json(kept / "report.json", {"seeds": [0, 1]})
    (kept / "report.md").write_text("results")
    run(looks={"keep_in": kept})
    assert (kept / "report.json").is_file() and (kept / "report.md").is_file()
    run(looks={"keep_in": kept}, output_dir=str(tmp_path / "other"), seed=7)
    assert (kept / "adapter_model.safetensors").read_bytes() != own
    assert not (kept / "report.json").exists() and not (kept / "report.md").exists()
    again = run(looks={"keep_in": kept})
    assert (kept / "adapter_model.safetensors").read_bytes() == own
    np.testing.assert_array_equal(again.answer.test, first.answer.test)


def test_another_student_of_the_same_name_makes_another_run(
    run: Any, student: Any, tokenizer: Any, tmp_path: Path
) -> None:
    named = tmp_path / "models" / "student"
    for folder in (named, tmp_path / "elsewhere" / "student"):  # a folder that moved is the same student
        student.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    first = run(named)
    assert run(tmp_path / "elsewhere" / "student").facts == first.facts
    other = copy.deepcopy(student)
    with torch.no_grad():
        next(other.parameters()).add_(0.01)
    other.save_pretrained(named)
    assert load_file(named / "model.safetensors")
    with pytest.raises(ValueError, match="finished run with other settings, data or models"):
        run(named)


@pytest.mark.parametrize("weights", [{}, {"dist_weight": 0.0, "mcl_weight": 0.0}], ids=["flipped", "plain"])
def test_a_run_is_the_same_whether_it_looks_before_or_not(weights: dict[str, float], run: Any, tmp_path: Path) -> None:
    bare: list[Any] = []
    looked = run(
        output_dir=str(tmp_path / "looked"),
        looks={"on_bare_answers": bare.append},
        **weights,
    )
    quick = run(output_dir=str(tmp_path / "quick"), **weights)
    blind = run(output_dir=str(tmp_path / "blind"), looks={"looks_before": False}, **weights)
    for other in (quick, blind):
        np.testing.assert_array_equal(other.answer.test, looked.answer.test)
        np.testing.assert_array_equal(other.similarity.test, looked.similarity.test)
    assert len(looked.before.test) and bare[0] is looked.before and not len(blind.before.test)
    if weights:
        assert looked.start is quick.start is None
        np.testing.assert_array_equal(quick.before.test, looked.before.test)
    else:  # by vectors alone, or beside the answers
        assert looked.start is not None and blind.start is None
        np.testing.assert_allclose(quick.start.test, looked.start.test, atol=1e-5)
        np.testing.assert_allclose(quick.start.validation, looked.start.validation, atol=1e-5)


@pytest.mark.parametrize(("precision", "near"), [("fp32", 1e-5), ("bf16", 0.1)])
def test_scores_read_alone_are_those_of_the_trainer(precision: str, near: float, run: Any, tmp_path: Path) -> None:
    """The bare LLM's answers and the vectors of a start, against the loop that computes both."""
    trainers: list[FlippedDistillationTrainer] = []
    made = training_run._new_trainer

    def remember(*args: Any) -> FlippedDistillationTrainer:
        trainers.append(made(*args))
        return trainers[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "_new_trainer", remember)
        patch.setattr(FlippedDistillationTrainer, "train", lambda self, **_: None)  # the student stays as it starts
        options = {"precision": precision, "use_cpu": True}
        plain = run(dist_weight=0.0, mcl_weight=0.0, output_dir=str(tmp_path / "plain"), **options)
        flipped = run(output_dir=str(tmp_path / "flipped"), **options)
    held_out: Any = trainers[0].eval_dataset
    answers = trainers[0].score_pairs(held_out)[0]
    assert np.ptp(answers) > 10 * near
    assert np.allclose(plain.before.validation, answers, atol=near)
    assert np.allclose(plain.before.test, answers, atol=near)
    assert plain.start is None
    cosines = trainers[1].score_pairs(held_out)[1]
    assert np.allclose(flipped.start.test, cosines, atol=near / 2)
