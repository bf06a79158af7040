"""Search in 1,000,000 vectors: an approximate index against comparing with all, and how many of the nearest it finds.

The vectors are those of real texts by the teacher, brought to the student's 32 numbers by their principal directions,
each with noise of its own until there are a million: between clusters and noise alone, as texts of one domain are.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from flipped_kd.inference.nearest import ApproximateSearch
from flipped_kd.inference.search_index import SearchIndex

from .harness import FAQ, TEACHER, Row, json_lines, missing, ratios, take_turns

TEXTS, DIMENSION, QUERIES = 1_000_000, 32, 200
# Norm of a vector's noise, its text's vector being 1.
NOISE = 0.5


def main(quick: bool = False) -> list[Row]:
    """Seconds of a search by either index, one query at a time and many at once; recall@10."""
    if missing(TEACHER, FAQ):
        return []
    count = TEXTS // 10 if quick else TEXTS
    texts, queries = ([row["query"] for row in json_lines(FAQ / f"{split}.jsonl")] for split in ("train", "test"))
    queries = queries[:QUERIES]
    encoder = SentenceTransformer(str(TEACHER), device="cpu")
    encoded = encoder.encode([*texts, *queries], show_progress_bar=False)
    centred = encoded - encoded.mean(axis=0)
    reduced = centred @ np.linalg.svd(centred, full_matrices=False)[2][:DIMENSION].T
    random = np.random.default_rng(0)
    corpus = _noisy(reduced[random.integers(0, len(texts), count)], random)
    asked = torch.from_numpy(_noisy(reduced[len(texts) :], random))
    exact = SearchIndex([""] * count, torch.from_numpy(corpus), {})
    wanted = exact.nearest(asked, 10)
    rows: list[Row] = []
    for kind in ("hnsw", "ivf"):
        start = time.perf_counter()
        approximate = ApproximateSearch.build(corpus, kind)
        built = time.perf_counter() - start
        index = SearchIndex([""] * count, exact.embeddings, {}, approximate=approximate)
        recall = np.mean([_shared(*hits) for hits in zip(index.nearest(asked, 10), wanted, strict=True)])
        for work, parts in (("a query at a time", asked.split(1)), (f"{QUERIES} queries at once", (asked,))):
            timed = {"ours": partial(_seconds, index, parts), "peer": partial(_seconds, exact, parts)}
            seconds = take_turns(timed, 3 if quick else 5)
            speed, each = ratios(seconds["peer"], seconds["ours"])
            ours, peer = (1000 * min(seconds[name]) / len(asked) for name in ("ours", "peer"))
            rows.append(
                Row(
                    f"search in {count:,} vectors, {work}",
                    f"{kind} {ours:.2f} ms a query, recall@10 {recall:.3f}, built in {built:.0f} s",
                    f"exact {peer:.2f} ms a query",
                    speed,
                    ">= 10" if work.startswith("a query") else "",
                    each,
                )
            )
    return rows


def _noisy(vectors: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Unit vectors near the given ones."""
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    noise = random.standard_normal(vectors.shape) * (NOISE / vectors.shape[1] ** 0.5)
    moved = (units + noise).astype(np.float32)
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def _seconds(index: SearchIndex, parts: Any) -> float:
    start = time.perf_counter()
    for part in parts:
        index.nearest(part, 10)
    return time.perf_counter() - start


def _shared(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> float:
    return len({hit["corpus_id"] for hit in found} & {hit["corpus_id"] for hit in wanted}) / len(wanted)
