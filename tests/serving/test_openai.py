"""OpenAI's /v1/embeddings gives the matcher's vectors, to OpenAI's and LangChain's clients."""

from __future__ import annotations

import base64

import numpy as np
import openai
import pytest
from langchain_openai import OpenAIEmbeddings

from flipped_kd import FlippedMatcher
from tests.serving.running import Running

TEXTS = ["where is my card", "我的卡在哪里", "cash"]
NEAR = {"rtol": 0, "atol": 1e-5}


@pytest.fixture
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_openais_client(client: openai.OpenAI, matcher: FlippedMatcher) -> None:
    """It asks for base64 unless told otherwise."""
    expected = matcher.encode(TEXTS)
    for options in ({}, {"encoding_format": "float"}, {"dimensions": matcher.encoder.dimension}):
        found = client.embeddings.create(model="any", input=TEXTS, **options)
        assert [entry.index for entry in found.data] == [0, 1, 2] and found.model == "tiny"
        np.testing.assert_allclose([entry.embedding for entry in found.data], expected, **NEAR)
    lengths = [len(tokens.input_ids) - len(matcher.prompt.prefix_ids) for tokens in matcher.prompt.encode_texts(TEXTS)]
    assert found.usage.prompt_tokens == found.usage.total_tokens == sum(lengths)
    (one,) = client.embeddings.create(model="any", input="cash").data
    np.testing.assert_allclose(one.embedding, matcher.encode("cash"), **NEAR)


def test_langchains_client(server: Running, matcher: FlippedMatcher) -> None:
    embeddings = OpenAIEmbeddings(
        base_url=f"{server.url}/v1", api_key="none", model="any", check_embedding_ctx_length=False
    )
    np.testing.assert_allclose(embeddings.embed_documents(TEXTS), matcher.encode(TEXTS), **NEAR)
    np.testing.assert_allclose(embeddings.embed_query("cash"), matcher.encode("cash"), **NEAR)


def test_base64_is_float32_in_little_endian(server: Running, matcher: FlippedMatcher) -> None:
    found = server.answer("/v1/embeddings", {"input": "cash", "encoding_format": "base64"})
    vector = np.frombuffer(base64.b64decode(found["data"][0]["embedding"]), dtype="<f4")
    np.testing.assert_allclose(vector, matcher.encode("cash"), **NEAR)


@pytest.mark.parametrize("tokens", [[1, 2, 3], [[1, 2], [3]]])
def test_token_lists_are_refused_with_the_remedy(client: openai.OpenAI, tokens: list) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as error:
        client.embeddings.create(model="any", input=tokens)
    assert error.value.status_code == 422 and error.value.type == "invalid_request_error"
    assert "send texts" in error.value.message and "check_embedding_ctx_length=False" in error.value.message


def test_other_dimensions_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="dimensions: vectors have"):
        client.embeddings.create(model="any", input="cash", dimensions=7)
