"""The dtype that "auto" stands for: float32 on a CPU, bfloat16 on a GPU that computes in it."""

from __future__ import annotations

import torch


def has_bfloat16() -> bool:
    """Whether a CUDA GPU multiplies bfloat16 itself: below compute capability 8 torch emulates it, which is slow."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def weights_dtype(device: torch.device, precision: str = "bf16") -> torch.dtype:
    """The dtype to load weights in.

    Args:
        device: where they will be.
        precision: what is computed in; "fp32" wants the weights so, too.
    """
    return torch.bfloat16 if device.type == "cuda" and precision != "fp32" and has_bfloat16() else torch.float32
