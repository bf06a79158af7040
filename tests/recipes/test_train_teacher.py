"""recipes/train_teacher.py: it trains both kinds, and what it saves is a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import train_teacher
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder, SentenceTransformer

from flipped_kd.teachers.bi_encoder import BiEncoderTeacher
from flipped_kd.teachers.cross_encoder import CrossEncoderTeacher
from flipped_kd.teachers.loading import load_teacher
from flipped_kd.teachers.pair_scores import teacher_scores
from tests.cli.helpers import pair_rows, write_rows
from tests.conftest import make_pairs


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    for name, seed in (("train", 0), ("validation", 0)):  # the same pairs: learning shows
        write_rows(tmp_path / f"{name}.jsonl", pair_rows(48, seed=seed))
    files = [part for name in ("train", "validation") for part in (f"--{name}_file", str(tmp_path / f"{name}.jsonl"))]
    return [*files, "--output_dir", str(tmp_path / "out"), "--batch_size", "8", "--learning_rate", "0.003"]


@pytest.mark.parametrize("kind", train_teacher.KINDS)
def test_what_it_saves_is_a_better_teacher(
    kind: str, flags: list[str], teacher_dir: Path, cross_encoder_dir: Path, tmp_path: Path
) -> None:
    start = {"bi-encoder": teacher_dir, "cross-encoder": cross_encoder_dir}[kind]
    found = train_teacher.main([*flags, "--model", str(start), "--kind", kind, "--epochs", "12"])
    assert found["after"]["roc_auc"] > found["before"]["roc_auc"]
    teacher = load_teacher(str(tmp_path / "out"))
    assert isinstance(teacher, BiEncoderTeacher if kind == "bi-encoder" else CrossEncoderTeacher)
    pairs = make_pairs(10)
    before = teacher_scores(load_teacher(str(start)), pairs, cache_dir=None, show_progress=False)
    assert np.abs(teacher_scores(teacher, pairs, cache_dir=None, show_progress=False) - before).max() > 1e-3


@pytest.mark.parametrize("kind", train_teacher.KINDS)
def test_weights_published_in_half_precision_are_trained_in_full(
    kind: str, flags: list[str], teacher_dir: Path, cross_encoder_dir: Path, tmp_path: Path
) -> None:
    model: Any = (
        SentenceTransformer(str(teacher_dir)) if kind == "bi-encoder" else CrossEncoder(str(cross_encoder_dir))
    )
    model.half().save_pretrained(str(tmp_path / "half"))
    train_teacher.main([*flags, "--model", str(tmp_path / "half"), "--kind", kind, "--train_steps", "2"])
    (weights,) = (tmp_path / "out").rglob("model.safetensors")
    before = load_file(next((tmp_path / "half").rglob("model.safetensors")))
    after = load_file(weights)
    assert {value.dtype for value in before.values()} == {torch.float16}
    assert {value.dtype for value in after.values()} == {torch.float32}
    assert all(value.isfinite().all() for value in after.values())


def test_bad_settings_are_refused_before_anything_is_trained(
    flags: list[str], teacher_dir: Path, tmp_path: Path
) -> None:
    for more, message in (
        ([], "no model is named"),
        (["--model", str(teacher_dir), "--kind", "encoder"], "kind='encoder': choose one of"),
        (["--model", str(teacher_dir), "--epochs", "0"], "epochs=0.0"),
        (["--model", str(teacher_dir), "--epoch", "1"], "--epochs"),
    ):
        with pytest.raises(ValueError, match=message):
            train_teacher.main([*flags, *more])
    write_rows(tmp_path / "others.jsonl", [row | {"label": 0} for row in pair_rows(20)])
    with pytest.raises(ValueError, match="has a single class"):
        others = ["--train_file", str(tmp_path / "others.jsonl")]
        train_teacher.main([*flags, *others, "--model", str(teacher_dir)])
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    with pytest.raises(ValueError, match="not empty"):
        train_teacher.main([*flags, "--model", str(teacher_dir)])
