"""Batches by tokens: on a CPU a batch is as large as its caches hold, whatever the length of its rows."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

# Tokens of a batch for each thread of a CPU, padding included: its caches hold no more activations (measured on the
# student and on a MiniLM teacher: 15 to 20 % faster than 32 rows).
CPU_TOKENS = 384
# Without padding twice as many are 4 to 7 % faster (benchmarks/NOTES.md).
UNPADDED_TOKENS = 768
# What a batch costs in itself, in tokens: reading the weights, starting the kernels (measured: 140 of the student's).
START_TOKENS = 128


def token_budget(device: torch.device, padded: bool = True) -> int:
    """Tokens of a batch, padding included, above which the device gets no faster; of a GPU there is no such limit."""
    each = CPU_TOKENS if padded else UNPADDED_TOKENS
    return each * torch.get_num_threads() if device.type == "cpu" else sys.maxsize


def token_batches(lengths: Sequence[int], batch_size: int, budget: int) -> Iterator[list[int]]:
    """Positions of rows in batches, longest first; equal lengths in the order given.

    Where there is a budget, rows are so divided that padding and the cost of a batch in itself are least in sum.

    Args:
        lengths: tokens of each row.
        batch_size: rows of a batch at most.
        budget: tokens of a batch at most, padding included; a row longer than that is a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    sizes = _sizes([lengths[row] for row in order], batch_size, budget)
    start = 0
    while start < len(order):
        yield order[start : start + sizes[start]]
        start += sizes[start]


def unpadded_batches(lengths: Sequence[int], batch_size: int, budget: int) -> Iterator[list[int]]:
    """As `token_batches`, where rows cost their own tokens only: as few batches as there can be."""
    chosen: list[int] = []
    tokens = 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if chosen and (len(chosen) == batch_size or tokens + lengths[row] > budget):
            yield chosen
            chosen, tokens = [], 0
        chosen.append(row)
        tokens += lengths[row]
    if chosen:
        yield chosen


def _sizes(descending: list[int], batch_size: int, budget: int) -> list[int]:
    """How many rows the best batch that begins at each row has, (n,)."""
    if budget == sys.maxsize:
        return [batch_size] * len(descending)
    sizes = [0] * len(descending)
    # Tokens that the rows from here on cost at best, the beginning of each batch counted as START_TOKENS.
    least = np.zeros(len(descending) + 1, dtype=np.int64)
    rows = np.arange(1, batch_size + 1)
    for start in range(len(descending) - 1, -1, -1):
        longest = descending[start]
        most = max(1, min(batch_size, budget // max(1, longest), len(descending) - start))
        costs = rows[:most] * longest + least[start + 1 : start + most + 1]
        sizes[start] = int(costs.argmin()) + 1
        least[start] = START_TOKENS + costs[sizes[start] - 1]
    return sizes


def run_in_token_batches(
    compute: Callable[[list[Any]], np.ndarray], model: Any, inputs: list[Any], batch_size: int
) -> np.ndarray:
    """`compute` over `inputs` in batches of like length, results (n, ...) in the order given.

    Args:
        compute: gives the results of one batch.
        model: the sentence-transformers model that computes.
        inputs: texts, or pairs of texts; at least one.
        batch_size: inputs of a batch at most.
    """
    parts = list(token_batches(_token_counts(model, inputs), batch_size, token_budget(model.device)))
    computed = np.concatenate([compute([inputs[row] for row in rows]) for rows in parts])
    result = np.empty_like(computed)
    result[np.concatenate(parts)] = computed
    return result


def _token_counts(model: Any, inputs: list[Any]) -> list[int]:
    """Tokens of each input as the model cuts it; characters where its tokenizer is of another kind."""
    tokenizer = getattr(model, "tokenizer", None)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return [len(entry) if isinstance(entry, str) else sum(map(len, entry)) for entry in inputs]
    limit = model.max_seq_length
    counts = tokenizer(inputs, truncation=False, return_attention_mask=False, verbose=False)["input_ids"]
    return [len(ids) if limit is None else min(len(ids), limit) for ids in counts]
