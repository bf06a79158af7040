"""The size of a student is told without its weights, and decides the learning rate where none is given."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from flipped_kd.students.loading import load_student
from flipped_kd.students.size import count_weights, learning_rate_for
from flipped_kd.training.config import FlippedDistillationConfig
from tests.adapters import make_base
from tests.gguf_files import write_gguf


def test_the_weights_are_those_of_the_loaded_model(student_dir: Path, tokenizer: Any, tmp_path: Path) -> None:
    untied = make_base(tmp_path / "untied", "qwen2", tokenizer, tied=False)
    (tmp_path / "gguf").mkdir()
    write_gguf(tmp_path / "gguf" / "tiny.gguf", tokenizer)
    for student in (student_dir, untied, tmp_path / "gguf" / "tiny.gguf"):
        assert count_weights(student) == load_student(student).num_parameters()
    (untied / "model.safetensors").unlink()  # the configuration is enough
    assert count_weights(untied) > 0
    with pytest.raises(ValueError, match=r"has no usable config\.json"):
        count_weights(tmp_path)


def test_the_rate_falls_with_the_size() -> None:
    assert [learning_rate_for(weights) for weights in (1e6, 135e6, 268e6, 494e6, 1e9, 7e9)] == [
        *(1e-3, 1e-3, 5e-4, 5e-4, 2e-4, 2e-4)
    ]


def test_the_trainer_takes_it_where_none_is_given(
    build: Any, student_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    args = FlippedDistillationConfig(output_dir="unused", use_cpu=True)
    assert args.learning_rate is None
    with caplog.at_level(logging.INFO, logger="flipped_kd"):
        trainer = build(learning_rate=None)
    assert trainer.args.learning_rate == 1e-3 and "learning rate 0.001, for a student of" in caplog.text
    bare = load_student(student_dir).num_parameters()  # as the recipes count, without the adapter
    monkeypatch.setattr("flipped_kd.students.size.RATES", ((bare + 1, 0.5), (float("inf"), 0.1)))
    assert build(learning_rate=None).args.learning_rate == 0.5
    monkeypatch.undo()
    trainer.create_optimizer_and_scheduler(num_training_steps=10)
    assert {group["initial_lr"] for group in trainer.optimizer.param_groups} == {1e-3}
    assert build(learning_rate=3e-5).args.learning_rate == 3e-5
