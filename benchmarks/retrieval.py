"""How well a trained adapter searches, beside its teacher: bank questions (FAQ) and medical articles.

`python -m benchmarks.retrieval ADAPTER [--teacher NAME]`. Rankings are judged with binary relevance, as by
sentence-transformers' InformationRetrievalEvaluator.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Sequence
from dataclasses import dataclass

from sentence_transformers import SentenceTransformer
from sentence_transformers.util import semantic_search

from flipped_kd import FlippedMatcher
from flipped_kd.evaluation.ranking import ranking_metrics
from flipped_kd.utils.choices import ScoreKind

from .harness import FAQ, SHARED, TEACHER, json_lines, missing

RERANK = 10
QUICK_QUERIES = 200
SHOWN = {"banking77_faq": ("accuracy@1", "mrr"), "nfcorpus_beir": ("ndcg@10",)}
DEPTH = 100  # articles retrieved; of the 77 bank questions, all


@dataclass
class Task:
    """Queries, a corpus, and the corpus rows that answer each query."""

    queries: list[str]
    corpus: list[str]
    relevant: list[set[int]]


def main(
    quick: bool = False,
    adapter: str | None = None,
    teacher: str | None = None,
    data: Sequence[str] = tuple(SHOWN),
) -> dict[str, dict[str, dict[str, float]]]:
    """Print and return the metrics by data set and system."""
    if adapter is None:
        print("skipped: give the folder of a trained adapter, python -m benchmarks.retrieval ADAPTER")
        return {}
    if missing(SHARED):
        return {}
    matcher = FlippedMatcher.from_pretrained(adapter)
    slm = SentenceTransformer(teacher or str(TEACHER), model_kwargs={"dtype": matcher.model.dtype})
    results: dict[str, dict[str, dict[str, float]]] = {}
    for name in data:
        task = TASKS[name]()
        if quick:
            task = Task(task.queries[:QUICK_QUERIES], task.corpus, task.relevant[:QUICK_QUERIES])
        print(f"{name}: {len(task.queries)} queries, {len(task.corpus)} texts")
        results[name] = {}
        for system, rankings, seconds in _rankings(matcher, slm, task):
            metrics = ranking_metrics(rankings, task.relevant)
            results[name][system] = {metric: metrics[metric] for metric in SHOWN[name]}
            shown = ", ".join(f"{metric} {metrics[metric]:.3f}" for metric in SHOWN[name])
            print(f"  {system:34s} {shown}  ({seconds:.0f} s)", flush=True)
    return results


def _rankings(
    matcher: FlippedMatcher, teacher: SentenceTransformer, task: Task
) -> Sequence[tuple[str, list[list[int]], float]]:
    """(system, ranked corpus rows of each query, seconds)."""
    depth = min(len(task.corpus), DEPTH)
    start = time.perf_counter()
    queries, corpus = (teacher.encode(texts, convert_to_tensor=True) for texts in (task.queries, task.corpus))
    found = _rows(semantic_search(queries, corpus, top_k=depth))
    results = [("teacher", found, time.perf_counter() - start)]

    start = time.perf_counter()
    index = matcher.index(task.corpus)
    retrieved = _rows(matcher.search(task.queries, index, top_k=depth))
    results.append(("matcher.search", retrieved, time.perf_counter() - start))

    kinds: tuple[ScoreKind, ...] = ("answer",) if matcher.match_score is None else ("answer", "both")
    for kind in kinds:
        start = time.perf_counter()
        heads = _rows(matcher.search(task.queries, index, top_k=RERANK, rerank=RERANK, score=kind))
        whole = [
            head + [row for row in row_ids if row not in head] for head, row_ids in zip(heads, retrieved, strict=True)
        ]
        results.append((f"matcher.search, rerank={RERANK}, {kind}", whole, time.perf_counter() - start))
    return results


def _rows(found: list[list[dict]]) -> list[list[int]]:
    return [[int(hit["corpus_id"]) for hit in hits] for hits in found]


def _banking() -> Task:
    questions = json_lines(FAQ / "questions.jsonl")
    place = {question["id"]: row for row, question in enumerate(questions)}
    test = json_lines(FAQ / "test.jsonl")
    return Task(
        [row["query"] for row in test],
        [question["question"] for question in questions],
        [{place[row["question_id"]]} for row in test],
    )


def _nfcorpus() -> Task:
    folder = SHARED / "data" / "nfcorpus_beir"
    documents = json_lines(folder / "corpus.jsonl")
    place = {document["_id"]: row for row, document in enumerate(documents)}
    queries = {query["_id"]: query["text"] for query in json_lines(folder / "queries.jsonl")}
    relevant: dict[str, set[int]] = {}
    with (folder / "qrels" / "test.tsv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if int(row["score"]) > 0:
                relevant.setdefault(row["query-id"], set()).add(place[row["corpus-id"]])
    return Task(
        [queries[query] for query in relevant],
        [f"{document['title']} {document['text']}".strip() for document in documents],
        list(relevant.values()),
    )


TASKS = {"banking77_faq": _banking, "nfcorpus_beir": _nfcorpus}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retrieval", description=__doc__)
    parser.add_argument("adapter", nargs="?", help="folder or Hub id of a trained adapter or merged model")
    parser.add_argument("--teacher", help="folder or name of a sentence-transformers model")
    parser.add_argument("--data", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--quick", action="store_true", help=f"the first {QUICK_QUERIES} queries")
    options = parser.parse_args()
    main(options.quick, options.adapter, options.teacher, options.data)
