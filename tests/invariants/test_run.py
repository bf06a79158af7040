"""One full run of the trainer from all sides: log, evaluation, checkpoints, best model, callbacks, saved files."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from flipped_kd.evaluation.match_score import MatchScore
from flipped_kd.evaluation.metrics import matching_metrics
from flipped_kd.prompts.pair_prompt import PairPrompt
from flipped_kd.teachers.loading import load_teacher
from flipped_kd.training.trainer import FlippedDistillationTrainer
from tests.invariants.training import assert_equal, logged, lora, new_trainer, settings, trainable

WEIGHTS = {"sup_weight": 1.0, "dist_weight": 0.5, "mcl_weight": 2.0}
CHECKPOINT = {
    "README.md",
    "_manifest.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "base_weights.json",
    "lora_encoder.json",
    "match_score.json",
    "optimizer.pt",
    "pair_prompt.json",
    "rng_state.pth",
    "scheduler.pt",
    "tokenizer.json",
    "tokenizer_config.json",
    "trainer_state.json",
}


class Events(TrainerCallback):
    """Counts what a callback is told."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()

    def _count(self, event: str) -> Any:
        def handler(
            args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
        ) -> TrainerControl:
            self.counts[event] += 1
            return control

        return handler

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_"):
            return self._count(name)
        return super().__getattribute__(name)


class Run:
    """A finished run of 6 steps, evaluated and saved every 2, with the highest evaluation loss counted as the best."""

    def __init__(self, folder: Path, student: Path, teacher: Path, train: Any, held_out: Any) -> None:
        self.events = Events()
        self.folder = folder
        self.teacher = load_teacher(str(teacher))
        self.embedded: list[str] = []
        encoder: Any = self.teacher.model
        encode = encoder.encode

        def counting(texts: list[str], **options: Any) -> Any:
            self.embedded += texts
            return encode(texts, **options)

        encoder.encode = counting
        self.trainer: FlippedDistillationTrainer = new_trainer(
            settings(
                folder,
                max_steps=6,
                eval_strategy="steps",
                eval_steps=2,
                save_strategy="steps",
                save_steps=2,
                load_best_model_at_end=True,
                metric_for_best_model="loss",
                greater_is_better=True,  # the untrained end of the run, so that the best is not the last
                per_device_eval_batch_size=16,  # a whole batch of the 24 held-out pairs, and a half one
                **WEIGHTS,
            ),
            str(student),
            self.teacher,
            train,
            held_out,
            None,
            callbacks=[self.events],
        )
        self.trainer.train()
        self.trainer.save_model()
        self.trainer.evaluate()
        self.embedded_in_run = list(self.embedded)


@pytest.fixture(scope="module")
def run(
    student_dir: Path,
    teacher_dir: Path,
    pairs: datasets.Dataset,
    held_out: datasets.Dataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    return Run(tmp_path_factory.mktemp("run"), student_dir, teacher_dir, pairs, held_out)


def test_logged_loss_is_the_weighted_sum_of_the_logged_terms(run: Run) -> None:
    steps = [entry for entry in run.trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4, 5, 6]
    for entry in steps:
        total = sum(WEIGHTS[f"{term}_weight"] * entry[f"loss_{term}"] for term in ("sup", "dist", "mcl"))
        assert entry["loss"] == pytest.approx(total, abs=1e-5)
        assert entry["grad_norm"] > 0
        assert 0 <= entry["dropped_positive"] <= 1 and 0 <= entry["dropped_negative"] <= 1
    assert max(logged(run.trainer, "loss_mcl")) > 0 and max(logged(run.trainer, "dropped_negative")) > 0


def test_evaluation_log_has_loss_terms_and_default_metrics(run: Run) -> None:
    evaluations = [entry for entry in run.trainer.state.log_history if "eval_loss" in entry]
    assert [entry["step"] for entry in evaluations] == [2, 4, 6, 6]  # the last one by hand, after training
    for entry in evaluations:
        total = sum(WEIGHTS[f"{term}_weight"] * entry[f"eval_loss_{term}"] for term in ("sup", "dist", "mcl"))
        assert entry["eval_loss"] == pytest.approx(total, abs=1e-5)
        metrics = {"f1", "precision", "recall", "accuracy", "roc_auc", "average_precision"}
        metrics |= {"similarity_roc_auc", "similarity_average_precision"}
        assert {f"eval_{name}" for name in metrics} <= entry.keys()


def test_evaluation_is_prediction_is_score_pairs(run: Run, held_out: datasets.Dataset) -> None:
    answer, similarity = run.trainer.score_pairs(held_out)
    assert answer.shape == similarity.shape == (24,) and answer.std() > 0
    assert np.all(np.abs(similarity) <= 1 + 1e-6)
    labels = np.asarray(held_out["label"])
    evaluated, predicted = run.trainer.evaluate(), run.trainer.predict(held_out)
    # Not bit for bit: score_pairs batches pairs of like length.
    np.testing.assert_allclose(np.stack(predicted.predictions), [answer, similarity], atol=1e-5)  # type: ignore[arg-type]
    np.testing.assert_array_equal(predicted.label_ids, labels)
    expected = matching_metrics(answer, labels, threshold=0.0)
    expected |= {
        f"similarity_{name}": value for name, value in matching_metrics(similarity, labels, threshold=None).items()
    }
    for name, value in expected.items():
        assert evaluated[f"eval_{name}"] == pytest.approx(value)
        assert predicted.metrics is not None and predicted.metrics[f"test_{name}"] == pytest.approx(value)


def test_best_adapter_is_loaded_at_the_end(run: Run) -> None:
    losses = [entry["eval_loss"] for entry in run.trainer.state.log_history if "eval_loss" in entry][:3]
    best = 2 * (1 + int(np.argmax(losses)))
    assert best < 6 and run.trainer.state.best_global_step == best
    saved = load_file(run.folder / f"checkpoint-{best}" / "adapter_model.safetensors")
    now = {name.replace(".default", ""): weight for name, weight in trainable(run.trainer.model).items()}
    assert_equal(now, saved)
    last = load_file(run.folder / "checkpoint-6" / "adapter_model.safetensors")
    assert any(not torch.equal(saved[name], last[name]) for name in saved)
    # The model saved after training is the best one too, and trainable still.
    assert_equal(load_file(run.folder / "adapter_model.safetensors"), saved)


def test_checkpoints_hold_the_contracts_and_no_pickled_settings(run: Run) -> None:
    folders = sorted(run.folder.glob("checkpoint-*"))
    assert [folder.name for folder in folders] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    for folder in folders:
        assert {path.name for path in folder.iterdir()} == CHECKPOINT
    final = {path.name for path in run.folder.iterdir() if path.is_file()}
    resumable = {"_manifest.json", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"}
    assert final == CHECKPOINT - resumable


def test_saved_adapter_scores_as_the_trained_model(
    run: Run, student_dir: Path, held_out: datasets.Dataset, tmp_path: Path
) -> None:
    base = AutoModelForCausalLM.from_pretrained(student_dir, dtype=torch.float32)
    reloaded = PeftModel.from_pretrained(base, run.folder, is_trainable=True)
    prompt = PairPrompt.from_pretrained(run.folder, run.trainer.processing_class)
    other = FlippedDistillationTrainer(
        reloaded, run.teacher, settings(tmp_path), None, held_out, run.trainer.processing_class, prompt=prompt
    )
    expected, found = run.trainer.score_pairs(held_out), other.score_pairs(held_out)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-6)
    assert run.trainer.match_score is not None
    fitted = MatchScore.from_pretrained(run.folder)
    np.testing.assert_allclose(fitted.probability(*found), run.trainer.match_score.probability(*expected), atol=1e-5)


def test_callbacks_are_told_everything(run: Run) -> None:
    counts = run.events.counts
    assert counts["on_train_begin"] == counts["on_train_end"] == 1
    assert counts["on_step_end"] == counts["on_pre_optimizer_step"] == counts["on_optimizer_step"] == 6
    assert counts["on_save"] == 3
    assert counts["on_evaluate"] >= 3


def test_each_distinct_text_is_embedded_once(run: Run, pairs: datasets.Dataset, held_out: datasets.Dataset) -> None:
    texts = {text for part in (pairs, held_out) for column in ("text_a", "text_b") for text in part[column]}
    embedded = collections.Counter(text for text in run.embedded_in_run if text != "probe")
    assert texts <= embedded.keys() and set(embedded.values()) == {1}


def test_teacher_stays_outside_the_student(run: Run) -> None:
    inside = {id(parameter) for parameter in run.trainer.model.parameters()}
    assert inside.isdisjoint(id(parameter) for parameter in run.teacher.model.parameters())
    assert isinstance(run.trainer.model, PeftModel)


def test_unseen_texts_are_scored_on_demand(run: Run) -> None:
    unseen = datasets.Dataset.from_dict(
        {"text_a": ["brand new words", "others"], "text_b": ["new words", "yet different"], "label": [1, 0]}
    )
    answer, similarity = run.trainer.score_pairs(unseen)
    assert np.isfinite(answer).all() and np.isfinite(similarity).all()
    teacher: Any = run.teacher.model
    vectors = teacher.encode([*unseen["text_a"], *unseen["text_b"]], normalize_embeddings=True)
    expected = (vectors[:2] * vectors[2:]).sum(1)
    np.testing.assert_allclose(run.trainer.teacher_similarity(unseen), expected, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
def test_any_number_of_pairs_of_any_class_can_be_scored(run: Run, rows: int, held_out: datasets.Dataset) -> None:
    matches = held_out.filter(lambda row: row["label"] == 1).select(range(rows))
    answer, similarity = run.trainer.score_pairs(matches)
    assert answer.shape == similarity.shape == (rows,)


def test_a_second_trainer_with_the_same_cache_embeds_nothing(
    run: Run, student_dir: Path, pairs: datasets.Dataset, held_out: datasets.Dataset, tmp_path: Path
) -> None:
    run.embedded.clear()
    args = settings(tmp_path, teacher_cache_dir=str(run.folder / "_teacher_cache"))
    other = new_trainer(args, str(student_dir), run.teacher, pairs, held_out, None, peft_config=lora())
    assert [text for text in run.embedded if text != "probe"] == []
    assert other.calibration == run.trainer.calibration
    assert not (tmp_path / "_teacher_cache").exists()
