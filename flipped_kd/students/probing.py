"""Trying a student on two short rows before anything is built on it: what runs, and what it gives."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

ROWS, TOKENS = 2, 8
PASSES = 2  # of `calls`: in evaluation and in training
# Relative to the largest logit: kernels of float32 differ by about 1e-6, those of half precision by about 1e-2.
FLOAT32_TOLERANCE = 1e-4
HALF_TOLERANCE = 3e-2
HALF = (torch.bfloat16, torch.float16)
# How models name their tables of positions; PEFT may have wrapped one.
POSITION_TABLE = re.compile(r"\b(wpe|embed_positions|position_embeddings)(\.base_layer)?$")
# Shape of what a module has given in each of its calls; None where that was no tensor.
Calls = dict[str, list[tuple[int, ...] | None]]


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """The causal language model itself, without PEFT's wrapper (its layers stay adapted)."""
    from peft import PeftModel  # here: data-loader workers import this file by way of the collator, and need no PEFT

    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    return base


def input_device(model: nn.Module) -> torch.device:
    """Where the model takes its token ids."""
    embedding: Any = unwrapped(model).get_input_embeddings()
    return embedding.weight.device


def attention_window(model: nn.Module) -> int | None:
    """Up to how many tokens a row is read as any part of it alone is: the shortest window; None without a bound."""
    config = unwrapped(model).config.get_text_config()
    sizes = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size")]
    # Rotations that go by the longest row of a call: above this length a row's keys depend on what is read with it.
    rotary = getattr(config, "rope_parameters", None) or {}
    for part in (rotary, *(value for value in rotary.values() if isinstance(value, Mapping))):
        if part.get("rope_type") in ("longrope", "dynamic"):
            sizes.append(part.get("original_max_position_embeddings") or config.max_position_embeddings)
    # Models that could have a window and do not say so by None, 0 or -1.
    return min((size for size in sizes if size is not None and size > 0), default=None)


def position_limit(model: nn.Module) -> int | None:
    """How many tokens a row may have at the most where the model looks its positions up in a table; else None."""
    base = unwrapped(model)
    if (table := _position_table(base)) is not None:
        unused = getattr(table, "offset", 0) if table.padding_idx is None else first_position(base)
        return table.num_embeddings - int(unused)
    tables = (table for name, table in base.named_buffers() if POSITION_TABLE.search(name))  # GPT-J's, of sines
    return next(map(len, tables), None)


def first_position(model: nn.Module) -> int:
    """The position number of a row's first token.

    RoBERTa-like models count from padding_idx + 1. An offset such as OPT's is added within.
    """
    table = _position_table(unwrapped(model))
    return 0 if table is None or table.padding_idx is None else table.padding_idx + 1


def _position_table(base: nn.Module) -> nn.Embedding | None:
    tables = (module for name, module in base.named_modules() if POSITION_TABLE.search(name))
    return next((table for table in tables if isinstance(table, nn.Embedding)), None)


def is_sharded(model: nn.Module) -> bool:
    """Whether some weight is not whole here (ZeRO-3, the meta device), so that the model cannot be tried."""
    return any(parameter.is_meta or parameter.numel() == 0 for parameter in model.parameters())


def can_be_stopped(model: nn.Module) -> bool:
    """Whether a forward pass of `model` may be left in its middle.

    Not where something waits for its end: wrappers that gather or split weights (DDP, FSDP, DeepSpeed, a compiled
    model), hooks that move them, and checkpoints of activations.
    """
    from torch.distributed.fsdp import FSDPModule  # here, for the same reason as PEFT

    base = unwrapped(model)
    plain = isinstance(base, PreTrainedModel) and not isinstance(model, FSDPModule)
    checkpointed = base.training and getattr(base, "is_activation_checkpointing", False)
    return plain and not checkpointed and getattr(base, "hf_device_map", None) is None


def same_logits(found: Tensor, wanted: Tensor, tolerance: float | None = None) -> bool:
    """Whether two readings of the same rows agree, by default as nearly as kernels of their precision do."""
    if tolerance is None:
        tolerance = FLOAT32_TOLERANCE if wanted.dtype == torch.float32 else HALF_TOLERANCE
    return found.shape == wanted.shape and bool((found - wanted).abs().max() <= tolerance * wanted.abs().max())


@torch.no_grad()
def probe_rows(model: nn.Module, *, training: bool = False, **options: Any) -> Any:
    """What `model` gives for two rows of token ids (2, 8) that are alike in their first half.

    `options` go to its forward. Modes and RNG stay as they were. ValueError: it cannot read token ids alone.
    """
    base = unwrapped(model)
    size = base.config.get_text_config().vocab_size
    # Away from the special ones at the start of most vocabularies.
    ids = (torch.arange(TOKENS) + min(100, size // 2)) % size
    other = torch.where(torch.arange(TOKENS) < TOKENS // 2, ids, (ids + 4) % size)
    rows = torch.stack([ids, other]).to(input_device(model))
    was_training = model.training
    devices = [rows.device] if rows.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            mask = torch.ones_like(rows)
            return model.train(training)(input_ids=rows, attention_mask=mask, use_cache=False, **options)
    except Exception as error:  # whatever a model's code raises
        mode = "training" if training else "evaluation"
        raise ValueError(
            f"student {type(base).__name__} cannot read rows of token ids in {mode} ({error!r}): name a decoder-only "
            "causal language model that can (Qwen2, Llama, Mistral, GLM ...)."
        ) from error
    finally:
        model.train(was_training)


def calls(model: nn.Module, modules: Mapping[str, nn.Module]) -> Calls:
    """What each of `modules` gives while two rows are read in evaluation and in training.

    One that does not run in both is absent: a model may take its weight past it, or use it for images only.
    """
    found = [_calls(model, modules, training) for training in (False, True)]
    return {name: found[0][name] + found[1][name] for name in modules if all(name in once for once in found)}


def _calls(model: nn.Module, modules: Mapping[str, nn.Module], training: bool) -> Calls:
    shapes: Calls = {}

    def record(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        shapes.setdefault(name, []).append(tuple(output.shape) if isinstance(output, Tensor) else None)

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.enter_context(module.register_forward_hook(partial(record, name)))
        probe_rows(model, training=training)
    return shapes
