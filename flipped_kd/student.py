"""The student: a decoder-only language model with a LoRA adapter, loaded safely and checked; its answer logits."""

from __future__ import annotations

import inspect
import os
from collections.abc import Collection
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

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
) -> PreTrainedModel:
    """Load a causal language model from safetensors (never from a pickle).

    Args:
        name: Hub name or folder.
        revision: branch, tag or commit.
        dtype: "auto" is float32 on a CPU and bfloat16 on a GPU that has it.
        trust_remote_code: run code from the repository.

    Raises:
        ValueError: it is no causal language model, or cannot be loaded.
    """
    if dtype == "auto":
        dtype = torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32
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
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"student {str(name)!r} cannot be loaded: {error} {SOURCES}") from error
    model, report = loaded
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ValueError(
            f"student {str(name)!r} lacks {len(missing)} weights of {type(model).__name__} (such as {missing[0]!r}), "
            f"which would start random; it was saved as another kind of model ({config.architectures}): {REMEDY}"
        )
    check_causal(model)
    return model


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
    """Refuse a model whose earlier positions see later ones, or that is an encoder-decoder.

    BERT-like models load as causal language models and yet read both ways unless `config.is_decoder` is set, so it is
    tried, not looked up. A model of which no whole weight is here (sharded at load time) is not tried.

    Raises:
        ValueError: the model is not causal.
    """
    config = model.config
    if config.is_encoder_decoder:
        raise ValueError(f"student {type(model).__name__} is an encoder-decoder: {REMEDY}")
    if model.get_output_embeddings() is None:
        raise ValueError(f"student {type(model).__name__} has no language-model head: {REMEDY}")
    if any(parameter.is_meta or parameter.numel() == 0 for parameter in model.parameters()):
        return
    was_training = model.training
    model.eval()
    # Ids away from the special ones at the start of most vocabularies; the two texts share their first half.
    size = config.get_text_config().vocab_size
    ids = (torch.arange(8, device=model.device)[None] + min(100, size // 2)) % size
    other = ids.clone()
    other[:, 4:] = (other[:, 4:] + 4) % size
    first, second = (model(input_ids=i, attention_mask=torch.ones_like(i)).logits[0].float() for i in (ids, other))
    model.train(was_training)
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

    Raises:
        ValueError: no module matches target_modules, or PEFT refuses another setting.
    """
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        head = model.get_output_embeddings()
        linear = {
            name.rsplit(".", 1)[-1]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and module is not head
        }
        raise ValueError(
            f"the student {type(model).__name__} cannot be adapted with {_shown(config.target_modules)}: {error} "
            f"Use target_modules='all-linear' or some of {sorted(linear)}."
        ) from error


def _shown(targets: str | Collection[str] | None) -> str:
    names = targets if targets is None or isinstance(targets, str) else sorted(targets)
    return f"target_modules={names!r}"


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """The causal language model itself, without PEFT's wrapper (its layers stay adapted)."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    return base


def input_device(model: nn.Module) -> torch.device:
    """Where the model takes its token ids."""
    embedding: Any = unwrapped(model).get_input_embeddings()
    return embedding.weight.device


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
    """Let the output layer compute in its weights' precision under autocast.

    bfloat16 logits of size 10 are multiples of 1/16, so that whole ranges of pairs would get one and the same
    log-odds. Only the rows that are read are computed, so the second product costs next to nothing.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    head = base.get_output_embeddings()
    if type(head) is nn.Linear and _precise_output not in head._forward_hooks.values():
        head.register_forward_hook(_precise_output)


def _precise_output(head: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
    if output.dtype == head.weight.dtype:
        return None
    with torch.autocast(output.device.type, enabled=False):
        return nn.functional.linear(inputs[0].to(head.weight.dtype), head.weight, head.bias)
