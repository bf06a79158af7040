"""Running a trained model over many rows of tokens: answer log-odds and text vectors, in batches of like length."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..prompts.pair_prompt import PairPrompt
from ..prompts.pair_tokens import PairTokens
from ..students.answer_head import answer_rows, log_odds
from ..students.cpu_bfloat16 import fast_bfloat16
from ..students.probing import can_be_stopped, input_device
from ..utils.token_batches import token_batches, token_budget, unpadded_batches
from .copying import FreshLock
from .last_feed_forward import LastFeedForward
from .prefix_cache import CachedPrefix, read_prefix
from .row_batches import RowBatch
from .shortcuts import Shortcuts

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
        """(B, dimension) of what was recorded, over the tokens where spans (B, T) is 1; all may stand in one row."""


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
        self.model, self.prompt, self.encoder = model, prompt, encoder
        self.shortcuts = Shortcuts(model, prompt, pad_id)
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
            end = tokens[0].start_of_b if shared else len(self.prompt.prefix_ids)
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
        spans = torch.zeros(1, len(beginning), dtype=torch.float32, device=input_device(self.model))
        spans[0, slice(*tokens.text_a)] = 1
        with self._held():
            if not self.shortcuts.caches:
                return self.vectors([text], 1, tqdm(disable=True))[0], None
            with self._answers_only(), self.encoder.capture() as captured:
                read = read_prefix(self.model, beginning, self.shortcuts.keeps_logits)
            vector = self.encoder.pool(captured, spans)[0].float().cpu()
        self._check_finite(vector.isfinite().all())
        return vector, read

    def vectors(self, texts: list[str], batch_size: int, bar: Bar) -> Tensor:
        """Unit vectors (n, D) float32 of texts, in main memory."""
        start = len(self.prompt.prefix_ids)
        vectors = torch.empty(len(texts), self.encoder.dimension, dtype=torch.float32, device="cpu")
        for first in range(0, len(texts), WINDOW):
            tokens = self.prompt.encode_texts(texts[first : first + WINDOW])
            self.tell_of_cut(tokens)
            rows = TokenRows(self.prompt.prefix_ids, [text.input_ids[start:] for text in tokens])
            vectors[first : first + WINDOW] = self.row_vectors(rows, batch_size, bar)
        return vectors

    def read(self, beginning: Sequence[int]) -> CachedPrefix | None:
        """Keys and values of a beginning, for many calls; None of an empty one, or where no cache can be used."""
        with self._held():
            cached = len(beginning) and self.shortcuts.caches
            return read_prefix(self.model, beginning, self.shortcuts.keeps_logits) if cached else None

    def row_answers(self, rows: TokenRows, batch_size: int, bar: Bar) -> np.ndarray:
        """logit(yes) - logit(no) after the last token of each row, (n,) float64."""
        order: list[int] = []
        odds: list[Tensor] = []
        with self._reading(rows, answers=True) as feed_forward:
            for chosen, batch in self._batches(rows, batch_size, bar):
                feed_forward.positions = batch.last
                odds.append(log_odds(self.shortcuts.logits(batch), self.prompt.answer_ids))
                order += chosen
            result = np.empty(len(order))
            if order:
                # The device is waited for once; it may have no float64.
                result[order] = torch.cat(odds).cpu().double().numpy()
        self._check_finite(np.isfinite(result).all())
        return result

    def row_vectors(self, rows: TokenRows, batch_size: int, bar: Bar) -> Tensor:
        """Unit vectors of the rests as texts, (n, D) float32 in main memory."""
        result = torch.empty(len(rows.rests), self.encoder.dimension, dtype=torch.float32, device="cpu")
        stop = can_be_stopped(self.model)
        with self._reading(rows, answers=False):
            for chosen, batch in self._batches(rows, batch_size, bar):
                # The layers above the encoder's last one have no part in the vectors.
                with self.encoder.capture(stop=stop) as captured:
                    self.shortcuts.logits(batch)  # unread: the model is called as it is
                result[chosen] = self.encoder.pool(captured, batch.spans).float().cpu()
        self._check_finite(result.isfinite().all())
        return result

    @contextmanager
    def _held(self) -> Iterator[None]:
        """The model for one caller, in evaluation mode."""
        fast = fast_bfloat16(cast(torch.dtype, self.model.dtype), input_device(self.model))
        with self._lock, torch.inference_mode(), fast:
            self.model.eval()  # it may have been trained since
            yield

    @contextmanager
    def _reading(self, rows: TokenRows, answers: bool) -> Iterator[LastFeedForward]:
        """Hold the model without what `rows` do not need of it.

        What it can do without is tried at first use: all of that before anything is left out.
        """
        with self._held():
            _ = self._shares(rows), self.shortcuts.unpadded
            feed_forward = self.shortcuts.feed_forward if answers else LastFeedForward()
            with self._answers_only(), feed_forward.reading():
                yield feed_forward

    def _check_finite(self, finite: Any) -> None:
        if not finite:
            raise FloatingPointError(
                f"the model gives scores that are no finite numbers in {self.model.dtype}: load it with "
                "dtype='float32' (or 'bfloat16'); if they stay so, its weights are damaged."
            )

    def _batches(self, rows: TokenRows, batch_size: int, bar: Bar) -> Iterator[tuple[list[int], RowBatch]]:
        """Row numbers, and what is read of them; spans are of the rests' tokens. Longest rows first."""
        cached = self._cached(rows)
        before = [] if cached is not None else rows.shared
        lengths = [len(before) + len(rest) for rest in rows.rests]
        unpadded = self.shortcuts.unpadded
        divide = unpadded_batches if unpadded else token_batches
        for chosen in divide(lengths, batch_size, token_budget(input_device(self.model), not unpadded)):
            yield chosen, self.shortcuts.batch([before + rows.rests[row] for row in chosen], cached, len(before))
            bar.update(len(chosen))

    def _cached(self, rows: TokenRows) -> CachedPrefix | None:
        once = rows.read is None and self._shares(rows)
        return read_prefix(self.model, rows.shared, self.shortcuts.keeps_logits) if once else rows.read

    def _shares(self, rows: TokenRows) -> bool:
        """Whether reading the rows' common beginning once pays, and can be done."""
        return len(rows.shared) * (len(rows.rests) - 1) >= MIN_TOKENS_SAVED and self.shortcuts.caches

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
        head = self.shortcuts.head
        return answer_rows(head, self.prompt.answer_ids) if head is not None else nullcontext()
