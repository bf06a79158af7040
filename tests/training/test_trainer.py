"""What the trainer takes, and what it refuses before any training: students, teachers, data sets and settings."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import PreTrainedTokenizerFast, TrainingArguments

from flipped_kd.data.validation import PairColumns
from flipped_kd.teachers.calibration import agreement_report
from tests.invariants.training import PLAIN, logged, lora, settings, trainable

# ---- Students -----------------------------------------------------------------------------------------------------


def test_student_by_name_brings_its_tokenizer(build: Any, student_dir: Path, held_out: datasets.Dataset) -> None:
    by_name = build(model=str(student_dir), processing_class=None)
    as_object = build()
    assert isinstance(by_name.model, PeftModel)
    # The same seed gives the same adapter, however the student came.
    for name, weight in trainable(by_name.model).items():
        assert torch.equal(weight, trainable(as_object.model)[name])
    for one, other in zip(by_name.score_pairs(held_out), as_object.score_pairs(held_out), strict=True):
        np.testing.assert_array_equal(one, other)


def test_peft_model_is_taken_as_it_is(build: Any, student: Any) -> None:
    model = get_peft_model(student, lora())
    trainer = build(model=model, peft_config=None)
    assert trainer.model is model
    trainer.train()
    assert all(value.any() for name, value in trainable(model).items() if "lora_B" in name)


def test_unusable_students_are_refused(build: Any, student: Any, teacher_dir: Path) -> None:
    model = get_peft_model(student, lora())
    with pytest.raises(ValueError, match="not both"):
        build(model=model, peft_config=lora())
    with pytest.raises(ValueError, match="adapter of an earlier trainer.*afresh"):
        build(model=student)  # what is inside the PeftModel
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="frozen.*is_trainable=True"):
        build(model=model, peft_config=None)
    with pytest.raises(ValueError, match="nothing_here.*Give an existing folder"):
        build(model=str(teacher_dir / "nothing_here"))
    with pytest.raises(ValueError, match="BertModel|causal language model"):
        build(model=str(teacher_dir))
    with pytest.raises(ValueError, match="Linear.*give a name"):
        build(model=torch.nn.Linear(2, 2))


def test_processing_class_without_pad_token_pads_with_another(build: Any, student_dir: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(student_dir)
    tokenizer.pad_token = None
    trainer = build(processing_class=tokenizer, max_steps=1)
    trainer.train()
    assert np.isfinite(logged(trainer)).all()


def test_code_of_a_model_repository_never_runs(
    build: Any, student_dir: Path, teacher_dir: Path, tmp_path: Path
) -> None:
    """Both folders ask for their own Python code, which would leave a file behind."""
    trace = tmp_path / "code_ran"
    code = f"open({str(trace)!r}, 'w').close()\nclass Model: pass\nclass Config: pass\nclass Tokenizer: pass\n"
    student = Path(shutil.copytree(student_dir, tmp_path / "student"))
    teacher = Path(shutil.copytree(teacher_dir, tmp_path / "teacher"))
    for folder in (student, teacher):
        (folder / "custom.py").write_text(code)
        for name, kinds in (
            ("config.json", {"AutoConfig": "custom.Config", "AutoModelForCausalLM": "custom.Model"}),
            ("tokenizer_config.json", {"AutoTokenizer": ["custom.Tokenizer", "custom.Tokenizer"]}),
        ):
            content = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps(content | {"auto_map": kinds | {"AutoModel": "custom.Model"}}))
    trainer = build(model=str(student), teacher=str(teacher), processing_class=None, max_steps=1)
    trainer.train()
    assert not trace.exists()


# ---- Teachers -----------------------------------------------------------------------------------------------------


def test_teacher_as_object_is_the_teacher_from_its_folder(
    build: Any, teacher_dir: Path, pairs: datasets.Dataset
) -> None:
    by_folder = build()
    as_object = build(teacher=SentenceTransformer(str(teacher_dir), device="cpu"))
    np.testing.assert_array_equal(by_folder.teacher_similarity(pairs), as_object.teacher_similarity(pairs))
    assert by_folder.calibration == as_object.calibration


@pytest.mark.parametrize("as_object", [False, True], ids=["folder", "object"])
def test_cross_encoder_teacher_judges_the_pairs_alone(
    as_object: bool, build: Any, cross_encoder_dir: Path, pairs: datasets.Dataset
) -> None:
    model = CrossEncoder(str(cross_encoder_dir), device="cpu")
    trainer = build(teacher=model if as_object else str(cross_encoder_dir))
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(8)])
    assert batch["teacher_similarity"].shape == (8,) and "teacher_a" not in batch
    probability = model.predict(
        list(zip(pairs["text_a"], pairs["text_b"], strict=True)), activation_fn=torch.nn.Sigmoid()
    )
    np.testing.assert_allclose(trainer.teacher_similarity(pairs), 2 * probability - 1, atol=1e-5)
    trainer.train()
    assert np.isfinite(logged(trainer)).all() and max(logged(trainer, "loss_dist")) > 0


def test_cross_encoder_teacher_cannot_score_every_two_texts(build: Any, cross_encoder_dir: Path) -> None:
    with pytest.raises(ValueError, match="contrast='infonce'.*bi-encoder"):
        build(teacher=str(cross_encoder_dir), representation="independent", contrast="infonce")


def test_missing_or_wrong_teachers_are_refused(build: Any, student_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"a teacher is needed for dist_weight=1\.0 and mcl_weight=1\.0: give one"):
        build(teacher=None)
    with pytest.raises(ValueError, match=r"needed for answer_teacher_weight=0\.5: give one, or set"):
        build(teacher=None, dist_weight=0.0, mcl_weight=0.0, answer_teacher_weight=0.5)
    with pytest.raises(ValueError, match="nothing_here.*neither an existing folder nor a Hub id"):
        build(teacher=str(student_dir / "nothing_here"))
    with pytest.raises(ValueError, match="Qwen2ForCausalLM.*bi-encoder"):
        build(teacher=str(student_dir))
    with pytest.raises((TypeError, ValueError), match="[Tt]eacher"):
        build(teacher=torch.nn.Linear(2, 2))
    trainer = build(teacher=None, **PLAIN)
    assert trainer.teacher is None and trainer.calibration is None
    with pytest.raises(ValueError, match="no teacher"):
        trainer.teacher_similarity(trainer.train_dataset)


def test_the_label_alone_teaches_the_answer_unless_a_share_is_given(build: Any) -> None:
    assert build().loss.sup.teacher_weight == 0
    assert build(answer_teacher_weight=0.25).loss.sup.teacher_weight == 0.25


def test_many_dropped_pairs_are_a_warning(
    build: Any, pairs: datasets.Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="flipped_kd.training.teacher_targets"):
        trainer = build()
    wanted = agreement_report(
        trainer.teacher_similarity(pairs),
        np.asarray(pairs["label"]),
        trainer.calibration,
        tau_pos=0.5,
        tau_neg=0.5,
    )
    assert {name: trainer.teacher_report[name] for name in wanted} == pytest.approx(wanted)
    share = wanted["dropped_negative_share"]
    assert share > 0.3  # the random teacher knows nothing
    assert f"drop {100 * share:.0f} % of the negative pairs" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="flipped_kd.training.teacher_targets"):
        build(positive_threshold=0.0, negative_threshold=1.0)
        build(dist_weight=0.0)  # L_MCL keeps every labelled pair
    assert "drop" not in caplog.text
    with caplog.at_level(logging.WARNING, logger="flipped_kd.training.teacher_targets"):
        build(dist_weight=0.0, contrast_filter="all")
    assert "of the negative pairs from L_MCL" in caplog.text


@pytest.mark.parametrize("score", ["answer", "similarity"])
def test_predictions_are_made_by_the_score_that_was_asked_for(
    score: str, build: Any, held_out: datasets.Dataset
) -> None:
    trainer = build(score=score)
    fitted = trainer.fit_match_score(held_out)
    assert fitted.default == fitted.to_dict()["default"] == score


def test_calibration_is_fitted_on_held_out_pairs_where_there_are_any(build: Any) -> None:
    held_out, training = build().calibration, build(eval_dataset=None).calibration
    assert held_out is not None and training is not None and held_out != training


# ---- Data ---------------------------------------------------------------------------------------------------------


def test_several_evaluation_sets(build: Any, held_out: datasets.Dataset, pairs: datasets.Dataset) -> None:
    trainer = build(eval_dataset={"near": held_out, "far": pairs}, eval_strategy="steps", eval_steps=2)
    trainer.train()
    names = {name for entry in trainer.state.log_history for name in entry}
    assert {"eval_near_loss", "eval_far_loss", "eval_near_f1", "eval_far_similarity_roc_auc"} <= names
    assert trainer.match_score is not None
    assert trainer.calibration == build().calibration  # fitted on the first of them
    assert trainer.evaluate(pairs)["eval_loss"] == pytest.approx(trainer.evaluate(eval_dataset="far")["eval_loss"])


def test_scores_are_fitted_on_the_first_of_several_and_the_others_may_be_of_one_class(
    build: Any, held_out: datasets.Dataset, pairs: datasets.Dataset
) -> None:
    hard = pairs.filter(lambda row: row["label"] == 0)
    trainer = build(eval_dataset={"near": held_out, "hard": hard})
    assert np.isnan(trainer.evaluate()["eval_hard_roc_auc"])
    with pytest.raises(ValueError, match="hard.*single class"):
        build(eval_dataset={"hard": hard, "near": held_out})


@pytest.mark.parametrize(("strategy", "once_more"), [("steps", []), ("no", [3])])
def test_the_pairs_of_an_evaluation_after_the_last_step_are_not_scored_again(
    strategy: str, once_more: list[int], build: Any, held_out: datasets.Dataset
) -> None:
    trainer = build(eval_strategy=strategy, eval_steps=3, max_steps=3)
    scored: list[int] = []
    score_pairs = trainer.score_pairs
    trainer.score_pairs = lambda dataset: scored.append(trainer.state.global_step) or score_pairs(dataset)
    trainer.train()
    assert scored == once_more
    fitted, scores = trainer.match_score, score_pairs(held_out)
    np.testing.assert_allclose(fitted.log_odds(*scores), trainer.fit_match_score().log_odds(*scores), atol=1e-4)


class Rows:
    """A metric of the user's own that counts the rows of the evaluation set, batch by batch."""

    def __init__(self, rows: int) -> None:
        self.rows, self.seen = rows, 0

    def __call__(self, prediction: Any, compute_result: bool = True) -> dict[str, float]:
        self.seen += len(prediction.label_ids)
        if not compute_result:
            return {}
        assert self.seen == self.rows, "asked for another set's scores"
        self.seen = 0
        return {"rows": self.rows}


@pytest.mark.parametrize("batches", [False, True])
def test_a_metric_of_the_user_s_own_is_asked_about_evaluation_sets_alone(
    batches: bool, build: Any, held_out: datasets.Dataset, pairs: datasets.Dataset
) -> None:
    wanted = build().score_pairs(pairs)
    metric = Rows(len(held_out))
    trainer = build(
        compute_metrics=metric, batch_eval_metrics=batches, per_device_eval_batch_size=5, eval_strategy="epoch"
    )
    np.testing.assert_allclose(trainer.score_pairs(pairs), wanted, atol=1e-5)  # 64 rows, of which it knows nothing
    trainer.train()
    assert trainer.match_score is not None and trainer.evaluate()["eval_rows"] == len(held_out)


def test_mapped_columns_give_the_same_run(build: Any, pairs: datasets.Dataset, held_out: datasets.Dataset) -> None:
    names = {"text_a": "question1", "text_b": "question2", "label": "is_duplicate"}
    plain = build(eval_strategy="steps", eval_steps=2)
    mapped = build(
        train_dataset=pairs.rename_columns(names),
        eval_dataset=held_out.rename_columns(names),
        columns=PairColumns(**names),
        eval_strategy="steps",
        eval_steps=2,
    )
    for trainer in (plain, mapped):
        trainer.train()
    assert logged(mapped) == logged(plain) and logged(mapped, "eval_loss") == logged(plain, "eval_loss")
    expected = plain.score_pairs(held_out)
    for data in (held_out.rename_columns(names), mapped.eval_dataset, mapped.eval_dataset.select(range(24))):
        for one, other in zip(mapped.score_pairs(data), expected, strict=True):
            np.testing.assert_array_equal(one, other)
    fitted = mapped.fit_match_score(held_out.rename_columns(names))
    assert fitted.to_dict() == plain.fit_match_score(held_out).to_dict()


def test_columns_whose_names_are_interchanged_are_mapped_once(build: Any, pairs: Any, held_out: Any) -> None:
    names = {"text_a": "text_b", "text_b": "text_a"}
    mapped = build(
        train_dataset=pairs.rename_columns(names),
        eval_dataset=held_out.rename_columns(names),
        columns=PairColumns(**names),
    )
    expected = build().score_pairs(held_out)
    for data in (mapped.eval_dataset, held_out.rename_columns(names)):
        np.testing.assert_array_equal(mapped.score_pairs(data), expected)


@pytest.mark.parametrize("own_setting", [False, True])
def test_only_training_drops_the_short_last_batch(own_setting: bool, build: Any, held_out: datasets.Dataset) -> None:
    trainer = build(
        per_device_train_batch_size=24,
        per_device_eval_batch_size=16,
        max_steps=-1,
        num_train_epochs=1,
        dataloader_drop_last=own_setting,
    )
    assert len(trainer.get_train_dataloader()) == 2  # of 64 pairs, 16 wait for the next epoch
    assert len(trainer.get_eval_dataloader()) == 2
    assert trainer.args.dataloader_drop_last is own_setting
    trainer.train()
    assert trainer.state.global_step == 2
    assert len(trainer.score_pairs(held_out)[0]) == len(held_out) == 24


def test_scoring_draws_no_numbers_and_leaves_no_workers(build: Any, held_out: datasets.Dataset) -> None:
    trainer = build(dataloader_num_workers=1, dataloader_persistent_workers=True)
    for score in (trainer.score_pairs, trainer.predict, trainer.fit_match_score):
        before = torch.get_rng_state()
        score(held_out)
        assert torch.equal(torch.get_rng_state(), before)
    assert not trainer.get_test_dataloader(held_out).persistent_workers
    assert trainer.get_eval_dataloader().persistent_workers


def test_another_set_is_not_taken_for_the_own_one(build: Any, held_out: datasets.Dataset) -> None:
    """Trainer keeps loaders whose workers go on, under one name for all sets."""
    trainer = build(dataloader_num_workers=1, dataloader_persistent_workers=True)
    own = trainer.get_eval_dataloader(trainer.eval_dataset)
    assert trainer.get_eval_dataloader() is own
    assert len(trainer.get_eval_dataloader(held_out.select(range(9))).dataset) == 9
    assert trainer.get_eval_dataloader() is own and len(own.dataset) == 24


@pytest.mark.parametrize("mini_batch_size", [None, 4])
def test_caches_are_emptied_as_often_as_wanted(
    mini_batch_size: int | None, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    emptied: list[int] = []
    for module in ("flipped_kd.training.trainer", "transformers.trainer"):
        monkeypatch.setattr(f"{module}.clear_device_cache", lambda: emptied.append(1))
    build(torch_empty_cache_steps=2, mini_batch_size=mini_batch_size, max_steps=4).train()
    assert len(emptied) == 2


def bad_rows(**changes: list[Any]) -> datasets.Dataset:
    columns: dict[str, list[Any]] = {"text_a": ["a", "b"], "text_b": ["c", "d"], "label": [0, 1]}
    return datasets.Dataset.from_dict(columns | changes)


@pytest.mark.parametrize("part", ["train_dataset", "eval_dataset"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bad_rows().remove_columns("text_b"), r"text_b.*columns"),
        (bad_rows(text_a=["a", ""]), r"row 1.*white space"),
        (bad_rows(text_b=[None, "d"]), r"row 0.*null"),
        (bad_rows(text_a=[1, 2]), r"row 0.*string"),
        (bad_rows(label=[0, 2]), r"row 1.*2.*0 or 1"),
        (bad_rows(label=[1, 1]), r"single class"),
        (bad_rows().select([]), r"empty"),
        (bad_rows(text_a=[None, "b"]).add_column("row", [0, 1]), r"row 0.*null"),
        (datasets.Dataset.from_dict({"text_a": [], "text_b": [], "label": []}), r"empty"),
        ([{"text_a": "a", "text_b": "b", "label": 1}], r"list.*datasets.Dataset"),
    ],
    ids=["missing", "empty_text", "null", "number", "label", "class", "none", "numbered", "no_rows", "list"],
)
def test_bad_data_is_refused(part: str, data: Any, message: str, build: Any) -> None:
    with pytest.raises(ValueError, match=message):
        build(**{part: data})


def test_fewer_pairs_than_a_batch_are_refused(build: Any, pairs: datasets.Dataset) -> None:
    with pytest.raises(ValueError, match=r"6 pairs.*global batch of 8.*per_device_train_batch_size"):
        build(train_dataset=pairs.select(range(6)))
    with pytest.raises(ValueError, match="global batch"):  # before any model is looked for
        build(train_dataset=pairs.select(range(6)), model="absent", teacher="absent")


# ---- Settings -----------------------------------------------------------------------------------------------------


def test_settings_that_cannot_work_are_refused(build: Any, student: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="remove_unused_columns=True"):
        build(remove_unused_columns=True)
    with pytest.raises(ValueError, match="use_reentrant"):
        build(activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(ValueError, match="max_length=16 leaves"):
        build(max_length=16)
    with pytest.raises(ValueError, match="encoder_layers"):
        build(encoder_layers="last:3")
    with pytest.raises(ValueError, match=r"batch_eval_metrics=True.*AUC.*give compute_metrics"):
        build(batch_eval_metrics=True)
    with pytest.raises(ValueError, match=r"max_grad_norm=0\.3 has no effect.*max_grad_value=0"):
        build(max_grad_norm=0.3)
    with pytest.raises((TypeError, ValueError), match="TrainingArguments.*FlippedDistillationConfig"):
        build(args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True))


def test_one_process_on_several_gpus_is_refused(build: Any, tmp_path: Path) -> None:
    """DataParallel would run the hooks of the encoder in several threads at once."""
    args = settings(tmp_path)
    args._n_gpu = 2
    with pytest.raises(ValueError, match="2 GPUs.*accelerate launch"):
        build(args=args)
