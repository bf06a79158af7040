"""Shared fixtures: a tiny student, a tiny teacher and a tiny pair set, all made here from nothing, offline."""

from __future__ import annotations

import os

# Before any Hugging Face import: nothing in the tests may ask the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import copy
import gc
import random
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tests.invariants.training import trainer_factory
from tests.json_files import report_of

torch.set_num_threads(1)
# A process that is killed loses nothing that it has written, synced or not: only a power cut would, and none comes. On
# some disks the tens of thousands of calls take minutes.
os.fsync = lambda file: os.fstat(file) and None

# The fixtures of the loopback Hub.
pytest_plugins = ["tests.hub.fixtures"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests come first: one at the end would keep a worker busy while the others have nothing left."""
    marks = ("slow", "distributed")
    long = {item.path for item in items if any(item.get_closest_marker(mark) for mark in marks)}
    items.sort(key=lambda item: item.path not in long)


def pytest_collection_finish() -> None:
    """What imports have made stays: the garbage collector need not look at it again after each training."""
    gc.collect()
    gc.freeze()


SUBJECTS = ["my card", "the transfer", "a refund", "the app", "cash", "my salary", "the loan", "an invoice"]
FORMS = ["where is {}", "{} has not arrived", "how long does {} take", "cancel {} please", "why was {} refused"]


def make_pairs(count: int, seed: int = 0) -> datasets.Dataset:
    """`count` pairs that match if they share the subject; both classes in turn."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        subject, other = rng.sample(SUBJECTS, 2)
        first, second = rng.sample(FORMS, 2)
        label = number % 2
        rows.append(
            {"text_a": first.format(subject), "text_b": second.format(subject if label else other), "label": label}
        )
    return datasets.Dataset.from_list(rows)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """What a test draws does not hang on those that ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE with chat markers, as Qwen's."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    corpus = [form.format(subject) for form in FORMS for subject in SUBJECTS]
    corpus += ["Do these two texts mean the same? Answer yes or no.", "system user assistant", "yes no yes no"] * 3
    backend.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")


@pytest.fixture(scope="session")
def _student(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Qwen2ForCausalLM(config).eval()


@pytest.fixture
def student(_student: Qwen2ForCausalLM) -> Qwen2ForCausalLM:
    """A fresh copy of a random two-layer Qwen2."""
    return copy.deepcopy(_student)


@pytest.fixture(scope="session")
def student_dir(
    _student: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The student saved as a model repository."""
    folder = tmp_path_factory.mktemp("student")
    _student.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def teacher_dir(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random one-layer BERT with mean pooling, saved by sentence-transformers."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("teacher")
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    body = Transformer(str(folder / "bert"))
    model = SentenceTransformer(modules=[body, Pooling(body.get_embedding_dimension()), Normalize()], device="cpu")
    model.save_pretrained(str(folder / "model"))
    return folder / "model"


@pytest.fixture(scope="session")
def cross_encoder_dir(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random one-layer cross-encoder with one output, as transformers saves it."""
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("cross_encoder")
    config = BertConfig(  # type: ignore[call-arg]
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=0.5,
        num_labels=1,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pairs() -> datasets.Dataset:
    """64 training pairs."""
    return make_pairs(64)


@pytest.fixture(scope="session")
def held_out() -> datasets.Dataset:
    """24 other pairs."""
    return make_pairs(24, seed=1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and models beside the checkout; tests that need it skip without it."""
    folder = Path(os.environ.get("FLIPPED_KD_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "data").is_dir() or not (folder / "models").is_dir():
        pytest.skip(f"no real data and models at {folder}: set FLIPPED_KD_SHARED to their folder")
    return folder


def comparison_settings(folder: Path) -> Any:
    """Of the two steps of `comparison_dir`."""
    from flipped_kd.training.config import FlippedDistillationConfig

    return FlippedDistillationConfig(
        output_dir=str(folder),
        max_steps=2,
        logging_steps=1,
        per_device_train_batch_size=8,
        max_length=64,
        save_strategy="no",
        learning_rate=1e-3,
        precision="fp32",
        disable_tqdm=True,
    )


@pytest.fixture(scope="session")
def comparison_dir(
    student_dir: Path,
    teacher_dir: Path,
    pairs: datasets.Dataset,
    held_out: datasets.Dataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Output folder of a comparison of two seeds and two steps."""
    from flipped_kd.experiments.arguments import DataArguments, StudentArguments
    from flipped_kd.experiments.compare import run_comparison

    folder = tmp_path_factory.mktemp("machine path") / "tiny"
    folder.mkdir()
    files = {}
    for split, part in (("train", pairs), ("validation", held_out), ("test", held_out)):
        files[f"{split}_file"] = str(folder.parent / f"{split}.jsonl")
        part.to_json(files[f"{split}_file"])
    data = DataArguments(**files, teacher=str(teacher_dir), seeds=2)
    run_comparison(StudentArguments(student=str(student_dir), lora_r=4), data, comparison_settings(folder))
    return folder


@pytest.fixture
def card_folder(comparison_dir: Path, tmp_path: Path) -> Path:
    """A copy of `comparison_dir` that a test may change, without card and plots."""
    made = tmp_path / "tiny"
    made.mkdir()
    for path in comparison_dir.iterdir():
        if path.is_file() and path.suffix in (".json", ".safetensors"):
            shutil.copy(path, made)
    return made


@pytest.fixture
def report() -> dict[str, Any]:
    """A real report: that of the mini recipe."""
    return report_of(Path(__file__).parents[1] / "model_cards" / "fin_mini")


@pytest.fixture
def build(
    student: Any,
    teacher_dir: Path,
    tokenizer: Any,
    pairs: datasets.Dataset,
    held_out: datasets.Dataset,
    tmp_path: Path,
) -> Any:
    """Makes trainers that write to `tmp_path` / "run", see `trainer_factory`; the student has no name."""
    return trainer_factory(tmp_path / "run", student, teacher_dir, pairs, held_out, tokenizer)
