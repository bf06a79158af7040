"""What the encoder's modules are given: the mean of each module's inputs over a text's own tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from ..utils.angles import wide
from .encoder_modules import EncoderModule, lora_layers
from .lora_encoder import AllRead
from .probing import probe_rows


class EncoderInputs:
    """Reads the inputs of adapted modules in a forward pass and averages them over each text's tokens.

    It is read as a `LoraEncoder` is (`capture`, `pool`, `dimension`), so that whatever runs a model over texts can
    collect these means in the place of vectors. Modules that are given the same tensor (q, k and v; gate and up) are
    read once.

    Args:
        model: the student with its adapter, whole (not sharded).
        modules: the encoder set.

    Attributes:
        read_by: by name of an input (its first module's), the modules that are given it.
        widths: by the same name, the length of the input.
    """

    def __init__(self, model: PeftModel, modules: Sequence[EncoderModule]) -> None:
        layers = dict(lora_layers(model))
        self._layers: dict[str, Any] = {module.name: layers[module.name] for module in modules}
        self.read_by: dict[str, list[str]] = {}
        self.widths: dict[str, int] = {}
        self._find_shared(model)

    def _find_shared(self, model: PeftModel) -> None:
        seen: dict[str, Tensor] = {}

        def record(name: str, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[name] = inputs[0]  # kept, so that no other tensor takes its place in memory

        with ExitStack() as hooks:
            for name, layer in self._layers.items():
                hooks.enter_context(layer.register_forward_pre_hook(partial(record, name)))
            probe_rows(model)
        first: dict[int, str] = {}
        for name, tensor in seen.items():
            source = first.setdefault(id(tensor), name)
            self.read_by.setdefault(source, []).append(name)
            self.widths[source] = tensor.shape[-1]

    @property
    def dimension(self) -> int:
        """Numbers of one text: all inputs side by side."""
        return sum(self.widths.values())

    def split(self, rows: Tensor) -> dict[str, Tensor]:
        """By name of an input, its columns of rows (n, dimension): views, no copies."""
        return dict(zip(self.widths, rows.split(list(self.widths.values()), dim=1), strict=True))

    @contextmanager
    def capture(self, stop: bool = False) -> Iterator[dict[str, Tensor]]:
        """Record the inputs, (B, T, width) by name, of the one forward pass run inside the context.

        Args:
            stop: end the context as soon as all are recorded, as in `LoraEncoder.capture`.
        """
        captured: dict[str, Tensor] = {}

        def record(name: str, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            captured[name] = inputs[0]
            if stop and len(captured) == len(self.widths):
                raise AllRead

        with ExitStack() as hooks:
            for name in self.widths:
                hooks.enter_context(self._layers[name].register_forward_pre_hook(partial(record, name)))
            try:
                yield captured
            except AllRead:
                if not stop:
                    raise

    def pool(self, captured: dict[str, Tensor], spans: Tensor) -> Tensor:
        """Means over each row's own tokens, (B, dimension) float32, not normalised.

        Args:
            captured: what `capture` recorded.
            spans: (B, T), 1 at the text's own tokens, 0 elsewhere; at least one 1 per row.
        """
        parts = []
        for name in self.widths:
            inputs = wide(captured[name])
            weights = spans.to(inputs.dtype)
            parts.append(torch.einsum("bt,btd->bd", weights, inputs) / weights.sum(1, keepdim=True))
        return torch.cat(parts, dim=-1)
