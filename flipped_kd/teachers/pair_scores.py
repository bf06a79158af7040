"""The teacher's score of each labelled pair, whatever kind of teacher it is."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np

from ..data.keys import dataset_keys
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
