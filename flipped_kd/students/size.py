"""How large a student is, and the learning rate that goes with it."""

from __future__ import annotations

import os

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from .gguf import gguf_path, is_gguf, load_gguf_config

# Number of weights below which a rate holds, and the rate of LoRA. Measured: 1e-3 on students of 1, 22 and 135 million
# weights, 5e-4 on one of 268 million (docs/choices.md). The last is what TRL's documentation takes for LoRA, not
# measured here.
RATES = ((200e6, 1e-3), (1e9, 5e-4), (float("inf"), 2e-4))


def learning_rate_for(weights: float) -> float:
    """The learning rate of LoRA for a student of so many weights: the smaller the student, the higher."""
    return next(rate for bound, rate in RATES if weights < bound)


def count_weights(
    name: str | os.PathLike[str], *, revision: str | None = None, trust_remote_code: bool = False
) -> int:
    """How many weights a student has, by its configuration alone: no weight is loaded.

    Args:
        name: as `load_student` takes it.
        revision: branch, tag or commit.
        trust_remote_code: run code from the repository.

    Raises:
        ValueError: there is no usable configuration.
    """
    if is_gguf(name):
        config = load_gguf_config(gguf_path(name, revision)[0])
    else:
        try:
            config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
        except (OSError, ValueError) as error:
            raise ValueError(f"student {str(name)!r} has no usable config.json: {error}") from error
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code).num_parameters()
