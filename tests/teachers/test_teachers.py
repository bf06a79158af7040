"""The teacher: what loads, what is refused, and each text scored once."""

import json
import multiprocessing
import operator
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

from flipped_kd.data.loading import text_keys
from flipped_kd.teachers.bi_encoder import (
    BiEncoderTeacher,
    CrossEncoderTeacher,
    PlattCalibration,
    agreement_report,
    load_teacher,
)
from flipped_kd.teachers.files import model_class_of

SHARED = Path(os.environ.get("FLIPPED_KD_SHARED", Path(__file__).resolve().parents[3] / "shared"))
TEXTS = ["card lost", "my card is lost", "a b c", "top up limit", "limit of a top up, please", "zz", "how", "to pay"]


def small_config(**options: Any) -> BertConfig:
    # A wide initialisation, so that the vectors of different texts differ clearly.
    sizes: dict[str, Any] = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    return BertConfig(vocab_size=60, max_position_embeddings=48, initializer_range=0.5, **sizes, **options)


def save_tokenizer(folder: Path) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", *letters, *("##" + letter for letter in letters)]
    BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, model_max_length=48).save_pretrained(
        folder
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    names = ("plain", "bi", "cross", "two_labels")
    result = {name: root / f"tiny-{name}" for name in names}
    BertModel(small_config()).half().save_pretrained(result["plain"])
    save_tokenizer(result["plain"])
    SentenceTransformer(str(result["plain"]), local_files_only=True).save_pretrained(
        str(result["bi"]), create_model_card=False
    )
    for name, labels in (("cross", 1), ("two_labels", 2)):
        BertForSequenceClassification(small_config(num_labels=labels)).save_pretrained(result[name])
        save_tokenizer(result[name])
    return result


@pytest.fixture
def bi(folders: dict[str, Path]) -> BiEncoderTeacher:
    teacher = load_teacher(folders["bi"])
    assert isinstance(teacher, BiEncoderTeacher)
    return teacher


@pytest.fixture
def cross(folders: dict[str, Path]) -> CrossEncoderTeacher:
    teacher = load_teacher(folders["cross"])
    assert isinstance(teacher, CrossEncoderTeacher)
    return teacher


def spy(monkeypatch: pytest.MonkeyPatch, model: object, method: str) -> list:
    """Record every item that the model's method is given."""
    seen: list = []
    original: Callable = getattr(model, method)

    def recorded(items: list, **options: Any) -> np.ndarray:
        seen.extend(items)
        return original(items, **options)

    monkeypatch.setattr(model, method, recorded)
    return seen


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
    with pytest.raises(ValueError, match="'some/absent'.*could not be fetched.*local folder"):
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


# Fingerprint


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


# Embedding


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


# Cross-encoder


def test_a_cross_encoder_scores_each_ordered_pair_once(
    cross: CrossEncoderTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = TEXTS[:4], TEXTS[4:]
    logits = cross.model.predict(list(zip(first, second, strict=True)), activation_fn=torch.nn.Identity())
    cross.model.activation_fn = torch.nn.Identity()  # the model's own activation does not matter
    seen = spy(monkeypatch, cross.model, "predict")
    scores = cross.score(first * 2, second * 2, cache_dir=tmp_path, batch_size=3, show_progress=False)
    assert sorted(seen) == sorted(zip(first, second, strict=True))
    probabilities = scores.probability(text_keys(first), text_keys(second))
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-logits)), atol=1e-6)
    np.testing.assert_allclose(scores.similarity(text_keys(first), text_keys(second)), 2 * probabilities - 1)
    swapped = cross.score(second, first, cache_dir=tmp_path, show_progress=False)
    assert len(seen) == 8 and len(swapped) == 8
    assert (swapped.probability(text_keys(second), text_keys(first)) != probabilities).any()
    cross.score(first, second, cache_dir=tmp_path, show_progress=False)
    assert len(seen) == 8


def test_a_cross_encoder_has_no_vectors_and_wants_pairs(cross: CrossEncoderTeacher, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'tiny-cross' is a cross-encoder.*bi-encoder teacher"):
        cross.embed(TEXTS, cache_dir=tmp_path)
    with pytest.raises(ValueError, match="pairs_a has 2 texts and pairs_b 1"):
        cross.score(["a", "b"], ["c"], cache_dir=tmp_path)
    with pytest.raises(TypeError, match=r"pairs_b\[0\] is None"):
        cross.score(["a"], [None], cache_dir=tmp_path)  # type: ignore[list-item]


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
