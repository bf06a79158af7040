"""One run of a tiny decoder through everything a user does, and what it has shown: a row of docs/decoders.md."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flipped_kd.inference.matcher import FlippedMatcher
from flipped_kd.inference.prefix_cache import continues
from flipped_kd.inference.row_batches import reads_unpadded
from flipped_kd.publishing.errors import PublishError
from flipped_kd.publishing.merge import MergeReport, merge_adapter
from flipped_kd.students.answer_head import accepts_logits_to_keep, position_logits
from flipped_kd.students.lora import default_lora
from flipped_kd.training.packing import find_layout
from flipped_kd.training.trainer import FlippedDistillationTrainer
from tests.invariants.decoders import POSITIONS, Decoder
from tests.invariants.training import Gradients, gradients_of, settings, trainable

# Rows longer than the windows of tests/decoders.py.
MAX_LENGTH = 96
Scores = tuple[np.ndarray, np.ndarray]
Extent = Literal["yes", "within the window", "no"]


class Run:
    """A decoder trained under the default settings; what is found out about it is found out once.

    Args:
        decoder: which.
        folder: where to write, empty.
        teacher: a saved teacher.
        pairs: to train on.
        held_out: to score.
        tokenizer: of the decoder.
        changes: settings of its configuration.
    """

    def __init__(
        self,
        decoder: Decoder,
        folder: Path,
        teacher: Path,
        pairs: datasets.Dataset,
        held_out: datasets.Dataset,
        tokenizer: PreTrainedTokenizerBase,
        **changes: Any,
    ) -> None:
        self.decoder, self.folder, self.pairs, self.held_out = decoder, folder, pairs, held_out
        decoder.build(**changes).save_pretrained(folder / "base")
        tokenizer.save_pretrained(folder / "base")
        args = settings(
            folder / "run",
            max_steps=3,
            max_length=MAX_LENGTH,
            weight_decay=0.0,  # which would move A by itself
            per_device_eval_batch_size=16,
            # Every pair kept, so that no term is ever empty.
            positive_threshold=0.0,
            negative_threshold=1.0,
        )
        self.gradients = Gradients()
        self.trainer = FlippedDistillationTrainer(
            str(folder / "base"),
            str(teacher),
            args,
            pairs,
            held_out,
            tokenizer,
            None if decoder.target_modules == "all-linear" else default_lora(target_modules=decoder.target_modules),
            callbacks=[self.gradients],
        )
        self.start = {name: weight.detach().clone() for name, weight in self.trainer.model.named_parameters()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of kernels that are not installed, and of tokens
            self.trainer.train()
        self.trainer.save_model()

    # ---- Scores ----

    @property
    def texts(self) -> list[tuple[str, str]]:
        """The held-out pairs."""
        return list(zip(self.held_out["text_a"], self.held_out["text_b"], strict=True))

    def scores(self, batch_size: int = 16, **collator: Any) -> Scores:
        """The trainer's scores of the held-out pairs, with changes to its collator."""
        args, before = self.trainer.args, self.trainer.data_collator
        args.per_device_eval_batch_size = batch_size
        self.trainer.data_collator = replace(before, **collator)
        try:
            return self.trainer.score_pairs(self.held_out)
        finally:
            self.trainer.data_collator = before

    @cached_property
    def expected(self) -> Scores:
        """Scores as the trainer gives them by default."""
        return self.scores()

    @cached_property
    def matcher(self) -> FlippedMatcher:
        """The saved adapter in use."""
        return FlippedMatcher.from_pretrained(self.folder / "run", device="cpu")

    @cached_property
    def merge(self) -> MergeReport:
        """The report of merging it, with the files for CrossEncoder if they can be had."""
        adapter, merged = self.folder / "run", self.folder / "merged"
        try:
            return merge_adapter(adapter, merged)
        except PublishError as error:
            assert "CrossEncoder cannot use the merged model" in str(error) and not merged.exists()
            return merge_adapter(adapter, merged, sentence_transformers=False)

    def loss(self, checkpointing: bool) -> tuple[float, dict[str, Tensor]]:
        """Loss and gradients of one batch in training, dropout the same each time."""
        model: Any = self.trainer.model
        batch = self.trainer.data_collator([self.trainer.train_dataset[row] for row in range(6)])  # type: ignore[index]
        if checkpointing:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        torch.manual_seed(0)
        try:
            loss = self.trainer.compute_loss(model, batch)
            return float(loss.detach()), gradients_of(loss, model)
        finally:
            if checkpointing:
                model.activation_checkpointing_disable()
            model.eval()

    # ---- What differs between families ----

    @cached_property
    def left_padding(self) -> bool:
        """Whether rows padded on the left get the same scores."""
        found = self.scores(layout=None, padding_side="left")
        return all(np.abs(one - other).max() < 1e-4 for one, other in zip(found, self.expected, strict=True))

    @cached_property
    def one_position(self) -> bool:
        """Whether logits can be computed at one position a row, and are then the same."""
        model = self.trainer.model
        if not accepts_logits_to_keep(model):
            return False
        tokens = self.trainer.data_collator.prompt.encode_pairs(*zip(*self.texts[:1], strict=True))
        ids = torch.tensor([tokens[0].input_ids] * 2)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        last = torch.tensor([ids.shape[1] - 1, 3])
        model.eval()
        with torch.no_grad():
            kept, full = (position_logits(model, inputs, last, keep) for keep in (True, False))
        torch.testing.assert_close(kept, full, atol=1e-5 * float(full.abs().max()), rtol=0)
        return True

    @cached_property
    def packs(self) -> Extent:
        """Whether text_b alone fits into its pair's row."""
        return self._extent(
            self.trainer.data_collator.layout is not None,
            lambda model: find_layout(model, MAX_LENGTH) is not None,
        )

    @cached_property
    def caches(self) -> Extent:
        """Whether `rank` reads the query once."""
        pairs = self.trainer.prompt.encode_pairs(["where is my card"] * 2, ["my card has not arrived", "cash"])
        start = pairs[0].text_a[1]
        rests = [pair.input_ids[start:] for pair in pairs]
        return self._extent(
            self.matcher._reader.shortcuts.caches,
            lambda model: continues(model, pairs[0].input_ids[:start], rests, MAX_LENGTH),
        )

    @cached_property
    def unpadded(self) -> Extent:
        """Whether rows are read one after the other."""
        prompt = self.trainer.prompt
        pairs = prompt.encode_pairs(*zip(*self.texts, strict=True))
        prefix = prompt.prefix_ids
        rests = [pair.input_ids[len(prefix) :] for pair in pairs]
        return self._extent(
            self.matcher._reader.shortcuts.unpadded,
            lambda model: reads_unpadded(model, prefix, rests, MAX_LENGTH, caches=False),
        )

    def _extent(self, within_short_window: bool, possible: Callable[[Any], bool]) -> Extent:
        """The runs' windows are short: what they rule out may be possible within wider ones."""
        if within_short_window:
            return "yes"
        window = self.decoder.window
        if window is None:
            return "no"
        wide: dict[str, Any] = {window: 2 * POSITIONS}
        if "text_config" in self.decoder.options:
            wide = {"text_config": self.decoder.options["text_config"] | wide}
        return "within the window" if possible(self.decoder.build(**wide)) else "no"

    def row(self) -> str:
        """Its line of the table."""
        found = [
            "yes",  # the tests of tests/test_decoders.py ask for no less
            self.packs,
            self.one_position,
            self.caches,
            self.unpadded,
            self.left_padding,
            self.merge.sentence_transformers,
        ]
        shown = [str(value) if isinstance(value, str) else "yes" if value else "no" for value in found]
        cells = [self.decoder.family, f"`{self.decoder.kind}`", *shown, self.decoder.note]
        return f"| {' | '.join(cells)} |"


COLUMNS = (
    "family",
    "class",
    "trains, encodes, merges",
    "packs rows",
    "logits at one position",
    "cached query in `rank`",
    "no padding on a CPU",
    "left padding",
    "CrossEncoder",
    "notes",
)
HEADER = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def moved(run: Run) -> dict[str, bool]:
    """Whether training has moved each trainable weight."""
    return {name: not torch.equal(value, run.start[name]) for name, value in trainable(run.trainer.model).items()}
