"""What accelerate and transformers put round a student for training, as objects that can be pickled.

They are closures, which pickle refuses, or leaves out without a word: a copy would then compute in another precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import convert_to_fp32
from torch import Tensor, nn

from ..students.cpu_bfloat16 import fast_bfloat16
from ..utils.devices import DTYPES


class MixedPrecisionForward:
    """A model's forward under autocast, with outputs in float32: what `Accelerator.prepare_model` makes of it.

    Args:
        model: whose class has the forward.
        device: type of the device that it runs on.
        dtype: of the products.
    """

    def __init__(self, model: nn.Module, device: str, dtype: torch.dtype) -> None:
        self.model, self.device, self.dtype = model, device, dtype

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(self.device, dtype=self.dtype), fast_bfloat16(self.dtype, torch.device(self.device)):
            output = type(self.model).forward(self.model, *args, **kwargs)
        return convert_to_fp32(output)

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """By this accelerate takes the wrapper off again."""
        return type(self.model).forward


def make_picklable(model: nn.Module, accelerator: Accelerator) -> None:
    """Replace, on a model that `accelerator` has prepared, closures by what computes the same.

    Args:
        model: the student itself, not a wrapper of several processes.
        accelerator: which has prepared it.
    """
    dtype = DTYPES.get(accelerator.mixed_precision)
    if "_original_forward" in vars(model) and dtype is not None:
        model.forward = MixedPrecisionForward(model, accelerator.device.type, dtype)
    for module in model.modules():
        for number, hook in module._forward_hooks.items():
            # Of activation checkpointing: transformers' and PEFT's have almost the same name.
            if getattr(hook, "__name__", "").startswith("make_inputs_require_grad"):
                module._forward_hooks[number] = _require_grad


def _require_grad(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
    output.requires_grad_(True)
