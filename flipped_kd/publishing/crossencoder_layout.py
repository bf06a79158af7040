"""The files by which sentence-transformers' stock CrossEncoder reads a merged model as our matcher, and their probe.

CrossEncoder renders a pair through the chat template (roles query and document), pads on the left, gives no positions
and takes logit(yes) - logit(no) at the last token. A decoder that counts its positions from the first pad (GPT-2) is
scored wrongly that way as soon as a batch holds two lengths; so the layout is tried before it is kept.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentence_transformers
import torch
import transformers
from scipy.special import expit
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules.transformer import Transformer
from sentence_transformers.cross_encoder.modules.logit_score import LogitScore
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..prompts.pair_prompt import PairPrompt
from .errors import PublishError
from .files import CROSS_ENCODER_FILES

SCORE_FOLDER = "1_LogitScore"
LOGITS = {"method": "forward", "method_output_name": "logits"}


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, prompt: PairPrompt) -> None:
    """Give the tokenizer of a merged model the pair's chat template, room for a whole pair, and left padding.

    Chats of other roles go through the template that was there, if any.
    """
    templates = tokenizer.chat_template
    if isinstance(templates, dict):
        tokenizer.chat_template = templates | {"default": pair_or_chat(prompt, templates.get("default"))}
    else:
        tokenizer.chat_template = pair_or_chat(prompt, templates)
    # CrossEncoder cuts what is longer, from the right.
    tokenizer.model_max_length = max(tokenizer.model_max_length, prompt.max_length)
    # A decoder goes on from the last token: generation in batches needs it there. Saved is what init_kwargs names.
    tokenizer.padding_side = "left"
    tokenizer.init_kwargs["padding_side"] = "left"
    for name in ("is_local", "local_files_only"):  # how this process has found it
        tokenizer.init_kwargs.pop(name, None)


def pair_or_chat(prompt: PairPrompt, chat: str | None) -> str:
    """The pair's template for the roles query and document; `chat`, if there is one, for all others."""
    pair = prompt.chat_template()
    if not chat:
        return pair
    # trim_blocks eats the line break after `else`, not one of the template's own, and spaces before `endif`, but not
    # after an expression; the engine drops a last line break.
    chat = chat.removesuffix("\n")
    is_pair = 'messages | selectattr("role", "in", ["query", "document"]) | list'
    return f'{{%- if {is_pair} -%}}\n{pair}\n{{%- else %}}\n{chat}{{{{ "" }}}}{{% endif %}}'


def write_layout(folder: Path, prompt: PairPrompt) -> None:
    """Write modules.json and what it names beside a merged model whose tokenizer has been prepared."""
    no_id, yes_id = prompt.answer_ids
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"{kind.__module__}.{kind.__name__}"}
        for index, (path, kind) in enumerate((("", Transformer), (SCORE_FOLDER, LogitScore)))
    ]
    versions = {
        "sentence_transformers": sentence_transformers.__version__,
        "transformers": transformers.__version__,
        "pytorch": torch.__version__,
    }
    content: dict[str, Any] = {
        "modules.json": modules,
        "sentence_bert_config.json": {
            "transformer_task": "text-generation",
            "modality_config": {"text": LOGITS, "message": LOGITS | {"format": "flat"}},
            "module_output_name": "causal_logits",
        },
        "config_sentence_transformers.json": {
            "model_type": "CrossEncoder",
            "__version__": versions,
            "prompts": {},
            "default_prompt_name": None,
            "activation_fn": "torch.nn.modules.activation.Sigmoid",
        },
        f"{SCORE_FOLDER}/config.json": {
            "true_token_id": yes_id,
            "false_token_id": no_id,
            "module_input_name": "causal_logits",
        },
    }
    assert content.keys() == set(CROSS_ENCODER_FILES)
    (folder / SCORE_FOLDER).mkdir(exist_ok=True)
    for name, value in content.items():
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def remove_layout(folder: Path) -> None:
    """Take the files of `write_layout` away again."""
    for name in CROSS_ENCODER_FILES:
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / SCORE_FOLDER, ignore_errors=True)


def check_layout(
    folder: Path, pairs: Sequence[tuple[str, str]], answers: np.ndarray, tolerance: float
) -> tuple[float, str | None]:
    """Score pairs of several lengths in one batch by the stock CrossEncoder, and compare with the matcher's log-odds.

    Returns the largest difference found, and the reason to leave the layout out where it is above `tolerance`, or
    None. PublishError: CrossEncoder cannot load the folder, or scores even single pairs otherwise.
    """
    remedy = "Merge without this layout: sentence_transformers=False. Nothing was written."
    try:
        model = CrossEncoder(str(folder), device="cpu", local_files_only=True)
        options: dict[str, Any] = {"show_progress_bar": False, "activation_fn": nn.Identity()}
        batch = model.predict(list(pairs), batch_size=len(pairs), **options)
        difference = largest_difference(batch, answers)
        if difference <= tolerance:
            # and as it is called by others, through its own sigmoid
            probabilities = model.predict(list(pairs), batch_size=len(pairs), show_progress_bar=False)
            if largest_difference(probabilities, expit(answers)) > tolerance:
                raise PublishError(
                    f"CrossEncoder turns log-odds into probabilities otherwise than by sigmoid. {remedy}"
                )
            return difference, None
        alone = largest_difference(model.predict(list(pairs), batch_size=1, **options), answers)
    except PublishError:
        raise
    except Exception as error:  # whatever a model's code raises, the merge is refused with a remedy
        raise PublishError(f"CrossEncoder cannot use the merged model: {error!r}. {remedy}") from error
    if not alone <= tolerance:
        raise PublishError(
            f"CrossEncoder scores single pairs otherwise than the matcher, by up to {alone:.2g} (allowed: "
            f"{tolerance:.2g}). {remedy}"
        )
    kind = type(model.transformers_model).__name__
    return difference, (
        f"in a batch of several lengths CrossEncoder's scores are off by up to {difference:.2g}, alone they are "
        f"right: it pads on the left and gives no positions, and {kind} counts its positions, or begins its states, "
        "at the first pad. Use FlippedMatcher."
    )


def largest_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference; infinite where a value is not a number."""
    difference = np.abs(np.asarray(found, np.float64) - np.asarray(expected, np.float64))
    return float(np.nan_to_num(difference, nan=np.inf).max(initial=0.0))
