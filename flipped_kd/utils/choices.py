"""Choices that the library and the command line share; nothing heavy is imported, so that --help answers at once."""

from __future__ import annotations

from typing import Literal, get_args

# What a match score is made of.
ScoreKind = Literal["answer", "similarity", "both"]
SCORE_KINDS: tuple[ScoreKind, ...] = get_args(ScoreKind)

# How the outputs of A become a vector.
Pooling = Literal["sum", "concat"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)

# How a corpus is searched.
IndexKind = Literal["auto", "exact", "hnsw", "ivf"]
INDEX_KINDS: tuple[IndexKind, ...] = get_args(IndexKind)
