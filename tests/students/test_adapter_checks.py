"""LoRA in all its supported variants trains, saves, reloads and merges to the same scores; the others are refused.

The table of docs/adapters.md lists both.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from flipped_kd.inference.matcher import FlippedMatcher
from flipped_kd.publishing.merge import merge_adapter
from flipped_kd.training.trainer import FlippedDistillationTrainer
from tests.adapters import LINEAR
from tests.invariants.training import settings, trainable

DOCUMENT = Path(__file__).parents[2] / "docs" / "adapters.md"
TRAINED: dict[str, dict[str, Any]] = {
    "plain": {},
    "lora_dropout": {"lora_dropout": 0.2},
    "use_rslora": {"use_rslora": True},
    "use_dora": {"use_dora": True},
    "rank_pattern": {"rank_pattern": {"q_proj": 2, "down_proj": 6}, "alpha_pattern": {"q_proj": 3}},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "lora_bias": {"lora_bias": True, "target_modules": ["q_proj", "k_proj", "v_proj"]},
    "bias": {"bias": "lora_only", "target_modules": ["q_proj", "k_proj", "v_proj"]},
    "trainable_token_indices": {"trainable_token_indices": list(range(5, 60))},
    "embed_tokens": {"target_modules": [*LINEAR, "embed_tokens"]},
    "layers_to_transform": {"layers_to_transform": [1]},
    "init_lora_weights='gaussian'": {"init_lora_weights": "gaussian"},
    "init_lora_weights='orthogonal'": {"init_lora_weights": "orthogonal"},
}
REFUSED: dict[str, tuple[Any, str]] = {
    "layer_replication": ({"layer_replication": [(0, 2), (1, 2)]}, "share one base weight"),
    "alora_invocation_tokens": ({"alora_invocation_tokens": [5]}, "silent before its tokens"),
    "init_lora_weights='pissa'": ({"init_lora_weights": "pissa"}, "changes the base's weights"),
    "init_lora_weights='olora'": ({"init_lora_weights": "olora"}, "changes the base's weights"),
    "init_lora_weights='eva'": ({"init_lora_weights": "eva"}, "starts A from data"),
    "task_type": ({"task_type": TaskType.SEQ_CLS}, "causal language model"),
    "inference_mode": ({"inference_mode": True}, "freeze the new adapter"),
    "modules_to_save of nothing": ({"modules_to_save": ["score"]}, "matches no module"),
    "lora_bias without a bias": ({"lora_bias": True}, "no bias of their own"),
}


def config(**changes: Any) -> LoraConfig:
    values: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": LINEAR, "task_type": TaskType.CAUSAL_LM}
    return LoraConfig(**(values | changes))


@pytest.fixture
def make(
    student_dir: Path,
    teacher_dir: Path,
    pairs: datasets.Dataset,
    held_out: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> Any:
    """Makes a trainer of the tiny student, by name or as it is given."""

    def make(student: Any = None, peft_config: LoraConfig | None = None, **changes: Any) -> FlippedDistillationTrainer:
        values = {"max_steps": 3, "positive_threshold": 0.0, "negative_threshold": 1.0, "weight_decay": 0.0}
        args = settings(tmp_path / "run", **(values | changes))
        student = str(student_dir) if student is None else student
        return FlippedDistillationTrainer(
            student, str(teacher_dir), args, pairs, held_out.select(range(12)), tokenizer, peft_config
        )

    return make


def peft_model(student_dir: Path, peft_config: Any, name: str = "default") -> Any:
    base: Any = AutoModelForCausalLM.from_pretrained(student_dir, dtype=torch.float32)
    return get_peft_model(base, peft_config, adapter_name=name)


@pytest.mark.parametrize("variant", TRAINED)
def test_trains_reloads_and_merges(variant: str, make: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's advice on saved embeddings
        # Outputs of unequal rank cannot be summed.
        pooling = "concat" if "rank_pattern" in TRAINED[variant] else "sum"
        trainer = make(peft_config=config(**TRAINED[variant]), encoder_layers="all", encoder_pooling=pooling)
        start = {name: value.clone() for name, value in trainable(trainer.model).items()}
        trainer.train()
        trainer.save_model()
        end = trainable(trainer.model)
        still = [name for name, value in end.items() if torch.equal(value, start[name])]
        assert not still and all(np.isfinite(line["loss"]) for line in trainer.state.log_history if "loss" in line)
        expected = trainer.score_pairs(trainer.eval_dataset)
        merge_adapter(tmp_path / "run", tmp_path / "merged")
    texts = list(zip(trainer.eval_dataset["text_a"], trainer.eval_dataset["text_b"], strict=True))
    adapter, merged = (FlippedMatcher.from_pretrained(tmp_path / name, device="cpu") for name in ("run", "merged"))
    for matcher, atol in ((adapter, 1e-5), (merged, 1e-4)):
        for found, wanted in zip(matcher.scores(texts), expected, strict=True):
            np.testing.assert_allclose(found, wanted, atol=atol)
    np.testing.assert_allclose(
        merged.encode([pair[0] for pair in texts]), adapter.encode([pair[0] for pair in texts]), atol=1e-5
    )


@pytest.mark.parametrize("variant", REFUSED)
def test_refused(variant: str, make: Any) -> None:
    changes, reason = REFUSED[variant]
    with pytest.raises(ValueError, match=re.escape(reason)):
        make(peft_config=config(**changes))


def test_other_kinds_of_adapter_are_refused(make: Any, student_dir: Path) -> None:
    for other in (
        peft.LoHaConfig(r=4, target_modules=LINEAR, task_type=TaskType.CAUSAL_LM),
        peft.IA3Config(task_type=TaskType.CAUSAL_LM, target_modules=LINEAR, feedforward_modules=["down_proj"]),
        peft.PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2),
    ):
        with pytest.raises(ValueError, match="only LoRA has the A matrices"):
            make(peft_model(student_dir, other))


def test_a_peft_model_with_trained_adapters_goes_on_from_them(make: Any, student_dir: Path, tmp_path: Path) -> None:
    first = make(peft_config=config())
    first.train()
    first.save_model(str(tmp_path / "first"))
    base: Any = AutoModelForCausalLM.from_pretrained(student_dir, dtype=torch.float32)
    carried = PeftModel.from_pretrained(base, tmp_path / "first", is_trainable=True)
    second = make(carried)
    for name, value in trainable(second.model).items():
        assert torch.equal(value, trainable(first.model)[name])
    np.testing.assert_allclose(
        second.score_pairs(second.eval_dataset), first.score_pairs(first.eval_dataset), atol=1e-5
    )
    second.train()
    assert any(not torch.equal(value, trainable(first.model)[name]) for name, value in trainable(second.model).items())


def test_a_peft_model_that_would_train_in_vain_is_refused(make: Any, student_dir: Path) -> None:
    named = peft_model(student_dir, config(), "finance")
    with pytest.raises(ValueError, match="named 'default'"):
        make(named)
    two = peft_model(student_dir, config())
    two.add_adapter("other", config())
    two.set_adapter("other")
    with pytest.raises(ValueError, match="active adapters are"):
        make(two)
    frozen = peft_model(student_dir, config())
    frozen.requires_grad_(False)
    with pytest.raises(ValueError, match="is_trainable=True"):
        make(frozen)
    merged = peft_model(student_dir, config())
    merged.merge_adapter()
    with pytest.raises(ValueError, match="unmerge_adapter"):
        make(merged)
    loose = peft_model(student_dir, config())
    loose.get_base_model().model.norm.weight.requires_grad_(True)
    with pytest.raises(ValueError, match="would not be saved"):
        make(loose)


def test_the_document_names_every_variant() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for name in (*TRAINED, *REFUSED):
        assert f"`{name.split(' ')[0]}`" in text, name
