"""Search in 100,000 texts with a finished index, then rank the nearest 20 again by the answer.

Peer: a SentenceTransformer of the student's size, semantic_search and a CrossEncoder on the same merged model. Both
indexes hold the same random unit vectors: how long a search takes does not depend on what they say, and encoding the
texts is no part of it. Both take dot products.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.util import dot_score, semantic_search

from flipped_kd import FlippedMatcher
from flipped_kd.inference.search_index import SearchIndex

from .harness import FAQ, STUDENT, TEACHER, Row, json_lines, missing, ratios, take_turns
from .inference import merged_model

TEXTS = 100_000
RERANK = 20


def main(quick: bool = False) -> list[Row]:
    """Seconds of a search with and without ranking again, one query at a time and many at once."""
    if missing(STUDENT, TEACHER, FAQ):
        return []
    queries = [row["query"] for row in json_lines(FAQ / "test.jsonl")][: 10 if quick else 40]
    texts = _corpus()
    with tempfile.TemporaryDirectory() as folder:
        merged = merged_model(Path(folder))
        matcher = FlippedMatcher.from_pretrained(merged, device="cpu")
        ranker = CrossEncoder(str(merged), device="cpu")
    encoder = SentenceTransformer(str(TEACHER), device="cpu")
    torch.manual_seed(0)
    dimensions = {"ours": matcher.encoder.dimension, "peer": int(encoder.get_embedding_dimension() or 0)}
    indexes = {name: torch.nn.functional.normalize(torch.randn(TEXTS, d), dim=-1) for name, d in dimensions.items()}
    index = SearchIndex(texts, indexes["ours"], {})
    index.known_to.add(matcher)

    def ours(rerank: int, single: bool) -> float:
        start = time.perf_counter()
        options: dict[str, Any] = {"top_k": RERANK, "rerank": rerank} | ({"score": "answer"} if rerank else {})
        for part in [[query] for query in queries] if single else [queries]:
            matcher.search(part, index, **options)
        return time.perf_counter() - start

    def peer(rerank: int, single: bool) -> float:
        start = time.perf_counter()
        for part in [[query] for query in queries] if single else [queries]:
            vectors = encoder.encode(part, convert_to_tensor=True, show_progress_bar=False)
            # As matcher.search does: all vectors are of unit length, and a cosine would divide 100,000 of them by it.
            found = semantic_search(vectors, indexes["peer"], top_k=RERANK, score_function=dot_score)
            if rerank:
                for query, hits in zip(part, found, strict=True):
                    ranker.rank(query, [texts[int(hit["corpus_id"])] for hit in hits])
        return time.perf_counter() - start

    rows: list[Row] = []
    for work, rerank, single, reach in (
        (f"search in {TEXTS:,} texts, then rank {RERANK} again, a query at a time", RERANK, True, ">= 1.5"),
        (f"search in {TEXTS:,} texts, then rank {RERANK} again, {len(queries)} queries", RERANK, False, ""),
        (f"search in {TEXTS:,} texts alone, a query at a time", 0, True, ""),
    ):
        seconds = take_turns(
            {"ours": partial(ours, rerank, single), "peer": partial(peer, rerank, single)},
            3 if quick else 7,
        )
        speed, each = ratios(seconds["peer"], seconds["ours"])
        first, second = (
            f"{1000 * statistics.median(seconds[name]) / len(queries):.0f} ms a query" for name in ("ours", "peer")
        )
        theirs = "semantic_search + CrossEncoder" if rerank else "semantic_search"
        rows.append(Row(work, f"matcher.search {first}", f"{theirs} {second}", speed, reach, each))
    return rows


def _corpus() -> list[str]:
    """So many distinct texts of a customer's length: real queries, numbered."""
    real = [row["query"] for row in json_lines(FAQ / "train.jsonl")]
    return [f"{real[number % len(real)]} ({number // len(real)})" for number in range(TEXTS)]
