"""Cohere's and Jina's /v1/rerank ranks as the matcher, for Cohere's clients of both versions and in Jina's form."""

from __future__ import annotations

from typing import Any

import cohere
import numpy as np
import pytest

from flipped_kd import FlippedMatcher
from tests.serving.conftest import CORPUS
from tests.serving.running import Running

QUERY = "where is my card"


@pytest.fixture(params=[cohere.Client, cohere.ClientV2])
def client(request: pytest.FixtureRequest, server: Running) -> Any:
    return request.param(api_key="none", base_url=server.url)


def test_coheres_clients(client: Any, matcher: FlippedMatcher) -> None:
    expected = matcher.rank(QUERY, CORPUS)
    for top in (None, 2, 10**30):
        options = {} if top is None else {"top_n": top}
        found = client.rerank(model="any", query=QUERY, documents=CORPUS, **options)
        assert [result.index for result in found.results] == [hit["corpus_id"] for hit in expected][:top]
        scores = [hit["score"] for hit in expected][:top]
        np.testing.assert_allclose([result.relevance_score for result in found.results], scores, rtol=0, atol=1e-5)
    assert found.id and found.meta.api_version.version in ("1", "2")


def test_coheres_first_client_takes_documents_as_objects_and_gives_them_back(server: Running) -> None:
    client = cohere.Client(api_key="none", base_url=server.url)
    documents: Any = [{"text": text} for text in CORPUS]
    found = client.rerank(model="any", query=QUERY, documents=documents, return_documents=True)
    assert [result.document.text for result in found.results] == [CORPUS[result.index] for result in found.results]


def test_jinas_form(server: Running, matcher: FlippedMatcher) -> None:
    """As its documentation shows it: https://jina.ai/reranker."""
    body = {"model": "jina-reranker-v2-base-multilingual", "query": QUERY, "top_n": 3, "documents": CORPUS}
    found = server.answer("/v1/rerank", body | {"return_documents": True})
    tokens = found["usage"]["total_tokens"]
    assert found["model"] == "tiny" and found["object"] == "list" and tokens == found["usage"]["prompt_tokens"] > 0
    best = matcher.rank(QUERY, CORPUS, top_k=3)
    assert [result["index"] for result in found["results"]] == [hit["corpus_id"] for hit in best]
    assert found["results"][0]["document"] == {"text": CORPUS[best[0]["corpus_id"]]}


def test_errors_are_those_that_the_clients_know(client: Any) -> None:
    with pytest.raises(cohere.UnprocessableEntityError) as error:
        client.rerank(model="any", query=" ", documents=CORPUS)
    assert (
        error.value.body["message"] == error.value.body["detail"] == "query: is empty or white space only: give a text"
    )
    with pytest.raises(cohere.UnprocessableEntityError, match="documents"):
        client.rerank(model="any", query=QUERY, documents=[])
