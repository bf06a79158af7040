"""Gradients clipped by value: one row's steep gradient then leaves the rest of the step as it was."""

from __future__ import annotations

import logging

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from .config import FlippedDistillationConfig

logger = logging.getLogger(__name__)
TRAINER_NORM = TrainingArguments.max_grad_norm


def resolve_clipping(args: FlippedDistillationConfig, accelerator: Accelerator) -> float:
    """The value to clip gradients at, 0 for none: sharded gradients only have a norm."""
    sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    if sharded and args.max_grad_value:
        raise ValueError(
            f"max_grad_value={args.max_grad_value} cannot be applied to gradients sharded by "
            f"{accelerator.distributed_type.value}: leave it unset and use max_grad_norm."
        )
    if sharded and args.max_grad_value is None:
        logger.warning("gradients are sharded: clipping by max_grad_norm=%s, not by value", args.max_grad_norm)
    if not sharded and args.max_grad_value != 0 and args.max_grad_norm != TRAINER_NORM:
        raise ValueError(
            f"max_grad_norm={args.max_grad_norm} has no effect beside clipping by value, the default: set "
            "max_grad_value=0 to clip by norm alone, or leave max_grad_norm out."
        )
    default = 0.0 if sharded else 1.0
    return default if args.max_grad_value is None else args.max_grad_value


class ValueClippingTrainer(Trainer):
    """A Trainer that clips every element of the gradient to `clip_value`; 0 leaves Trainer's clipping by norm."""

    clip_value: float = 0.0

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        if not self.clip_value:
            return super()._clip_grad_norm(model)
        # An infinite bound unscales fp16 gradients and measures the norm without clipping.
        norm = self.accelerator.clip_grad_norm_(model.parameters(), float("inf"))
        # The scaler of fp16 skips such a step by itself; clipping by value would leave NaN in the weights.
        if self.accelerator.scaler is None and not torch.isfinite(norm):
            raise FloatingPointError(
                f"the gradient's norm is {float(norm)} at step {self.state.global_step + 1}: training stops before "
                "the weights are spoilt. Lower the learning rate, or use precision='fp32' with a student in float32."
            )
        torch.nn.utils.clip_grad_value_(model.parameters(), self.clip_value)
        return norm
