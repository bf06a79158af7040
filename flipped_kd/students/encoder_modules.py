"""Which adapted layers make the encoder: those asked for, of those that are given whole rows of tokens."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.lora.variants import BlockDiagonalLinear
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..utils.checks import is_whole
from .probing import PASSES, ROWS, TOKENS, calls, is_sharded, unwrapped

logger = logging.getLogger(__name__)
# Decoder blocks are numbered in every architecture: model.layers.3., transformer.h.3., roberta.encoder.layer.3. ...
LAYER_NUMBER = re.compile(r"\.(\d+)\.")
# The parts of a mixture of experts by their usual names, where a model cannot be tried.
ROUTED = re.compile(r"\.(experts?|routers?|gate)(\.|$)")


@dataclass(frozen=True)
class EncoderModule:
    """One adapted linear layer of the encoder set K: its name in the base model, its layer number, its LoRA rank."""

    name: str
    layer: int
    rank: int

    @property
    def ending(self) -> str:
        """The name inside the decoder layer, such as mlp.down_proj."""
        return LAYER_NUMBER.split(self.name, maxsplit=1)[-1]


def choose_modules(
    model: PeftModel, layers: str | Sequence[int], endings: Sequence[str] | None, adapter_name: str
) -> list[EncoderModule]:
    """The encoder set among the adapted layers of `model`; arguments and errors as in LoraEncoder.from_model."""
    adapted = adapted_modules(model, adapter_name)
    by_name = dict(lora_layers(model))
    readers = row_readers(model, {m.name: by_name[m.name].lora_A[adapter_name] for m in adapted})
    found = [module for module in adapted if module.name in readers]
    left_out = sorted({module.ending for module in adapted if module.name not in readers})
    why = f" {left_out} cannot be read: they are not given whole rows of tokens." if left_out else ""
    if not found:
        raise ValueError(
            f"the adapter {adapter_name!r} adapts no linear layer inside the numbered decoder layers of "
            f"{type(unwrapped(model)).__name__} that an encoder could read: set target_modules of the LoraConfig (for "
            f"example 'all-linear') so that some are.{why}"
        )
    if left_out:
        logger.info("the encoder leaves out %s, which are not given whole rows of tokens", left_out)
    wanted = resolve_layers(layers, sorted({m.layer for m in found}))
    chosen = [module for module in found if module.layer in wanted]
    if endings is None or list(endings) == ["all"]:
        return chosen
    if list(endings) == ["widest"]:
        return _widest(chosen, {name: int(layer.in_features or 0) for name, layer in by_name.items()})
    return _with_endings(chosen, endings, why)


def lora_layers(model: PeftModel) -> Iterator[tuple[str, LoraLayer]]:
    """The adapted layers of `model` and their names in the base model, in order of definition."""
    if not isinstance(model, PeftModel):
        raise TypeError(f"the encoder reads a PeftModel, got {type(model).__name__}: add a LoRA adapter first.")
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def adapted_modules(model: PeftModel, adapter_name: str = "default") -> list[EncoderModule]:
    """The LoRA-adapted linear layers of `model` inside its numbered decoder layers, in order of definition."""
    found = []
    for name, layer in lora_layers(model):
        number = LAYER_NUMBER.search(name)
        # PEFT multiplies the A of a lone parameter (stacked experts) into it without running it.
        if number and adapter_name in layer.lora_A and not isinstance(layer, ParamWrapper):
            found.append(EncoderModule(name, int(number.group(1)), layer.r[adapter_name]))
    return found


def row_readers(model: PeftModel, matrices: Mapping[str, nn.Module]) -> set[str]:
    """Names of the A matrices that are given a batch as it is, (B, T, in), once; in the others no text can be found.

    A layer that runs several times in a forward pass has several outputs, of which training would take the last and a
    pass that is left early the first.
    An expert is given the tokens routed to it, if any; a router, and the feed-forward layers of OPT, a flattened
    batch. Models differ in this, so two short rows are read. Where that shows nothing (weights sharded at load time,
    an adapter that is switched off) the usual names of experts and routers decide.
    """
    found = {} if is_sharded(model) else calls(model, matrices)
    if not found:
        return {name for name in matrices if not ROUTED.search(name)}
    # DoRA runs A once more, over an identity matrix.
    batches = {name: [s for s in shapes if s is not None and len(s) == 3] for name, shapes in found.items()}
    return {
        name
        for name, shapes in batches.items()
        if len(shapes) == PASSES and all(shape[:2] == (ROWS, TOKENS) for shape in shapes)
    }


def _widest(found: Sequence[EncoderModule], widths: Mapping[str, int]) -> list[EncoderModule]:
    """In each layer the module with the widest input: the last of the feed-forward network, whatever its name.

    Its input holds most of what a layer knows of a text (docs/choices.md). Where several are as wide, all of them.
    """
    most: dict[int, int] = {}
    for module in found:
        most[module.layer] = max(most.get(module.layer, 0), widths[module.name])
    return [module for module in found if widths[module.name] == most[module.layer]]


def _with_endings(found: Sequence[EncoderModule], endings: Sequence[str], why: str) -> list[EncoderModule]:
    """Modules whose name ends with one of `endings` at a dot; every ending must match something.

    `why` tells in the message which modules are not among `found`, and for what reason.
    """
    names = {module: "." + module.name for module in found}
    unmatched = [end for end in endings if not any(name.endswith("." + end) for name in names.values())]
    if unmatched or not endings or isinstance(endings, str):
        known = sorted({module.ending for module in found})
        raise ValueError(
            f"encoder_modules={endings!r}: {unmatched or 'it'} matches no adapted module of the chosen layers; give a "
            f"list of endings of {known}.{why}"
        )
    return [module for module, name in names.items() if name.endswith(tuple("." + end for end in endings))]


def resolve_layers(layers: str | Sequence[int], present: list[int]) -> set[int]:
    """Layer numbers from "all", "last:2", "first:50%", "3,4" ... or a sequence, checked against the adapted ones."""
    if isinstance(layers, str):
        side, _, count = layers.partition(":")
        if layers == "all":
            return set(present)
        if count.endswith("%") and count[:-1].isdecimal() and 0 < int(count[:-1]) <= 100:
            # A share of the layers, so that one setting is right for models of any depth; at least one.
            count = str(max(1, int(count[:-1]) * len(present) // 100))
        if side in ("first", "last") and count.isdecimal() and 0 < int(count) <= len(present):
            return set(present[: int(count)] if side == "first" else present[-int(count) :])
        try:
            layers = [int(number) for number in layers.split(",")]
        except ValueError:
            raise ValueError(
                f"encoder_layers={layers!r} is none of 'all', 'last:N', 'first:N' (N from 1 to {len(present)}, "
                "or a share such as 50%) and '3,4'."
            ) from None
    elif is_whole(layers):
        layers = [int(layers)]  # type: ignore[call-overload]
    # From the end among the adapted ones, as "last:N" counts.
    wanted = {present[number] if -len(present) <= number < 0 else number for number in layers}
    if not wanted or not wanted <= set(present):
        raise ValueError(
            f"encoder_layers={list(layers)} names layers without an adapter: the adapted layers are {present}."
        )
    return wanted


def whole_matrix(matrix: Any) -> Tensor:
    """A (r, in); BD-LoRA keeps the blocks on its diagonal only."""
    blocks = isinstance(matrix, BlockDiagonalLinear)
    weight: Tensor = matrix.weight_as_blockdiagonal_matrix() if blocks else matrix.weight
    return weight


def input_width(module: nn.Module | None) -> int | None:
    """Length of the vectors a linear layer takes; None of anything else."""
    if isinstance(module, nn.Linear):
        return module.in_features
    return int(module.weight.shape[0]) if isinstance(module, Conv1D) else None
