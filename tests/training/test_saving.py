"""The trainer's own pushes, in mid-training and at the end, to the loopback Hub by the real client."""

from __future__ import annotations

import json
import logging
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from peft import LoraConfig
from transformers import TrainerCallback

from flipped_kd.evaluation.match_score import MatchScore
from flipped_kd.experiments.arguments import DataArguments, StudentArguments
from flipped_kd.experiments.compare import run_comparison
from flipped_kd.inference.matcher import FlippedMatcher
from flipped_kd.publishing.errors import PublishError
from flipped_kd.publishing.publish import PublishReport
from flipped_kd.training.config import FlippedDistillationConfig
from tests.hub.server import LoopbackHub
from tests.invariants.training import assert_equal, trainable

REPO = "tester/run"
FILES = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "base_weights.json",
    "lora_encoder.json",
    "pair_prompt.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
RESUME = {"optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"}
EVERY_STEP: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}


def there(hub: LoopbackHub, repo_id: str = REPO) -> set[str]:
    return set(hub.repositories[repo_id].at("main").files) - {".gitattributes"}


def pushes(hub: LoopbackHub, **more: Any) -> dict[str, Any]:
    """Settings of a run that pushes every checkpoint."""
    return {
        "push_to_hub": True,
        "hub_model_id": REPO,
        "hub_token": hub.token,
        "hub_strategy": "checkpoint",
        "hub_always_push": True,
        **EVERY_STEP,
        **more,
    }


def test_checkpoints_are_pushed_with_their_contracts(
    build: Any, hub: LoopbackHub, online: HfApi, tmp_path: Path
) -> None:
    trainer = build(**pushes(hub, eval_strategy="steps", eval_steps=1))
    trainer.train()
    trainer._finish_current_push()
    expected = FILES | {"match_score.json"}
    assert there(hub) == expected | {f"last-checkpoint/{name}" for name in expected | RESUME}
    stored = dict(hub.stored())
    secret = hub.token.encode()
    assert not [name for name, content in stored.items() if secret in content]
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file() and secret in path.read_bytes()]


def test_the_score_of_a_checkpoint_is_that_of_its_weights(
    build: Any, student_dir: Path, held_out: datasets.Dataset, tmp_path: Path
) -> None:
    """Fitted at the evaluation of the same step; a step without evaluation has none, not an older one."""
    trainer = build(eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=1, max_steps=4)
    trainer.train()
    run = tmp_path / "run"
    have = {n: (run / f"checkpoint-{n}" / "match_score.json").is_file() for n in (1, 2, 3, 4)}
    assert have == {1: False, 2: True, 3: False, 4: True}
    matcher = FlippedMatcher.from_pretrained(run / "checkpoint-2", base_model=student_dir, device="cpu")
    scores = matcher.scores(list(zip(held_out["text_a"], held_out["text_b"], strict=True)))
    fitted = MatchScore.fit(*scores, np.asarray(held_out["label"]))
    assert matcher.match_score is not None
    np.testing.assert_allclose(matcher.match_score.log_odds(*scores), fitted.log_odds(*scores), atol=1e-4)
    # After training it is that of the last weights, until they change.
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "match_score.json").is_file()
    trainer.state.global_step += 1
    trainer.save_model(str(tmp_path / "saved"))
    assert not (tmp_path / "saved" / "match_score.json").exists()


class SavesAtTheEnd(TrainerCallback):
    """As a user's own, when training has ended and its best weights are back."""

    trainer: Any

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.save_model(str(self.folder))


def worse_and_worse(trainer: Any, best: int) -> None:
    """Evaluations of `trainer` say that step `best` is the best one."""
    evaluate = trainer.evaluate
    trainer.evaluate = lambda *args, **kwargs: (
        evaluate(*args, **kwargs) | {"eval_loss": abs(trainer.state.global_step - best)}
    )


BEST: dict[str, Any] = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": False}


def test_the_score_of_other_weights_is_not_saved_beside_the_best(build: Any, tmp_path: Path) -> None:
    callback = SavesAtTheEnd(tmp_path / "by_callback")
    every = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    callback.trainer = build(callbacks=[callback], **every, **BEST)
    worse_and_worse(callback.trainer, best=1)
    callback.trainer.train()
    assert callback.trainer.state.best_global_step == 1
    assert (callback.folder / "adapter_model.safetensors").is_file()
    assert not (callback.folder / "match_score.json").exists()


def test_the_best_is_loaded_from_a_run_that_has_moved(build: Any, tmp_path: Path) -> None:
    """Nothing is left to train, so that no later checkpoint names its new place."""
    every = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    trainer = build(**every, **BEST)
    worse_and_worse(trainer, best=1)
    trainer.train()
    (tmp_path / "run").rename(tmp_path / "moved")
    again = build(output_dir=str(tmp_path / "moved"), **every, **BEST)
    worse_and_worse(again, best=1)
    again.train(resume_from_checkpoint=True)
    assert again.state.best_model_checkpoint == str(tmp_path / "moved" / "checkpoint-1")
    assert_equal(trainable(again.model), trainable(trainer.model))


def test_a_checkpoint_of_an_earlier_run_is_not_the_best(build: Any, tmp_path: Path) -> None:
    """The best step was evaluated and not saved, and a folder of its name was there."""
    every = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "max_steps": 4}
    build(**every, save_steps=3).train()
    trainer = build(**every, save_steps=2, **BEST)
    worse_and_worse(trainer, best=3)
    trainer.train()
    assert (tmp_path / "run" / "checkpoint-3").is_dir()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "run" / "checkpoint-2")


def test_other_lora_settings_are_refused_when_it_goes_on(build: Any) -> None:
    """PEFT would load the weights and keep the new settings: another function."""
    every = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    config = {"r": 4, "target_modules": "all-linear"}
    build(**every, peft_config=LoraConfig(lora_alpha=8, **config)).train()
    for other in ({"lora_alpha": 64}, {"lora_alpha": 8, "use_rslora": True}):
        name = list(other)[-1]
        with pytest.raises(ValueError, match=f"trained with other LoRA settings \\({name}="):
            build(**every, peft_config=LoraConfig(**other, **config)).train(resume_from_checkpoint=True)
    build(**every, peft_config=LoraConfig(lora_alpha=8, **config)).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("limit", [1, 2, None])
def test_the_best_that_was_saved_is_kept_and_loaded(build: Any, tmp_path: Path, limit: int | None) -> None:
    """A step in between that is better, but was evaluated only, has no weights to go back to."""
    every = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 2, "max_steps": 8}
    trainer = build(save_total_limit=limit, **every, **BEST)
    worse_and_worse(trainer, best=3)
    trainer.train()
    best = tmp_path / "run" / "checkpoint-2"
    assert trainer.state.best_global_step == 3 and trainer.state.best_model_checkpoint == str(best)
    trainer.save_model(str(tmp_path / "saved"))
    saved, loaded = (folder / "adapter_model.safetensors" for folder in (best, tmp_path / "saved"))
    assert saved.read_bytes() == loaded.read_bytes()


def test_a_second_training_does_not_save_the_score_of_the_first(build: Any, tmp_path: Path) -> None:
    """Both end at step 2; the first one's score was fitted on other weights."""
    trainer = build(save_strategy="steps", save_steps=2, max_steps=2)
    trainer.train()
    trainer.train()
    assert not (tmp_path / "run" / "checkpoint-2" / "match_score.json").exists()
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "match_score.json").is_file()


def test_a_checkpoint_stays_until_it_is_uploaded(
    build: Any, hub: LoopbackHub, online: HfApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build(**pushes(hub, save_total_limit=1, max_steps=3))
    waiting = [Future(), Future()]
    jobs = iter(waiting)
    monkeypatch.setattr(trainer, "_upload", lambda folder, place, message: next(jobs, finished()))
    monkeypatch.setattr(trainer, "_finish_current_push", lambda: None)  # training ends by waiting for them
    trainer.train()
    there = sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
    assert there == ["checkpoint-1", "checkpoint-3"]
    waiting[1].set_result(None)
    assert trainer.uploading() == set()


def test_the_last_checkpoint_is_uploaded_before_it_is_removed(
    build: Any, hub: LoopbackHub, online: HfApi, tmp_path: Path
) -> None:
    """At the end Trainer removes all but the best, whether they were read or not."""
    trainer = build(**pushes(hub, save_total_limit=1, max_steps=3, eval_strategy="steps", eval_steps=1, **BEST))
    worse_and_worse(trainer, best=1)
    trainer.train()
    trainer._finish_current_push()
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-1"]
    last = hub.content(hub.repositories[REPO].at("main"), "last-checkpoint/trainer_state.json")
    assert json.loads(last)["global_step"] == 3


def finished() -> Future[None]:
    job: Future[None] = Future()
    job.set_result(None)
    return job


def test_an_older_score_leaves_the_hub(build: Any, hub: LoopbackHub, online: HfApi) -> None:
    trainer = build(**pushes(hub, eval_strategy="steps", eval_steps=1, hub_strategy="every_save"))
    trainer.train()
    trainer._finish_current_push()
    assert there(hub) == FILES | {"match_score.json"}
    again = build(**pushes(hub, hub_strategy="every_save"))
    again.train()
    again._finish_current_push()
    assert there(hub) == FILES


def test_a_broken_hub_does_not_stop_training(
    build: Any, hub: LoopbackHub, online: HfApi, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = build(**pushes(hub, hub_strategy="every_save"))
    hub.faults.answer("/preupload/|/commit/", times=1000)
    with caplog.at_level(logging.WARNING):
        trainer.train()
        trainer._finish_current_push()
    assert trainer.state.global_step == 2 and there(hub) == set()
    assert "push in mid-training failed" in caplog.text and hub.token not in caplog.text
    with pytest.raises(PublishError, match="Repeat"):
        trainer.push_to_hub()
    hub.faults.clear()
    trainer.push_to_hub()
    assert there(hub) == FILES | {"match_score.json"}


def test_a_private_run_is_not_pushed_to_a_public_repository(build: Any, hub: LoopbackHub, online: HfApi) -> None:
    online.create_repo(REPO)
    with pytest.raises(PublishError, match="public"):
        build(**pushes(hub, hub_private_repo=True))
    build(**pushes(hub, hub_private_repo=True, hub_model_id="tester/other"))
    assert online.model_info("tester/other").private


def test_adapter_and_merged_model(
    build: Any, hub: LoopbackHub, online: HfApi, held_out: datasets.Dataset, student_dir: Path
) -> None:
    """Without push_to_hub=True in the settings; the repository is named after the folder."""
    trainer = build(max_steps=1)
    trainer.train()
    with pytest.raises(ValueError, match="base_model="):
        trainer.push_to_hub(merged=True)
    assert not hub.repositories
    report = trainer.push_to_hub(merged=True, private=True, base_model=str(student_dir))
    assert isinstance(report, PublishReport) and report.merge is not None and report.merge.sentence_transformers
    expected = trainer.score_pairs(held_out)
    matcher = FlippedMatcher.from_pretrained(f"{REPO}-merged", device="cpu")
    found = matcher.scores(list(zip(held_out["text_a"], held_out["text_b"], strict=True)))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for repo_id in (REPO, f"{REPO}-merged"):
        assert online.model_info(repo_id).private
        assert "match_score.json" in there(hub, repo_id)


def test_a_push_in_the_background(build: Any, hub: LoopbackHub, online: HfApi) -> None:
    trainer = build(max_steps=1)
    trainer.train()
    job = trainer.push_to_hub(blocking=False, commit_message="Done")
    assert isinstance(job, Future)
    assert job.result(60).adapter_url == f"{hub.endpoint}/{REPO}"
    assert next(iter(hub.repositories[REPO].history("main"))).title == "Done"


def test_an_edited_card_is_kept(build: Any, tmp_path: Path) -> None:
    """PEFT would write the base's local folder into its metadata at each save."""
    trainer = build(max_steps=1)
    trainer.save_model()
    card = tmp_path / "run" / "README.md"
    assert str(tmp_path) not in card.read_text()
    mine = "---\nlicense: mit\n---\n\n# My own words\n"
    card.write_text(mine)
    trainer.save_model()
    trainer.create_model_card(language="en")
    assert card.read_text() == mine


def test_an_edited_card_is_kept_by_the_push_of_a_checkpoint(
    build: Any, hub: LoopbackHub, online: HfApi, tmp_path: Path
) -> None:
    trainer = build(**pushes(hub, max_steps=1))
    card = tmp_path / "run" / "README.md"
    card.parent.mkdir(exist_ok=True)
    card.write_text("---\nlicense: mit\n---\n\n# My own words\n")
    trainer.train()
    trainer._finish_current_push()
    assert "My own words" in card.read_text()
    (name,) = hub.repositories
    assert b"My own words" in dict(hub.stored())[f"{name}/README.md"]


def compared(
    folder: Path, student: StudentArguments, teacher_dir: Path, pairs: datasets.Dataset, **hub: Any
) -> dict[str, Any]:
    files = {f"{split}_file": str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")}
    for path in files.values():
        pairs.to_json(path)
    config = FlippedDistillationConfig(
        output_dir=str(folder / "out"), max_steps=1, per_device_train_batch_size=8, disable_tqdm=True, **hub
    )
    data = DataArguments(**files, teacher=str(teacher_dir))
    return run_comparison(student, data, config)


def test_a_recipe_pushes_once_with_its_results(
    hub: LoopbackHub, online: HfApi, student_dir: Path, teacher_dir: Path, pairs: datasets.Dataset, tmp_path: Path
) -> None:
    pushing = {"push_to_hub": True, "hub_model_id": REPO, "hub_token": hub.token, "hub_private_repo": True}
    compared(tmp_path, StudentArguments(student=str(student_dir), lora_r=4), teacher_dir, pairs, **pushing)
    assert FILES | {"match_score.json"} <= there(hub)
    assert "LLM, flipped: both" in dict(hub.stored())[f"{REPO}/README.md"].decode()
    assert online.model_info(REPO).private and len(online.list_repo_commits(REPO)) == 2  # made, and written once


def test_a_recipe_that_may_not_push_trains_nothing(
    hub: LoopbackHub, online: HfApi, student_dir: Path, teacher_dir: Path, pairs: datasets.Dataset, tmp_path: Path
) -> None:
    with pytest.raises(PublishError, match="write access"):
        compared(
            tmp_path,
            StudentArguments(student=str(student_dir)),
            teacher_dir,
            pairs,
            push_to_hub=True,
            hub_model_id=REPO,
            hub_token="hf_" + "x" * 34,
        )
    assert not (tmp_path / "out" / "runs").exists()


@pytest.mark.parametrize("asked", [True, False])
def test_an_adapter_names_the_commit_of_its_base(
    asked: bool,
    hub: LoopbackHub,
    online: HfApi,
    student: Any,
    student_dir: Path,
    teacher_dir: Path,
    pairs: datasets.Dataset,
    tmp_path: Path,
) -> None:
    """Asked for by a tag or not: scores are those of training, though the base's main branch has moved on."""
    base = "tester/base"
    online.create_repo(base)
    online.upload_folder(repo_id=base, folder_path=student_dir)
    first = online.model_info(base).sha

    def move_on() -> None:
        with torch.no_grad():
            for weight in student.parameters():
                weight.mul_(1.5)
        student.save_pretrained(tmp_path / "next")
        online.upload_file(
            repo_id=base, path_or_fileobj=tmp_path / "next" / "model.safetensors", path_in_repo="model.safetensors"
        )

    if asked:
        move_on()
    named = StudentArguments(student=base, student_revision=first if asked else None, lora_r=4)
    report = compared(tmp_path, named, teacher_dir, pairs)
    if not asked:
        move_on()
    out = tmp_path / "out"
    assert json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))["revision"] == first
    assert report["runs"][0]["llm_flipped"]["student_revision"] == first
    assert first in (out / "README.md").read_text(encoding="utf-8")
    answer, _ = FlippedMatcher.from_pretrained(out, device="cpu").scores(pairs)
    with np.load(out / "runs" / "seed-42" / "llm_flipped" / "scores.npz") as saved:
        np.testing.assert_allclose(answer, saved["answer_test"], atol=1e-4)
