"""The student: a decoder-only language model with a LoRA adapter, loaded safely and checked; its answer logits."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import logging
import os
from collections.abc import Collection
from typing import Any

import torch
from accelerate import PartialState
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.other import TrainableTokensWrapper
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D
from transformers.utils.hub import resolve_revision

from ..utils.angles import wide
from ..utils.devices import has_bfloat16
from .adapter_checks import check_adapter, check_lora_config
from .probing import calls, is_sharded, read_rows, unwrapped

logger = logging.getLogger(__name__)
REMEDY = "name a decoder-only causal language model (Qwen2, Llama, Mistral, GLM ...)."
SOURCES = (
    "Give an existing folder or a Hub name whose weights are safetensors: pickles (pytorch_model.bin) are never "
    "loaded."
)


def load_student(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    trust_remote_code: bool = False,
    load_in_4bit: bool = False,
) -> PreTrainedModel:
    """Load a causal language model from safetensors (never from a pickle).

    Args:
        name: Hub name or folder.
        revision: branch, tag or commit.
        dtype: "auto" is float32 on a CPU and bfloat16 on a GPU that has it.
        trust_remote_code: run code from the repository.
        load_in_4bit: keep the weights of linear layers in 4 bits (NF4, arXiv 2305.14314) and compute in bfloat16; the
            adapter on them stays float32. Needs bitsandbytes (the extra `qlora`).

    Raises:
        ValueError: it is no causal language model, or cannot be loaded.
        ImportError: `load_in_4bit` without bitsandbytes.
    """
    if dtype == "auto":
        dtype = torch.bfloat16 if has_bfloat16() else torch.float32
    # Of one commit, which the adapter then names: its base must not become another one when a branch moves.
    revision = resolve_revision(name, revision)
    try:
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(f"student {str(name)!r} has no usable config.json: {error} {SOURCES}") from error
    if config.is_encoder_decoder:
        raise ValueError(f"student {str(name)!r} is an encoder-decoder ({config.model_type}): {REMEDY}")
    if not trust_remote_code and config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(
            f"student {str(name)!r} is a {config.model_type} model, which has no causal language model: {REMEDY}"
        )
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            revision=revision,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            **(_in_4bit() if load_in_4bit else {}),
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"student {str(name)!r} cannot be loaded: {error} {SOURCES}") from error
    model, report = loaded
    model.hub_commit = getattr(revision, "resolved", None)
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ValueError(
            f"student {str(name)!r} lacks {len(missing)} weights of {type(model).__name__} (such as {missing[0]!r}), "
            f"which would start random; it was saved as another kind of model ({config.architectures}): {REMEDY}"
        )
    for module in model.modules() if load_in_4bit else ():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # On such a CPU bitsandbytes 0.50 repacks the weights at the first evaluation, for a kernel without
            # gradients that training then goes through, too.
            module.support_avx512bf16_for_cpu = False
    check_causal(model)
    return model


def _in_4bit() -> dict[str, Any]:
    """What from_pretrained is told for QLoRA: weights are quantised on the device where they are to stay."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError("load_in_4bit needs bitsandbytes, which is not installed: pip install 'flipped_kd[qlora]'.")
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": quantization, "device_map": {"": PartialState().device}}


def load_tokenizer(
    name: str | os.PathLike[str], *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load a tokenizer and give it a pad token if it has none.

    It is eos, else unk: padding is masked, so any id serves.

    Raises:
        ValueError: there is no tokenizer, or it has no token to pad with.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the tokenizer of {str(name)!r} cannot be loaded: {error} Give a folder or Hub name that holds one."
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"the tokenizer of {str(name)!r} has neither pad, eos nor unk token to pad with: set tokenizer.pad_token."
        )
    return tokenizer


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Padding is masked, so any id serves where the tokenizer has none of its own."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id):
        if token_id is not None:
            return int(token_id)
    raise ValueError("the tokenizer has neither pad, eos nor unk token to pad with: set its pad_token.")


@torch.no_grad()
def check_causal(model: PreTrainedModel) -> None:
    """Refuse a model whose earlier positions see later ones, that is an encoder-decoder, or that cannot be adapted.

    BERT-like models load as causal language models and yet read both ways unless `config.is_decoder` is set, so it is
    tried, not looked up. A model of which no whole weight is here (sharded at load time) is not tried.

    Raises:
        ValueError: the model is not causal, or of no use as a student otherwise.
    """
    config = model.config
    if config.is_encoder_decoder:
        raise ValueError(f"student {type(model).__name__} is an encoder-decoder: {REMEDY}")
    if model.get_output_embeddings() is None:
        raise ValueError(f"student {type(model).__name__} has no language-model head: {REMEDY}")
    every = config.to_dict().get("rescale_every")
    if every and every < config.num_hidden_layers:
        raise ValueError(
            f"student {type(model).__name__} divides the weights of its later layers in evaluation "
            f"(rescale_every={every}), which an adapter on them does not follow: set rescale_every=0 in its "
            "config.json."
        )
    if is_sharded(model):
        return
    first, second = read_rows(model).logits.float()
    change = (first - second).abs()
    # Of a causal model the first half does not change at all; kernels of half precision may round it differently.
    tolerance = 1e-3 if model.dtype == torch.float32 else 3e-2
    if change[:4].max() > tolerance * change[4:].max():
        raise ValueError(
            f"student {type(model).__name__} is not causal: later tokens change the logits of earlier ones. {REMEDY} "
            "A BERT-like model must have been trained as a decoder and have is_decoder=true in its config.json."
        )


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
    shown = _shown(config.target_modules)
    if all_linear and not config.target_parameters:
        config = _text_layers(model, config, linear)
    try:
        adapted: Any = get_peft_model(model, config, revision=getattr(model, "hub_commit", None) or config.revision)
    except ValueError as error:
        endings = sorted({name.rsplit(".", 1)[-1] for name in linear})
        remedy = f"some of {endings}"
        remedy = f"Name {remedy} instead." if all_linear else f"Use target_modules='all-linear' or {remedy}."
        raise ValueError(
            f"the student {type(model).__name__} cannot be adapted with {shown}: {error} {remedy}"
        ) from error
    check_adapter(adapted)
    return adapted


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


def _shown(targets: str | Collection[str] | None) -> str:
    names = targets if targets is None or isinstance(targets, str) else sorted(targets)
    return f"target_modules={names!r}"


def accepts_logits_to_keep(model: nn.Module) -> bool:
    """Whether the causal model (unwrapped of PEFT) can compute the logits of chosen positions only."""
    return "logits_to_keep" in inspect.signature(unwrapped(model).forward).parameters


def position_logits(model: nn.Module, inputs: dict[str, Any], positions: Tensor, keep: bool) -> Tensor:
    """Logits at one position a row: `positions` (B,) -> (B, V). With `keep` no other position is computed.

    `model` is called as it is given (a DDP or FSDP wrapper included), never unwrapped: its hooks synchronise
    gradients. With `past_key_values` among the inputs it goes on from that cache.
    """
    use_cache = "past_key_values" in inputs
    if keep:
        return model(**inputs, use_cache=use_cache, logits_to_keep=positions[:, None]).logits[:, 0]
    logits = model(**inputs, use_cache=use_cache).logits
    return logits[torch.arange(len(positions), device=positions.device), positions]


def keep_head_precision(model: PreTrainedModel | PeftModel) -> None:
    """Let the output layer compute in float32 (or wider) under autocast and with half-precision weights.

    bfloat16 logits of size 10 are multiples of 1/16, so that whole ranges of pairs would get one and the same
    log-odds. A head in half precision is computed a second time in a copy, of which only the rows that are read cost
    anything. The layers inside a head that PEFT has wrapped are treated the same.
    """
    for part in unwrapped(model).get_output_embeddings().modules():
        plain = type(part) is nn.Linear or isinstance(part, TrainableTokensWrapper)
        if plain and _precise_output not in part._forward_hooks.values():
            part.register_forward_pre_hook(_leave_autocast)
            part.register_forward_hook(_precise_output)
            part.register_forward_hook(_return_to_autocast, always_call=True)


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


def _leave_autocast(part: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Weights in float32 need no second product; autocast would cast the whole vocabulary for the first."""
    device = inputs[0].device.type
    if part.weight.dtype != torch.float32 or not torch.is_autocast_enabled(device):
        return None
    part.suspended_autocast = torch.autocast(device, enabled=False)
    part.suspended_autocast.__enter__()
    return (wide(inputs[0]), *inputs[1:])


def _return_to_autocast(part: Any, _inputs: tuple[Tensor, ...], _output: Tensor) -> None:
    suspended = part.__dict__.pop("suspended_autocast", None)
    if suspended is not None:
        suspended.__exit__(None, None, None)


def _precise_output(part: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
    if output.dtype not in (torch.bfloat16, torch.float16):
        return None
    bias = getattr(part, "bias", None)
    with torch.autocast(output.device.type, enabled=False):
        return nn.functional.linear(wide(inputs[0]), wide(part.weight), None if bias is None else wide(bias))
