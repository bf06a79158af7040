"""Whether student, base and tokenizer have one vocabulary: what cannot be loaded again is not trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..prompts.pair_prompt import PairPrompt
from .gguf import gguf_path, is_gguf, load_gguf_config


def check_not_resized(model: PreTrainedModel) -> None:
    """Refuse a student whose vocabulary was resized in memory.

    Its adapter names the base as it is stored, whose embeddings have another number of rows, and would not load.

    Raises:
        ValueError: the message names both sizes and what to do.
    """
    name = str(getattr(model.config, "_name_or_path", "") or "")
    stored = _stored_size(model, name)
    own = model.config.get_text_config().vocab_size
    if stored is not None and own != stored:
        raise ValueError(
            f"the student's vocabulary has {own} entries, that of its base {name!r} has {stored}: it was resized in "
            "memory, and an adapter trained on it could not be loaded. Save the resized model and its tokenizer into "
            "one folder (save_pretrained of both), and give the trainer that folder."
        )


def check_vocabulary(rows: int, tokenizer: PreTrainedTokenizerBase, prompt: PairPrompt, model: str, why: str) -> None:
    """Raise ValueError for a tokenizer that gives ids for which the model, of so many `rows` of embeddings, has none.

    `why` tells what that means, and the remedy.
    """
    fixed = max(*prompt.prefix_ids, *prompt.middle_ids, *prompt.suffix_ids, *prompt.answer_ids)
    padding = -1 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    largest = max(fixed, tokenizer.vocab_size - 1, padding)
    if largest >= rows:
        raise ValueError(
            f"the tokenizer gives token ids up to {largest}, the model {model} has embeddings for {rows}: {why}"
        )


def _stored_size(model: Any, name: str) -> int | None:
    """Entries in the vocabulary of the base of that name, if it is at hand."""
    if not name:
        return None
    commit = getattr(model, "hub_commit", None) or getattr(model.config, "_commit_hash", None)
    try:
        if is_gguf(name):
            return int(load_gguf_config(gguf_path(name, commit)[0]).get_text_config().vocab_size)
        # No code of the repository is run, and nothing is fetched: it was loaded from what is here.
        content, _ = PretrainedConfig.get_config_dict(name, revision=commit, local_files_only=not Path(name).is_dir())
        return int(type(model.config).from_dict(content).get_text_config().vocab_size)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError):
        return None
