"""Scores of single pairs as a row keeps them: half precision in base64, from which any metric can be computed."""

from __future__ import annotations

import base64
from collections.abc import Mapping

import numpy as np

from ...evaluation.comparison import SplitScores


def packed(values: np.ndarray) -> str:
    """(n,) numbers as float16, little-endian, in base64; labels lose nothing, scores 1 part in 2,000.

    Raises:
        ValueError: a value is not finite, or too large for half precision (65,504).
    """
    with np.errstate(over="ignore"):  # told below
        half = np.asarray(values, np.float64).astype("<f2")
    if not np.isfinite(half).all():
        raise ValueError("a score is not finite or beyond half precision (65,504): it cannot be kept in a row.")
    return base64.b64encode(half.tobytes()).decode("ascii")


def unpacked(text: str) -> np.ndarray:
    """What `packed` was given, (n,) float64, rounded to half precision."""
    return np.frombuffer(base64.b64decode(text), "<f2").astype(np.float64)


def packed_splits(scores: Mapping[str, SplitScores]) -> dict[str, dict[str, str]]:
    """Validation and test scores of several systems, by system and split."""
    return {name: {"validation": packed(one.validation), "test": packed(one.test)} for name, one in scores.items()}


def unpacked_splits(entry: Mapping[str, Mapping[str, str]]) -> dict[str, SplitScores]:
    """What `packed_splits` was given, rounded to half precision."""
    return {name: SplitScores(unpacked(one["validation"]), unpacked(one["test"])) for name, one in entry.items()}
