"""A trained model's files: an adapter or a merged model, in a folder or on the Hub, read and checked before use."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel, PeftType, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..evaluation.match_score import SCORE_FILE, MatchScore
from ..prompts.pair_prompt import PROMPT_FILE, PairPrompt
from ..students.base_weights import check_same_base
from ..students.gguf import GgufBase, check_same_file, is_gguf
from ..students.loading import load_student, load_tokenizer
from ..students.lora import without_advice
from ..students.lora_encoder import ENCODER_FILE, MATRICES_FILE, LoraEncoder
from ..students.probing import unwrapped
from ..students.vocabulary import check_vocabulary
from ..utils.checks import check_choice
from ..utils.devices import weights_dtype
from ..utils.hub_download import Access, fetch
from ..utils.json_files import AGAIN
from ..utils.weight_files import SHARDS_FILE, check_weight_files, shards_in

logger = logging.getLogger(__name__)
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MODEL_CONFIG = "config.json"
# What is fetched from the Hub: first what says whether the repository is usable, then the weights. Never a pickle.
SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]
WEIGHT_FILES = ["*.safetensors"]
# Of an adapter's base, beside its weights: offline, what was never fetched cannot be had.
BASE_FILES = ["config.json", "generation_config.json", SHARDS_FILE]
OWN = "a training (`flipped-kd train`, FlippedDistillationTrainer) or a merge (`flipped-kd merge`, merge_adapter)"


@dataclass
class LoadedModel:
    """All of a trained model; the encoder is attached."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    prompt: PairPrompt
    encoder: LoraEncoder
    match_score: MatchScore | None


def local_folder(name: str | os.PathLike[str], *, revision: str | None = None, access: Access | None = None) -> Path:
    """The folder of a trained model, fetched from the Hub if `name` is no folder here; its contracts are all there.

    Where code is trusted, the repository's Python files too; the rest as in `FlippedMatcher.from_pretrained`.
    ValueError: there is no such folder or repository, it cannot be had, lacks a contract file, or one is broken.
    """
    access = access or Access()
    if Path(name).is_dir():
        if revision is not None:
            raise ValueError(
                f"revision={revision!r} is of a repository on the Hub, and {name} is a folder: leave it out."
            )
        folder = Path(name)
    else:
        folder = fetch(name, revision, access, SMALL_FILES)
        _check_contracts(folder, name, weights=False)
        # The commit that was checked, whatever has been pushed meanwhile.
        folder = fetch(name, folder.name, access, SMALL_FILES + WEIGHT_FILES)
    _check_contracts(folder, name, weights=True)
    return folder


def load_matcher(
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    base_model: str | os.PathLike[str] | None = None,
    access: Access | None = None,
) -> LoadedModel:
    """Load a folder that `local_folder` gave: contracts first, then the model. LoRA's own weights stay in float32.

    ValueError: a contract is broken or of a newer release, the adapter does not fit the base, or the base's weights
    are not those that it was trained on.
    """
    access = access or Access()
    encoder = LoraEncoder.from_pretrained(folder)
    match_score = MatchScore.from_pretrained(folder) if (folder / SCORE_FILE).is_file() else None
    tokenizer = load_tokenizer(folder, trust_remote_code=access.trust_remote_code)
    try:
        prompt = PairPrompt.from_pretrained(folder, tokenizer)
    except TypeError as error:
        raise ValueError(f"{folder / PROMPT_FILE} is no saved PairPrompt ({error}): {AGAIN}.") from error
    model: PreTrainedModel | PeftModel
    if is_adapter(folder):
        model = _load_adapted(folder, base_model, dtype, access)
        encoder.attach(model)
    elif base_model is not None:
        raise ValueError(
            f"{folder} holds a merged model, which has no base: leave base_model={str(base_model)!r} out."
        )
    else:
        model = load_student(folder, dtype=dtype, trust_remote_code=access.trust_remote_code)
        encoder.attach_merged(model, folder)
    embedding: Any = unwrapped(model).get_input_embeddings()
    shown = repr(str(folder if base_model is None else base_model))
    why = "it is not the base that the adapter was trained on."
    check_vocabulary(embedding.weight.shape[0], tokenizer, prompt, shown, why)
    return LoadedModel(model.to(device).eval(), tokenizer, prompt, encoder, match_score)  # type: ignore[arg-type]


def resolved_device(device: str | torch.device | None) -> torch.device:
    """The device that a name means; None means the accelerator, if there is one.

    ValueError: there is none of that name here. So it is known before a model is loaded.
    """
    if device is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"device={str(device)!r} cannot be used here ({reason}): leave it out, or give one that this machine has."
        ) from error


def resolved_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype that a name or "auto" means: on a CPU float32, on a GPU bfloat16 if it has it."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return weights_dtype(device)
    check_choice("dtype", dtype, ("auto", "float32", "bfloat16", "float16"))
    resolved: torch.dtype = getattr(torch, dtype)
    return resolved


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter (else a merged model)."""
    return (folder / ADAPTER_CONFIG).is_file()


def _check_contracts(folder: Path, name: str | os.PathLike[str], weights: bool) -> None:
    """Raise ValueError unless all files that a matcher is made of are there; `weights` asks for the large ones too."""
    adapter = is_adapter(folder)
    if not adapter and not (folder / MODEL_CONFIG).is_file():
        raise ValueError(
            f"{str(name)!r} holds neither {ADAPTER_CONFIG} nor {MODEL_CONFIG}: give what {OWN} has written."
        )
    needed = [PROMPT_FILE, ENCODER_FILE, "tokenizer_config.json"]
    if weights:
        needed.append(ADAPTER_WEIGHTS if adapter else MATRICES_FILE)
    missing = [file for file in needed if not (folder / file).is_file()]
    if weights and not adapter and not any(folder.glob("model*.safetensors")):
        missing.append("model.safetensors")
    if missing:
        kind = "an adapter" if adapter else "a model"
        raise ValueError(
            f"{str(name)!r} holds {kind} without {', '.join(missing)}: a matcher reads what {OWN} has written. Save "
            "or download it again, with all its files."
        )
    if weights:
        check_weight_files(folder)


def read_adapter_config(folder: Path) -> PeftConfig:
    """PEFT's settings of the adapter in `folder`; ValueError if they are broken or not of LoRA."""
    path = folder / ADAPTER_CONFIG
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no adapter configuration of PEFT ({error}): {AGAIN}.") from error
    if config.peft_type != PeftType.LORA:
        raise ValueError(f"{path} describes a {config.peft_type} adapter: the matcher reads LoRA adapters only.")
    return config


def base_of(folder: Path, base_model: str | os.PathLike[str] | None) -> tuple[str, str | None]:
    """(name, revision) of the base of an adapter: the one given, or the one the adapter names."""
    config = read_adapter_config(folder)
    if base_model:
        return os.fspath(base_model), None
    if not config.base_model_name_or_path:
        raise ValueError(f"{folder / ADAPTER_CONFIG} names no base: give base_model='its folder or Hub id'.")
    return config.base_model_name_or_path, config.revision


def _fetch_base(name: str, revision: str | None, access: Access) -> Path:
    """The local folder of a base on the Hub, with the weights that transformers reads: other formats are large."""
    place = fetch(name, revision, access, BASE_FILES)
    weights = sorted(shards_in(place / SHARDS_FILE)) if (place / SHARDS_FILE).is_file() else ["model.safetensors"]
    return fetch(name, place.name, access, [*BASE_FILES, *weights])


def _load_adapted(
    folder: Path,
    base_model: str | os.PathLike[str] | None,
    dtype: torch.dtype,
    access: Access,
) -> PeftModel:
    """The base with the adapter in `folder` upon it."""
    name, revision = base_of(folder, base_model)
    try:
        if is_gguf(name):
            options = {"token": access.token, "cache_dir": access.cache_dir}
            base = load_student(name, revision=revision, dtype=dtype, download=options)
            recorded = GgufBase.from_pretrained(folder)
            if recorded is not None:
                check_same_file(recorded, cast(Any, base).gguf_base, name)
        else:
            place = Path(name) if Path(name).is_dir() else _fetch_base(name, revision, access)
            base = load_student(place, dtype=dtype, trust_remote_code=access.trust_remote_code)
    except (ValueError, ImportError) as error:
        raise ValueError(
            f"the base {str(name)!r} of the adapter in {folder} cannot be loaded: {error} If it has moved, give "
            "base_model='its folder or Hub id'."
        ) from error
    check_same_base(folder, base, name)
    misfit = f"the adapter in {folder} does not fit the base {str(name)!r}; it was trained on " + (
        f"{read_adapter_config(folder).base_model_name_or_path!r}" if base_model else "another model of that name"
    )
    try:
        with without_advice():
            # By way of the CPU: PEFT's default is the first GPU, whatever the base is on.
            model = PeftModel.from_pretrained(base, str(folder), is_trainable=False, torch_device="cpu")
        with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
            saved = set(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{folder / ADAPTER_WEIGHTS} cannot be read ({error}): {AGAIN}.") from error
    except (RuntimeError, ValueError, KeyError) as error:
        first = next((line for line in str(error).splitlines() if "mismatch" in line), str(error))
        raise ValueError(f"{misfit}: {first.strip()}") from error
    held = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    unfilled = sorted(held - saved) or sorted(key for key in saved - held if "lora_" in key)
    if unfilled:
        raise ValueError(f"{misfit}: {len(unfilled)} of its weights, such as {unfilled[0]!r}, have no counterpart.")
    return model
