"""Small teachers of every kind, saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
)

from flipped_kd.teachers.bi_encoder import BiEncoderTeacher
from flipped_kd.teachers.cross_encoder import CrossEncoderTeacher
from flipped_kd.teachers.loading import load_teacher


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


@pytest.fixture(scope="package")
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
