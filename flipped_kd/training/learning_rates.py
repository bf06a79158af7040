"""A learning rate for LoRA's B apart from A's (LoRA+, Hayou et al. 2024, arXiv 2402.12354)."""

from __future__ import annotations

import torch
from torch import nn

OF_B = ("lora_B", "lora_embedding_B")


def set_rate_of_b(optimizer: torch.optim.Optimizer, model: nn.Module, ratio: float) -> None:
    """Split each group of an optimizer that has made no step: B's weights have `ratio` times the rate of the others.

    PEFT's `create_loraplus_optimizer` makes an optimizer of its own instead, which none of Trainer's `optim` needs.

    Args:
        optimizer: as Trainer makes it.
        model: whose weights these are, wrapped or not.
        ratio: B's rate over that of the group, above 0.
    """
    of_b = {id(weight) for name, weight in model.named_parameters() if any(part in name for part in OF_B)}
    groups = []
    for group in optimizer.param_groups:
        for is_b in (False, True):
            weights = [weight for weight in group["params"] if (id(weight) in of_b) is is_b]
            if weights:
                groups.append({**group, "params": weights, "lr": group["lr"] * (ratio if is_b else 1.0)})
    optimizer.param_groups[:] = groups
