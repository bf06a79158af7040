"""Mini teacher and mini student: built in a tiny setting, reloaded by the stock classes, reproducible, reused."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import datasets
import mini_student
import mini_teacher
import pytest
import torch
from mini_folder import MARKER
from mini_student import MiniStudentSettings, build_mini_student
from mini_teacher import MiniTeacherSettings, build_mini_teacher
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer

Row = dict[str, str | int]
RECIPES = Path(__file__).resolve().parents[2] / "recipes"
TEACHER = MiniTeacherSettings(vocab_size=300, hidden_size=16, heads=2, max_steps=3, batch_size=8)
STUDENT = MiniStudentSettings(
    vocab_size=600,
    hidden_size=16,
    intermediate_size=32,
    layers=2,
    heads=2,
    max_steps=15,
    batch_size=8,
    learning_rate=1e-2,
)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    lines = (RECIPES / "data" / "fin_mini" / "train.jsonl").read_text("utf-8").splitlines()[:120]
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def texts(rows: list[Row]) -> list[str]:
    return [str(row[name]) for row in rows for name in ("text_a", "text_b")]


@pytest.fixture(scope="module")
def student(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_mini_student(texts, tmp_path_factory.mktemp("mini") / "student", seed=1, settings=STUDENT)


@pytest.fixture(scope="module")
def teacher(rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built in the environment of the first of two launched ranks: it must not wait for the second."""
    pairs = datasets.Dataset.from_list(rows)
    folder = tmp_path_factory.mktemp("mini") / "teacher"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
            patch.setenv(name, value)
        return build_mini_teacher(pairs, folder, seed=1, settings=TEACHER)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_student_reloads_with_the_auto_classes(student: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(student)
    tokenizer = AutoTokenizer.from_pretrained(student)
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert type(tokenizer).__name__ == "Qwen2Tokenizer"
    assert model.config.vocab_size == len(tokenizer) == STUDENT.vocab_size
    assert model.config.tie_word_embeddings
    assert tokenizer.pad_token == tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.pad_token_id == model.config.pad_token_id == model.config.eos_token_id


def test_student_tokenizer_keeps_any_text_and_has_the_words_of_the_prompt(student: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(student)
    text = f"{mini_student.HEADS['en']}<|im_start|>Déjà vu  你好 \t\n 🙂<|im_end|>\n<|im_start|>assistant\nyes"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 3
    for word in (
        "yes",
        "no",
        " yes",
        " no",
        "system",
        "assistant",
        "\n",
        *(f" {w}" for w in "these two mean the".split()),
    ):
        assert len(tokenizer(word)["input_ids"]) == 1, word


def test_warm_up_lowers_the_perplexity(student: Path, texts: list[str]) -> None:
    measured = json.loads((student / MARKER).read_text("utf-8"))
    assert measured["perplexity_after"] < 0.9 * measured["perplexity_before"]
    model = AutoModelForCausalLM.from_pretrained(student)
    tokenizer = AutoTokenizer.from_pretrained(student)
    distinct = list(dict.fromkeys(texts))
    assert mini_student.text_perplexity(model, tokenizer, distinct) == pytest.approx(
        measured["perplexity_after"], rel=1e-4
    )


def test_warm_up_answers_yes_to_a_text_said_again_and_no_to_another() -> None:
    texts = [f"a{number} b{number} c{number} d{number}" for number in range(200)]  # no word in two texts
    documents = mini_student._documents(texts, MiniStudentSettings(), random.Random(0))
    assert len(documents) == len(texts)
    answers = []
    for document in documents:
        turns = document.removeprefix(mini_student.HEADS["en"]).split("<|im_start|>")[1:]
        first, second = (set(turn.removesuffix("<|im_end|>\n").split()) for turn in turns[:2])
        answers.append(turns[2].removeprefix("assistant\n").removesuffix("<|im_end|>"))
        assert answers[-1] == ("yes" if first & second else "no")
        assert max(len(first), len(second)) == 4 and min(len(first), len(second)) > 0
    assert min(answers.count("yes"), answers.count("no")) > 70


def test_perplexity_counts_the_text_and_nothing_else(student: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(student)
    tokenizer = AutoTokenizer.from_pretrained(student)
    alone = [mini_student.text_perplexity(model, tokenizer, [text]) for text in ("Card", "I lost my card in Spain.")]
    ids = tokenizer(f"{mini_student.HEADS['en']}<|im_start|>Card<|im_end|>", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        log_probs = model(ids).logits[0].log_softmax(-1)
    start = len(tokenizer(f"{mini_student.HEADS['en']}<|im_start|>")["input_ids"])
    expected = -sum(float(log_probs[i - 1, ids[0, i]]) for i in range(start, ids.shape[1])) / (ids.shape[1] - start)
    assert alone[0] == pytest.approx(torch.tensor(expected).exp().item(), rel=1e-4)
    together = mini_student.text_perplexity(model, tokenizer, ["Card", "I lost my card in Spain."])
    assert min(alone) < together < max(alone)


def test_student_is_the_same_for_the_same_seed_only(student: Path, texts: list[str], tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    again = build_mini_student(texts, tmp_path / "again", seed=1, settings=STUDENT)
    assert torch.equal(torch.rand(1), expected), "the caller's random state has moved"
    assert equal(weights(student), weights(again))
    other = build_mini_student(texts, tmp_path / "other", seed=2, settings=STUDENT)
    assert not equal(weights(student), weights(other))


def test_teacher_reloads_as_a_sentence_transformer(teacher: Path) -> None:
    model = SentenceTransformer(str(teacher), device="cpu")
    vectors = model.encode(["I lost my card", "i lost my CARD", "What is my IBAN?"])
    assert vectors.shape == (3, TEACHER.hidden_size)
    assert (vectors[0] == pytest.approx(vectors[1], abs=1e-6)) and not (
        vectors[0] == pytest.approx(vectors[2], abs=1e-3)
    )
    assert not list(teacher.glob("*.bin"))


def test_teacher_is_the_same_in_another_process_and_moves_in_training(
    rows: list[Row], teacher: Path, tmp_path: Path
) -> None:
    mini_teacher.train_teacher(rows, tmp_path / "again", 1, TEACHER)
    assert equal(weights(teacher), weights(tmp_path / "again"))
    mini_teacher.train_teacher(rows, tmp_path / "shorter", 1, replace(TEACHER, max_steps=1))
    assert not equal(weights(teacher), weights(tmp_path / "shorter"))


def test_finished_folder_is_reused_and_another_setting_rebuilt(
    student: Path, texts: list[str], tmp_path: Path
) -> None:
    folder = build_mini_student(texts, tmp_path / "student", seed=1, settings=STUDENT)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert build_mini_student(texts, folder, seed=1, settings=STUDENT) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    build_mini_student(texts, folder, seed=1, settings=replace(STUDENT, max_steps=1))
    assert not equal(weights(student), weights(folder))
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_failed_build_leaves_nothing(rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = shutil.which("false")
    assert failing is not None
    monkeypatch.setattr("sys.executable", failing)
    with pytest.raises(RuntimeError, match="ended with status 1"):
        build_mini_teacher(datasets.Dataset.from_list(rows), tmp_path / "t", settings=TEACHER)
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_refused(rows: list[Row], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", "utf-8")
    with pytest.raises(ValueError, match="is no mini model"):
        build_mini_student(["a", "b", "c", "d"], tmp_path, settings=STUDENT)
    assert (tmp_path / "notes.txt").read_text("utf-8") == "mine"
    with pytest.raises(ValueError, match="1 distinct texts are too few"):
        build_mini_student(["a", "a"], tmp_path / "s", settings=STUDENT)
    negatives = datasets.Dataset.from_list([row for row in rows if row["label"] == 0])
    with pytest.raises(ValueError, match="has label 1"):
        build_mini_teacher(negatives, tmp_path / "t", settings=TEACHER)
    with pytest.raises(ValueError, match="lacks \\['label'\\]"):
        build_mini_teacher(negatives.remove_columns("label"), tmp_path / "t", settings=TEACHER)


def test_chinese_is_read_by_characters(tmp_path: Path) -> None:
    texts = ["怎么提前还款", "可以提前还款吗", "退款什么时候到账", "退款多久到账"] * 3
    folder = build_mini_student(texts, tmp_path / "student", settings=replace(STUDENT, max_steps=1))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("提前到账")["input_ids"]  # a new sentence of known characters
    assert [tokenizer.decode([token]) for token in ids] == list("提前到账")
