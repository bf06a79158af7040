"""The student: a decoder-only language model with a LoRA adapter, loaded safely and checked."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.hub import resolve_revision

from ..utils.devices import has_bfloat16
from ..utils.weight_files import check_models
from .gguf import gguf_path, is_gguf, load_gguf_config, make_ordinary
from .probing import is_sharded, position_limit, probe_rows, unwrapped

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
    download: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    """Load a causal language model from safetensors (never from a pickle).

    Args:
        name: Hub name or folder; or a GGUF file (FILE.gguf, FOLDER/FILE.gguf, owner/name:FILE.gguf), whose quantised
            weights are turned into float ones.
        revision: branch, tag or commit.
        dtype: "auto" is float32 on a CPU and bfloat16 on a GPU that has it.
        trust_remote_code: run code from the repository.
        load_in_4bit: keep the weights of linear layers in 4 bits (NF4, arXiv 2305.14314) and compute in bfloat16; the
            adapter on them stays float32. Needs bitsandbytes (the extra `qlora`).
        download: options of the download of a GGUF file: token, cache_dir.

    Raises:
        ValueError: it is no causal language model, a file of it is broken, or it cannot be loaded.
        ImportError: `load_in_4bit` without bitsandbytes, a GGUF file without gguf.
    """
    if dtype == "auto":
        dtype = torch.bfloat16 if has_bfloat16() else torch.float32
    if is_gguf(name):
        return _load_gguf(name, revision, dtype, load_in_4bit, download or {})
    check_models(name)
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
    except SafetensorError as error:  # of a download; files in a folder have been looked at
        raise ValueError(
            f"the weights of student {str(name)!r} are broken or truncated ({error}): remove them from the Hub's "
            "cache (`hf cache rm`) and download them again."
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"student {str(name)!r} cannot be loaded: {error} {SOURCES}") from error
    model, report = loaded
    model.hub_commit = getattr(revision, "resolved", None)
    _check_complete(report, model, name)
    for module in model.modules() if load_in_4bit else ():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # On such a CPU bitsandbytes 0.50 repacks the weights at the first evaluation, for a kernel without
            # gradients that training then goes through, too.
            module.support_avx512bf16_for_cpu = False
    check_causal(model)
    return model


def _load_gguf(
    name: str | os.PathLike[str],
    revision: str | None,
    dtype: str | torch.dtype,
    load_in_4bit: bool,
    download: Mapping[str, Any],
) -> PreTrainedModel:
    """A student from a GGUF file, as any other from then on; errors as in `load_student`."""
    if load_in_4bit:
        raise ValueError(f"load_in_4bit with {str(name)!r}: take the model's safetensors, which are not rounded yet.")
    path, base = gguf_path(name, revision, **download)
    config = load_gguf_config(path)
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(f"student {str(name)!r} is a {config.model_type} model, no causal language model: {REMEDY}")
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            quantization_config=GgufConfig(dequantize=True),
        )
    # NotImplementedError: a quantisation that gguf cannot undo.
    except (OSError, ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"student {str(name)!r} cannot be read from GGUF: {error} {SOURCES}") from error
    model, report = loaded
    _check_complete(report, model, name)
    make_ordinary(model, name, base)
    model.hub_commit = base.revision
    check_causal(model)
    return model


def _check_complete(report: Mapping[str, Any], model: PreTrainedModel, name: str | os.PathLike[str]) -> None:
    """Raise ValueError if weights are missing."""
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ValueError(
            f"student {str(name)!r} lacks {len(missing)} weights of {type(model).__name__} (such as {missing[0]!r}), "
            f"which would start random; it was saved as another kind of model ({model.config.architectures}): {REMEDY}"
        )


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
    """Load a tokenizer, of a GGUF file that inside it, and give it a pad token if it has none.

    It is eos, else unk: padding is masked, so any id serves.

    Raises:
        ValueError: there is no tokenizer, or it has no token to pad with.
    """
    try:
        if is_gguf(name):
            path, _ = gguf_path(name, revision)
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        else:
            tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise _no_tokenizer(name, error) from error
    except Exception as error:  # tokenizers raises no narrower one for a file that a newer release has written
        if type(error) is not Exception:
            raise
        raise _no_tokenizer(name, error, " It may have been written by a newer release of tokenizers.") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"the tokenizer of {str(name)!r} has neither pad, eos nor unk token to pad with: set tokenizer.pad_token."
        )
    return tokenizer


def _no_tokenizer(name: str | os.PathLike[str], error: Exception, why: str = "") -> ValueError:
    return ValueError(
        f"the tokenizer of {str(name)!r} cannot be loaded: {error}{why} Give a folder or Hub name that holds one."
    )


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
    first, second = probe_rows(model).logits.float()
    change = (first - second).abs()
    # Of a causal model the first half does not change at all; kernels of half precision may round it differently.
    tolerance = 1e-3 if model.dtype == torch.float32 else 3e-2
    if change[:4].max() > tolerance * change[4:].max():
        raise ValueError(
            f"student {type(model).__name__} is not causal: later tokens change the logits of earlier ones. {REMEDY} "
            "A BERT-like model must have been trained as a decoder and have is_decoder=true in its config.json."
        )


def check_positions(model: nn.Module, max_length: int) -> None:
    """Raise ValueError where rows of `max_length` tokens are longer than the student has positions for."""
    limit = position_limit(model)
    if limit is not None and max_length > limit:
        raise ValueError(
            f"max_length={max_length}: student {type(unwrapped(model)).__name__} has {limit} positions: use "
            f"max_length={limit} or less, or a student that reads longer texts."
        )
