"""How well the canonical questions of an FAQ are found for the test queries: by vectors, and by answers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import datasets

from ..data.faq import Faq, read_faq
from ..evaluation.ranking import rank_questions, rank_scores
from ..inference.scorer import PairScorer
from ..teachers.base import Teacher
from ..teachers.pair_scores import text_vectors
from ..training.config import FlippedDistillationConfig
from .arguments import DataArguments

if TYPE_CHECKING:
    from ..training.trainer import FlippedDistillationTrainer


def student_retrieval(trainer: FlippedDistillationTrainer, data: DataArguments) -> dict[str, float]:
    """How the trained student's vectors rank all questions for the test queries, in the process that saves."""
    scorer = PairScorer(trainer.model, trainer.processing_class, trainer.prompt, trainer.encoder)
    return rank_questions(_test_faq(data), scorer.encode)


def answer_retrieval(
    trainer: FlippedDistillationTrainer, data: DataArguments, *, trained: bool
) -> dict[str, dict[str, float]]:
    """The same by reading every test query with every question, a forward pass for each pair, shared by all ranks.

    Metrics by what ranks: "llm" before training; after it "answer" and "both". Nothing where the data is no FAQ or has
    more pairs than `max_answer_rankings`.
    """
    if data.questions_file is None:
        return {}
    faq = _test_faq(data)
    if len(faq.queries) * len(faq.questions) > data.max_answer_rankings:
        return {}
    answer, similarity = trainer.score_pairs(_all_pairs(faq))
    scores = {"llm": answer}
    if trained:
        fitted = trainer.match_score or trainer.fit_match_score()
        scores = {"answer": answer, "both": fitted.log_odds(answer, similarity, "both")}
    return {name: rank_scores(faq, values.reshape(len(faq.queries), -1)) for name, values in scores.items()}


def teacher_retrieval(
    teacher: Teacher, data: DataArguments, config: FlippedDistillationConfig
) -> dict[str, float] | None:
    """The same of a teacher's vectors; None of a cross-encoder, which has none."""
    if data.questions_file is None or not teacher.has_vectors:
        return None
    cache: dict[str, Any] = {"cache_dir": config.teacher_cache_dir, "batch_size": config.teacher_batch_size}
    return rank_questions(_test_faq(data), partial(text_vectors, teacher, **cache, show_progress=False))


def rankings_of(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float] | None]:
    """The rankings among the facts of runs (by "llm_sft", "llm_flipped"), by system as in `comparison.SYSTEMS`."""
    found: dict[str, dict[str, float] | None] = {}
    for name, facts in runs.items():
        systems = {"llm": "llm", "answer": name, "both": f"{name}_both"}
        found |= {systems[kind]: metrics for kind, metrics in facts.get("retrieval_by_answer", {}).items()}
        found[f"{name}_similarity"] = facts["retrieval"]
    return found


def _test_faq(data: DataArguments) -> Faq:
    return read_faq(data.test_file or "", data.questions_file or "")


def _all_pairs(faq: Faq) -> datasets.Dataset:
    """Each query with each question, query by query; the label says which ones are right."""
    ids, texts = list(faq.questions), list(faq.questions.values())
    return datasets.Dataset.from_dict(
        {
            "text_a": [query for query in faq.queries for _ in ids],
            "text_b": texts * len(faq.queries),
            "label": [int(key in right) for right in faq.relevant for key in ids],
        }
    )
