"""The LoRA adapter of a student: on which layers, and added with a check."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .adapter_checks import ADAPTER, check_adapter, check_lora_config
from .encoder_modules import lora_layers
from .probing import calls, is_sharded

logger = logging.getLogger(__name__)


def default_lora(
    rank: int = 32, alpha: float = 64.0, dropout: float = 0.05, target_modules: str = "all-linear"
) -> LoraConfig:
    """LoRA on every linear layer but the output one; `target_modules` may name endings instead, comma-separated."""
    targets: str | list[str] = target_modules
    if target_modules != "all-linear":
        targets = [name.strip() for name in target_modules.split(",")]
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # declared int, used as a factor
        lora_dropout=dropout,
        target_modules=targets,
        task_type=TaskType.CAUSAL_LM,
    )


@contextmanager
def without_advice() -> Iterator[None]:
    """Inside, PEFT does not warn of what no user need mend.

    - Asking a model by a name that transformers 5.23 deprecates is PEFT's own doing.
    - Adapted embeddings are saved whole, as they must be; where they are tied, the merge unties them.
    - A base without a configuration beside it is a GGUF file; no vocabulary is changed here.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        for message in (
            "Model (has|with) `tie_word_embeddings=True`",
            "Setting `save_embedding_layers` to `True`",
            "Could not find a config file",
        ):
            warnings.filterwarnings("ignore", message, UserWarning)
        yield


def add_adapter(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """Wrap `model` with a new LoRA adapter; PEFT's error for targets that match nothing is made to name the remedy.

    "all-linear" means the linear layers by which text goes, see `_text_layers`.

    Raises:
        ValueError: no module matches target_modules, PEFT refuses another setting, or the adapter is none that can be
            trained (see `adapter_checks`).
    """
    check_lora_config(config, new=True)
    head = model.get_output_embeddings()
    linear: dict[str, nn.Module] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
    all_linear = config.target_modules == "all-linear"
    named = config.target_modules
    shown = named if named is None or isinstance(named, str) else sorted(named)
    if all_linear and not config.target_parameters:
        config = _text_layers(model, config, linear)
    try:
        with without_advice():
            adapted: Any = get_peft_model(
                model, config, revision=getattr(model, "hub_commit", None) or config.revision
            )
    except ValueError as error:
        endings = sorted({name.rsplit(".", 1)[-1] for name in linear})
        remedy = f"some of {endings}"
        remedy = f"Name {remedy} instead." if all_linear else f"Use target_modules='all-linear' or {remedy}."
        raise ValueError(
            f"the student {type(model).__name__} cannot be adapted with target_modules={shown!r}: {error} {remedy}"
        ) from error
    check_adapter(adapted)
    return adapted


def with_ranks(adapted: PeftModel, ranks: Mapping[str, int]) -> PeftModel:
    """The base of `adapted` with a new adapter of the same settings, where the modules named have ranks of their own.

    Each keeps the scaling of B A, so that a step moves it as far as before.

    Args:
        adapted: a student whose adapter was just added; it is not to be used any more.
        ranks: by name of a module in the base, its rank. They go before a rank_pattern of the settings.
    """
    config: Any = copy.deepcopy(adapted.peft_config[ADAPTER])
    power = 0.5 if config.use_rslora else 1.0
    layers: dict[str, Any] = dict(lora_layers(adapted))
    alphas = {
        name: layers[name].lora_alpha[ADAPTER] * (rank / layers[name].r[ADAPTER]) ** power
        for name, rank in ranks.items()
    }
    # PEFT takes the first pattern that matches; theirs come first, and replace equal ones.
    config.rank_pattern = {**ranks, **config.rank_pattern, **ranks}
    config.alpha_pattern = {**alphas, **config.alpha_pattern, **alphas}
    base: Any = adapted.unload()
    return add_adapter(base, config)


def _text_layers(model: PreTrainedModel, config: LoraConfig, linear: dict[str, nn.Module]) -> LoraConfig:
    """Settings that name the linear layers which "all-linear" is to mean for this model, if PEFT takes more.

    Left out, since LoRA on them would never be trained or would break the model: layers that no text goes through
    (a multimodal model's eyes, a decoder's attention to an encoder that is not there), those whose weight the model
    takes past them, and routers that give more than one tensor. An expert may be missed by the two rows that are
    tried: it stays.

    PEFT also counts the weights of experts, stacked in one tensor, and their router among "all-linear", for the sake
    of adapters made with transformers 4. That is a LoRA for each expert, billions of weights in a large model, and it
    works without dropout only: who wants it names target_parameters. Dense layers named as an expert's parts
    (gate_proj) are left out with them, for PEFT cannot tell them apart.
    """
    wanted = set(linear)
    if not is_sharded(model):
        found = calls(model, linear)
        wanted = {name for name in linear if (None not in found[name] if name in found else ".experts." in name)}
    converted = copy.deepcopy(config)
    convert_peft_config_for_transformers(converted, model, None)
    if converted.target_parameters:
        endings = set(converted.target_modules or ())
        wanted = {name for name in wanted if name.rsplit(".", 1)[-1] in endings}
        logger.warning(
            "the experts of %s and their router stay as they are, the adapter is on %s: to adapt them too, give a "
            "LoraConfig with lora_dropout=0 and target_parameters=%s",
            type(model).__name__,
            sorted({name.rsplit(".", 1)[-1] for name in wanted}),
            sorted(converted.target_parameters),
        )
    elif wanted == set(linear):
        return config
    named = copy.deepcopy(config)
    named.target_modules = sorted(wanted)
    return named


def keep_input_precision(model: PeftModel) -> None:
    """Spare layers of plain LoRA a cast of their inputs under autocast.

    PEFT casts them to the precision of A's weights first, and autocast casts them back for the product. Outside
    autocast its cast stays, and so it does for variants: DoRA takes the norm of its weights in the input's precision.
    """
    for layer in model.modules():
        known = _cast_outside_autocast in layer._forward_pre_hooks.values()
        if isinstance(layer, LoraLayer) and not layer.lora_variant and not known:
            layer.register_forward_pre_hook(_cast_outside_autocast)


def _cast_outside_autocast(layer: Any, inputs: tuple[Tensor, ...]) -> None:
    layer.cast_input_dtype_enabled = not torch.is_autocast_enabled(inputs[0].device.type)
