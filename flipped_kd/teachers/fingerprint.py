"""A name for all that decides a teacher's scores, and a cheap way to see that nothing of it has changed."""

import hashlib
import json
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Module
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..utils.digests import hash_tensors, tensor_bytes

# Fields of a model's config that do not change what it computes.
VOLATILE_CONFIG = {"_name_or_path", "transformers_version", "dtype", "architectures", "use_cache"}


def model_fingerprint(model: SentenceTransformer | CrossEncoder) -> str:
    """sha256 of all that decides a model's scores: weights by name, modules with their settings, tokenizer, prompts.

    The length limit and the dtype count too; the device does not.

    Args:
        model: the model.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(_settings(model, _tokenizer_settings))
    hash_tensors(digest, model.state_dict().items())
    return digest.hexdigest()


class FingerprintMemory:
    """`model_fingerprint`, computed anew only if the model may have changed since the last call.

    That is seen by the settings as they are and a CRC-32 of each weight: torch's own count of in-place changes misses
    writes through `.data` or a NumPy view. (all-MiniLM-L6-v2, 91 MB: 28 ms instead of 180.)
    """

    def __init__(self) -> None:
        self._signature: object = None
        self._fingerprint = ""

    def __call__(self, model: SentenceTransformer | CrossEncoder) -> str:
        """The model's fingerprint now."""
        signature = _signature(model)
        if signature != self._signature:
            self._fingerprint = model_fingerprint(model)
            self._signature = signature
        return self._fingerprint


def _signature(model: SentenceTransformer | CrossEncoder) -> tuple[object, ...]:
    settings = hashlib.sha256(_settings(model, _tokenizer_as_it_is)).digest()
    tensors = model.state_dict()
    with ThreadPoolExecutor() as pool:  # zlib lets other threads run meanwhile
        sums = list(pool.map(lambda tensor: zlib.crc32(tensor_bytes(tensor)), tensors.values()))
    shapes = ((name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items())
    return settings, tuple(zip(shapes, sums, strict=True))


def _settings(model: SentenceTransformer | CrossEncoder, of_tokenizer: Callable[[Any], Any]) -> bytes:
    settings: dict[str, Any] = {
        "type": type(model).__name__,
        "modules": [
            (name, type(module).__name__, module.get_config_dict() if isinstance(module, Module) else {})
            for name, module in model.named_children()
        ],
        "max_seq_length": model.max_seq_length,
        "prompts": model.prompts,
        "default_prompt_name": model.default_prompt_name,
        "tokenizer": of_tokenizer(model.tokenizer),
    }
    if isinstance(model, SentenceTransformer):
        settings["truncate_dim"] = model.truncate_dim
    if model.config is not None:
        settings["config"] = {
            key: value for key, value in model.config.to_dict().items() if key not in VOLATILE_CONFIG
        }
    # Objects that JSON does not know are named by their type: their repr may hold an address.
    return json.dumps(settings, sort_keys=True, default=lambda value: type(value).__qualname__).encode()


def _tokenizer_settings(tokenizer: Any) -> Any:
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        return [_tokenizer_settings(tokenizer.backend_tokenizer), tokenizer.chat_template, *_sides(tokenizer)]
    if isinstance(tokenizer, Tokenizer):
        # Truncation and padding are set anew at every call; what they leave behind is not a setting.
        return {
            key: value for key, value in json.loads(tokenizer.to_str()).items() if key not in ("truncation", "padding")
        }
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        settings = [sorted(tokenizer.get_vocab().items()), tokenizer.special_tokens_map, tokenizer.chat_template]
        return settings + _sides(tokenizer)
    return type(tokenizer).__qualname__


def _sides(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Which end of a long text is cut off, where it is not the last: as before there was this, so that caches hold."""
    return [] if tokenizer.truncation_side == "right" else [f"truncation_side={tokenizer.truncation_side}"]


def _tokenizer_as_it_is(tokenizer: Any) -> Any:
    """As `_tokenizer_settings`, not taken apart: fifty times quicker, but the traces of use are left in."""
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        return [tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template, *_sides(tokenizer)]
    return tokenizer.to_str() if isinstance(tokenizer, Tokenizer) else _tokenizer_settings(tokenizer)
