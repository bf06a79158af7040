"""The student: what is refused and why, the adapter, and the logits of one position."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
    Qwen2Model,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
)

from flipped_kd.students.loading import check_causal, load_student, load_tokenizer
from tests.broken_files import BREAKS, break_file
from tests.students.small_models import QWEN, SIZES, bert

# ---- Loading ---------------------------------------------------------------------------------------------


def test_a_saved_causal_model_loads_in_float32_on_a_cpu(student_dir: Path, student: Qwen2ForCausalLM) -> None:
    loaded = load_student(student_dir)
    assert type(loaded) is Qwen2ForCausalLM
    expected = torch.float32 if not torch.cuda.is_available() else loaded.dtype
    assert loaded.dtype == expected
    assert load_student(student_dir, dtype="bfloat16").dtype == torch.bfloat16
    for name, value in student.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name].to(value.dtype), value, rtol=0, atol=0)


@pytest.mark.parametrize("scale", [0.02, 0.2])
def test_a_bert_that_is_no_decoder_is_refused_and_one_that_is_accepted(tmp_path: Path, scale: float) -> None:
    bert(is_decoder=False, scale=scale).save_pretrained(tmp_path / "encoder")
    with pytest.raises(
        ValueError, match=r"BertLMHeadModel is not causal: later tokens.*decoder-only.*is_decoder=true"
    ):
        load_student(tmp_path / "encoder")
    bert(is_decoder=True, scale=scale).save_pretrained(tmp_path / "decoder")
    assert load_student(tmp_path / "decoder").config.is_decoder


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: T5ForConditionalGeneration(t5()), "is an encoder-decoder.*decoder-only"),
        (lambda: BartForConditionalGeneration(bart()), "is an encoder-decoder.*decoder-only"),
        (lambda: Qwen2ForSequenceClassification(QWEN), r"lacks 1 weights of Qwen2ForCausalLM.*lm_head.*start random"),
        (lambda: Qwen2Model(QWEN), r"lacks 1 weights.*\['Qwen2Model'\]"),
    ],
)
def test_models_of_another_kind_are_refused(tmp_path: Path, model: Any, message: str) -> None:
    model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_student(tmp_path)


def t5() -> T5Config:
    return T5Config(vocab_size=120, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2)


def bart() -> BartConfig:
    heads: dict[str, Any] = {
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
    }
    return BartConfig(vocab_size=120, d_model=16, encoder_layers=1, decoder_layers=1, **heads)


def test_a_config_without_causal_model_is_refused_before_any_weight_is_read(tmp_path: Path) -> None:
    ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a vit model, which has no causal language model.*decoder-only"):
        load_student(tmp_path)


def test_pickled_weights_are_never_loaded(tmp_path: Path) -> None:
    QWEN.save_pretrained(tmp_path)
    torch.save(Qwen2ForCausalLM(QWEN).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be loaded.*safetensors.*pickles.*never loaded"):
        load_student(tmp_path)


@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_broken_files_are_named_before_anything_is_loaded(
    student_dir: Path, tmp_path: Path, name: str, how: str
) -> None:
    folder = Path(shutil.copytree(student_dir, tmp_path / "student"))
    break_file(folder / name, how)
    if name == "model.safetensors" or how == "pointer":
        with pytest.raises(ValueError, match=rf"{folder / name} is {BREAKS[how]}.*again"):
            load_student(folder)
    else:
        with pytest.raises(ValueError, match=rf"the tokenizer of '{folder}' cannot be loaded"):
            load_tokenizer(folder)


@pytest.mark.parametrize("config", [None, {}, {"model_type": "unheard-of"}])
def test_a_folder_without_usable_config_is_refused_by_name(tmp_path: Path, config: dict[str, str] | None) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"'{tmp_path}' has no usable config.json"):
        load_student(tmp_path)


def test_code_from_the_repository_is_not_run(student_dir: Path, tmp_path: Path) -> None:
    config = json.loads((student_dir / "config.json").read_text())
    config |= {"model_type": "custom", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ValueError, match="no usable config.json"):
        load_student(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_without_pad_pads_with_eos_or_unk(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.pad_token = None
    bare.save_pretrained(tmp_path / "eos")
    assert load_tokenizer(tmp_path / "eos").pad_token == "<|im_end|>"
    bare.eos_token, bare.unk_token = None, "<|im_start|>"
    bare.save_pretrained(tmp_path / "unk")
    assert load_tokenizer(tmp_path / "unk").pad_token == "<|im_start|>"
    bare.unk_token = None
    bare.save_pretrained(tmp_path / "none")
    with pytest.raises(ValueError, match="neither pad, eos nor unk token.*set tokenizer.pad_token"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(ValueError, match="tokenizer of .* cannot be loaded"):
        load_tokenizer(tmp_path / "absent")


# ---- The check itself ------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_the_check_leaves_the_model_as_it_was(student: Qwen2ForCausalLM, training: bool) -> None:
    before = {name: value.clone() for name, value in student.state_dict().items()}
    student.train(training)
    check_causal(student)
    assert student.training == training
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert all(parameter.grad is None for parameter in student.parameters())


@pytest.mark.parametrize("vocab_size", [8, 13, 101])
def test_small_vocabularies_are_no_obstacle(vocab_size: int) -> None:
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES | {"vocab_size": vocab_size}, num_key_value_heads=2)).eval()
    check_causal(model)  # looks up no id beyond the vocabulary
    assert not model.training


def test_a_model_without_head_or_with_an_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match="Qwen2Model has no language-model head"):
        check_causal(Qwen2Model(QWEN))
    with pytest.raises(ValueError, match="T5ForConditionalGeneration is an encoder-decoder"):
        check_causal(T5ForConditionalGeneration(t5()))


# ---- The adapter -----------------------------------------------------------------------------------------


# ---- Logits at one position ------------------------------------------------------------------------------
