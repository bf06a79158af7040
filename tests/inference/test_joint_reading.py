"""JointReader: the matcher's scores, whatever is read together, and each shared beginning once."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from flipped_kd import FlippedMatcher
from flipped_kd.inference.joint_reading import JointReader
from tests.adapters import LINEAR, MIXED_PAIRS, make_adapter, make_base
from tests.inference.test_matcher import embedded

QUERY = "why was the transfer refused and when does it arrive"
DOCUMENTS = [f"where is my card {number}" for number in range(60)]


@pytest.fixture(scope="module", params=["qwen2", "gpt2"])
def matcher(
    request: pytest.FixtureRequest, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> FlippedMatcher:
    folder = tmp_path_factory.mktemp(request.param)
    base = make_base(folder / "base", request.param, tokenizer, tied=True)
    targets = {"qwen2": LINEAR, "gpt2": ["c_attn", "c_fc"]}[request.param]
    adapter = make_adapter(folder / "adapter", base, tokenizer, max_length=96, target_modules=targets)
    return FlippedMatcher.from_pretrained(adapter, device="cpu")


def read(matcher: FlippedMatcher, pairs: list[tuple[str, str]]) -> np.ndarray:
    tokens = matcher.prompt.encode_pairs([a for a, _ in pairs], [b for _, b in pairs])
    return JointReader(matcher).answers(tokens)


@pytest.mark.parametrize(
    "pairs",
    [
        MIXED_PAIRS,
        MIXED_PAIRS[:1],
        [(QUERY, text) for pair in MIXED_PAIRS[:3] for text in pair],
        [*MIXED_PAIRS, *((QUERY, text) for text in DOCUMENTS), *((text, QUERY) for text in DOCUMENTS[:2])],
    ],
    ids=["mixed", "one", "one query", "a query among others"],
)
def test_answers_are_those_of_the_matcher(matcher: FlippedMatcher, pairs: list[tuple[str, str]]) -> None:
    found = read(matcher, pairs)
    assert np.ptp(found) > 1e-3 or len(pairs) == 1
    np.testing.assert_allclose(found, matcher.scores(pairs, kind="answer")[0], rtol=0, atol=1e-5)


def test_vectors_are_those_of_the_matcher(matcher: FlippedMatcher) -> None:
    texts = [text for pair in MIXED_PAIRS for text in pair]
    reader = JointReader(matcher)
    for part in (texts, texts[:1]):
        found = reader.vectors(matcher.prompt.encode_texts(part))
        np.testing.assert_allclose(found, matcher.encode(part), rtol=0, atol=1e-6)


def test_the_prefix_is_read_once_for_all_calls_and_a_query_of_many_pairs_once_a_call(matcher: FlippedMatcher) -> None:
    reader = JointReader(matcher)
    others = matcher.prompt.encode_pairs(*zip(*MIXED_PAIRS, strict=True))
    of_query = matcher.prompt.encode_pairs([QUERY] * len(DOCUMENTS), DOCUMENTS)
    prefix, middle = len(matcher.prompt.prefix_ids), len(matcher.prompt.middle_ids)
    query = of_query[0].text_a[1] - of_query[0].text_a[0]
    assert query * len(DOCUMENTS) > 300
    for _ in range(2):
        with embedded(matcher) as shapes:
            reader.answers([*others, *of_query])
        read_alone = [shape for shape in shapes if shape == (1, prefix + query + middle)]
        assert len(read_alone) == 1
        # Everything else goes on from it or from the prefix: no row holds the prefix again.
        longest = max(len(pair.input_ids) - prefix for pair in others)
        assert all(rows == 1 or tokens <= longest for rows, tokens in shapes)
        assert sum(rows for rows, _ in shapes) == len(others) + len(of_query) + 1


def test_few_pairs_of_a_query_are_read_with_the_others(matcher: FlippedMatcher) -> None:
    """A batch of their own would cost more than the tokens it saves."""
    pairs = [*MIXED_PAIRS[:2], ("cash", "refund"), ("cash", "the loan")]
    with embedded(matcher) as shapes:
        tokens = matcher.prompt.encode_pairs(*zip(*pairs, strict=True))
        reader = JointReader(matcher)
        shapes.clear()
        reader.answers(tokens)
    assert sum(rows for rows, _ in shapes) == len(pairs)


def test_a_prompt_may_begin_with_the_text(matcher: FlippedMatcher) -> None:
    """There is nothing to read before it then."""
    bare = copy.copy(matcher.prompt)
    bare.prefix_ids = []
    shorter = FlippedMatcher(matcher.model, matcher.tokenizer, bare, matcher.encoder)
    pairs = [(QUERY, text) for text in DOCUMENTS[:3]]
    tokens = bare.encode_pairs([a for a, _ in pairs], [b for _, b in pairs])
    np.testing.assert_allclose(JointReader(shorter).answers(tokens), shorter.scores(pairs)[0], rtol=0, atol=1e-5)
