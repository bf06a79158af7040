"""Rankings and their metrics: accuracy, recall, MRR and nDCG, of scores or of vectors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

Vectors = Callable[[Sequence[str]], np.ndarray]


class Questions(Protocol):
    """Queries with the questions that are right, such as `data.faq.Faq`."""

    @property
    def queries(self) -> Sequence[str]:
        """Texts of the queries."""

    @property
    def relevant(self) -> Sequence[Collection[str]]:
        """For each query the ids of all questions that are right."""

    @property
    def questions(self) -> Mapping[str, str]:
        """Texts of all questions by id."""


def rank_ids(scores: ArrayLike, ids: Sequence[str], *, top_k: int | None = None) -> list[list[str]]:
    """Order the distinct `ids` of documents for each query, the best first; equal scores by ascending id.

    `scores` (queries, documents) are finite, higher is better; `top_k` None keeps all. ValueError: a score is not
    finite, the shapes disagree or an id occurs twice.
    """
    scores = np.asarray(scores)
    if scores.ndim != 2 or scores.shape[1] != len(ids):
        raise ValueError(f"scores have shape {scores.shape} and there are {len(ids)} ids: give (queries, documents)")
    if len(set(ids)) != len(ids):
        raise ValueError("an id occurs twice among the documents: give each document its own")
    if not np.isfinite(scores).all():
        query, document = np.argwhere(~np.isfinite(scores))[0]
        raise ValueError(f"query {query} scores document {ids[document]!r} {scores[query, document]}: must be finite")
    by_id = sorted(range(len(ids)), key=ids.__getitem__)
    sorted_ids = [ids[place] for place in by_id]
    # The stable sort keeps the order of the ids among equal scores.
    orders = (np.argsort(-row[by_id].astype(np.float64), kind="stable")[:top_k] for row in scores)
    return [[sorted_ids[place] for place in order] for order in orders]


def ranking_metrics(
    rankings: Sequence[Sequence[Hashable]],
    relevant: Sequence[Collection[Hashable]],
    *,
    cutoffs: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Judge rankings by the ids that are relevant to each query; each value is a mean over the queries, in [0, 1].

    Defined as in `InformationRetrievalEvaluator` of sentence-transformers (binary relevance): ``accuracy@k`` is 1 for
    a query with a relevant id among the first k; ``recall@k`` the share of its relevant ids among the first k;
    ``mrr@k`` is 1 / rank of the first relevant id, 0 beyond k; ``ndcg@k`` sums 1 / log2(rank + 1) over the relevant
    ids among the first k and divides by that of a perfect ranking. ``mrr`` has no cut-off.

    Args:
        rankings: For each query the ids found, the best first (see `rank_ids`). An id that is not there counts as not
            found, so a ranking cut short at k still has all its values up to k, but not the full ``mrr``.
        relevant: For each query the relevant ids, at least one.
        cutoffs: The k at which accuracy, recall, MRR and nDCG are taken.

    Returns:
        ``mrr``, and the four for each k, such as ``ndcg@10``.

    Raises:
        ValueError: If there are no queries, the lengths differ, an id is ranked twice, a query has no relevant
            id, or a cut-off is below 1.
    """
    if len(rankings) != len(relevant) or len(rankings) == 0:
        raise ValueError(f"there are {len(rankings)} rankings and {len(relevant)} sets: give one of each per query")
    if not cutoffs or min(cutoffs) < 1:
        raise ValueError(f"cutoffs are {cutoffs}; give at least one, each at least 1")
    totals = dict.fromkeys(
        ["mrr", *(f"{name}@{k}" for name in ("accuracy", "recall", "mrr", "ndcg") for k in cutoffs)], 0.0
    )
    for query, (ranking, wanted) in enumerate(zip(rankings, relevant, strict=True)):
        wanted = set(wanted)
        if not wanted:
            raise ValueError(f"query {query} has no relevant id: leave it out, nothing can be found for it")
        if len(set(ranking)) != len(ranking):
            raise ValueError(f"the ranking of query {query} holds an id twice: rank each id once")
        ranks = np.array([rank for rank, found in enumerate(ranking, start=1) if found in wanted])
        first = float(1 / ranks[0]) if len(ranks) else 0.0
        totals["mrr"] += first
        for k in cutoffs:
            within = ranks[ranks <= k]
            ideal = np.arange(1, min(len(wanted), k) + 1)
            totals[f"accuracy@{k}"] += float(len(within) > 0)
            totals[f"recall@{k}"] += len(within) / len(wanted)
            totals[f"mrr@{k}"] += first if len(within) else 0.0
            totals[f"ndcg@{k}"] += float(np.sum(1 / np.log2(within + 1)) / np.sum(1 / np.log2(ideal + 1)))
    return {name: total / len(rankings) for name, total in totals.items()}


def rank_questions(faq: Questions, encode: Vectors) -> dict[str, float]:
    """Rank all questions for each query by the cosine of their vectors.

    Args:
        faq: queries and questions.
        encode: texts -> unit vectors (n, dim).

    Returns:
        As `ranking_metrics`: accuracy, recall, MRR and nDCG at 1, 5 and 10, and mrr.
    """
    return rank_scores(faq, encode(faq.queries) @ encode(list(faq.questions.values())).T)


def rank_scores(faq: Questions, scores: np.ndarray) -> dict[str, float]:
    """Rank all questions for each query by scores (queries, questions), higher for better; metrics as above."""
    return ranking_metrics(rank_ids(scores, list(faq.questions)), faq.relevant)
