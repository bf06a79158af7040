"""Several adapters of one base as one adapter, by PEFT's own methods."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args, get_type_hints

import torch
from peft import PeftModel
from peft.tuners.lora import LoraModel

from ..inference.loading import LoadedModel, base_of, load_matcher, local_folder, read_adapter_config
from ..prompts.pair_prompt import PROMPT_FILE, read_prompt_file
from ..students.base_weights import BaseWeights, check_same_base
from ..students.encoder_modules import adapted_modules, lora_layers
from ..students.gguf import GgufBase
from ..students.lora import without_advice
from ..students.lora_encoder import LoraEncoder
from ..utils.atomic import check_target, whole_or_absent
from ..utils.checks import is_number
from ..utils.hub_download import Access
from .card import write_card
from .files import CARD_FILE
from .merge import refuse_quantised

logger = logging.getLogger(__name__)
# Those that keep or join the directions of the A matrices; the others make new ones.
KEEPS_DIRECTIONS = ("linear", "cat")


def combine_adapters(
    adapters: Sequence[str | os.PathLike[str]],
    out_dir: str | os.PathLike[str],
    *,
    weights: Sequence[float] | None = None,
    method: str = "cat",
    base_model: str | os.PathLike[str] | None = None,
    token: str | None = None,
    **options: Any,
) -> Path:
    """Write one adapter that does what several do together, weighted.

    The methods are those of PEFT's `add_weighted_adapter`. "cat" adds the adapters' changes of the weights exactly;
    its rank is the sum of theirs. "svd" approximates that sum by the largest of their ranks. "linear" keeps the rank
    and adds A and B apart, each times the root of its weight, so that every A also meets every other adapter's B: for
    n adapters that are much alike, weights of 1 / n^2 give their mean. Match scores are not carried over, for they
    were fitted on other log-odds: fit them again with MatchScore.fit.

    Args:
        adapters: folders or Hub names of trained adapters, with one base, prompt and encoder set.
        out_dir: where to; must be absent or empty.
        weights: one number for each adapter; by default their mean.
        method: a combination_type of PEFT.
        base_model: the base's folder or Hub name, if not the one the adapters name.
        token: for private adapters.
        **options: passed on to `add_weighted_adapter` (density, svd_rank, majority_sign_method ...).

    Returns:
        The folder.

    Raises:
        ValueError: adapters that do not go together, or settings that PEFT refuses. Nothing was written then.
        OSError: no space left.

    Examples:
        `adapter` and `other_adapter` are folders of adapters trained on one base.

        >>> combined = combine_adapters([adapter, other_adapter], folder / "combined")
        >>> sorted(path.name for path in combined.glob("*.safetensors"))
        ['adapter_model.safetensors']
    """
    target = Path(out_dir)
    weights = _checked_weights(adapters, weights)
    _check_method(method)
    check_target(target)
    access = Access(token)
    folders = [local_folder(adapter, access=access) for adapter in adapters]
    base, revision = _common_base(folders, base_model)
    _check_prompts(folders)
    _check_encoders(folders)
    for folder in folders:
        _check_kind(folder)
    refuse_quantised(base, revision, token)
    loaded = load_matcher(
        folders[0], device=torch.device("cpu"), dtype=torch.float32, base_model=base_model, access=access
    )
    loaded.encoder.detach()
    for folder in folders[1:]:
        check_same_base(folder, loaded.model, base)
    with without_advice():
        model = _combined(cast(PeftModel, loaded.model), folders, weights, method, options)
    model.peft_config["default"].base_model_name_or_path = base
    model.peft_config["default"].revision = revision
    if method not in KEEPS_DIRECTIONS:
        logger.warning(
            "method=%r makes new A matrices: encode() of the combined adapter is not that of its parts; check the "
            "similarity on labelled pairs before use",
            method,
        )
    with whole_or_absent(target) as partial:
        _save(model, loaded, folders[0], partial)
    write_card(target, plots=False)
    return target


def _save(model: PeftModel, first: LoadedModel, first_folder: Path, folder: Path) -> None:
    """Write the combined adapter with the contracts of the first, which all share."""
    with without_advice():
        model.save_pretrained(str(folder), selected_adapters=["default"])
    (folder / CARD_FILE).unlink(missing_ok=True)  # PEFT's, which names a local base
    first.tokenizer.save_pretrained(folder)
    first.prompt.save_pretrained(folder)
    adapted = {module.name: module for module in adapted_modules(model)}
    modules = [adapted[module.name] for module in first.encoder.modules]
    LoraEncoder(modules, pooling=first.encoder.pooling).save_pretrained(folder)
    for record in (GgufBase.from_pretrained(first_folder), BaseWeights.of(model)):
        if record is not None:
            record.save_pretrained(folder)


def _combined(
    model: PeftModel, folders: list[Path], weights: list[float], method: str, options: dict[str, Any]
) -> PeftModel:
    """The base with the combined adapter, named "default"; `model` carries the first adapter by that name."""
    names = [f"adapter_{number}" for number in range(len(folders))]
    try:
        for name, folder in zip(names, folders, strict=True):
            model.load_adapter(str(folder), adapter_name=name, torch_device="cpu")
            # The layers know their scale by now; the combined adapter takes over the setting, but needs a scale of 1.
            config: Any = model.peft_config[name]
            config.use_rslora = False
        model.set_adapter(names[0])
        model.delete_adapter("default")
        model.add_weighted_adapter(names, weights, "default", combination_type=method, **options)
        if method == "cat":
            _cut_to_ranks(model, names)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"PEFT cannot combine {[str(folder) for folder in folders]} by method={method!r}: {error} Adapters of "
            "different rank need 'cat' or 'svd'."
        ) from error
    _check_nothing_lost(model, names)
    model.set_adapter("default")
    for name in names:
        model.delete_adapter(name)
    _tell_ranks(model)
    return model


def _check_nothing_lost(model: PeftModel, names: list[str]) -> None:
    """Raise ValueError where a part adapts a module that the combined adapter does not.

    PEFT adapts what the first one's settings name: layers_to_transform and exclude_modules leave the others' out.
    """
    lost = [
        name
        for name, layer in lora_layers(model)
        if any(part in layer.lora_A or part in layer.lora_embedding_A for part in names)
        and "default" not in layer.lora_A
        and "default" not in layer.lora_embedding_A
    ]
    if lost:
        raise ValueError(
            f"{len(lost)} modules, such as {lost[0]!r}, are adapted by one of the adapters and would not be by the "
            "combined one, which is made by the first one's settings: give first the adapter that adapts most."
        )


def _cut_to_ranks(model: PeftModel, names: list[str]) -> None:
    """Take away the zeros that PEFT fills all modules up with, to the sum of the adapters' greatest ranks."""
    layers: dict[str, Any] = dict(lora_layers(model))
    for layer in layers.values():
        if "default" not in layer.lora_A:
            continue
        rank = sum(len(layer.lora_A[name].weight) for name in names if name in layer.lora_A)
        first, second = layer.lora_A["default"], layer.lora_B["default"]
        first.weight = torch.nn.Parameter(first.weight[:rank].detach().clone())
        second.weight = torch.nn.Parameter(second.weight[:, :rank].detach().clone())
        first.out_features = second.in_features = rank


def _tell_ranks(model: PeftModel) -> None:
    """Write down the rank that each module has: PEFT writes the greatest for all, and its adapter then cannot be read.

    Modules of ranks of their own (`encoder_rank`, rank_pattern) keep them in "linear" and the like.
    """
    config: Any = model.peft_config["default"]
    layers: dict[str, Any] = dict(lora_layers(model))
    for name, layer in layers.items():
        rank = len(layer.lora_A["default"].weight) if "default" in layer.lora_A else config.r
        if rank != config.r:
            layer.r["default"] = config.rank_pattern[name] = config.alpha_pattern[name] = rank


def _check_kind(folder: Path) -> None:
    """Raise ValueError if PEFT would leave a part of the adapter out in silence."""
    config: Any = read_adapter_config(folder)
    parts = ("use_dora", "modules_to_save", "trainable_token_indices", "lora_bias")
    left_out = [name for name in parts if getattr(config, name)]
    left_out += [f"bias={config.bias!r}"] if config.bias != "none" else []
    if left_out:
        raise ValueError(
            f"the adapter in {folder} was trained with {', '.join(left_out)}, which PEFT does not combine: give "
            "adapters that are plain LoRA."
        )


def _checked_weights(adapters: Sequence[Any], weights: Sequence[float] | None) -> list[float]:
    if isinstance(adapters, str | os.PathLike) or len(adapters) < 2:
        raise ValueError(f"adapters={adapters!r}: give a list of two or more folders or Hub names.")
    if weights is None:
        return [1 / len(adapters)] * len(adapters)
    if len(weights) != len(adapters) or not all(is_number(weight) and math.isfinite(weight) for weight in weights):
        raise ValueError(f"weights={list(weights)}: give one finite number for each of the {len(adapters)} adapters.")
    return [float(weight) for weight in weights]


def _check_method(method: str) -> None:
    known = get_args(get_type_hints(LoraModel.add_weighted_adapter)["combination_type"])
    if method not in known:
        raise ValueError(f"method={method!r} is none of PEFT's: use one of {sorted(known)}.")


def _common_base(folders: list[Path], base_model: str | os.PathLike[str] | None) -> tuple[str, str | None]:
    bases = {base_of(folder, base_model) for folder in folders}
    files = {gguf and gguf.sha256 for gguf in map(GgufBase.from_pretrained, folders)}
    if len(bases) > 1 or (len(files) > 1 and base_model is None):
        raise ValueError(
            f"the adapters were trained on different bases {sorted(map(str, bases))}: only adapters of one base can "
            "be combined. If these are one and the same model, say so with base_model=."
        )
    return bases.pop()


def _check_prompts(folders: list[Path]) -> None:
    """Raise ValueError unless all prompts are the same: the adapters would be asked another question than learnt."""
    prompts = [read_prompt_file(folder / PROMPT_FILE) for folder in folders]
    for folder, prompt in zip(folders[1:], prompts[1:], strict=True):
        different = sorted(
            name for name in prompt.keys() | prompts[0].keys() if prompt.get(name) != prompts[0].get(name)
        )
        if different:
            raise ValueError(
                f"the prompts of {folders[0]} and {folder} differ in {different}: only adapters trained with one "
                "prompt can be combined."
            )


def _check_encoders(folders: list[Path]) -> None:
    """Raise ValueError unless all encoders read the same modules in the same way; their ranks may differ."""
    encoders = [LoraEncoder.from_pretrained(folder) for folder in folders]
    names = [[module.name for module in encoder.modules] for encoder in encoders]
    for folder, encoder, other in zip(folders[1:], encoders[1:], names[1:], strict=True):
        if encoder.pooling != encoders[0].pooling:
            raise ValueError(
                f"the encoder of {folders[0]} has encoder_pooling={encoders[0].pooling!r}, that of {folder} "
                f"{encoder.pooling!r}: their vectors are of different kinds. Train with the same one to combine."
            )
        if other != names[0]:
            raise ValueError(
                f"the encoders of {folders[0]} and {folder} read different modules: train with the same "
                "encoder_layers and encoder_modules to combine."
            )
