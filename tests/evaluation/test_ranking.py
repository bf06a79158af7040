"""Rankings and their metrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sklearn.metrics import ndcg_score

from flipped_kd.data.faq import Faq
from flipped_kd.evaluation.ranking import rank_ids, rank_questions, rank_scores, ranking_metrics
from tests.data.faq_example import FAQ, QUESTIONS


@st.composite
def retrievals(draw):
    """Scores of 1 to 4 queries for 1 to 15 documents, with ties, and the relevant documents of each query."""
    count = draw(st.integers(1, 15))
    ids = draw(st.permutations([f"doc{number:02}" for number in range(count)]))
    row = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(-1, 1), min_size=count, max_size=count)
    scores = draw(st.lists(row, min_size=1, max_size=4))
    relevant = [draw(st.sets(st.sampled_from([*ids, "unknown"]), min_size=1)) for _ in scores]
    return np.array(scores), ids, relevant


CUTOFFS = (1, 3, 10)


@settings(deadline=None, max_examples=40)
@given(retrievals())
def test_ranking_metrics_equal_those_of_sentence_transformers(case):
    scores, ids, relevant = case
    queries = {str(number): "" for number in range(len(scores))}
    evaluator = InformationRetrievalEvaluator(
        queries,
        dict.fromkeys(ids, ""),
        dict(zip(queries, relevant, strict=True)),
        mrr_at_k=[*CUTOFFS, 10**6],
        ndcg_at_k=[*CUTOFFS],
        accuracy_at_k=[*CUTOFFS],
        precision_recall_at_k=[*CUTOFFS],
    )
    hits = [[{"corpus_id": i, "score": s} for i, s in zip(ids, row, strict=True)] for row in scores]
    theirs = evaluator.compute_metrics(hits)
    expected = {
        f"{name}@{k}": theirs[f"{name}@k"][k] for name in ("accuracy", "recall", "mrr", "ndcg") for k in CUTOFFS
    }
    expected["mrr"] = theirs["mrr@k"][10**6]
    ours = ranking_metrics(rank_ids(scores, ids), relevant, cutoffs=CUTOFFS)
    assert ours == pytest.approx(expected)
    assert all(type(value) is float for value in ours.values())
    # A ranking cut short at 10 loses nothing up to 10.
    short = ranking_metrics(rank_ids(scores, ids, top_k=10), relevant, cutoffs=CUTOFFS)
    assert {name: value for name, value in short.items() if name != "mrr"} == {
        name: value for name, value in ours.items() if name != "mrr"
    }


def test_ndcg_equals_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    scores, truth = rng.normal(size=(20, 30)), rng.random((20, 30)) < 0.2
    truth[:, 0] = True
    ids = [f"d{number}" for number in range(30)]
    relevant = [{ids[place] for place in np.flatnonzero(row)} for row in truth]
    assert ranking_metrics(rank_ids(scores, ids), relevant)["ndcg@10"] == pytest.approx(
        ndcg_score(truth, scores, k=10)
    )


def test_equal_scores_rank_by_id():
    assert rank_ids([[1, 2, 1, 2]], ["d", "c", "a", "b"]) == [["b", "c", "a", "d"]]


@pytest.mark.parametrize(
    "rankings, relevant, message",
    [
        ([], [], "0 rankings and 0 sets"),
        ([["a"]], [["a"], ["b"]], "1 rankings and 2 sets"),
        ([["a"], ["b"]], [["a"], []], "query 1 has no relevant id"),
        ([["a", "b", "a"]], [["a"]], "query 0 holds an id twice"),
    ],
)
def test_wrong_rankings_are_refused(rankings, relevant, message):
    with pytest.raises(ValueError, match=message):
        ranking_metrics(rankings, relevant)


def test_wrong_cutoffs_and_scores_of_rankings_are_refused():
    for cutoffs in ((), (0,), (5, -1)):
        with pytest.raises(ValueError, match="cutoffs are"):
            ranking_metrics([["a"]], [["a"]], cutoffs=cutoffs)
    with pytest.raises(ValueError, match="query 1 scores document 'b' nan"):
        rank_ids([[1.0, 2.0], [1.0, math.nan]], ["a", "b"])
    with pytest.raises(ValueError, match="an id occurs twice"):
        rank_ids([[1.0, 2.0]], ["a", "a"])
    with pytest.raises(ValueError, match=r"shape \(1, 2\) and there are 1 ids"):
        rank_ids([[1.0, 2.0]], ["a"])


def test_ranks_are_those_of_the_cosines() -> None:
    vectors = {text: np.eye(6)[row] for row, text in enumerate(QUESTIONS.values())}
    found = {
        FAQ.queries[0]: np.eye(6)[0],
        FAQ.queries[1]: np.eye(6)[0] * 0.8 + np.eye(6)[3] * 0.6,
        FAQ.queries[2]: np.eye(6)[2],
    }
    metrics = rank_questions(FAQ, lambda texts: np.array([(vectors | found)[text] for text in texts]))
    assert metrics["accuracy@1"] == pytest.approx(2 / 3)
    assert metrics["mrr"] == pytest.approx((1 + 1 / 2 + 1) / 3)


def test_every_right_question_counts() -> None:
    faq = Faq(("lost card", "lost card", "fee"), ("card", "lost", "fee"), QUESTIONS)
    order = ["lost", "card", "fee", "pin", "app", "loan"]
    scores = np.array([[-order.index(key) for key in QUESTIONS]] * 3)
    metrics = rank_scores(faq, scores)
    assert metrics["accuracy@1"] == pytest.approx(2 / 3)
    assert metrics["mrr"] == pytest.approx((1 + 1 + 1 / 3) / 3)
    assert metrics["recall@1"] == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
