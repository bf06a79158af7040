"""The teacher over a set with repeated texts: each distinct text once, against encoding both columns as they are."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from flipped_kd.data.faq import faq_pairs, read_faq, subset
from flipped_kd.data.keys import text_keys
from flipped_kd.teachers.bi_encoder import BiEncoderTeacher
from flipped_kd.teachers.items import DatasetTexts

from .harness import FAQ, TEACHER, Row, missing, ratios, take_turns

BATCH = 32
TOLERANCE = 1e-4


def main(quick: bool = False) -> list[Row]:
    """Seconds for the FAQ pairs of so many queries, five a query."""
    if missing(FAQ, TEACHER):
        return []
    faq = subset(read_faq(FAQ / "train.jsonl", FAQ / "questions.jsonl"), 100 if quick else 400)
    pairs = faq_pairs(faq)
    model = SentenceTransformer(str(TEACHER), device="cpu")
    teacher = BiEncoderTeacher(model, id="teacher")
    columns = [list(pairs["text_a"]), list(pairs["text_b"])]
    distinct = len({text for column in columns for text in column})
    repetition = 2 * len(pairs) / distinct
    found: dict[str, np.ndarray] = {}

    def ours() -> float:
        with tempfile.TemporaryDirectory() as cache:
            start = time.perf_counter()
            table = teacher.embed(DatasetTexts([pairs]), cache_dir=cache, batch_size=BATCH, show_progress=False)
            found["ours"] = table.similarity(*map(text_keys, columns))
            return time.perf_counter() - start

    def peer() -> float:
        start = time.perf_counter()
        options: dict[str, Any] = {"batch_size": BATCH, "normalize_embeddings": True, "show_progress_bar": False}
        first, second = (model.encode(column, **options) for column in columns)
        found["peer"] = (first * second).sum(1)
        return time.perf_counter() - start

    seconds = take_turns({"ours": ours, "peer": peer}, 3 if quick else 7)
    if (difference := float(np.abs(found["ours"] - found["peer"]).max())) > TOLERANCE:
        raise RuntimeError(f"similarities differ by {difference:.2g}: the two do not do the same work")
    speed, each = ratios(seconds["peer"], seconds["ours"])
    return [
        Row(
            f"teacher over {len(pairs):,} pairs, each text {repetition:.1f} times: share of that",
            f"BiEncoderTeacher.embed {speed:.2f} times as fast",
            "SentenceTransformer.encode of both columns",
            speed / repetition,
            ">= 0.9",
            [value / repetition for value in each],
        )
    ]
