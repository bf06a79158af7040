"""Less usual uses: bfloat16, scores without training, own metrics, training on; and a run of real models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from peft import PeftModel

from flipped_kd.prompts.pair_prompt import PairPrompt
from flipped_kd.students.loading import load_student, load_tokenizer
from flipped_kd.training.trainer import FlippedDistillationTrainer
from tests.invariants.training import PLAIN, logged, new_trainer, settings, trainable


def test_bf16_trains_on_a_cpu_with_float32_weights(build: Any) -> None:
    trainer = build(precision="bf16")
    assert trainer.accelerator.mixed_precision == "bf16"
    reference = build()
    for run in (trainer, reference):
        run.train()
    assert {weight.dtype for weight in trainable(trainer.model).values()} == {torch.float32}
    # Close to float32, and not float32.
    assert logged(trainer) == pytest.approx(logged(reference), rel=0.05) and logged(trainer) != logged(reference)


def test_evaluation_between_two_logs_leaves_the_training_terms_alone(build: Any) -> None:
    trainer = build(logging_steps=4, eval_strategy="steps", eval_steps=2)
    trainer.train()
    (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    total = entry["loss_sup"] + entry["loss_dist"] + entry["loss_mcl"]
    assert entry["step"] == 4 and entry["loss"] == pytest.approx(total, abs=1e-5)


def test_terms_since_the_last_log_are_not_those_of_the_next_training(build: Any) -> None:
    trainer = build(max_steps=5, logging_steps=4)
    for _ in range(2):
        trainer.train()
        (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
        total = entry["loss_sup"] + entry["loss_dist"] + entry["loss_mcl"]
        assert entry["step"] == 4 and entry["loss"] == pytest.approx(total, abs=1e-5)


def test_scores_alone_need_no_training_set(build: Any, held_out: datasets.Dataset) -> None:
    trainer = build(train_dataset=None, eval_dataset=None)
    assert len(trainer.score_pairs(held_out)[0]) == len(held_out)
    with pytest.raises(ValueError, match="eval_dataset"):
        trainer.fit_match_score()
    assert trainer.fit_match_score(held_out).default == "both"


def test_loss_only_evaluation_still_fits_the_match_score(build: Any) -> None:
    trainer = build(prediction_loss_only=True, max_steps=1)
    trainer.train()
    assert trainer.match_score is not None
    assert "eval_f1" not in trainer.evaluate()


def test_own_metrics_get_scores_and_not_logits(build: Any) -> None:
    seen: list[Any] = []

    def compute_metrics(prediction: Any) -> dict[str, float]:
        seen.append((prediction.predictions, prediction.label_ids))
        return {"mine": 0.5}

    trainer = build(compute_metrics=compute_metrics)
    assert trainer.evaluate()["eval_mine"] == 0.5
    (answer, similarity), labels = seen[-1]
    assert answer.shape == similarity.shape == labels.shape == (24,)


def test_training_goes_on_after_the_best_model_was_loaded(build: Any) -> None:
    trainer = build(
        eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2, load_best_model_at_end=True
    )
    trainer.train()
    before = trainable(trainer.model)
    assert before  # not frozen by the loading
    trainer.train()
    assert any(not torch.equal(value, before[name]) for name, value in trainable(trainer.model).items())


@pytest.mark.parametrize("term", ["loss_dist", "loss_sup", "loss_mcl"])
def test_the_best_checkpoint_by_a_term_of_the_loss_has_the_lowest(build: Any, term: str) -> None:
    every = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    trainer = build(**every, max_steps=8, load_best_model_at_end=True, metric_for_best_model=term)
    trainer.train()
    found = [line[f"eval_{term}"] for line in trainer.state.log_history if f"eval_{term}" in line]
    assert len(set(found)) > 1
    assert trainer.state.best_metric == min(found)


# ---- Real models --------------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_real_student_and_teacher(shared: Path, tmp_path: Path) -> None:
    student, teacher = shared / "models" / "student-minilm-causal", shared / "models" / "teacher-banking77"
    rows = [json.loads(line) for line in (shared / "data/banking77/train.jsonl").read_text("utf-8").splitlines()[:80]]
    data = datasets.Dataset.from_list([{name: row[name] for name in ("text_a", "text_b", "label")} for row in rows])
    train, held_out = data.select(range(64)), data.select(range(64, 80))
    args = settings(tmp_path, max_steps=2, max_length=64)
    trainer = new_trainer(args, str(student), str(teacher), train, held_out, None)
    assert trainer.teacher_report["roc_auc"] > 0.7  # it knows the domain
    trainer.train()
    assert np.isfinite(logged(trainer)).all() and len(logged(trainer)) == 2
    trainer.save_model()
    expected = trainer.score_pairs(held_out)

    tokenizer = load_tokenizer(tmp_path)
    reloaded = FlippedDistillationTrainer(
        PeftModel.from_pretrained(load_student(student, dtype=torch.float32), tmp_path, is_trainable=True),
        None,
        settings(tmp_path / "again", **PLAIN),
        None,
        None,
        tokenizer,
        prompt=PairPrompt.from_pretrained(tmp_path, tokenizer),
    )
    found = reloaded.score_pairs(held_out)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-4)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-5)
