"""What the weights under an adapter are: a few values of each, kept beside the adapter and compared when it is loaded.

A base's name is no proof: a student may have been merged or trained in memory, and files change. Values are compared
as nearly as half precision keeps them; quantised ones are neither kept nor compared.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.atomic import write_atomically
from ..utils.json_files import AGAIN, read_versioned
from .probing import is_sharded, unwrapped

BASE_FILE = "base_weights.json"
FORMAT_VERSION = 1
TENSORS, VALUES = 1024, 8  # at the most of a model, and of each
# bfloat16 rounds by up to 2^-8 of a value, float16 by up to 2^-25 where values are tiny.
RELATIVE, ABSOLUTE = 2**-7, 1e-7
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Parts of names by which PEFT wraps a weight of the base, and those of its own weights.
WRAPPERS = (".base_layer", ".original_module")
ADAPTERS = ("lora_", ".modules_to_save.", ".token_adapter.")


@dataclass(frozen=True)
class BaseWeights:
    """Some values of a base's weights.

    Attributes:
        tensors: by name of the weight its shape and the values at evenly spaced places.
    """

    tensors: Mapping[str, tuple[list[int], list[float]]]

    @classmethod
    def of(cls, model: nn.Module) -> BaseWeights | None:
        """The values of a causal language model, with or without adapter; None of a quantised or sharded one."""
        base = unwrapped(model)
        if is_quantised(base) or is_sharded(base):
            return None
        weights = list(_weights(base).items())
        kept = min(len(weights), TENSORS)
        chosen = [weights[number * len(weights) // kept] for number in range(kept)]
        return cls({name: (list(weight.shape), _values(weight)) for name, weight in chosen})

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> BaseWeights | None:
        """Read base_weights.json; None where there is none, as of adapters of earlier releases.

        Raises:
            ValueError: it is broken or from a newer release.
        """
        path = Path(folder) / BASE_FILE
        if not path.is_file():
            return None
        content = read_versioned(path, FORMAT_VERSION)
        try:
            found = {
                str(name): ([int(size) for size in entry["shape"]], [float(value) for value in entry["values"]])
                for name, entry in content["tensors"].items()
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} is no record of a base ({error!r}): {AGAIN}.") from error
        return cls(found)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write base_weights.json into `folder`, whole or not at all."""
        lines = [
            f"{json.dumps(name)}: {json.dumps({'shape': shape, 'values': values})}"
            for name, (shape, values) in self.tensors.items()
        ]
        text = f'{{"format_version": {FORMAT_VERSION}, "tensors": {{\n' + ",\n".join(lines) + "\n}}\n"
        write_atomically(Path(folder) / BASE_FILE, text)

    def difference(self, other: BaseWeights | None) -> str | None:
        """Which weights of `other` have other values, and how many; None where all are the same.

        Weights of another name or shape are passed over: whether an adapter fits them is found out elsewhere.
        """
        theirs: Mapping[str, tuple[list[int], list[float]]] = {} if other is None else other.tensors
        common = [name for name, (shape, _) in self.tensors.items() if name in theirs and theirs[name][0] == shape]
        for_each = {
            name: [pair for pair in zip(self.tensors[name][1], theirs[name][1], strict=False) if not _same(*pair)]
            for name in common
        }
        moved = [name for name, pairs in for_each.items() if pairs]
        if not moved:
            return None
        wanted, found = for_each[moved[0]][0]
        return f"{len(moved)} of {len(common)} weights differ, such as {moved[0]} ({found:g} instead of {wanted:g})"


def check_same_base(folder: Path, model: nn.Module, name: str | os.PathLike[str]) -> None:
    """Raise ValueError for a base whose weights are not those that the adapter in `folder` was trained on.

    Without a record in the folder everything passes. `name` is the base's, for the message.
    """
    recorded = BaseWeights.from_pretrained(folder)
    difference = None if recorded is None else recorded.difference(BaseWeights.of(model))
    if difference is not None:
        raise ValueError(
            f"the base {os.fspath(name)!r} is not what the adapter in {folder} was trained on: {difference}. The "
            "student was merged or changed in memory before it was trained, or the base has become another one since. "
            "Give base_model='a folder with the weights of that time' (of a student in memory: what its "
            "save_pretrained writes), or train anew."
        )


def is_quantised(model: Any) -> bool:
    """Whether the weights are, or were in the file they come from, rounded to a few bits."""
    marks = ("hf_quantizer", "quantization_method", "is_quantized", "gguf_base")
    return any(getattr(model, mark, None) for mark in marks)


def _weights(base: nn.Module) -> dict[str, Tensor]:
    """The base's own matrices by the names they have without an adapter."""
    found: dict[str, Tensor] = {}
    for name, weight in base.named_parameters():
        if weight.ndim < 2 or weight.dtype not in FLOATS or any(part in name for part in ADAPTERS):
            continue
        for wrapper in WRAPPERS:
            name = name.replace(wrapper, "")
        found[name] = weight
    return found


@torch.no_grad()
def _values(weight: Tensor) -> list[float]:
    places = [(2 * number + 1) * weight.numel() // (2 * VALUES) for number in range(VALUES)]
    # By index of each dimension: flattening would copy a weight that is not contiguous.
    index = torch.unravel_index(torch.tensor(places, device=weight.device), weight.shape)
    return [float(f"{value:.6g}") for value in weight[index].cpu().double().tolist()]  # an Apple GPU has no float64


def _same(wanted: float, found: float) -> bool:
    if not (math.isfinite(wanted) and math.isfinite(found)):
        return True  # it says nothing
    return math.isclose(wanted, found, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
