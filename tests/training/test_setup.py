"""What a trainer is given, what "auto" loads weights in (GPUs are told of, not had), vocabularies that do not fit."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, RobertaConfig, RobertaForCausalLM

from flipped_kd.inference.loading import resolved_dtype
from flipped_kd.inference.matcher import FlippedMatcher
from flipped_kd.prompts.pair_prompt import PairPrompt
from flipped_kd.students.loading import load_student, load_tokenizer
from flipped_kd.students.probing import position_limit
from flipped_kd.training import run_checks
from flipped_kd.training import setup as trainer_setup
from flipped_kd.training.trainer import FlippedDistillationTrainer
from flipped_kd.utils.devices import has_bfloat16, weights_dtype
from tests.invariants.decoders import DECODERS, POSITIONS
from tests.invariants.training import assert_equal, lora, settings, trainable
from tests.prompt_kinds import make_tokenizer

GPU = torch.device("cuda")


def test_student_and_teacher_may_be_paths(build: Any, student_dir: Path, teacher_dir: Path, tmp_path: Path) -> None:
    trainer = build(model=student_dir, teacher=teacher_dir, processing_class=None, max_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    named = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(student_dir)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"peft_config": {}}, "peft_config is a dict: give a peft.LoraConfig, or None"),
        ({"peft_config": {"r": 8}}, "peft_config is a dict: give a peft.LoraConfig, or None"),
        ({"prompt": "zh"}, "prompt is a str: give a PairPrompt, or None"),
        ({"args": {}}, "args is a dict: give a FlippedDistillationConfig"),
    ],
)
def test_settings_of_another_kind_are_refused(given: Any, message: str, student_dir: Path, pairs: Any) -> None:
    """Also empty ones, which would pass for none."""
    with pytest.raises(ValueError, match=message):
        FlippedDistillationTrainer(str(student_dir), None, train_dataset=pairs, **given)


@pytest.mark.parametrize(("native", "precision"), [(False, "bf16"), (True, "bf16"), (False, "fp32")])
def test_bfloat16_that_a_cpu_emulates_is_warned_of(
    native: bool, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": native})
    with caplog.at_level(logging.WARNING, run_checks.__name__):
        run_checks.check_args(settings(tmp_path, precision=precision))
    warned = [record.getMessage() for record in caplog.records]
    if native or precision == "fp32":
        assert warned == []
    else:
        assert len(warned) == 1 and "this CPU does not multiply bfloat16 itself" in warned[0]


@pytest.fixture(params=[True, False], ids=["bfloat16", "emulated"])
def native(request: Any, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the GPU that torch speaks of has bfloat16, or only torch's emulation of it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or request.param
    )
    return bool(request.param)


def test_a_gpu_that_emulates_bfloat16_loads_float32(native: bool) -> None:
    expected = torch.bfloat16 if native else torch.float32
    assert has_bfloat16() is native
    assert weights_dtype(GPU) == weights_dtype(GPU, "fp16") == resolved_dtype("auto", GPU) == expected


def test_float32_is_what_a_cpu_and_fp32_get(native: bool) -> None:
    cpu = torch.device("cpu")
    assert weights_dtype(GPU, "fp32") == weights_dtype(cpu) == resolved_dtype("auto", cpu) == torch.float32


def test_a_student_by_name_is_asked_for_in_that_dtype(
    native: bool, student_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(trainer_setup, "load_student", lambda name, dtype: asked.append(dtype) or load_student(name))
    for device in (torch.device("cpu"), GPU):
        args = settings(tmp_path)
        monkeypatch.setattr(type(args), "device", device)
        for args.precision in ("fp32", "bf16"):
            trainer_setup.prepare_student(str(student_dir), None, args)
    assert asked == [torch.float32] * 3 + [torch.bfloat16 if native else torch.float32]


# ---- Vocabulary ----


def test_a_student_whose_vocabulary_was_resized_is_refused_before_training(
    build: Any, student_dir: Path, tmp_path: Path
) -> None:
    """Its adapter would name a base of another size; saved as a whole it can be trained and loaded."""
    model = AutoModelForCausalLM.from_pretrained(student_dir, dtype=torch.float32)
    rows = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(rows + 8)
    message = rf"vocabulary has {rows + 8} entries, that of its base '{student_dir}' has {rows}.*give the trainer that"
    with pytest.raises(ValueError, match=message):
        build(model=model)
    with pytest.raises(ValueError, match=message):
        build(model=get_peft_model(model, lora()), peft_config=None)
    saved = AutoModelForCausalLM.from_pretrained(student_dir, dtype=torch.float32)
    saved.resize_token_embeddings(rows + 8)
    saved.save_pretrained(tmp_path / "resized")
    load_tokenizer(student_dir).save_pretrained(tmp_path / "resized")
    trainer = build(model=str(tmp_path / "resized"), max_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "trained"))
    matcher = FlippedMatcher.from_pretrained(tmp_path / "trained", device="cpu")
    assert matcher.model.get_input_embeddings().weight.shape[0] == rows + 8


def test_a_student_with_fewer_embeddings_than_tokens_is_refused_before_training(
    build: Any, student_dir: Path, tmp_path: Path
) -> None:
    small = AutoModelForCausalLM.from_pretrained(student_dir, dtype=torch.float32)
    tokenizer = load_tokenizer(student_dir)
    small.resize_token_embeddings(tokenizer.vocab_size - 1)
    small.save_pretrained(tmp_path / "small")
    with pytest.raises(
        ValueError, match=r"token ids up to \d+, the model \w+ has embeddings for \d+: give the model's"
    ):
        build(model=str(tmp_path / "small"))


def test_a_padding_without_an_embedding_is_refused_before_training(build: Any, student_dir: Path) -> None:
    """As `add_special_tokens` gives one where the model is not resized after it."""
    tokenizer = load_tokenizer(student_dir)
    rows = AutoModelForCausalLM.from_pretrained(student_dir).get_input_embeddings().weight.shape[0]
    tokenizer.add_tokens([f"<extra{number}>" for number in range(rows - len(tokenizer))])
    tokenizer.add_special_tokens({"pad_token": "<padding of its own>"})
    with pytest.raises(ValueError, match=rf"token ids up to {rows}, the model \w+ has embeddings for {rows}"):
        build(model=str(student_dir), processing_class=tokenizer)


# ---- Positions ----


@pytest.mark.parametrize("family", ["GPT-2", "GPT-Neo", "GPT-J", "OPT", "BERT as a decoder"])
def test_a_prompt_longer_than_the_students_positions_is_refused_before_training(family: str, build: Any) -> None:
    decoder = next(decoder for decoder in DECODERS if decoder.family == family)
    with pytest.raises(ValueError, match=rf"max_length={POSITIONS + 1}.* has {POSITIONS} positions"):
        build(model=decoder.build(), max_length=POSITIONS + 1)
    student = decoder.build()
    ids = torch.full((1, POSITIONS), 50)
    student(input_ids=ids, attention_mask=torch.ones_like(ids))  # as many it reads
    build(model=student, max_length=POSITIONS)


def test_the_positions_of_other_students() -> None:
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    roberta = RobertaForCausalLM(RobertaConfig(vocab_size=9, max_position_embeddings=66, is_decoder=True, **size))
    assert position_limit(roberta) == 64  # it numbers them from 2
    rotary = next(decoder for decoder in DECODERS if decoder.family == "Qwen2").build()
    assert position_limit(rotary) is None


# ---- What does not go together ----


def test_a_prompt_of_another_tokenizer_is_refused(build: Any) -> None:
    """Its ids would be other words of the student's: trained on, and then refused when the adapter is loaded."""
    prompt = PairPrompt.from_preset(make_tokenizer("bytes"), max_length=64)
    with pytest.raises(ValueError, match="prompt: it was made with another tokenizer, whose .*_ids"):
        build(prompt=prompt)


@pytest.mark.parametrize(("name", "value"), [("max_length", 80), ("prompt", "zh"), ("instruction", "Same.")])
def test_settings_of_a_prompt_that_is_given_are_refused(
    name: str, value: Any, build: Any, tokenizer: Any, tmp_path: Path
) -> None:
    prompt = PairPrompt.from_preset(tokenizer, max_length=64)
    with pytest.raises(ValueError, match=f"{name}={value!r} would be ignored.*max_length=64"):
        run_checks.check_prompt_settings(settings(tmp_path, **{"max_length": 64, name: value}), prompt)
    assert build(prompt=prompt, max_length=64).prompt is prompt


def test_batches_of_one_pair_are_refused_where_nothing_would_be_compared(build: Any) -> None:
    one = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    with pytest.raises(ValueError, match="per_device_train_batch_size=1: .*compare the pairs.*mini_batch_size=1"):
        build(**one)
    build(**one, dist_weight=0, mcl_weight=0)
    build(**one, dist_loss="mse", mcl_weight=0)


def test_texts_without_labels_are_checked_before_anything_is_loaded(build: Any) -> None:
    for bad in (" ", None):
        with pytest.raises(ValueError, match=r"unlabelled_texts\[1\]: .*Leave it out"):
            build(unlabelled_texts=["fine", bad], model="no such model")
    assert build(unlabelled_texts=(f"text {number}" for number in range(3))).encoder_start is not None


def test_an_optimizer_of_other_weights_is_refused(build: Any, student: Any) -> None:
    """The adapter comes later, and freezes what it was given."""
    with pytest.raises(ValueError, match="optimizers: .*lora_A.*give the PeftModel as the student"):
        build(model=(bare := copy.deepcopy(student)), optimizers=(torch.optim.AdamW(bare.parameters()), None))
    adapted = get_peft_model(student, lora())
    weights = [weight for weight in adapted.parameters() if weight.requires_grad]
    trainer = build(model=adapted, peft_config=None, optimizers=(torch.optim.SGD(weights, lr=0.1), None), max_steps=1)
    before = trainable(trainer.model)
    trainer.train()
    assert any(not torch.equal(value, before[name]) for name, value in trainable(trainer.model).items())


@pytest.mark.parametrize("precisions", [("bf16", "fp32"), ("fp32", "bf16")])
def test_a_second_trainer_has_its_own_precision(precisions: tuple[str, str], build: Any) -> None:
    """accelerate keeps the first one's around the forward pass of a model that is handed on."""
    first = build(precision=precisions[0], max_steps=1)
    first.train()
    alone = trainable(first.model)
    for handed_on in (True, False):
        model = first.model if handed_on else build(max_steps=1).model
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name in alone:
                    weight.copy_(alone[name])
        second = build(model=model, peft_config=None, precision=precisions[1], max_steps=1, encoder_start="random")
        second.train()
        if handed_on:
            found = trainable(second.model)
        else:
            assert_equal(found, trainable(second.model))


def test_weights_without_values_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    run_checks.check_args(settings(tmp_path))
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    with pytest.raises(ValueError, match="fsdp_cpu_ram_efficient_loading=True.*set it false"):
        run_checks.check_args(settings(tmp_path))
