"""Batches by tokens: every row once, no batch over the budget, and results as of one batch."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import CrossEncoder, SentenceTransformer

from flipped_kd.token_batches import CPU_TOKENS, _token_counts, run_in_token_batches, token_batches, token_budget


@given(st.lists(st.integers(0, 300), max_size=60), st.integers(1, 20), st.integers(1, 900))
def test_every_row_is_in_one_batch_and_no_batch_is_too_large(lengths: list[int], batch_size: int, budget: int):
    batches = list(token_batches(lengths, batch_size, budget))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    longest = [max(lengths[row] for row in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    for batch, tokens in zip(batches, longest, strict=True):
        assert len(batch) <= batch_size
        assert len(batch) == 1 or len(batch) * tokens <= budget


def test_a_batch_is_as_large_as_the_budget_allows():
    assert [len(batch) for batch in token_batches([10] * 7 + [50], 64, 50)] == [1, 5, 2]


def test_a_gpu_has_no_budget_and_a_cpu_one_for_each_thread():
    assert token_budget(torch.device("cpu")) == CPU_TOKENS * torch.get_num_threads()
    assert list(map(len, token_batches([999] * 70, 64, token_budget(torch.device("cuda"))))) == [64, 6]


@pytest.mark.parametrize("inputs", [["b" * n for n in (3, 900, 1, 700, 2)], [("a" * n, "b") for n in (900, 1, 800)]])
def test_results_come_in_the_order_given(inputs):
    """A model without a transformers tokenizer is batched by characters."""
    seen = []

    def compute(batch):
        seen.append(len(batch))
        return np.array([[len(entry), len(entry[0])] for entry in batch])

    model = SimpleNamespace(tokenizer=None, device=torch.device("cpu"))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        found = run_in_token_batches(compute, model, inputs, 64)
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(found, [[len(entry), len(entry[0])] for entry in inputs])
    assert len(seen) > 2


@pytest.mark.parametrize("kind", ["teacher_dir", "cross_encoder_dir"])
def test_lengths_are_those_the_model_computes(kind: str, request: pytest.FixtureRequest):
    model_class = SentenceTransformer if kind == "teacher_dir" else CrossEncoder
    model = model_class(str(request.getfixturevalue(kind)), device="cpu")
    model.max_seq_length = 32
    texts = ["the loan", "where is my salary", "an invoice " * 40]
    inputs: list = texts if kind == "teacher_dir" else [(text, "cancel it") for text in texts]
    computed = model.preprocess(inputs)["attention_mask"].sum(1).tolist()
    assert computed[-1] == 32 > computed[0]
    assert _token_counts(model, inputs) == computed
