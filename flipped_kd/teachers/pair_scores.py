"""The teacher's score of each labelled pair, whatever kind of teacher it is."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np

from ..data.keys import dataset_keys
from .bi_encoder import BiEncoderTeacher
from .cross_encoder import CrossEncoderTeacher
from .items import DatasetPairs, DatasetTexts


def teacher_scores(
    teacher: BiEncoderTeacher | CrossEncoderTeacher, pairs: datasets.Dataset, **cache: Any
) -> np.ndarray:
    """The teacher's T of each pair, (n,) float64.

    Args:
        teacher: the teacher.
        pairs: columns text_a, text_b.
        **cache: options of `BiEncoderTeacher.embed`: cache_dir, batch_size, show_progress.
    """
    table = (
        teacher.score(DatasetPairs([pairs]), **cache)
        if isinstance(teacher, CrossEncoderTeacher)
        else teacher.embed(DatasetTexts([pairs]), **cache)
    )
    return table.similarity(*dataset_keys(pairs)).astype(np.float64)
