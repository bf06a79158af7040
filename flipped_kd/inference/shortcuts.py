"""What a model can leave out when it reads rows: each is tried at first use, and kept where logits are the same."""

from __future__ import annotations

import logging
import sys
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ..prompts.pair_prompt import PROBE_PAIRS, PairPrompt
from ..students.answer_head import accepts_logits_to_keep, answer_rows, keep_head_precision, position_logits
from ..students.attention import NAME
from ..students.probing import FLOAT32_TOLERANCE, first_position, input_device, same_logits, unwrapped
from ..utils.token_batches import token_budget
from .last_feed_forward import LastFeedForward, input_layers, output_layers
from .prefix_cache import CachedPrefix, continues
from .row_batches import RowBatch, padded_batch, reads_unpadded, unpadded_batch

logger = logging.getLogger(__name__)


class Shortcuts:
    """Of one model, which must be in evaluation mode while it is tried.

    Args:
        model: the causal language model, with or without adapter.
        prompt: gives the answers' ids and the rows by which the model is tried.
        pad_id: id to pad with.

    Attributes:
        keeps_logits: the model can compute the logits of chosen positions only.
    """

    def __init__(self, model: nn.Module, prompt: PairPrompt, pad_id: int) -> None:
        self.model, self.prompt, self.pad_id = model, prompt, pad_id
        self.keeps_logits = accepts_logits_to_keep(model)

    def batch(self, rows: list[list[int]], cached: CachedPrefix | None, skip: int) -> RowBatch:
        """Rows as the model reads them best; of each, `skip` tokens are left out of its span."""
        device = input_device(self.model)
        if self.unpadded and len(set(map(len, rows))) > 1:
            return unpadded_batch(rows, self._first, device, cached, skip)
        return padded_batch(rows, self.pad_id, device, cached, skip)

    @cached_property
    def caches(self) -> bool:
        """Whether the model can go on from a cache, tried on rows of this prompt."""
        usable = continues(self.model, *self._beginning_and_rests(), self.prompt.max_length)
        if not usable:
            logger.warning(
                "%s gives other scores when it goes on from the cache of a shared beginning: every row is read whole, "
                "which is slower",
                type(unwrapped(self.model)).__name__,
            )
        return usable

    @property
    def unpadded(self) -> bool:
        """Whether rows can be read one after the other. On a CPU only: other devices gain little by it.

        Device and attention may have been changed since it was tried, and other attentions would mix the rows.
        """
        if token_budget(input_device(self.model)) == sys.maxsize or not self._tried_unpadded:
            return False
        config: Any = unwrapped(self.model).config
        return bool(config._attn_implementation == NAME)

    @cached_property
    def _tried_unpadded(self) -> bool:
        return reads_unpadded(self.model, *self._beginning_and_rests(), self.prompt.max_length, self.caches)

    @cached_property
    def _first(self) -> int:
        return first_position(self.model)

    def _beginning_and_rests(self) -> tuple[list[int], list[list[int]]]:
        """Of pairs that share their first text: all up to the second one; what follows, of unequal length."""
        pairs = self.prompt.encode_pairs([PROBE_PAIRS[0][0]] * 2, [PROBE_PAIRS[0][1], "?"])
        start = pairs[0].start_of_b
        return pairs[0].input_ids[:start], [pair.input_ids[start:] for pair in pairs]

    @cached_property
    def head(self) -> nn.Linear | None:
        """The output layer, if its other rows can be left out; tried, since models may work on the logits further.

        One that cannot computes all of them, in full precision as `answer_rows` does.
        """
        found = self._partial_head()
        if found is None and self.keeps_logits:
            keep_head_precision(self.model)
        return found

    def _partial_head(self) -> nn.Linear | None:
        head: Any = unwrapped(self.model).get_output_embeddings()
        # Quantised, adapted or dispatched layers have a forward of their own.
        if type(head) is not nn.Linear or "forward" in vars(head):
            return None
        row = self.prompt.prefix_ids + self.prompt.suffix_ids
        batch = padded_batch([row], self.pad_id, input_device(self.model))
        wanted = self.logits(batch)[:, list(self.prompt.answer_ids)]
        try:
            with answer_rows(head, self.prompt.answer_ids):
                found = self.logits(batch)
        except (RuntimeError, IndexError) as error:
            logger.debug("the whole output layer is computed: %r", error)
            return None
        return head if same_logits(found, wanted) else None

    @cached_property
    def feed_forward(self) -> LastFeedForward:
        """The last layer's feed-forward network, to be read at answers alone; none where that gives other logits."""
        pairs = self.prompt.encode_pairs([a for a, _ in PROBE_PAIRS], [b for _, b in PROBE_PAIRS])
        rows, device = [pair.input_ids for pair in pairs], input_device(self.model)
        batches = [padded_batch(rows, self.pad_id, device)]
        if self.unpadded:
            batches.append(unpadded_batch(rows, self._first, device))
        # Of each layout its own: in half precision they round otherwise.
        wanted = [self.logits(batch) for batch in batches]
        found = []
        try:
            feed_forward = LastFeedForward(input_layers(self.model), output_layers(self.model))
            for batch in batches:
                with feed_forward.reading():
                    feed_forward.positions = batch.last
                    found.append(self.logits(batch))
        except Exception as error:  # whatever a model's code raises
            logger.debug("the whole feed-forward network is computed: %r", error)
            return LastFeedForward()
        # Left out or not, the products are the same: half precision is no excuse, and hides a layer that mixes.
        same = (same_logits(*logits, FLOAT32_TOLERANCE) for logits in zip(found, wanted, strict=True))
        return feed_forward if all(same) else LastFeedForward()

    def logits(self, batch: RowBatch) -> torch.Tensor:
        """After the last token of each row, (B, V)."""
        return position_logits(self.model, batch.inputs, batch.last, self.keeps_logits)
