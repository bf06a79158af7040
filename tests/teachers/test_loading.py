"""The teacher: what loads, what is refused, and each text scored once."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
)

from flipped_kd.teachers.bi_encoder import BiEncoderTeacher
from flipped_kd.teachers.files import model_class_of
from flipped_kd.teachers.loading import load_teacher
from tests.broken_files import BREAKS, break_file

TEXTS = ["card lost", "my card is lost", "a b c", "top up limit", "limit of a top up, please", "zz", "how", "to pay"]


# Loading


def test_kinds_are_read_from_the_files(folders: dict[str, Path], bi: BiEncoderTeacher) -> None:
    assert (bi.kind, bi.id, bi.revision, bi.dim) == ("bi_encoder", "tiny-bi", None, 16)
    cross = load_teacher(str(folders["cross"]))
    assert (cross.kind, cross.id) == ("cross_encoder", "tiny-cross")
    for teacher in (bi, cross):
        assert {parameter.dtype for parameter in teacher.model.parameters()} == {torch.float32}
        assert not any(module.training for module in teacher.model.modules())


def test_a_plain_encoder_is_mean_pooled_with_a_warning(folders: dict[str, Path], bi: BiEncoderTeacher) -> None:
    with pytest.warns(UserWarning, match="plain BertModel"):
        plain = load_teacher(folders["plain"])
    assert isinstance(plain, BiEncoderTeacher)
    np.testing.assert_array_equal(plain.model.encode(TEXTS), bi.model.encode(TEXTS))


def test_loaded_models_are_accepted_and_named_without_their_path(folders: dict[str, Path]) -> None:
    model = SentenceTransformer(str(folders["bi"]), local_files_only=True)
    model.train()
    teacher = load_teacher(model, device="cpu")
    assert teacher.kind == "bi_encoder" and teacher.id == "tiny-bi" and not model.training
    assert load_teacher(CrossEncoder(str(folders["cross"]), local_files_only=True)).id == "tiny-cross"


def test_a_hub_id_gives_name_and_commit(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--sentence-transformers--tiny"
    shutil.copytree(folders["bi"], repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name, revision in (("sentence-transformers/tiny", None), ("tiny", "main")):
        teacher = load_teacher(name, revision=revision)
        assert (teacher.id, teacher.revision) == ("sentence-transformers/tiny", commit)
    assert load_teacher(repository / "snapshots" / commit).id == "sentence-transformers/tiny"
    with pytest.raises(ValueError, match="'some/absent'.*could not be had from the Hub.*give a folder"):
        load_teacher("some/absent")


@pytest.mark.parametrize("teacher", [None, 3, torch.nn.Linear(2, 2), ["tiny"]])
def test_what_is_no_teacher_is_a_type_error(teacher: object) -> None:
    with pytest.raises(TypeError, match="is no teacher.*bi-encoder.*save_pretrained"):
        load_teacher(teacher)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["/absent/folder", "./absent", "a/b/c", Path("absent/x")])
def test_an_absent_folder_is_named(path: str | Path) -> None:
    with pytest.raises(ValueError, match="neither an existing folder nor a Hub id"):
        load_teacher(path)


def test_other_kinds_of_model_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_labels=2.*num_labels=1"):
        load_teacher(folders["two_labels"])
    with pytest.raises(ValueError, match="'revision'|revision='main'.*tiny-bi"):
        load_teacher(folders["bi"], revision="main")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="'empty'.*'none'.*modules.json"):
        load_teacher(empty)
    decoder = tmp_path / "decoder"
    sizes: dict[str, Any] = dict(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=60
    )
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(decoder)
    with pytest.raises(ValueError, match="'decoder'.*'LlamaForCausalLM'"):
        load_teacher(decoder)
    sparse = tmp_path / "sparse"
    shutil.copytree(folders["bi"], sparse)
    settings_file = sparse / "config_sentence_transformers.json"
    settings_file.write_text(json.dumps({**json.loads(settings_file.read_text()), "model_type": "SparseEncoder"}))
    with pytest.raises(ValueError, match="'sparse' is a SparseEncoder"):
        load_teacher(sparse)
    headless = SentenceTransformer(modules=[SentenceTransformer(str(folders["bi"]), local_files_only=True)[0]])
    with pytest.raises(ValueError, match="no vector.*pooling"):
        load_teacher(headless)


def test_a_scoring_language_model_counts_as_cross_encoder(tmp_path: Path) -> None:
    modules = [{"type": "x.Transformer"}, {"type": "sentence_transformers.cross_encoder.modules.LogitScore"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert model_class_of(tmp_path, "merged") is CrossEncoder


def test_pickled_weights_are_never_loaded(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a pickle was loaded")

    monkeypatch.setattr(torch, "load", refuse)
    pickled = tmp_path / "pickled"
    shutil.copytree(folders["bi"], pickled)
    (pickled / "pytorch_model.bin").write_bytes(b"")
    assert load_teacher(pickled).kind == "bi_encoder"  # safetensors lie beside it and are taken
    (pickled / "2_Dense").mkdir()
    (pickled / "2_Dense" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="only pickled weights.*safe_serialization"):
        load_teacher(pickled)
    shutil.rmtree(pickled / "2_Dense")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="only pickled weights"):
        load_teacher(pickled)
    (pickled / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match="could not be loaded"):
        load_teacher(pickled)


@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize("kind", ["bi", "cross", "plain"])
def test_broken_weights_are_named_before_anything_is_loaded(
    folders: dict[str, Path], tmp_path: Path, kind: str, how: str
) -> None:
    folder = Path(shutil.copytree(folders[kind], tmp_path / kind))
    break_file(folder / "model.safetensors", how)
    with pytest.raises(ValueError, match=rf"{folder / 'model.safetensors'} is {BREAKS[how]}.*again"):
        load_teacher(folder)


def test_broken_weights_of_a_part_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["bi"], tmp_path / "bi"))
    (folder / "2_Dense").mkdir()
    shutil.copy(folder / "model.safetensors", folder / "2_Dense")
    break_file(folder / "2_Dense" / "model.safetensors", "pointer")
    with pytest.raises(ValueError, match=r"2_Dense/model\.safetensors is a pointer of Git LFS"):
        load_teacher(folder)


# Fingerprint


# Embedding


# Cross-encoder
