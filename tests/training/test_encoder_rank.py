"""Vectors as long as one likes: the encoder's modules have a rank of their own, and all else stays."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer

from flipped_kd import FlippedMatcher
from flipped_kd.publishing.merge import merge_adapter
from flipped_kd.students.encoder_modules import lora_layers
from flipped_kd.training.trainer import FlippedDistillationTrainer
from tests.adapters import with_lora

TEXTS = ["where is my card", "cancel the loan please", "cash"]
WIDEST: dict[str, Any] = {"encoder_modules": ["widest"]}


def ranks(trainer: FlippedDistillationTrainer) -> dict[str, int]:
    layers: dict[str, Any] = dict(lora_layers(trainer.model))
    for layer in layers.values():
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert layer.r["default"] == a.shape[0] == b.shape[1]
    return {name: layer.r["default"] for name, layer in layers.items()}


def test_the_encoder_has_it_and_no_other_module(build: Any) -> None:
    trainer = build(encoder_rank=9, **WIDEST)
    read = {module.name for module in trainer.encoder.modules}
    found = ranks(trainer)
    assert {name for name, rank in found.items() if rank == 9} == read
    assert read < found.keys() and set(found.values()) == {4, 9} and trainer.encoder.dimension == 9


@pytest.mark.parametrize("rank_stabilised", [False, True])
def test_b_a_keeps_its_scale(build: Any, rank_stabilised: bool) -> None:
    config = LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", use_rslora=rank_stabilised)
    trainer = build(peft_config=config, encoder_rank=9, **WIDEST)
    scales = [layer.scaling["default"] for layer in trainer.model.modules() if isinstance(layer, LoraLayer)]
    np.testing.assert_allclose(scales, 6 / 2 if rank_stabilised else 6 / 4)


def test_the_first_numbers_are_those_of_a_smaller_rank(build: Any) -> None:
    """The start takes the teacher's strongest directions first, so that more of them change none."""
    short, long = (build(encoder_rank=rank, encoder_start="teacher", **WIDEST) for rank in (4, 9))
    for name, module in lora_layers(long.model):
        if name in {read.name for read in long.encoder.modules}:
            wide = module.lora_A["default"].weight[:4]
            narrow = dict(lora_layers(short.model))[name].lora_A["default"].weight
            cosines = torch.nn.functional.cosine_similarity(wide, narrow, dim=1).abs()
            torch.testing.assert_close(cosines, torch.ones(4), atol=1e-3, rtol=0)


def test_training_saves_and_merges_it(
    build: Any, student_dir: Path, tokenizer: Any, held_out: Any, tmp_path: Path
) -> None:
    trainer = build(model=str(student_dir), processing_class=tokenizer, encoder_rank=9, **WIDEST)
    trainer.train()
    assert trainer.encoder_start is not None
    trainer.save_model(str(tmp_path / "adapter"))
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    adapter, merged = (FlippedMatcher.from_pretrained(tmp_path / name) for name in ("adapter", "merged"))
    assert adapter.encode(TEXTS).shape == (3, 9)
    np.testing.assert_allclose(adapter.encode(TEXTS), merged.encode(TEXTS), atol=1e-5)
    pairs = list(zip(held_out["text_a"], held_out["text_b"], strict=True))
    for matcher in (adapter, merged):
        for found, expected in zip(matcher.scores(pairs), trainer.score_pairs(held_out), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-4)


def test_other_modules_keep_a_rank_pattern(build: Any) -> None:
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", rank_pattern={"k_proj": 2, "down_proj": 3})
    config.rank_pattern["model.layers.0.mlp.down_proj"] = 2  # named as wholly as ours
    found = ranks(build(peft_config=config, encoder_rank=9, **WIDEST))
    assert {rank for name, rank in found.items() if name.endswith("k_proj")} == {2}
    assert {rank for name, rank in found.items() if name.endswith("down_proj")} == {9}


def test_a_checkpoint_of_another_rank_is_refused(build: Any) -> None:
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, **WIDEST}
    build(encoder_rank=9, **options).train()
    with pytest.raises(ValueError, match=r"another encoder: resume with its .*encoder_rank \(\[9\]\)"):
        build(**options).train(resume_from_checkpoint=True)
    assert build(encoder_rank=9, **options).train(resume_from_checkpoint=True).global_step == 2


def test_more_numbers_than_the_teacher_has_cannot_start(build: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="flipped_kd"):
        trainer = build(encoder_rank=40, **WIDEST)
    dimension = trainer.teacher.dim
    assert dimension < 40 and trainer.encoder_start is None and trainer.encoder.dimension == 40
    assert f"vectors of {dimension} numbers cannot start an A of rank 40" in caplog.text


def test_an_adapter_of_ones_own_keeps_its_ranks(build: Any, student: Any) -> None:
    with pytest.raises(ValueError, match="encoder_rank=9: the student already has an adapter.*Leave it out"):
        build(model=with_lora(student, r=4), peft_config=None, encoder_rank=9)
