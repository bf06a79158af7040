"""Pairs and texts of many callers, read in one go: what several pairs begin with is read once."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from torch import Tensor
from tqdm.auto import tqdm

from ..prompts.pair_tokens import PairTokens
from ..utils.token_batches import START_TOKENS, token_budget
from .model_runner import MIN_TOKENS_SAVED, TokenRows
from .scorer import PairScorer


class JointReader:
    """Reads rows of tokens with one matcher, again and again.

    The prompt's prefix, which all rows begin with, is read once for all calls: the matcher's weights must stay as they
    are. Within a call a first text that enough pairs share is read once too.

    Args:
        matcher: whose model reads, and whose `prompt` has made the tokens.
        batch_size: rows read at a time.
    """

    def __init__(self, matcher: PairScorer, batch_size: int = 32) -> None:
        self._runner, self._batch_size = matcher._reader, batch_size
        self._before = matcher.prompt.prefix_ids
        self._prefix = self._runner.read(self._before)
        # A device without a budget reads all rows in one batch, and a batch more costs it more than tokens.
        self._parts_queries = token_budget(matcher.device) < sys.maxsize and self._runner.shortcuts.caches

    def answers(self, pairs: Sequence[PairTokens]) -> np.ndarray:
        """Answer log-odds (n,) of pairs of `PairPrompt.encode_pairs`."""
        answers = np.empty(len(pairs))
        self._runner.tell_of_cut(pairs)
        for numbers, query in self._groups(pairs):
            rows = self._rows([pairs[number] for number in numbers], query)
            answers[numbers] = self._runner.row_answers(rows, self._batch_size, tqdm(disable=True))
        return answers

    def vectors(self, texts: Sequence[PairTokens]) -> Tensor:
        """Unit vectors (n, D) float32 of texts of `PairPrompt.encode_texts`, in main memory."""
        self._runner.tell_of_cut(texts)
        return self._runner.row_vectors(self._rows(texts, []), self._batch_size, tqdm(disable=True))

    def _rows(self, tokens: Sequence[PairTokens], query: list[int]) -> TokenRows:
        """Rows that begin with a query, or else with the prefix."""
        before = query or self._before
        pays = not query and len(before) * len(tokens) >= MIN_TOKENS_SAVED
        return TokenRows(before, [row.input_ids[len(before) :] for row in tokens], self._prefix if pays else None)

    def _groups(self, pairs: Sequence[PairTokens]) -> list[tuple[list[int], list[int]]]:
        """Numbers of pairs to be read together, each with the beginning up to text_b that is read once for all."""
        by_query: dict[tuple[int, ...], list[int]] = {}
        for number, pair in enumerate(pairs):
            by_query.setdefault(tuple(pair.input_ids[: pair.text_a[1]]), []).append(number)
        groups: list[tuple[list[int], list[int]]] = []
        others: list[int] = []
        for numbers in by_query.values():
            first = pairs[numbers[0]]
            if len(numbers) > 1 and (len(by_query) == 1 or self._pays(first, len(numbers))):
                groups.append((numbers, first.input_ids[: first.start_of_b]))
            else:
                others += numbers
        return groups + ([(others, [])] if others else [])

    def _pays(self, pair: PairTokens, rows: int) -> bool:
        """Whether so many pairs of a query are sooner read by themselves: two batches more, but fewer tokens."""
        saved = rows * (pair.text_a[1] - pair.text_a[0])
        return self._parts_queries and saved > pair.start_of_b + 2 * START_TOKENS
