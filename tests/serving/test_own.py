"""/match and /search: the matcher's probabilities, thresholds and order."""

from __future__ import annotations

import concurrent.futures
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from flipped_kd import FlippedMatcher
from flipped_kd.utils.choices import SCORE_KINDS
from tests.adapters import MIXED_PAIRS
from tests.serving.conftest import CORPUS
from tests.serving.running import Running, running

PAIRS = [[a, b] for a, b in [*MIXED_PAIRS, MIXED_PAIRS[0], ("cash", "where is the loan " * 60)]]
NEAR = {"rtol": 0, "atol": 1e-5}


@pytest.mark.parametrize("kind", SCORE_KINDS)
def test_match_gives_probability_threshold_and_decision(server: Running, matcher: FlippedMatcher, kind: Any) -> None:
    found = server.answer("/match", {"pairs": PAIRS, "score": kind})
    assert matcher.match_score is not None
    assert found["score"] == kind and found["threshold"] == pytest.approx(matcher.match_score.threshold(kind))
    np.testing.assert_allclose(
        [result["probability"] for result in found["results"]], matcher.predict(PAIRS, score=kind), **NEAR
    )
    said = [result["match"] for result in found["results"]]
    assert said == matcher.matches(PAIRS, score=kind).tolist()
    unread = {"answer": ["cosine"], "similarity": ["answer_log_odds"], "both": []}[kind]
    for result in found["results"]:
        assert [name for name in ("answer_log_odds", "cosine") if result[name] is None] == unread


def test_match_gives_both_scores_where_they_are_asked_for(server: Running, matcher: FlippedMatcher) -> None:
    answer, similarity = matcher.scores(PAIRS)
    for kind in SCORE_KINDS:
        results = server.answer("/match", {"pairs": PAIRS, "score": kind, "all_scores": True})["results"]
        np.testing.assert_allclose([result["answer_log_odds"] for result in results], answer, **NEAR)
        np.testing.assert_allclose([result["cosine"] for result in results], similarity, **NEAR)
    assert server.answer("/match", {"pairs": PAIRS})["score"] == "both"


def test_a_threshold_of_ones_own(server: Running, matcher: FlippedMatcher) -> None:
    middle = float(np.median(matcher.predict(PAIRS)))
    found = server.answer("/match", {"pairs": PAIRS, "threshold": middle - 1e-4})
    said = [result["match"] for result in found["results"]]
    assert found["threshold"] == middle - 1e-4 and True in said and False in said
    assert said == matcher.matches(PAIRS, threshold=middle - 1e-4).tolist()
    assert all(result["match"] for result in server.answer("/match", {"pairs": PAIRS, "threshold": 0})["results"])


def test_search_gives_the_nearest(server: Running, matcher: FlippedMatcher) -> None:
    (expected,) = matcher.search("card", CORPUS, top_k=4)
    found = server.answer("/search", {"query": "card", "top_k": 4})
    assert [hit["index"] for hit in found["results"]] == [hit["corpus_id"] for hit in expected]
    assert [hit["text"] for hit in found["results"]] == [CORPUS[hit["corpus_id"]] for hit in expected]
    for name in ("score", "cosine"):
        np.testing.assert_allclose([hit[name] for hit in found["results"]], [hit["score"] for hit in expected], **NEAR)
    assert found["score"] is None and found["results"][0]["probability"] is None
    assert len(server.answer("/search", {"query": "card", "top_k": 100})["results"]) == len(CORPUS)


@pytest.mark.parametrize("kind", SCORE_KINDS)
def test_search_ranks_again(server: Running, matcher: FlippedMatcher, kind: Any) -> None:
    (expected,) = matcher.search("card", CORPUS, top_k=3, rerank=5, score=kind)
    asked = {"query": "card", "top_k": 3, "rerank": 5, "score": kind, "all_scores": True}
    found = server.answer("/search", asked)
    assert matcher.match_score is not None
    assert [hit["index"] for hit in found["results"]] == [hit["corpus_id"] for hit in expected]
    assert found["score"] == kind and found["threshold"] == pytest.approx(matcher.match_score.threshold(kind))
    for hit, wanted in zip(found["results"], expected, strict=True):
        assert hit["score"] == hit["probability"] == pytest.approx(wanted["score"], abs=1e-5)
        pair = ("card", hit["text"])
        assert hit["match"] == bool(matcher.matches(pair, score=kind))
        answer, similarity = matcher.scores(pair)
        assert hit["answer_log_odds"] == pytest.approx(answer, abs=1e-5)
        assert hit["cosine"] == pytest.approx(similarity, abs=1e-5)
    if kind == "answer":
        assert found["results"][0]["probability"] == pytest.approx(expit(found["results"][0]["answer_log_odds"]))


def test_searches_that_come_together_each_get_their_own(server: Running, matcher: FlippedMatcher) -> None:
    queries = [f"{text} {number}" for number in range(3) for text in CORPUS]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        asked = [{"query": query, "top_k": 1 + number % 4} for number, query in enumerate(queries)]
        found = list(pool.map(lambda body: server.answer("/search", body)["results"], asked))
    expected = matcher.search(queries, CORPUS, top_k=4)
    for number, hits in enumerate(found):
        wanted = expected[number][: 1 + number % 4]
        assert [hit["index"] for hit in hits] == [hit["corpus_id"] for hit in wanted]


@pytest.mark.parametrize(
    ("route", "body", "reason"),
    [
        ("/search", {"query": "card", "top_k": 5, "rerank": 3}, "rerank: it must be 0 or at least top_k, 5"),
        ("/search", {"query": "card", "score": "both"}, "score: it is what rerank ranks by: give rerank 10 or more"),
        ("/search", {"query": "card", "topk": 3}, "topk: Extra inputs are not permitted"),
        ("/search", {"query": "card", "top_k": 0}, "top_k: Input should be greater than or equal to 1"),
        ("/match", {"pairs": [["cash"]]}, "pairs.0: List should have at least 2 items"),
        ("/search", {"query": "a", "x": 1, "y": 1, "z": 1, "w": 1}, "z: Extra inputs are not permitted; and 1 more"),
        ("/search", dict.fromkeys(map(str, range(20))), "it has 20 fields, most of them unknown: give only query"),
        ("/match", {"pairs": ["cash", "refund"]}, "pairs.0: Input should be a valid list"),
        ("/match", {"pairs": [["cash", "refund"]], "threshold": 1.5}, "threshold"),
        ("/match", {"pairs": [["cash", "refund"]], "score": "best"}, "score: Input should be 'answer', 'similarity'"),
    ],
)
def test_mistakes_are_named(server: Running, route: str, body: dict, reason: str) -> None:
    response = server.post(route, body)
    assert response.status_code == 422 and reason in response.json()["error"], response.text


def test_without_a_corpus_there_is_no_search(load: Any) -> None:
    with running(load, token="a-token-of-tests") as server:
        for route in ("/search", "/corpus/reload"):
            refused = server.post(route, {"query": "card"})
            assert refused.status_code == 404 and "start the server with --corpus FILE" in refused.json()["error"]
        assert server.client.get("/info").json()["corpus"] is None
