"""Where A starts: from the teacher, whatever the order of the texts, without a word of the answer changed."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel
from sentence_transformers import SentenceTransformer
from torch import Tensor

from flipped_kd import FlippedMatcher
from flipped_kd.publishing.merge import merge_adapter
from flipped_kd.students.encoder_inputs import EncoderInputs
from flipped_kd.students.lora import default_lora
from flipped_kd.students.lora_encoder import LoraEncoder
from flipped_kd.training import encoder_start
from flipped_kd.training.encoder_start import run_on, sample_texts
from flipped_kd.training.trainer import FlippedDistillationTrainer
from tests.adapters import with_lora
from tests.invariants.training import PLAIN

TEACHER: dict[str, Any] = {"encoder_start": "teacher"}


def matrices(trainer: FlippedDistillationTrainer) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters() if "lora_A" in name}


def read_by_encoder(trainer: FlippedDistillationTrainer) -> dict[str, Tensor]:
    names = [module.name for module in trainer.encoder.modules]
    return {name: weight for name, weight in matrices(trainer).items() if any(f".{each}." in name for each in names)}


def correlation(trainer: FlippedDistillationTrainer, pairs: datasets.Dataset) -> float:
    """Of the student's cosines with the teacher's, over pairs."""
    _, similarity = trainer.score_pairs(pairs)
    return float(np.corrcoef(similarity, trainer.teacher_similarity(pairs))[0, 1])


# ---- What it gives ----


def test_the_similarity_is_near_the_teachers_before_any_step(build: Any, held_out: datasets.Dataset) -> None:
    started, random = build(**TEACHER), build(encoder_start="random")
    assert correlation(started, held_out) > max(0.5, correlation(random, held_out) + 0.3)
    found = started.encoder_start
    assert found.texts == found.of_texts == len({*started.train_dataset["text_a"], *started.train_dataset["text_b"]})
    assert found.penalty > 0 and 0 < found.held_out_error < 2 and random.encoder_start is None


def test_the_answer_is_the_bare_llms_to_the_bit(build: Any, held_out: datasets.Dataset) -> None:
    started, random = build(**TEACHER), build(encoder_start="random")
    np.testing.assert_array_equal(started.score_pairs(held_out)[0], random.score_pairs(held_out)[0])


def test_only_the_encoders_matrices_move_and_their_norm_stays(build: Any) -> None:
    started, random = build(**TEACHER), build(encoder_start="random")
    before, after = matrices(random), matrices(started)
    read = read_by_encoder(started).keys()
    assert read and {name for name in before if not torch.equal(before[name], after[name])} == read
    norms = [torch.stack([found[name].norm() for name in read]).norm() for found in (before, after)]
    torch.testing.assert_close(*norms)


def test_the_mean_input_gives_nothing(build: Any) -> None:
    trainer = build(**TEACHER)
    texts, _ = sample_texts([*trainer.train_dataset["text_a"], *trainer.train_dataset["text_b"]], 1)
    from flipped_kd.inference.model_runner import ModelRunner

    inputs = EncoderInputs(trainer.model, trainer.encoder.modules)
    rows = ModelRunner(trainer.model, trainer.prompt, inputs, 0).vectors(texts, 8, _Silent())
    for source, means in inputs.split(rows.double()).items():
        mean = means.mean(0)
        for name in inputs.read_by[source]:
            (matrix,) = (weight for full, weight in matrices(trainer).items() if f".{name}." in full)
            assert (matrix.double() @ mean).norm() < 1e-4 * matrix.double().norm() * mean.norm()


class _Silent:
    def update(self, count: int) -> None: ...


def test_the_order_and_the_number_of_the_texts_do_not_matter(
    build: Any, pairs: datasets.Dataset, tmp_path: Path
) -> None:
    started = read_by_encoder(build(**TEACHER, teacher_cache_dir=str(tmp_path / "one")))
    shuffled = build(**TEACHER, train_dataset=pairs.shuffle(seed=3), teacher_cache_dir=str(tmp_path / "two"))
    again = read_by_encoder(shuffled)
    assert started.keys() == again.keys() and all(torch.equal(started[name], again[name]) for name in started)


def test_a_second_start_is_read_from_disk(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read_by_encoder(build(**TEACHER))
    monkeypatch.setattr(encoder_start, "fit_start", None)
    second = read_by_encoder(build(**TEACHER, seed=7))
    norms = [torch.stack([weight.norm() for weight in found.values()]).norm() for found in (first, second)]
    for name, weight in first.items():  # the seed decides the norm alone
        torch.testing.assert_close(second[name] / norms[1], weight / norms[0])


@pytest.mark.parametrize("other", ["teacher", "base weights", "prompt", "texts", "pooling"])
def test_a_start_of_something_else_is_not_taken(
    other: str, build: Any, student: Any, teacher_dir: Path, tmp_path: Path
) -> None:
    cached: dict[str, Any] = {**TEACHER, "teacher_cache_dir": str(tmp_path / "cache")}
    build(**cached)
    changes: dict[str, Any] = {"instruction": "Same?"}
    if other == "teacher":
        changes = {"teacher": SentenceTransformer(str(teacher_dir), device="cpu")}
        next(changes["teacher"].parameters()).data.mul_(1.5)
    elif other == "base weights":
        changes = {"model": copy.deepcopy(student)}
        changes["model"].model.layers[-1].mlp.up_proj.weight.data.mul_(1.5)
    elif other == "texts":
        changes = {"unlabelled_texts": ["one more text"]}
    elif other == "pooling":
        changes = {"encoder_pooling": "concat"}
    build(**cached, **changes)
    assert len(list((tmp_path / "cache" / "encoder_start").iterdir())) == 2


def test_a_broken_start_on_disk_is_made_anew(build: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = read_by_encoder(build(**TEACHER, teacher_cache_dir=str(tmp_path / "cache")))
    (kept,) = (tmp_path / "cache" / "encoder_start").iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    with caplog.at_level(logging.WARNING, logger="flipped_kd"):
        second = read_by_encoder(build(**TEACHER, teacher_cache_dir=str(tmp_path / "cache")))
    assert "is made anew" in caplog.text and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("pooling", ["sum", "concat"])
def test_the_merged_models_vectors_are_the_adapters(
    pooling: str, build: Any, student_dir: Path, tokenizer: Any, tmp_path: Path
) -> None:
    trainer = build(
        model=str(student_dir), processing_class=tokenizer, max_steps=0, encoder_pooling=pooling, **TEACHER
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    texts = ["where is my card", "cancel the loan please", "cash"]
    adapter, merged = (FlippedMatcher.from_pretrained(tmp_path / name) for name in ("adapter", "merged"))
    assert adapter.encoder.pooling == merged.encoder.pooling == pooling
    np.testing.assert_allclose(adapter.encode(texts), merged.encode(texts), atol=1e-5)
    np.testing.assert_allclose(
        adapter.encode(texts).shape[1], 4 if pooling == "sum" else 4 * len(adapter.encoder.modules)
    )


# ---- A run without a step ----


def test_no_step_is_made_and_the_start_is_saved(
    build: Any, student_dir: Path, tokenizer: Any, held_out: datasets.Dataset, tmp_path: Path
) -> None:
    trainer = build(model=str(student_dir), processing_class=tokenizer, max_steps=0, **TEACHER)
    before = trainer.score_pairs(held_out)
    result = trainer.train()
    assert result.global_step == trainer.state.global_step == 0 and trainer.optimizer is None
    trainer.save_model(str(tmp_path / "adapter"))
    matcher = FlippedMatcher.from_pretrained(tmp_path / "adapter")
    answer, similarity = matcher.scores(list(zip(held_out["text_a"], held_out["text_b"], strict=True)))
    np.testing.assert_allclose(answer, before[0], atol=1e-4)
    np.testing.assert_allclose(similarity, before[1], atol=1e-5)
    assert matcher.match_score is not None


def test_no_step_and_no_start_is_refused(build: Any, cross_encoder_dir: Path, pairs: datasets.Dataset) -> None:
    with pytest.raises(ValueError, match="max_steps=0 makes no step, and A does not start"):
        build(teacher=str(cross_encoder_dir), max_steps=0)
    with pytest.raises(ValueError, match="max_steps=0 makes no step"):
        build(encoder_start="random", max_steps=0)
    few = pairs.select(range(2))  # with fewer texts than the rank
    with pytest.raises(ValueError, match="max_steps=0 makes no step"):
        build(train_dataset=few, peft_config=default_lora(rank=8, dropout=0.0), max_steps=0)


def test_a_checkpoint_of_another_encoder_or_prompt_is_refused(build: Any) -> None:
    earlier = {"encoder_pooling": "concat", "encoder_layers": "last:1", "encoder_start": "random"}
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    build(**options, **earlier).train()
    with pytest.raises(ValueError, match=r"another encoder: resume with its encoder_layers \(1\).*\(concat\)"):
        build(**options).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="another prompt .*prefix"):
        build(**options, **earlier, instruction="Same?").train(resume_from_checkpoint=True)
    assert build(**options, **earlier).train(resume_from_checkpoint=True).global_step == 2


# ---- When A is left alone ----


def test_plain_fine_tuning_starts_at_random(build: Any) -> None:
    plain = build(teacher=None, **PLAIN, **TEACHER)
    random = build(encoder_start="random")
    assert plain.encoder_start is None
    assert all(torch.equal(weight, matrices(random)[name]) for name, weight in matrices(plain).items())


def test_an_adapter_of_ones_own_keeps_its_a(build: Any, student: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = with_lora(student, r=4, lora_dropout=0.0)
    before = {name: weight.clone() for name, weight in model.named_parameters() if "lora_A" in name}
    assert isinstance(model, PeftModel)
    for name, weight in model.named_parameters():
        weight.requires_grad_("lora_" in name)
    with caplog.at_level(logging.INFO, logger="flipped_kd"):
        trainer = build(model=model, peft_config=None, **TEACHER)
    assert "A stays as the adapter brings it" in caplog.text and trainer.encoder_start is None
    assert all(torch.equal(weight, matrices(trainer)[name]) for name, weight in before.items())


def test_init_lora_weights_win(build: Any, caplog: pytest.LogCaptureFixture) -> None:
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights="gaussian")
    with caplog.at_level(logging.INFO, logger="flipped_kd"):
        trainer = build(peft_config=config)
    assert "init_lora_weights='gaussian'" in caplog.text and trainer.encoder_start is None


def test_a_cross_encoder_has_no_vectors(build: Any, cross_encoder_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="flipped_kd"):
        assert build(teacher=str(cross_encoder_dir)).encoder_start is None
    assert "A starts at random: the cross-encoder teacher" in caplog.text
    with pytest.raises(ValueError, match="encoder_start='teacher': the cross-encoder teacher .* has no vectors"):
        build(teacher=str(cross_encoder_dir), **TEACHER)


def test_a_stream_has_no_texts_before_training(
    build: Any, pairs: datasets.Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    stream = pairs.to_iterable_dataset()
    with caplog.at_level(logging.WARNING, logger="flipped_kd"):
        assert build(train_dataset=stream).encoder_start is None
    assert "A starts at random: there are no texts before training (a stream): give unlabelled_texts" in caplog.text
    with pytest.raises(ValueError, match="no texts before training .*give unlabelled_texts"):
        build(train_dataset=stream, **TEACHER)
    texts = sorted({*pairs["text_a"], *pairs["text_b"]})
    assert build(train_dataset=stream, unlabelled_texts=texts, **TEACHER).encoder_start.texts == len(texts)


# ---- Bad input ----


def test_too_few_texts_are_refused(build: Any, pairs: datasets.Dataset) -> None:
    few = datasets.Dataset.from_list([pairs[0] | {"label": 0}, pairs[0] | {"label": 1}])
    with pytest.raises(ValueError, match="at least as many distinct texts as the rank 4, there are 2"):
        build(train_dataset=few, per_device_train_batch_size=2, **TEACHER)
    assert build(train_dataset=few, per_device_train_batch_size=2).encoder_start is None


def test_unequal_ranks_cannot_be_summed(build: Any) -> None:
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", rank_pattern={"k_proj": 2})
    with pytest.raises(ValueError, match=r"encoder_pooling='sum' adds .* ranks \[2, 4\]"):
        build(peft_config=config, encoder_modules=["all"])


def test_where_it_cannot_start_auto_is_random(build: Any, caplog: pytest.LogCaptureFixture) -> None:
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", rank_pattern={"k_proj": 2})
    with caplog.at_level(logging.INFO, logger="flipped_kd"):
        assert build(peft_config=config, encoder_pooling="concat").encoder_start is None
    assert "A starts at random: the encoder's modules have ranks [2, 4]" in caplog.text
    with pytest.raises(ValueError, match=r"have ranks \[2, 4\].*leave rank_pattern out"):
        build(peft_config=config, encoder_pooling="concat", **TEACHER)


def test_one_text_is_no_list_of_texts(build: Any) -> None:
    with pytest.raises(TypeError, match="a list of texts, not one str: 'texts.txt'"):
        build(unlabelled_texts="texts.txt")


def test_a_rank_above_the_teachers_numbers_is_refused(build: Any) -> None:
    config = LoraConfig(r=20, lora_alpha=8, target_modules="all-linear")
    with pytest.raises(ValueError, match="vectors of 16 numbers cannot start an A of rank 20"):
        build(peft_config=config, **TEACHER)
    assert build(peft_config=config).encoder_start is None


def test_modules_too_wide_for_the_memory_are_refused(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_start, "MAX_BYTES", 40)
    with pytest.raises(ValueError, match="14 modules are too wide to keep 4 texts of: choose fewer encoder_layers"):
        build(**TEACHER)
    assert build().encoder_start is None


# ---- Where the texts are read ----


@pytest.mark.parametrize("fits", [True, False])
def test_a_model_that_waits_in_main_memory_comes_home_again(
    fits: bool, student: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from halfway, where the device has no room for all of it; then it is read where it is."""
    model, home, device = with_lora(student), torch.device("cpu"), torch.device("cuda:0")
    moves: list[torch.device] = []
    threads: list[int] = []

    def move(to: torch.device) -> None:
        moves.append(to)
        if to == device and not fits:
            raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(model, "to", move)
    monkeypatch.setattr(encoder_start, "use_cpu_threads", lambda: threads.append(1))
    with run_on(model, device):
        assert moves == ([device] if fits else [device, home])
    assert moves == [device, home] and threads == [1] * (not fits)


# ---- Texts and their inputs ----


def test_a_sample_is_the_same_for_every_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_start, "MAX_TEXTS", 5)
    texts = [f"text {number}" for number in range(40)]
    first, count = sample_texts(texts, 10)
    second, _ = sample_texts([*reversed(texts), *texts], 10)
    assert first == second and len(first) == 5 and count == 40
    monkeypatch.setattr(encoder_start, "MAX_BYTES", 4 * 10 * 3)
    assert sample_texts(texts, 10)[0] == first[:3]


def test_texts_of_pairs_are_sampled_as_if_they_were_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_start, "MAX_TEXTS", 7)
    texts_a, texts_b = ([f"{name} {number % 9}" for number in range(20)] for name in ("text", "other"))
    pairs = datasets.Dataset.from_dict({"text_a": texts_a, "text_b": texts_b, "label": [0, 1] * 10})
    more = ["text 3", "one more"]
    assert sample_texts(more, 10, pairs) == sample_texts([*more, *texts_a, *texts_b], 10)
    assert sample_texts([], 10, pairs) == sample_texts([*texts_a, *texts_b], 10)
    assert len(encoder_start.distinct_keys(more, pairs)) == 19


def test_modules_that_share_an_input_are_read_once(student: Any) -> None:
    model = with_lora(student)
    encoder = LoraEncoder.from_model(model, layers="0")
    inputs = EncoderInputs(model, encoder.modules)
    shared = sorted(sorted(name.rsplit(".", 1)[-1] for name in names) for names in inputs.read_by.values())
    assert shared == [["down_proj"], ["gate_proj", "up_proj"], ["k_proj", "q_proj", "v_proj"], ["o_proj"]]
    assert inputs.dimension == sum(inputs.widths.values()) == 32 + 32 + 32 + 48
