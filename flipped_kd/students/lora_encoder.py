"""LoRA's A matrices read as an encoder: which ones, how captured, how pooled.

One file, though long: one class, whose trained, merged and saved forms must give the same vectors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ..utils.angles import wide
from ..utils.atomic import replacing
from ..utils.checks import check_choice
from ..utils.choices import POOLINGS, Pooling
from ..utils.json_files import AGAIN, read_versioned, write_json
from . import attention  # noqa: F401 - a model is pickled with its hooks, which bring the name of its attention along
from .encoder_modules import EncoderModule, choose_modules, input_width, lora_layers, whole_matrix

ENCODER_FILE = "lora_encoder.json"
MATRICES_FILE = "lora_encoder.safetensors"
# Of encoders whose modules are summed; releases that know of none refuse them. Others are written as version 1.
FORMAT_VERSION = 2


class AllRead(Exception):
    """Leaves a forward pass of which all that was wanted has been read."""


class LoraEncoder:
    """Represents texts by the outputs of LoRA's A: A is the encoder, B the decoder (arXiv 2507.05617, section 3).

    The paper leaves open which A are read, and how. With u_k(t) the mean of A_k x over the text's own tokens and L2
    the scaling to unit length, over the modules k (our reading):

    - `sum`: z(t) = L2(sum of u_k(t)): r numbers; all A map into one space, so they need one rank r.
    - `concat`: z(t) = L2(concat of L2(u_k(t))): sum of r_k numbers.

    The hooks belong to the model that `attach` was given. A copy or pickle of that model takes them along, with a copy
    of this encoder, into which they record. Model and encoder copied as one (in a matcher, or in one tuple) stay
    together; to encode with a model copied alone, attach a `copy.copy(encoder)` to it.

    Args:
        modules: the encoder set K, in the order of concatenation.
        adapter_name: the PEFT adapter whose A matrices are read.
        pooling: how the modules' outputs become one vector, "sum" or "concat".

    Raises:
        ValueError: no module, an unknown pooling, or modules of unequal rank to be summed.

    Examples:
        >>> from peft import LoraConfig, get_peft_model
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> size = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
        >>> student = LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=2))
        >>> student = get_peft_model(student, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
        >>> encoder = LoraEncoder.from_model(student, layers="last:1", pooling="sum")
        >>> with encoder.capture() as captured:
        ...     _ = student(torch.tensor([[1, 2, 3], [4, 5, 0]]))  # two texts, of three tokens and of two
        >>> encoder.pool(captured, spans=torch.tensor([[1, 1, 1], [1, 1, 0]])).shape
        torch.Size([2, 4])
    """

    def __init__(
        self, modules: Sequence[EncoderModule], adapter_name: str = "default", pooling: Pooling = "concat"
    ) -> None:
        if not modules:
            raise ValueError("a LoraEncoder needs at least one adapted module, got none.")
        check_choice("encoder_pooling", pooling, POOLINGS)
        ranks = sorted({module.rank for module in modules})
        if pooling == "sum" and len(ranks) > 1:
            raise ValueError(
                f"encoder_pooling='sum' adds the outputs of A, but its modules have ranks {ranks}: give them one rank "
                "(no rank_pattern), restrict encoder_layers or encoder_modules, or use encoder_pooling='concat'."
            )
        self.pooling: Pooling = pooling
        self.modules = tuple(modules)
        self.adapter_name = adapter_name
        self._captured: dict[str, Tensor] | None = None
        self._stops = False
        self._handles: list[RemovableHandle] = []

    def __copy__(self) -> LoraEncoder:
        """The same definition, attached to nothing: hooks record into one encoder only."""
        return LoraEncoder(self.modules, self.adapter_name, self.pooling)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy is made of: nothing of a forward pass that is going on."""
        return vars(self) | {"_captured": None, "_stops": False}

    @classmethod
    def from_model(
        cls,
        model: PeftModel,
        *,
        layers: str | Sequence[int] = "all",
        modules: Sequence[str] | None = None,
        adapter_name: str = "default",
        pooling: Pooling = "concat",
    ) -> LoraEncoder:
        """Choose the encoder set among the adapted linear layers of `model` and attach to it.

        Args:
            model: the student with its LoRA adapter.
            layers: "all", "last:2", "first:2", "first:50%", "3,4", or a sequence of layer numbers (negative ones
                count from the last adapted layer).
            modules: endings of module names to take ("q_proj", "mlp.down_proj"); ["widest"] takes in each layer the
                module with the widest input; None or ["all"] every adapted one that reads whole rows of tokens (not
                experts and their routers, see `encoder_modules`).
            adapter_name: which adapter.
            pooling: "sum" or "concat", see the class.

        Raises:
            TypeError: `model` is no PeftModel.
            ValueError: nothing is adapted, a layer does not exist, or an ending matches nothing.
        """
        encoder = cls(choose_modules(model, layers, modules, adapter_name), adapter_name, pooling)
        encoder.attach(model)
        return encoder

    @property
    def dimension(self) -> int:
        """Length of a representation."""
        ranks = [module.rank for module in self.modules]
        return ranks[0] if self.pooling == "sum" else sum(ranks)

    def attach(self, model: PeftModel) -> None:
        """Install one read-only forward hook on each A matrix of the encoder set (replacing earlier ones).

        Hooks run inside the module's own forward, so they see the same tensors under DDP, FSDP, ZeRO and non-reentrant
        checkpointing.

        Args:
            model: the student with the adapter that this encoder reads.

        Raises:
            TypeError: `model` is no PeftModel.
            ValueError: it lacks a module of the encoder set, or has it with another rank. Nothing is changed then.
        """
        matrices = self._matrices(model)
        self.detach()
        self._handles = [matrix.register_forward_hook(_OutputHook(self, name)) for name, matrix in matrices.items()]

    def save_matrices(self, model: PeftModel, folder: str | os.PathLike[str]) -> None:
        """Write the A matrices of the encoder set for `attach_merged`, which finds none in a merged model.

        lora_encoder.safetensors maps each module's name to its A (r, in), in the dtype it has; it appears whole or not
        at all.

        Args:
            model: the student with the adapter that this encoder reads, not merged.
            folder: where to, made if absent.

        Raises:
            TypeError, ValueError: as `attach`.
        """
        matrices = {
            name: whole_matrix(matrix).detach().to("cpu", copy=True).contiguous()
            for name, matrix in self._matrices(model).items()
        }
        target = Path(folder) / MATRICES_FILE
        with replacing(target) as partial:
            save_file(matrices, partial, metadata={"format": "pt"})

    def attach_merged(self, model: PreTrainedModel, folder: str | os.PathLike[str]) -> None:
        """Read the inputs of the encoder set's modules in a merged model and apply the saved A matrices to them.

        Vectors are those of the adapter before the merge: a merged W x comes from the same x that A was given.

        Args:
            model: the merged model, without adapter.
            folder: holds lora_encoder.safetensors (`save_matrices`).

        Raises:
            ValueError: the file is absent or broken, or does not fit the model or this encoder. Nothing is changed
                then.
        """
        path = Path(folder) / MATRICES_FILE
        matrices = _read_matrices(path)
        inside = dict(model.named_modules())
        readers: list[tuple[nn.Module, Any]] = []
        for module in self.modules:
            matrix, linear = matrices.get(module.name), inside.get(module.name)
            width = input_width(linear)
            if linear is None or matrix is None or width is None or tuple(matrix.shape) != (module.rank, width):
                held = "no matrix" if matrix is None else f"a matrix of shape {tuple(matrix.shape)}"
                takes = "is no linear layer of this model" if width is None else f"takes inputs of size {width}"
                raise ValueError(
                    f"{path} holds {held} for {module.name!r}, which {takes}; the encoder was saved with rank "
                    f"{module.rank}. Take model, {ENCODER_FILE} and {MATRICES_FILE} from one and the same merge."
                )
            readers.append((linear, _InputHook(self, module.name, matrix)))
        self.detach()
        self._handles = [linear.register_forward_hook(reader) for linear, reader in readers]

    def _matrices(self, model: PeftModel) -> dict[str, Any]:
        """The A matrix of each module of the encoder set, checked against the definition."""
        layers = dict(lora_layers(model))
        matrices: dict[str, Any] = {}
        for module in self.modules:
            layer = layers.get(module.name)
            if layer is None or self.adapter_name not in layer.lora_A:
                raise ValueError(
                    f"the encoder reads A of {module.name!r} (adapter {self.adapter_name!r}), which this model does "
                    "not have: load the adapter that this encoder was saved with."
                )
            if layer.r[self.adapter_name] != module.rank:
                raise ValueError(
                    f"A of {module.name!r} has rank {layer.r[self.adapter_name]}, the encoder was saved with "
                    f"{module.rank}: load the adapter that this encoder was saved with."
                )
            matrices[module.name] = layer.lora_A[self.adapter_name]
        return matrices

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _record(self, name: str, output: Tensor) -> None:
        assert self._captured is not None
        self._captured[name] = output
        if self._stops and len(self._captured) == len(self.modules):
            raise AllRead

    @contextmanager
    def capture(self, stop: bool = False) -> Iterator[dict[str, Tensor]]:
        """Record A's outputs, (B, T, r) by module name, of the one forward pass run inside the context.

        Args:
            stop: end the context as soon as all are recorded, in the middle of that forward pass: what lies above the
                encoder's last module is not computed. For a model that can be left so (`probing.can_be_stopped`).

        Yields:
            The outputs so far, filled as the forward pass goes on.

        Raises:
            RuntimeError: the encoder is attached to no model.
        """
        # An encoder copied without its model has hooks on nothing.
        if not any(handle.hooks_dict_ref() is not None for handle in self._handles):
            raise RuntimeError("the encoder is not attached to a model: call attach(model) first.")
        outer = self._captured, self._stops
        self._captured, self._stops = {}, stop
        try:
            yield self._captured
        except AllRead:
            if not stop:
                raise
        finally:
            self._captured, self._stops = outer

    def pool(self, captured: dict[str, Tensor], spans: Tensor, rows: Tensor | None = None) -> Tensor:
        """Represent one text for each of `spans`.

        Args:
            captured: what `capture` recorded, tensors (R, T, r_k).
            spans: (B, T), 1 at the text's own tokens, 0 elsewhere; at least one 1 for each text.
            rows: (B,), the row that each text stands in; by default one text a row, B = R.

        Returns:
            Unit vectors (B, dimension), float32.

        Raises:
            RuntimeError: an A matrix did not run, or ran without gradient where one is needed.
        """
        if rows is not None and self.modules[0].name in captured:  # else it is told below
            shape = len(spans), len(captured[self.modules[0].name]), spans.shape[1]
            of_rows = torch.zeros(shape, dtype=torch.float32, device=spans.device)
            of_rows[torch.arange(len(spans), device=spans.device), rows] = spans.float()
        parts = []
        for module in self.modules:
            if module.name not in captured:
                raise RuntimeError(
                    f"A of {module.name!r} did not run in this forward pass: is the adapter disabled, merged, or not "
                    "the active one, or the model a copy of the one that this encoder is attached to?"
                )
            output = captured[module.name]
            if torch.is_grad_enabled() and not output.requires_grad:
                raise RuntimeError(
                    f"A of {module.name!r} ran without gradient, so L_dist and L_MCL could not train it. Reentrant "
                    "activation checkpointing does this: set activation_checkpointing_kwargs={'use_reentrant': False}."
                    " A frozen adapter does too: load it with is_trainable=True, or, to encode only, run under "
                    "torch.no_grad()."
                )
            with torch.autocast(output.device.type, enabled=False):
                output = wide(output)
                weights = spans.to(output.dtype)
                if rows is None:
                    total = torch.einsum("bt,btr->br", weights, output)
                else:
                    total = of_rows.flatten(1).to(output.dtype) @ output.flatten(0, 1)
                mean = total / weights.sum(1, keepdim=True)
                parts.append(mean if self.pooling == "sum" else nn.functional.normalize(mean, dim=-1))
        if self.pooling == "sum":
            return nn.functional.normalize(torch.stack(parts).sum(0), dim=-1)
        return nn.functional.normalize(torch.cat(parts, dim=-1), dim=-1)

    def to_dict(self) -> dict[str, Any]:
        """The whole definition as plain JSON values."""
        summed = self.pooling == "sum"
        return {
            "format_version": FORMAT_VERSION if summed else 1,
            "adapter_name": self.adapter_name,
            "pooling": "mean",  # over a text's tokens
            **(
                {"encoder_pooling": "sum", "normalize": ["sum"]}
                if summed
                else {"normalize": ["module", "concatenation"]}
            ),
            "dimension": self.dimension,
            "modules": [asdict(module) for module in self.modules],
        }

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write lora_encoder.json, whole or not at all.

        Args:
            folder: where to, made if absent.
        """
        write_json(Path(folder) / ENCODER_FILE, self.to_dict())

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> LoraEncoder:
        """Read lora_encoder.json; `attach` the encoder to the model before use.

        Args:
            folder: holds it.

        Raises:
            ValueError: the file is absent, broken or from a newer release.
        """
        path = Path(folder) / ENCODER_FILE
        if not path.is_file():
            raise ValueError(f"{path.parent} holds no {ENCODER_FILE}: it was not saved by FlippedDistillationTrainer.")
        saved = read_versioned(path, FORMAT_VERSION, AGAIN)
        try:
            modules = [EncoderModule(**module) for module in saved["modules"]]
            return cls(modules, saved["adapter_name"], saved.get("encoder_pooling", "concat"))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no saved LoraEncoder ({error!r}): {AGAIN}.") from error


# Hooks are objects of the module's level, not closures, so that a model with hooks can be copied and pickled.


class _OutputHook:
    """On an A matrix: records what it gives."""

    def __init__(self, encoder: LoraEncoder, name: str) -> None:
        self.encoder, self.name = encoder, name

    def __call__(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        # Recomputation under activation checkpointing fires the hook again, outside capture(): not recorded. Nor
        # is DoRA's other call of A, over an identity matrix for the norm of the weights.
        if self.encoder._captured is not None and output.ndim == 3:
            self.encoder._record(self.name, output)


class _InputHook:
    """On a layer of a merged model: applies the saved A to what the layer is given, and records that."""

    def __init__(self, encoder: LoraEncoder, name: str, matrix: Tensor) -> None:
        self.encoder, self.name, self.matrix = encoder, name, matrix

    def __call__(self, _module: nn.Module, inputs: tuple[Tensor, ...], _output: Any) -> None:
        if self.encoder._captured is None:
            return
        (x,) = inputs
        if self.matrix.device != x.device:  # at first, and after the model was moved
            self.matrix = self.matrix.to(x.device)
        # As PEFT's LoRA layer does: the input is cast to A's precision.
        self.encoder._record(self.name, nn.functional.linear(x.to(self.matrix.dtype), self.matrix))


def _read_matrices(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(
            f"{path.parent} holds no {path.name}, where a merged model keeps its encoder: merge the adapter again "
            "with flipped_kd.merge_adapter, or load the adapter itself."
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}): {AGAIN}.") from error
