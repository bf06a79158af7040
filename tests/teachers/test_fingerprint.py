"""What a teacher's name in the cache depends on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from flipped_kd.teachers.bi_encoder import BiEncoderTeacher
from flipped_kd.teachers.loading import load_teacher
from tests.teachers.recording import TEXTS, spy


def test_the_fingerprint_follows_what_changes_the_scores(bi: BiEncoderTeacher, folders: dict[str, Path]) -> None:
    fingerprints = [bi.fingerprint]
    assert load_teacher(folders["bi"]).fingerprint == fingerprints[0]
    bi.model.encode(["a use leaves no trace in it"])
    assert bi.fingerprint == fingerprints[0]
    bi.model.max_seq_length = 20
    fingerprints.append(bi.fingerprint)
    bi.model.prompts = {"query": "q: "}
    fingerprints.append(bi.fingerprint)
    bi.model.default_prompt_name = "query"
    fingerprints.append(bi.fingerprint)
    bi.model.truncate_dim = 8
    fingerprints.append(bi.fingerprint)
    bi.model[1] = Pooling(16, "cls")
    fingerprints.append(bi.fingerprint)
    bi.model.append(Normalize())
    fingerprints.append(bi.fingerprint)
    with torch.no_grad():
        next(bi.model.parameters()).view(-1)[3] += 1e-3
    fingerprints.append(bi.fingerprint)
    assert len(set(fingerprints)) == len(fingerprints)


def test_a_changed_model_is_another_teacher_to_the_cache(
    bi: BiEncoderTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bi.embed(TEXTS, cache_dir=tmp_path, show_progress=False)
    with torch.no_grad():
        next(bi.model.parameters()).mul_(2)
    seen = spy(monkeypatch, bi.model, "encode")
    bi.embed(TEXTS, cache_dir=tmp_path, show_progress=False)
    assert sorted(seen) == sorted(TEXTS) and len(list(tmp_path.iterdir())) == 2
