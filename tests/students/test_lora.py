"""Which layers a LoRA adapter is put on."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Qwen2ForCausalLM,
)

from flipped_kd import FlippedMatcher
from flipped_kd.students.lora import add_adapter, default_lora
from tests.adapters import make_base
from tests.invariants.training import new_trainer, settings


def test_the_default_adapter_is_on_every_linear_layer_but_the_head(student: Qwen2ForCausalLM) -> None:
    model = add_adapter(student, default_lora(rank=2, alpha=6.0))
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    assert len(adapted) == 14
    assert not any("lm_head" in name for name in adapted)
    up_proj: Any = model.get_base_model().get_submodule("model.layers.0.mlp.up_proj")
    assert up_proj.scaling == {"default": 3.0}


def test_tied_embeddings_make_no_warnings(tokenizer: Any, teacher_dir: Path, pairs: Any, tmp_path: Path) -> None:
    """Nor does saving them whole: whoever adapts the head has chosen it, and the merge unties it by itself."""
    base = make_base(tmp_path / "base", "qwen2", tokenizer, tied=True)
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj", "lm_head"], task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="peft")
        trainer = new_trainer(
            settings(tmp_path / "run", max_steps=1), str(base), str(teacher_dir), pairs, None, None, peft_config=config
        )
        trainer.train()
        trainer.save_model(str(tmp_path / "adapter"))
        matcher = FlippedMatcher.from_pretrained(tmp_path / "adapter", device="cpu")
    assert "lm_head" in str(matcher.model.peft_config["default"].target_modules)  # type: ignore[union-attr]


def test_targets_may_be_named_with_commas(student: Qwen2ForCausalLM) -> None:
    model = add_adapter(student, default_lora(rank=2, target_modules="q_proj, v_proj"))
    names = {name.split(".lora_A")[0].rsplit(".", 1)[-1] for name, _ in model.named_parameters() if "lora_A" in name}
    assert names == {"q_proj", "v_proj"}


def test_targets_that_match_nothing_are_refused_with_the_names_there_are(student: Qwen2ForCausalLM) -> None:
    with pytest.raises(
        ValueError, match=r"target_modules=\['query'\].*'all-linear' or some of \['down_proj'.*'v_proj'\]"
    ):
        add_adapter(student, default_lora(target_modules="query"))
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=120, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match=r"some of \['c_attn', 'c_fc', 'c_proj'\]"):
        add_adapter(gpt2, default_lora(target_modules="query"))
