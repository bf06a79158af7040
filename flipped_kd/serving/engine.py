"""What can be asked of a matcher by many at once: scores of pairs, vectors of texts, the nearest of a corpus."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import expit

from ..evaluation.match_score import ANSWER_ONLY
from ..inference.joint_reading import JointReader
from ..inference.matcher import FlippedMatcher
from ..inference.scorer import row_cosines
from ..inference.search_index import SearchIndex
from ..prompts.pair_tokens import PairTokens
from ..utils.choices import ScoreKind
from ..utils.token_batches import token_budget
from .batching import Batcher
from .errors import ModelLostError, Refused
from .settings import Limits
from .work_queue import Item

# Characters that are tokenised in the event loop, which takes a millisecond; more are tokenised in a thread.
FEW_CHARACTERS = 10_000
# Batches of a round on a CPU; and tokens of a round where the device has no budget for a batch.
ROUND_BATCHES, ROUND_TOKENS = 4, 16_384


@dataclass(frozen=True)
class Nearest:
    """The `top_k` nearest of an index to a query."""

    query: str
    index: SearchIndex
    top_k: int


@dataclass(frozen=True)
class PairScores:
    """Of n pairs.

    Attributes:
        log_odds: of a match (n,), by the score that was asked for.
        answer: the answer's log-odds (n,), NaN where the score does without.
        cosine: (n,), the same.
        tokens: that were read.
    """

    log_odds: np.ndarray
    answer: np.ndarray
    cosine: np.ndarray
    tokens: int

    @property
    def probability(self) -> np.ndarray:
        """Of a match, (n,)."""
        return expit(self.log_odds)


class Engine:
    """Asks a matcher through a batcher; made and called in its thread's event loop.

    Args:
        matcher: read in the batcher's thread only.
        reader: of the matcher.
        batcher: whose `compute` becomes this engine's.
        limits: of a request.
        score: what probabilities are made of; None takes the model's own.
        round_tokens: tokens read in one go; None takes what suits the device.
        batch_size: queries of searches that are encoded at a time, at most.
    """

    def __init__(
        self,
        matcher: FlippedMatcher,
        reader: JointReader,
        batcher: Batcher,
        limits: Limits,
        score: ScoreKind | None = None,
        round_tokens: int | None = None,
        batch_size: int = 32,
    ) -> None:
        self.matcher, self.batcher = matcher, batcher
        self.scorer = matcher.match_score or ANSWER_ONLY
        self.kind: ScoreKind = score or self.scorer.default
        self._reader, self._limits, self._batch_size = reader, limits, batch_size
        self._tokeniser = ThreadPoolExecutor(1, "tokeniser")
        self._tokenising = 0
        budget = token_budget(matcher.device)
        suits = ROUND_BATCHES * budget if budget < sys.maxsize else ROUND_TOKENS
        batcher.round_tokens = round_tokens or suits
        batcher.compute = self._compute

    # ---- In the event loop ----

    def checked_kind(self, score: ScoreKind | None) -> ScoreKind:
        """The score to use.

        Raises:
            Refused: the model has no such score.
        """
        if score is not None and score not in self.scorer.kinds:
            raise Refused(
                422,
                f"score: this model has {' and '.join(self.scorer.kinds)} only: the others are fitted when it is "
                "trained with validation pairs.",
            )
        return score or self.kind

    @property
    def has_threshold(self) -> bool:
        """Whether thresholds were chosen on validation pairs."""
        return self.matcher.match_score is not None

    def threshold(self, kind: ScoreKind) -> float | None:
        """The chosen threshold, as a probability."""
        return self.scorer.threshold(kind) if self.has_threshold else None

    def decisions(self, log_odds: np.ndarray, kind: ScoreKind) -> list[bool | None]:
        """Which pairs match by the chosen threshold."""
        if not self.has_threshold:
            return [None] * len(log_odds)
        return (log_odds >= self.scorer.kinds[kind].threshold).tolist()

    async def log_odds(
        self,
        pairs: Sequence[tuple[str, str]],
        kind: ScoreKind | None = None,
        may_cut: bool = True,
        *,
        every: bool = False,
        cosines: np.ndarray | None = None,
        one_query: bool = False,
    ) -> PairScores:
        """How likely pairs match.

        Args:
            pairs: n pairs.
            kind: by which score; None takes the engine's.
            may_cut: whether texts that are too long are cut, as in `FlippedMatcher`.
            every: compute answer and cosine, whether or not `kind` needs both.
            cosines: (n,) where they are known.
            one_query: all pairs have the same first text, which counts once among the texts of a request.

        Raises:
            Refused: a limit, or a text that is too long and must not be cut.
        """
        self._check_count(len(pairs) + (1 if one_query else len(pairs)))
        kind = kind or self.kind
        answered = every or kind != "similarity"
        compared = cosines is None and (every or kind != "answer")
        items: list[Item] = []
        if answered:
            columns = [a for a, _ in pairs], [b for _, b in pairs]
            tokens = await self._tokens(self.matcher.prompt.encode_pairs, *columns, may_cut=may_cut)
            items += [self._item(("pair", *pair), row) for pair, row in zip(pairs, tokens, strict=True)]
        if compared:
            items += await self._texts([text for pair in pairs for text in pair], may_cut)
        values = await self._run(items)
        unknown = np.full(len(pairs), np.nan)
        answer = np.array(values[: len(pairs)]) if answered else unknown
        if compared:
            cosines = _cosines(values[len(pairs) if answered else 0 :])
        cosine = unknown if cosines is None else cosines
        return PairScores(self.scorer.log_odds(answer, cosine, kind), answer, cosine, _tokens_of(items))

    async def vectors(self, texts: Sequence[str], may_cut: bool = True) -> tuple[np.ndarray, int]:
        """Unit vectors (n, D) float32 of texts, and the tokens that were read.

        Raises:
            Refused: as `log_odds`.
        """
        self._check_count(len(texts))
        items = await self._texts(texts, may_cut)
        return np.stack(await self._run(items)), _tokens_of(items)

    async def nearest(self, query: str, index: SearchIndex, top_k: int) -> list[dict[str, Any]]:
        """The nearest texts of an index, as `FlippedMatcher.search` gives them.

        Raises:
            Refused: as `log_odds`.
        """
        (tokens,) = await self._tokens(self.matcher.prompt.encode_texts, [query])
        item = Item(("nearest", id(index), query, top_k), Nearest(query, index, top_k), len(tokens.input_ids))
        (found,) = await self._run([item])
        return found

    def _check_count(self, texts: int) -> None:
        if texts > self._limits.texts:
            raise Refused(422, f"{texts} texts in one request, {self._limits.texts} at most: send several.")

    async def _texts(self, texts: Sequence[str], may_cut: bool) -> list[Item]:
        tokens = await self._tokens(self.matcher.prompt.encode_texts, texts, may_cut=may_cut)
        return [self._item(("text", text), row) for text, row in zip(texts, tokens, strict=True)]

    async def _tokens(
        self, encode: Callable[..., list[PairTokens]], *texts: Sequence[str], may_cut: bool = True
    ) -> list[PairTokens]:
        try:
            if sum(len(text) for column in texts for text in column) <= FEW_CHARACTERS:
                tokens = encode(*texts)
            else:
                tokens = await self._tokenised_aside(encode, *texts)
        except ValueError as error:  # a text that comes to nothing
            raise Refused(422, str(error)) from None
        except (Exception, asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of the tokenizer; its message may quote a text
            raise RuntimeError(type(error).__name__) from None
        if not may_cut and any(row.truncated for row in tokens):
            limit = self.matcher.prompt.max_length
            raise Refused(413, f"a text is too long for {limit} tokens with its prompt: shorten it, or let it be cut.")
        return tokens

    async def _tokenised_aside(
        self, encode: Callable[..., list[PairTokens]], *texts: Sequence[str]
    ) -> list[PairTokens]:
        """In a thread, in turn: as many requests may wait for it as for the model, since each holds its texts."""
        if self._tokenising >= self._limits.waiting_requests:
            raise Refused(429, f"{self._tokenising} requests wait for the tokenizer already: try again later.", 1.0)
        self._tokenising += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._tokeniser, encode, *texts)
        finally:
            self._tokenising -= 1

    def _item(self, key: tuple[str, ...], tokens: PairTokens) -> Item:
        return Item(key, tokens, len(tokens.input_ids) - len(self.matcher.prompt.prefix_ids))

    async def _run(self, items: list[Item]) -> list[Any]:
        tokens = _tokens_of(items)
        if tokens > self._limits.tokens:
            raise Refused(413, f"{tokens} tokens in one request, {self._limits.tokens} at most: send several.")
        return await self.batcher.run(items)

    # ---- In the model's thread ----

    def _compute(self, contents: list[Any]) -> list[Any]:
        try:
            return self._computed(contents)
        except torch.AcceleratorError as error:
            try:
                torch.accelerator.synchronize()
            except Exception:  # not this request's fault: after such an error a GPU does nothing more
                raise ModelLostError(str(error)) from error
            raise

    def _computed(self, contents: list[Any]) -> list[Any]:
        values: list[Any] = [None] * len(contents)
        pairs, texts, searches = [], [], []
        for place, content in enumerate(contents):
            if isinstance(content, Nearest):
                searches.append(place)
            elif content.text_b is None:
                texts.append(place)
            else:
                pairs.append(place)
        if pairs:
            _put(values, pairs, self._reader.answers([contents[place] for place in pairs]).tolist())
        if texts:
            _put(values, texts, list(self._reader.vectors([contents[place] for place in texts]).numpy()))
        if searches:
            _put(values, searches, self._search([contents[place] for place in searches]))
        return values

    def _search(self, wanted: list[Nearest]) -> list[list[dict[str, Any]]]:
        """All queries of one index at once, for the most that one of them wants."""
        found: list[list[dict[str, Any]]] = [[]] * len(wanted)
        for index in {id(search.index): search.index for search in wanted}.values():
            places = [place for place, search in enumerate(wanted) if search.index is index]
            queries = [wanted[place].query for place in places]
            most = max(wanted[place].top_k for place in places)
            hits = self.matcher.search(queries, index, most, batch_size=self._batch_size, show_progress_bar=False)
            _put(found, places, [hits[n][: wanted[place].top_k] for n, place in enumerate(places)])
        return found


def _put(values: list[Any], places: Sequence[int], new: Sequence[Any]) -> None:
    for place, value in zip(places, new, strict=True):
        values[place] = value


def _tokens_of(items: Sequence[Item]) -> int:
    return sum({item.key: item.tokens for item in items}.values())


def _cosines(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """Of each two vectors that follow each other, as `FlippedMatcher.scores` computes them."""
    stacked = torch.from_numpy(np.stack(vectors))
    return row_cosines(stacked, list(range(0, len(vectors), 2)), list(range(1, len(vectors), 2)))
