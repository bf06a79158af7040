"""Dropout that costs a third on a CPU.

There torch draws one Mersenne Twister number for each element, in one thread: a third of a training step of small
students. Sixteen bits decide as well, so a 64-bit number of a generator made for speed serves four elements. Its seeds
come from torch's generator: seeds, checkpoints and replays work as with nn.Dropout.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LEVELS = 2**16
# Of an element's bytes: the integers that hold its bits.
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def speed_up_dropout(model: nn.Module) -> None:
    """Turn every plain `nn.Dropout` of the model into a `CpuDropout`; on other devices it stays what it was."""
    for module in model.modules():
        if type(module) is nn.Dropout and not module.inplace:
            module.__class__ = CpuDropout
    for layer in model.modules():
        # PEFT's, which data-loader workers need not import for it. Variants use the result for more than A's product.
        if getattr(layer, "lora_variant", None):
            continue
        for dropout in getattr(layer, "lora_dropout", nn.ModuleDict()).values():
            if isinstance(dropout, CpuDropout):
                dropout.before_linear = True


class CpuDropout(nn.Dropout):
    """nn.Dropout with p rounded to a 65,536th."""

    # Whether only a linear layer reads the result: autocast would cast it there, which is cheaper before the drop.
    before_linear = False

    def forward(self, input: Tensor) -> Tensor:
        """Zero each element with probability p in training and scale the others, so that the mean stays."""
        if not self.training or not drops(input, self.p):
            return super().forward(input)
        if self.before_linear and input.dtype == torch.float32 and torch.is_autocast_enabled("cpu"):
            input = input.to(torch.get_autocast_dtype("cpu"))
        return drop(input, self.p)


def drops(values: Tensor, p: float) -> bool:
    """Whether `drop` can be used: on a CPU, uncompiled, if p is neither 0 nor 1."""
    possible = values.device.type == "cpu" and values.element_size() in INTEGERS and values.is_floating_point()
    return possible and round(p * LEVELS) not in (0, LEVELS) and not torch.compiler.is_compiling()


def drop(values: Tensor, p: float) -> Tensor:
    """Zero each element with probability p (a 65,536th at a time) and divide the others by 1 - p."""
    result: Tensor = _Dropped.apply(values, round(p * LEVELS))
    return result


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, dropped: int) -> Tensor:
        # As int16 they are uniform from -32,768. In place `ge` is vectorised, as a function of bool it is not.
        kept = _random_int16(values.numel()).ge_(dropped - LEVELS // 2).view(values.shape)
        ctx.save_for_backward(kept)
        ctx.scale = LEVELS / (LEVELS - dropped)
        return _zeroed(values, kept).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return _zeroed(gradients[0], kept).mul_(ctx.scale), None


def _random_int16(count: int) -> Tensor:
    """Uniform over all int16, (count,)."""
    seed = int(torch.empty((), dtype=torch.int64).random_(0, None))
    return torch.from_numpy(np.random.SFC64(seed).random_raw((count + 3) // 4).view(np.int16))[:count]


def _zeroed(values: Tensor, kept: Tensor) -> Tensor:
    """`values` where `kept` is 1 and 0 where it is 0: `torch.where`, on the bits, which is vectorised.

    A product of floats would make NaN of infinity.
    """
    integer = INTEGERS[values.element_size()]
    return (values.view(integer) * kept.to(integer)).view(values.dtype)
