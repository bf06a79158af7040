"""What a trainer is given, and what "auto" loads weights in, by device and precision; GPUs are told of, not had."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from flipped_kd.inference.loading import resolved_dtype
from flipped_kd.students.loading import load_student
from flipped_kd.training import setup as trainer_setup
from flipped_kd.training.trainer import FlippedDistillationTrainer
from flipped_kd.utils.devices import has_bfloat16, weights_dtype
from tests.invariants.training import settings

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
