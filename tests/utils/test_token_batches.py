"""Batches by tokens: every row once, no batch over the budget, and results as of one batch."""

import itertools
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import CrossEncoder, SentenceTransformer

from flipped_kd.utils.token_batches import (
    CPU_TOKENS,
    START_TOKENS,
    UNPADDED_TOKENS,
    _token_counts,
    run_in_token_batches,
    token_batches,
    token_budget,
)


@given(st.lists(st.integers(0, 300), max_size=60), st.integers(1, 20), st.integers(1, 900))
def test_every_row_is_in_one_batch_and_no_batch_is_too_large(lengths: list[int], batch_size: int, budget: int):
    batches = list(token_batches(lengths, batch_size, budget))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    longest = [max(lengths[row] for row in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    for batch, tokens in zip(batches, longest, strict=True):
        assert len(batch) <= batch_size
        assert len(batch) == 1 or len(batch) * tokens <= budget


def test_rows_of_like_length_fill_the_budget_and_a_longer_one_goes_alone():
    assert sorted(len(batch) for batch in token_batches([10] * 7 + [50], 64, 50)) == [1, 2, 5]
    assert [len(batch) for batch in token_batches([20] * 9 + [90], 64, 900)] == [1, 9]  # padding would cost more
    assert [len(batch) for batch in token_batches([20] * 9 + [30], 64, 900)] == [10]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=7), st.integers(1, 4), st.integers(40, 200))
def test_no_other_division_costs_less(lengths: list[int], batch_size: int, budget: int):
    """Against every way to cut the sorted rows."""
    longest_first = sorted(lengths, reverse=True)

    def cost(sizes: list[int]) -> float:
        total, start = 0, 0
        for rows in sizes:
            tokens = rows * longest_first[start]
            if rows > batch_size or (rows > 1 and tokens > budget):
                return float("inf")
            total, start = total + START_TOKENS + tokens, start + rows
        return total

    cuts = itertools.product([False, True], repeat=len(lengths) - 1)
    ways = [[len(list(part)) for _, part in _divided(cut)] for cut in cuts]
    found = [len(batch) for batch in token_batches(lengths, batch_size, budget)]
    assert cost(found) == min(map(cost, ways))


def _divided(cuts: tuple[bool, ...]) -> Iterator[tuple[int, Iterator[int]]]:
    """Row numbers in parts: a cut before row i + 1 where cuts[i]."""
    parts = list(itertools.accumulate(cuts, initial=0))
    return itertools.groupby(range(len(parts)), key=parts.__getitem__)


def test_a_gpu_has_no_budget_and_a_cpu_one_for_each_thread():
    assert token_budget(torch.device("cpu")) == CPU_TOKENS * torch.get_num_threads()
    assert token_budget(torch.device("cpu"), padded=False) == UNPADDED_TOKENS * torch.get_num_threads()
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
