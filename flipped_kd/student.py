"""The student: a decoder-only language model with a LoRA adapter, loaded safely and checked; its logits at one position."""

from __future__ import annotations

import inspect
import os
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

REMEDY = "name a decoder-only causal language model (Qwen2, Llama, Mistral, GLM ...)."


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
        if not trust_remote_code and config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise ValueError(
                f"student {str(name)!r} is a {config.model_type} model, which has no causal language model: {REMEDY}"
            )
        model = AutoModelForCausalLM.from_pretrained(
            name, revision=revision, dtype=dtype, trust_remote_code=trust_remote_code, use_safetensors=True
        )
    except OSError as error:
        raise ValueError(f"student {str(name)!r} cannot be loaded: {error}") from error
    check_causal(model)
    return model


def load_tokenizer(
    name: str | os.PathLike[str], *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load a tokenizer and give it a pad token if it has none (its eos, else unk: padding is masked, so any id serves)."""
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"the tokenizer of {str(name)!r} has neither pad, eos nor unk token to pad with: set tokenizer.pad_token."
        )
    return tokenizer


@torch.no_grad()
def check_causal(model: nn.Module) -> None:
    """Refuse a model whose earlier positions see later ones, or that is an encoder-decoder.

    BERT-like models load as causal language models and yet read both ways unless `config.is_decoder` is set, so it is tried, not looked up.

    Raises:
        ValueError: the model is not causal.
    """
    config = model.config
    if config.is_encoder_decoder:
        raise ValueError(f"student {type(model).__name__} is an encoder-decoder: {REMEDY}")
    if not hasattr(model, "lm_head") and model.get_output_embeddings() is None:
        raise ValueError(f"student {type(model).__name__} has no language-model head: {REMEDY}")
    if any(parameter.is_meta or parameter.numel() == 0 for parameter in model.parameters()):
        return  # sharded at load time: there is nothing to run yet
    was_training = model.training
    model.eval()
    # Ids away from the special ones at the start of most vocabularies; only the last token differs.
    ids = torch.arange(8, device=model.device)[None] % config.get_text_config().vocab_size + min(
        100, config.get_text_config().vocab_size // 2
    )
    other = ids.clone()
    other[0, -1] = ids[0, 0]
    first, second = (
        model(input_ids=i, attention_mask=torch.ones_like(i)).logits[0, :-1].float() for i in (ids, other)
    )
    model.train(was_training)
    if not torch.allclose(first, second, rtol=1e-2, atol=1e-2 * float(first.abs().max())):
        raise ValueError(
            f"student {type(model).__name__} is not causal: a later token changes the logits of earlier ones (is_decoder="
            f"{getattr(config, 'is_decoder', None)}): {REMEDY}"
        )


def default_lora(
    rank: int = 32, alpha: float = 64.0, dropout: float = 0.05, target_modules: str = "all-linear"
) -> LoraConfig:
    """LoRA on every linear layer but the output one; `target_modules` may name endings instead, separated by commas."""
    targets: Any = target_modules if target_modules == "all-linear" else target_modules.split(",")
    return LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, task_type=TaskType.CAUSAL_LM
    )  # type: ignore[arg-type]


def add_adapter(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """Wrap `model` with a new LoRA adapter; PEFT's error for targets that match nothing is made to name the remedy.

    Raises:
        ValueError: no module matches target_modules.
    """
    try:
        return get_peft_model(model, config)  # type: ignore[return-value]
    except ValueError as error:
        linear = sorted({name.rsplit(".", 1)[-1] for name, m in model.named_modules() if isinstance(m, nn.Linear)})
        raise ValueError(
            f"target_modules={config.target_modules!r} cannot be adapted ({error}): use 'all-linear' or some of {linear}."
        ) from error


def accepts_logits_to_keep(model: nn.Module) -> bool:
    """Whether the causal model (unwrapped of PEFT) can compute the logits of chosen positions only."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return "logits_to_keep" in inspect.signature(base.forward).parameters


def position_logits(model: nn.Module, inputs: dict[str, Tensor], positions: Tensor, keep: bool) -> Tensor:
    """Logits at one position a row: `positions` (B,) -> (B, V). With `keep` no other position is computed.

    `model` is called as it is given (a DDP or FSDP wrapper included), never unwrapped: its hooks synchronise gradients.
    """
    if keep:
        return model(**inputs, use_cache=False, logits_to_keep=positions[:, None]).logits[:, 0]
    logits = model(**inputs, use_cache=False).logits
    return logits[torch.arange(len(positions), device=positions.device), positions]
