"""text-embeddings-inference's routes give the matcher's numbers, to its public client too."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import InferenceClient
from scipy.special import logit

from flipped_kd import FlippedMatcher
from flipped_kd.serving.corpus import CorpusSource
from flipped_kd.utils.choices import SCORE_KINDS, ScoreKind
from tests.adapters import MIXED_PAIRS, make_adapter, make_base
from tests.serving.conftest import CORPUS
from tests.serving.running import Running, running, wait_for

QUERY = "where is my card"
TEXTS = [*(text for pair in MIXED_PAIRS for text in pair), "where is the loan " * 60, "cash"]
NEAR = {"rtol": 0, "atol": 1e-5}


def test_rerank_ranks_as_the_matcher(server: Running, matcher: FlippedMatcher) -> None:
    expected = matcher.rank(QUERY, TEXTS, return_documents=True)
    found = server.answer("/rerank", {"query": QUERY, "texts": TEXTS, "return_text": True})
    assert [rank["index"] for rank in found] == [hit["corpus_id"] for hit in expected]
    assert [rank["text"] for rank in found] == [hit["text"] for hit in expected]
    np.testing.assert_allclose([rank["score"] for rank in found], [hit["score"] for hit in expected], **NEAR)
    assert "text" not in server.answer("/rerank", {"query": QUERY, "texts": TEXTS})[0]


def test_raw_scores_are_the_log_odds_of_the_matchers_own_score(server: Running, matcher: FlippedMatcher) -> None:
    assert matcher.match_score is not None and matcher.match_score.default == "both"
    found = server.answer("/rerank", {"query": QUERY, "texts": TEXTS, "raw_scores": True})
    expected = matcher.match_score.log_odds(*matcher.scores([(QUERY, text) for text in TEXTS]))
    by_place = {rank["index"]: rank["score"] for rank in found}
    np.testing.assert_allclose([by_place[place] for place in range(len(TEXTS))], expected, **NEAR)
    probabilities = server.answer("/rerank", {"query": QUERY, "texts": TEXTS})
    np.testing.assert_allclose(
        logit([rank["score"] for rank in probabilities]), [rank["score"] for rank in found], rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("score", SCORE_KINDS)
def test_another_score_can_be_served(score: ScoreKind, load: Any, matcher: FlippedMatcher) -> None:
    with running(load, score=score) as server:
        found = server.answer("/rerank", {"query": QUERY, "texts": TEXTS})
        assert server.client.get("/info").json()["score"] == score
    expected = matcher.rank(QUERY, TEXTS, score=score)
    np.testing.assert_allclose([rank["score"] for rank in found], [hit["score"] for hit in expected], **NEAR)


def test_embed_gives_the_matchers_vectors(server: Running, matcher: FlippedMatcher) -> None:
    for normalize in (True, False):
        found = server.answer("/embed", {"inputs": TEXTS, "normalize": normalize})
        np.testing.assert_allclose(found, matcher.encode(TEXTS), **NEAR)
    np.testing.assert_allclose(server.answer("/embed", {"inputs": "cash"}), matcher.encode(["cash"]), **NEAR)


def test_similarity_gives_the_matchers_cosines(server: Running, matcher: FlippedMatcher) -> None:
    found = server.answer("/similarity", {"inputs": {"source_sentence": QUERY, "sentences": TEXTS}})
    np.testing.assert_allclose(found, matcher.similarity(QUERY, TEXTS)[0], **NEAR)


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/rerank", {"query": "cash", "texts": ["where is the loan " * 60]}),
        ("/embed", {"inputs": ["where is the loan " * 60]}),
        ("/similarity", {"inputs": {"source_sentence": "cash", "sentences": ["where is the loan " * 60]}}),
    ],
)
def test_a_text_that_is_too_long_is_cut_unless_that_is_forbidden(server: Running, route: str, body: dict) -> None:
    server.answer(route, body)
    forbidding = {"parameters": {"truncate": False}} if route == "/similarity" else {"truncate": False}
    refused = server.post(route, body | forbidding)
    assert refused.status_code == 413 and "too long for 128 tokens" in refused.json()["error"]


def test_info_tells_what_is_served(server: Running, matcher: FlippedMatcher) -> None:
    info = server.client.get("/info").json()
    assert info["model_id"] == "tiny" and info["model_dtype"] == "float32"
    assert info["max_input_length"] == matcher.prompt.max_length and info["dimensions"] == matcher.encoder.dimension
    assert info["scores"] == list(SCORE_KINDS) and info["corpus"] == len(CORPUS)
    assert matcher.match_score is not None
    assert info["thresholds"] == {kind: matcher.match_score.threshold(kind) for kind in SCORE_KINDS}


def test_huggingface_hubs_client(server: Running, matcher: FlippedMatcher, monkeypatch: pytest.MonkeyPatch) -> None:
    # Offline it asks nobody, not even this machine.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    found = InferenceClient(model=f"{server.url}/embed").feature_extraction(TEXTS[0], normalize=True, truncate=True)
    np.testing.assert_allclose(found, matcher.encode([TEXTS[0]]), **NEAR)
    cosines = InferenceClient(model=f"{server.url}/similarity").sentence_similarity(QUERY, other_sentences=TEXTS)
    np.testing.assert_allclose(cosines, matcher.similarity(QUERY, TEXTS)[0], **NEAR)


@pytest.mark.parametrize(
    ("route", "body", "reason"),
    [
        ("/rerank", {"query": "cash"}, "texts: Field required"),
        ("/rerank", {"query": " \n", "texts": ["a"]}, "query: is empty or white space only: give a text"),
        ("/rerank", {"query": "cash", "texts": "refund"}, "texts: Input should be a valid list"),
        ("/embed", {"inputs": [[1, 2, 3]]}, "token ids are not taken"),
        ("/embed", {"inputs": "cash", "prompt_name": "query"}, "prompt_name"),
        ("/embed", {"inputs": "cash", "dimensions": 3}, "dimensions: vectors have"),
        ("/embed", {"inputs": "cash", "truncation_direction": "Left"}, "truncation_direction"),
    ],
)
def test_what_cannot_be_done_is_refused_in_its_form(server: Running, route: str, body: dict, reason: str) -> None:
    response = server.post(route, body)
    content = response.json()
    assert response.status_code == 422 and set(content) == {"error", "error_type"}
    assert reason in content["error"] and content["error_type"] == "Validation"


def test_a_model_without_a_match_score_answers(tokenizer: Any, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "qwen2", tokenizer, tied=True)
    adapter = make_adapter(tmp_path / "adapter", base, tokenizer, score=False)
    matcher = FlippedMatcher.from_pretrained(adapter, device="cpu")
    with running(lambda: FlippedMatcher.from_pretrained(adapter, device="cpu")) as server:
        found = server.answer("/rerank", {"query": QUERY, "texts": TEXTS})
        info = server.client.get("/info").json()
        (judged,) = server.answer("/match", {"pairs": [["cash", "refund"]]})["results"]
        refused = server.post("/match", {"pairs": [["cash", "refund"]], "score": "both"})
    np.testing.assert_allclose(
        [rank["score"] for rank in found], [hit["score"] for hit in matcher.rank(QUERY, TEXTS)], **NEAR
    )
    assert info["scores"] == ["answer"] and info["thresholds"] == {}
    assert judged["match"] is None and judged["probability"] == pytest.approx(matcher.predict(("cash", "refund")))
    assert refused.status_code == 422 and "this model has answer only" in refused.json()["error"]


def test_health_is_503_until_model_and_corpus_are_loaded(load: Any, corpus_file: Path) -> None:
    may_load = threading.Event()

    def slowly() -> FlippedMatcher:
        may_load.wait(30)
        return load()

    with running(slowly, CorpusSource(str(corpus_file)), ready=False) as server:
        for _ in range(2):
            waiting = server.client.get("/health")
            assert waiting.status_code == 503 and waiting.headers["retry-after"] == "5"
            assert waiting.json()["error_type"] == "Unhealthy"
            assert server.post("/embed", {"inputs": "cash"}).status_code == 503
        assert server.client.get("/").status_code == 200
        may_load.set()
        wait_for(lambda: server.client.get("/health").status_code == 200)
        assert server.post("/embed", {"inputs": "cash"}).status_code == 200
