"""What a teacher says of pairs and texts: its score of each pair, whatever its kind, and its vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np

from ..data.keys import dataset_keys, text_keys
from .base import Teacher


def teacher_scores(teacher: Teacher, pairs: datasets.Dataset, **cache: Any) -> np.ndarray:
    """The teacher's T of each pair, (n,) float64.

    Args:
        teacher: the teacher.
        pairs: columns text_a, text_b.
        **cache: options of `Teacher.embed`: cache_dir, batch_size, show_progress.
    """
    table = teacher.score_datasets([pairs], **cache)
    return table.similarity(*dataset_keys(pairs)).astype(np.float64)


def text_vectors(teacher: Teacher, texts: Sequence[str], **cache: Any) -> np.ndarray:
    """The vectors of a teacher that has some, (n, dim) float32; arguments as of `teacher_scores`."""
    return teacher.embed(list(texts), **cache).vectors(text_keys(texts))
