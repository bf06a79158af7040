"""A kind of teacher that this package does not know: one class, with which one trains through the public interface."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from flipped_kd import Teacher, load_teacher
from flipped_kd.data.keys import text_keys
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
