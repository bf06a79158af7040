"""A kind of teacher that this package does not know: one class, with which one trains through the public interface."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch import nn

from flipped_kd import Teacher, load_teacher
from flipped_kd.data.keys import text_keys
from flipped_kd.teachers.streaming import StreamedScores
from tests.invariants.training import logged


class WordOverlap(Teacher):
    """Scores a pair by the share of words that both texts have."""

    kind, has_vectors = "word_overlap", False

    def __init__(self) -> None:
        super().__init__(id="word-overlap")
        self.computed: list[Any] = []

    @property
    def fingerprint(self) -> str:
        return "word-overlap-1"

    def compute(self, items: list[Any], batch_size: int) -> np.ndarray:
        self.computed += items
        words = [[set(text.split()) for text in pair] for pair in items]
        return np.array([[len(a & b) / len(a | b)] for a, b in words], np.float32)


class HashedWords(Teacher):
    """Gives a text a vector of its words, each at a place of its own."""

    kind, has_vectors, dim = "hashed_words", True, 64

    @property
    def fingerprint(self) -> str:
        return "hashed-words-1"

    def compute(self, items: list[Any], batch_size: int) -> np.ndarray:
        found = np.zeros((len(items), self.dim), np.float32)
        for row, text in enumerate(items):
            for word, count in Counter(text.split()).items():
                found[row, sum(word.encode()) % self.dim] += count
        return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_one_trains_with_a_teacher_of_pairs(build: Any, pairs: datasets.Dataset, tmp_path: Path) -> None:
    teacher = WordOverlap()
    assert load_teacher(teacher) is teacher
    trainer = build(teacher=teacher, teacher_cache_dir=str(tmp_path))
    expected = [
        2 * len(set(a.split()) & set(b.split())) / len(set(a.split()) | set(b.split())) - 1
        for a, b in zip(pairs["text_a"], pairs["text_b"], strict=True)
    ]
    np.testing.assert_allclose(trainer.teacher_similarity(pairs), expected, atol=1e-6)
    trainer.train()
    assert np.isfinite(logged(trainer)).all() and max(logged(trainer, "loss_dist")) > 0
    # Each pair is scored once, ever: another trainer reads what this one has kept.
    again = WordOverlap()
    build(teacher=again, teacher_cache_dir=str(tmp_path))
    assert teacher.computed and not again.computed


def test_one_trains_with_a_teacher_of_vectors(build: Any, pairs: datasets.Dataset, tmp_path: Path) -> None:
    teacher = HashedWords(id="hashed-words")
    trainer = build(teacher=teacher, encoder_start="teacher", teacher_cache_dir=str(tmp_path))
    assert trainer.encoder_start is not None  # A starts from its vectors, as from any
    table = teacher.embed(pairs["text_a"], cache_dir=tmp_path, show_progress=False)
    np.testing.assert_allclose(table.vectors(text_keys(pairs["text_a"])), teacher.compute(pairs["text_a"], 8))
    trainer.train()
    assert np.isfinite(logged(trainer)).all()


def test_what_it_cannot_do_is_said_by_its_name(build: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the word-overlap teacher 'word-overlap' cannot score.*contrast='pairwise'"):
        build(teacher=WordOverlap(), contrast="infonce", representation="independent")
    with pytest.raises(ValueError, match="'word-overlap' is a word-overlap: it scores given pairs"):
        WordOverlap().embed(["card"], cache_dir=tmp_path)
    with pytest.raises(ValueError, match="'h' .hashed_words. scores pairs by the vectors of embed"):
        HashedWords(id="h").score(["a"], ["b"], cache_dir=tmp_path)


class Careless(WordOverlap):
    """Gives what a test puts there."""

    def __init__(self, given: list[Any], fingerprint: str = "careless") -> None:
        super().__init__()
        self.given, self.named = np.array(given), fingerprint

    @property
    def fingerprint(self) -> str:
        return self.named

    def compute(self, items: list[Any], batch_size: int) -> np.ndarray:
        return self.given


class CarelessVectors(Careless):
    has_vectors, dim = True, 2


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (Careless([0.5, 0.5]), r"'word-overlap' gives an array of shape \(2,\) for 2 pairs.* \(2, 1\)"),
        (Careless([[-1.0]]), r"'word-overlap' gives -1.0 for the pair \('a', 'c'\).* probabilities in \[0, 1\]"),
        (Careless([[np.nan]]), r"gives nan for the pair \('a', 'c'\)"),
        (CarelessVectors([[3.0, 4.0]]), "gives a vector of length 5.0 for the text 'a'.* of length 1"),
        (CarelessVectors([[0.6, 0.8, 0.0]]), r"shape \(1, 3\) for 1 texts.* \(1, 2\)"),
    ],
)
def test_scores_that_are_none_are_refused_with_the_item(teacher: Any, message: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"cache_dir": tmp_path, "show_progress": False}
    first, second = ["a", "b"][: len(teacher.given)], ["c", "d"][: len(teacher.given)]
    with pytest.raises(ValueError, match=message):
        teacher.embed(first, **options) if teacher.has_vectors else teacher.score(first, second, **options)
    items = first if teacher.has_vectors else list(zip(first, second, strict=True))
    with pytest.raises(ValueError, match=message):
        StreamedScores(teacher, tmp_path, 2).look_up(np.arange(len(items)), items)


def test_long_fingerprints_may_begin_alike(tmp_path: Path) -> None:
    for version in ("1", "2"):
        teacher = Careless([[0.5]], f"word-overlap-version-{version}")
        teacher.score(["a"], ["b"], cache_dir=tmp_path, show_progress=False)
    assert len(list(tmp_path.iterdir())) == 2


class OnItsDevice(nn.Module):
    """Says where it is, and is moved by name alone: there is no accelerator here."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.moves = torch.device(device), []

    def to(self, device: Any) -> Any:
        self.device = torch.device(device)
        self.moves.append(self.device.type)
        return self


@pytest.mark.parametrize(("device", "moves"), [("cuda", ["cpu", "cuda", "cpu"]), ("cpu", [])])
def test_a_teacher_that_rests_is_on_its_device_while_it_scores(device: str, moves: list[str], tmp_path: Path) -> None:
    class Halves(Teacher):
        kind, has_vectors = "halves", False
        fingerprint = "halves"

        def __init__(self) -> None:
            super().__init__(id="halves")
            self.model = OnItsDevice(device)

        def compute(self, items: list[Any], batch_size: int) -> np.ndarray:
            assert self.model.device.type == device
            return np.full((len(items), 1), 0.5, np.float32)

    teacher = Halves()
    teacher.score(["before"], ["it"], cache_dir=tmp_path, show_progress=False)
    teacher.rest()
    teacher.rest()
    assert teacher.model.device.type == "cpu"
    scores = teacher.score(["a text"], ["another"], cache_dir=tmp_path, show_progress=False)
    assert teacher.model.moves == moves and teacher.model.device.type == "cpu"
    assert scores.probability(*(text_keys([text]) for text in ("a text", "another"))).tolist() == [0.5]
    teacher.score(["a text"], ["another"], cache_dir=tmp_path, show_progress=False)
    assert teacher.model.moves == moves  # nothing was to be scored
