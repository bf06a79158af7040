"""How the student reads a batch of pairs: answer logits, and the representations of both texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from ..students.answer_head import packed_logits, position_logits
from ..students.attention import additive_mask
from ..students.lora_encoder import LoraEncoder
from ..students.probing import can_be_stopped


@dataclass
class PairVectors:
    """Unit representations of a batch of B pairs, (B, D) float32 with D = `LoraEncoder.dimension`.

    Attributes:
        text_a: the first texts.
        text_b: the second ones as they are compared with every first one, or with their own.
        joint_b: with representation "both", the second ones once more, as read in their pair.
        alone_b: the second ones as `encode` gives them, of which a pair's score is made; None where they were not
            read so, and after joining, gathering and caching.
    """

    text_a: Tensor
    text_b: Tensor
    joint_b: Tensor | None = None
    alone_b: Tensor | None = None

    def stacked(self) -> Tensor:
        """What losses compare as one tensor (B, 2 or 3, D), to be joined, gathered or cached at once."""
        parts = [self.text_a, self.text_b] + ([] if self.joint_b is None else [self.joint_b])
        return torch.stack(parts, dim=1)

    @classmethod
    def of(cls, stacked: Tensor) -> PairVectors:
        """What `stacked` was made of."""
        return cls(*stacked.unbind(1))


@dataclass
class PairForward:
    """Runs the student over a batch of `TeacherScoringCollator`.

    That text_b is read alone, in its pair, or both is our reading: the paper (arXiv 2507.05617) does not say.

    Args:
        encoder: attached to the student.
        representation: how text_b is represented: "independent" (alone, after the prompt's prefix), "joint" (in its
            pair, after text_a) or "both".
        keeps_logits: whether the student can compute the logits of one position only.
        dtype: the student's, in which it takes attention masks of its own.
    """

    encoder: LoraEncoder
    representation: str
    keeps_logits: bool
    dtype: torch.dtype

    def __call__(
        self, model: nn.Module, inputs: Mapping[str, Any], vectors: bool = True
    ) -> tuple[Tensor, PairVectors | None]:
        """Read a batch of B pairs.

        Args:
            model: the student that the encoder is attached to; called as it is given, wrapped or not.
            inputs: any layout of `TeacherScoringCollator`, on the student's device. Mini-batches are read one after
                the other, and joined.
            vectors: whether representations are wanted.

        Returns:
            Logits over the vocabulary at the answer's position (B, V), in the student's precision, and the
            representations of both texts; None for these where they are not wanted.

        Raises:
            RuntimeError: an A of the encoder did not run, or ran without gradient where one is needed.
        """
        if "mini_batches" in inputs:
            readings = [self(model, part, vectors) for part in inputs["mini_batches"]]
            joined = [pair.stacked() for _, pair in readings if pair is not None]
            logits = torch.cat([part for part, _ in readings])
            return logits, PairVectors.of(torch.cat(joined)) if joined else None
        packed = "pair_row" in inputs
        pair = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
        with self.encoder.capture() as captured:
            if packed:
                pair["attention_mask"] = additive_mask(inputs["attention_mask"], self.dtype)
                pair["position_ids"] = inputs["position_ids"]
                logits = packed_logits(model, pair, inputs, self.keeps_logits)
            else:
                logits = position_logits(model, pair, inputs["answer_position"], self.keeps_logits)
        if not vectors:
            return logits, None
        pair_row = inputs.get("pair_row")
        text_a = self.encoder.pool(captured, inputs["span_a"], pair_row)
        in_pair = None
        if self.representation != "independent":
            in_pair = self.encoder.pool(captured, inputs["span_b"], pair_row)
        alone = None
        if "alone_span" in inputs:  # training by "joint" does without
            if packed:
                alone = self.encoder.pool(captured, inputs["alone_span"], inputs["alone_row"])
            else:
                alone = self._alone(model, inputs)
        if self.representation == "joint":
            assert in_pair is not None
            return logits, PairVectors(text_a, in_pair, alone_b=alone)
        assert alone is not None
        return logits, PairVectors(text_a, alone, in_pair, alone)

    def _alone(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """The representations of the texts b by a second forward, over them alone after the prompt's prefix."""
        alone = {"input_ids": inputs["alone_input_ids"], "attention_mask": inputs["alone_attention_mask"]}
        first = torch.zeros_like(inputs["answer_position"])
        logits = torch.zeros(())
        with self.encoder.capture(stop=can_be_stopped(model)) as captured:
            # One position's logits: the head costs next to nothing, and the model is called as it was given.
            logits = position_logits(model, alone, first, self.keeps_logits)
        vectors = self.encoder.pool(captured, inputs["alone_span"])
        # FSDP2 gathers a layer's weights again when the gradient of its output comes, and the last layer's has none
        # where only the outputs of A are read.
        return vectors + 0 * logits.float().sum() if isinstance(model, FSDPModule) else vectors
