"""Running a trained model over many rows of tokens: answer log-odds and text vectors, in batches of like length."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..prompts.pair_prompt import PROBE_PAIRS, PairPrompt
from ..prompts.pair_tokens import PairTokens, pad_batch
from ..students.answer_head import accepts_logits_to_keep, answer_rows, log_odds, position_logits
from ..students.probing import FLOAT32_TOLERANCE, can_be_stopped, input_device, same_logits, unwrapped
from ..utils.token_batches import token_batches, token_budget
from .copying import FreshLock
from .last_feed_forward import LastFeedForward, input_layers
from .prefix_cache import CachedPrefix, continues, read_prefix

logger = logging.getLogger(__name__)
# Fewer tokens saved do not pay for the forward pass of the beginning (measured for 3 to 52 tokens and 2 to 40 rows).
MIN_TOKENS_SAVED = 32
# Rows tokenised and sorted by length at a time, which bounds memory.
WINDOW = 16384


class Bar(Protocol):
    """What is told of progress, such as a tqdm bar."""

    def update(self, count: int) -> Any:
        """`count` more rows are done."""


class TextReader(Protocol):
    """What is read of texts in a forward pass: vectors (`LoraEncoder`), or what they are made of."""

    @property
    def dimension(self) -> int:
        """Numbers of one text."""

    def capture(self, stop: bool = False) -> AbstractContextManager[dict[str, Tensor]]:
        """Record the one forward pass run inside the context; with `stop` leave it once all is recorded."""

    def pool(self, captured: dict[str, Tensor], spans: Tensor) -> Tensor:
        """(B, dimension) of what was recorded, over the tokens where spans (B, T) is 1."""


@dataclass(frozen=True)
class TokenRows:
    """Rows of token ids with a common beginning: row i is `shared` + `rests[i]`; no rest is empty.

    Attributes:
        read: the keys and values of `shared`, where it has been read already.
    """

    shared: list[int]
    rests: list[list[int]]
    read: CachedPrefix | None = None


class ModelRunner:
    """Runs one model over pairs and texts. Calls from several threads wait for each other.

    Args:
        model: the causal language model in evaluation mode, with or without adapter.
        prompt: gives the answers' ids and the rows by which the model is tried at first use.
        encoder: reads texts; attached to `model`.
        pad_id: id to pad with.
        lock: held while the model is read.
    """

    def __init__(
        self, model: nn.Module, prompt: PairPrompt, encoder: TextReader, pad_id: int, lock: FreshLock | None = None
    ) -> None:
        self.model, self.prompt, self.encoder, self.pad_id = model, prompt, encoder, pad_id
        self.keeps_logits = accepts_logits_to_keep(model)
        self._lock = lock or FreshLock()
        self._told_of_cut = False

    def answers(
        self, pairs: list[tuple[str, str]], batch_size: int, bar: Bar, read: CachedPrefix | None = None
    ) -> np.ndarray:
        """Answer log-odds (n,) of distinct pairs; a first text that all have in common is read once.

        `read` is what `query` gave for it, if it has been read already.
        """
        answers = np.empty(len(pairs))
        for start in range(0, len(pairs), WINDOW):
            part = pairs[start : start + WINDOW]
            tokens = self.prompt.encode_pairs([a for a, _ in part], [b for _, b in part])
            self.tell_of_cut(tokens)
            shared = len({a for a, _ in part}) == 1
            end = self.start_of_b(tokens[0]) if shared else len(self.prompt.prefix_ids)
            rows = TokenRows(tokens[0].input_ids[:end], [pair.input_ids[end:] for pair in tokens], read)
            answers[start : start + WINDOW] = self.row_answers(rows, batch_size, bar)
        return answers

    def query(self, text: str) -> tuple[Tensor, CachedPrefix | None]:
        """The unit vector (D,) of a text, and its pairs' common beginning for `answers`, from one forward pass.

        A decoder's states up to the text's end are the same whatever follows. Where the model cannot go on from a
        cache there is the vector alone.
        """
        (tokens,) = self.prompt.encode_texts([text])
        self.tell_of_cut([tokens])
        beginning = tokens.input_ids + self.prompt.middle_ids
        spans = torch.zeros(1, len(beginning), device=input_device(self.model))
        spans[0, slice(*tokens.text_a)] = 1
        with self._lock, torch.inference_mode():
            self.model.eval()  # it may have been trained since
            if not self.caches:
                return self.vectors([text], 1, tqdm(disable=True))[0], None
            with self._answers_only(), self.encoder.capture() as captured:
                read = read_prefix(self.model, beginning, self.keeps_logits)
            vector = self.encoder.pool(captured, spans)[0].float().cpu()
        self._check_finite(vector.isfinite().all())
        return vector, read

    def vectors(self, texts: list[str], batch_size: int, bar: Bar) -> Tensor:
        """Unit vectors (n, D) float32 of texts, in main memory."""
        start = len(self.prompt.prefix_ids)
        vectors = torch.empty(len(texts), self.encoder.dimension)
        for first in range(0, len(texts), WINDOW):
            tokens = self.prompt.encode_texts(texts[first : first + WINDOW])
            self.tell_of_cut(tokens)
            rows = TokenRows(self.prompt.prefix_ids, [text.input_ids[start:] for text in tokens])
            vectors[first : first + WINDOW] = self.row_vectors(rows, batch_size, bar)
        return vectors

    def read(self, beginning: Sequence[int]) -> CachedPrefix | None:
        """Keys and values of a beginning, for many calls; None where the model cannot go on from a cache."""
        with self._lock, torch.inference_mode():
            self.model.eval()
            return read_prefix(self.model, beginning, self.keeps_logits) if self.caches else None

    def row_answers(self, rows: TokenRows, batch_size: int, bar: Bar) -> np.ndarray:
        """logit(yes) - logit(no) after the last token of each row, (n,) float64."""
        order: list[int] = []
        odds: list[Tensor] = []
        with self._reading(rows, answers=True) as feed_forward:
            for chosen, inputs, last, _ in self._batches(rows, batch_size, bar):
                feed_forward.positions = last
                odds.append(
                    log_odds(position_logits(self.model, inputs, last, self.keeps_logits), self.prompt.answer_ids)
                )
                order += chosen
            result = np.empty(len(order))
            if order:
                # The device is waited for once; it may have no float64.
                result[order] = torch.cat(odds).cpu().double().numpy()
        self._check_finite(np.isfinite(result).all())
        return result

    def row_vectors(self, rows: TokenRows, batch_size: int, bar: Bar) -> Tensor:
        """Unit vectors of the rests as texts, (n, D) float32 in main memory."""
        result = torch.empty(len(rows.rests), self.encoder.dimension)
        stop = can_be_stopped(self.model)
        with self._reading(rows, answers=False):
            for chosen, inputs, last, mask in self._batches(rows, batch_size, bar):
                # The layers above the encoder's last one have no part in the vectors.
                with self.encoder.capture(stop=stop) as captured:
                    # One position's logits, unread: the model is called as it is.
                    position_logits(self.model, inputs, last, self.keeps_logits)
                result[chosen] = self.encoder.pool(captured, mask).float().cpu()
        self._check_finite(result.isfinite().all())
        return result

    @contextmanager
    def _reading(self, rows: TokenRows, answers: bool) -> Iterator[LastFeedForward]:
        """Hold the model for one caller, in evaluation mode, without what `rows` do not need of it.

        What it can do without is tried at first use: all of that before anything is left out.
        """
        with self._lock, torch.inference_mode():
            self.model.eval()  # it may have been trained since
            _ = self._shares(rows)
            feed_forward = self._feed_forward if answers else LastFeedForward([])
            with self._answers_only(), feed_forward.reading():
                yield feed_forward

    def _check_finite(self, finite: Any) -> None:
        if not finite:
            raise FloatingPointError(
                f"the model gives scores that are no finite numbers in {self.model.dtype}: load it with "
                "dtype='float32' (or 'bfloat16'); if they stay so, its weights are damaged."
            )

    def _batches(
        self, rows: TokenRows, batch_size: int, bar: Bar
    ) -> Iterator[tuple[list[int], dict[str, Any], Tensor, Tensor]]:
        """Row numbers, model inputs, last positions (B,) and mask (B, T) of the rests' tokens; longest rows first."""
        device = input_device(self.model)
        cached = self._cached(rows)
        before = [] if cached is not None else rows.shared
        lengths = [len(before) + len(rest) for rest in rows.rests]
        for chosen in token_batches(lengths, batch_size, token_budget(device)):
            padded = pad_batch([before + rows.rests[row] for row in chosen], self.pad_id)
            ids, mask = (part.to(device, non_blocking=True) for part in padded)
            inputs = {"input_ids": ids, "attention_mask": mask} if cached is None else cached.inputs(ids, mask)
            rest = mask.clone()
            rest[:, : len(before)] = 0
            yield chosen, inputs, mask.sum(1) - 1, rest
            bar.update(len(chosen))

    def _cached(self, rows: TokenRows) -> CachedPrefix | None:
        once = rows.read is None and self._shares(rows)
        return read_prefix(self.model, rows.shared, self.keeps_logits) if once else rows.read

    def _shares(self, rows: TokenRows) -> bool:
        """Whether reading the rows' common beginning once pays, and can be done."""
        return len(rows.shared) * (len(rows.rests) - 1) >= MIN_TOKENS_SAVED and self.caches

    @cached_property
    def caches(self) -> bool:
        """Whether the model can go on from a cache, tried on rows of this prompt."""
        pairs = self.prompt.encode_pairs([PROBE_PAIRS[0][0]] * 2, [PROBE_PAIRS[0][1], "?"])
        start = self.start_of_b(pairs[0])
        prefix, rests = pairs[0].input_ids[:start], [pair.input_ids[start:] for pair in pairs]
        usable = continues(self.model, prefix, rests, self.prompt.max_length)
        if not usable:
            logger.warning(
                "%s gives other scores when it goes on from the cache of a shared beginning: every row is read whole, "
                "which is slower",
                type(unwrapped(self.model)).__name__,
            )
        return usable

    def start_of_b(self, pair: PairTokens) -> int:
        """Tokens of a pair up to its second text."""
        return pair.text_a[1] + len(self.prompt.middle_ids)

    def tell_of_cut(self, tokens: Sequence[PairTokens]) -> None:
        """Warn of texts that were cut, once."""
        cut = sum(entry.truncated for entry in tokens)
        if cut and not self._told_of_cut:
            self._told_of_cut = True
            logger.warning(
                "%d of %d rows (%.1f %%) are longer than the prompt's max_length=%d and are cut: text_a to %d tokens, "
                "text_b to what remains (told once)",
                cut,
                len(tokens),
                100 * cut / len(tokens),
                self.prompt.max_length,
                self.prompt.room // 2,
            )

    def _answers_only(self) -> Any:
        return answer_rows(self._head, self.prompt.answer_ids) if self._head is not None else nullcontext()

    @cached_property
    def _head(self) -> nn.Linear | None:
        """The output layer, if its other rows can be left out; tried, since models may work on the logits further."""
        head: Any = unwrapped(self.model).get_output_embeddings()
        # Quantised, adapted or dispatched layers have a forward of their own.
        if type(head) is not nn.Linear or "forward" in vars(head):
            return None
        ids = torch.tensor([self.prompt.prefix_ids + self.prompt.suffix_ids], device=input_device(self.model))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        last = torch.tensor([ids.shape[1] - 1], device=ids.device)
        wanted = position_logits(self.model, inputs, last, self.keeps_logits)[:, list(self.prompt.answer_ids)]
        try:
            with answer_rows(head, self.prompt.answer_ids):
                found = position_logits(self.model, inputs, last, self.keeps_logits)
        except (RuntimeError, IndexError) as error:
            logger.debug("the whole output layer is computed: %r", error)
            return None
        return head if same_logits(found, wanted) else None

    @cached_property
    def _feed_forward(self) -> LastFeedForward:
        """The last layer's feed-forward network, to be read at answers alone; none where that gives other logits."""
        pairs = self.prompt.encode_pairs([a for a, _ in PROBE_PAIRS], [b for _, b in PROBE_PAIRS])
        device = input_device(self.model)
        ids, mask = (part.to(device) for part in pad_batch([pair.input_ids for pair in pairs], self.pad_id))
        last = mask.sum(1) - 1

        def logits() -> Tensor:
            return position_logits(self.model, {"input_ids": ids, "attention_mask": mask}, last, self.keeps_logits)

        wanted = logits()
        try:
            feed_forward = LastFeedForward(input_layers(self.model))
            with feed_forward.reading():
                feed_forward.positions = last
                found = logits()
        except Exception as error:  # whatever a model's code raises
            logger.debug("the whole feed-forward network is computed: %r", error)
            return LastFeedForward([])
        # Left out or not, the products are the same: half precision is no excuse, and hides a layer that mixes.
        return feed_forward if same_logits(found, wanted, FLOAT32_TOLERANCE) else LastFeedForward([])
