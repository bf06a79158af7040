"""A teacher with vectors: each text is embedded once."""

from __future__ import annotations

import json
import multiprocessing
import operator
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from flipped_kd.data.keys import text_keys
from flipped_kd.teachers.bi_encoder import BiEncoderTeacher
from flipped_kd.teachers.calibration import PlattCalibration, agreement_report
from flipped_kd.teachers.loading import load_teacher
from tests.teachers.recording import TEXTS, spy

SHARED = Path(os.environ.get("FLIPPED_KD_SHARED", Path(__file__).resolve().parents[3] / "shared"))


def test_each_text_is_embedded_once_and_equals_the_model(
    bi: BiEncoderTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = bi.model.encode(TEXTS, normalize_embeddings=True)
    seen = spy(monkeypatch, bi.model, "encode")
    table = bi.embed(TEXTS * 3, cache_dir=tmp_path, batch_size=2, show_progress=False)
    assert sorted(seen) == sorted(TEXTS)
    vectors = table.vectors(text_keys(TEXTS))
    assert vectors.dtype == np.float32 and (table.dim, len(table)) == (16, len(TEXTS))
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    cosines = bi.model.similarity_pairwise(torch.tensor(expected), torch.tensor(expected[::-1].copy())).numpy()
    np.testing.assert_allclose(table.similarity(text_keys(TEXTS), text_keys(TEXTS[::-1])), cosines, atol=1e-5)
    again = bi.embed((text for text in TEXTS[::-1]), cache_dir=tmp_path, show_progress=False)
    assert len(seen) == len(TEXTS)
    np.testing.assert_array_equal(again.vectors(text_keys(TEXTS)), vectors)


def test_vectors_do_not_depend_on_the_order_of_the_texts(bi: BiEncoderTeacher, tmp_path: Path) -> None:
    keys = text_keys(TEXTS)
    forward = bi.embed(TEXTS, cache_dir=tmp_path / "a", batch_size=3, show_progress=False)
    backward = bi.embed(TEXTS[::-1], cache_dir=tmp_path / "b", batch_size=3, show_progress=False)
    np.testing.assert_array_equal(forward.vectors(keys), backward.vectors(keys))


def test_another_process_reads_the_same_vectors(bi: BiEncoderTeacher, tmp_path: Path) -> None:
    table, keys = bi.embed(TEXTS, cache_dir=tmp_path, show_progress=False), text_keys(TEXTS)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(operator.methodcaller("vectors", keys), (table,))
    np.testing.assert_array_equal(found, table.vectors(keys))


def test_without_a_cache_directory_the_vectors_live_as_long_as_their_owners(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = load_teacher(folders["bi"])
    seen = spy(monkeypatch, teacher.model, "encode")
    table = teacher.embed(TEXTS, cache_dir=None, show_progress=False)
    teacher.embed(TEXTS, cache_dir=None, show_progress=False)
    assert len(seen) == len(TEXTS)
    monkeypatch.undo()
    del teacher
    [path] = table.paths
    assert path.exists() and np.isfinite(table.vectors(text_keys(TEXTS))).all()
    del table
    assert not path.exists()


def test_bad_texts_are_refused(bi: BiEncoderTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="one string"):
        bi.embed("card lost", cache_dir=tmp_path)
    with pytest.raises(TypeError, match=r"texts\[1\] is 7 of type int"):
        bi.embed(["a", 7], cache_dir=tmp_path)  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"texts\[1\] is empty"):
        bi.embed(["a", "  "], cache_dir=tmp_path)
    with pytest.raises(ValueError, match="batch_size=0"):
        bi.embed(["a"], cache_dir=tmp_path, batch_size=0)
    assert len(bi.embed([], cache_dir=tmp_path)) == 0
    monkeypatch.setattr(bi.model, "encode", lambda texts, **_: np.full((len(texts), 16), np.nan))
    with pytest.raises(ValueError, match="norm nan for the text 'a b'"):
        bi.embed(["a b"], cache_dir=tmp_path, show_progress=False)


@pytest.mark.shared
def test_a_real_teacher_agrees_with_its_domain(tmp_path: Path) -> None:
    folder, data = SHARED / "models" / "teacher-banking77", SHARED / "data" / "banking77" / "validation.jsonl"
    if not (folder.exists() and data.exists()):
        pytest.skip(f"the shared stand-in teacher or data is absent from {SHARED.name}/ beside the checkout")
    with open(data, encoding="utf-8") as file:
        rows = [json.loads(line) for _, line in zip(range(24), file, strict=False)]
    first, second = [row["text_a"] for row in rows], [row["text_b"] for row in rows]
    labels = np.array([row["label"] for row in rows])
    teacher = load_teacher(folder)
    assert teacher.kind == "bi_encoder" and teacher.id == "teacher-banking77"
    table = teacher.embed(first + second, cache_dir=tmp_path, show_progress=False)
    scores = table.similarity(text_keys(first), text_keys(second))
    calibration = PlattCalibration.fit(scores, labels)
    assert calibration.scale > 0 and agreement_report(scores, labels, calibration)["roc_auc"] > 0.75


def test_a_copy_has_a_temporary_folder_of_its_own(teacher_dir: Path) -> None:
    """The original takes its own away when it goes."""
    teacher = load_teacher(teacher_dir)
    teacher.embed(["cash"], cache_dir=None, show_progress=False)
    twin = pickle.loads(pickle.dumps(teacher))
    twin.embed(["cash"], cache_dir=None, show_progress=False)
    assert twin._scratch is not None and teacher._scratch is not None
    assert twin._scratch.name != teacher._scratch.name
