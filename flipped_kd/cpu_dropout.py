"""Dropout that costs a third on a CPU.

torch draws one Mersenne Twister number for each element there, in one thread, which made a quarter of a training step
of small students: LoRA drops the inputs of every adapted layer. Sixteen bits decide as well, so a 64-bit number serves
four elements. The numbers come from torch's own generator: seeds, checkpoints and replays work as with nn.Dropout.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

LEVELS = 2**16


def speed_up_dropout(model: nn.Module) -> None:
    """Turn every plain `nn.Dropout` of the model into a `CpuDropout`; on other devices it stays what it was."""
    for module in model.modules():
        if type(module) is nn.Dropout and not module.inplace:
            module.__class__ = CpuDropout


class CpuDropout(nn.Dropout):
    """nn.Dropout with p rounded to a 65,536th."""

    def forward(self, input: Tensor) -> Tensor:
        """Zero each element with probability p in training and scale the others, so that the mean stays."""
        dropped = round(self.p * LEVELS)
        if not self.training or dropped in (0, LEVELS) or input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        result: Tensor = _Dropped.apply(input, dropped)
        return result


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, dropped: int) -> Tensor:
        numbers = torch.empty((values.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        # As int16 they are uniform from -32,768.
        kept = (numbers.view(torch.int16)[: values.numel()] >= dropped - LEVELS // 2).view(values.shape)
        ctx.save_for_backward(kept)
        ctx.scale = LEVELS / (LEVELS - dropped)
        return torch.where(kept, values, 0).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return torch.where(kept, gradients[0], 0).mul_(ctx.scale), None
