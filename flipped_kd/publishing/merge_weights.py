"""An adapter's weights merged into those of its base, tied embeddings included."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel


def merge_weights(model: PeftModel) -> tuple[PreTrainedModel, bool]:
    """Merge the active adapter into its base, in place.

    Returns:
        (the base model, whether its embeddings had to be untied).

    Raises:
        ValueError: an adapter weight is not finite.
    """
    base: Any = model.get_base_model()
    was_tied = _untie(base)
    with warnings.catch_warnings():
        # PEFT warns of tied embeddings, which are taken care of here.
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")
        merged: Any = model.merge_and_unload(safe_merge=True)
    if not was_tied:
        return merged, False
    embedding, head = merged.get_input_embeddings(), merged.get_output_embeddings()
    if torch.equal(embedding.weight, head.weight):  # the adapter changed both alike
        head.weight = embedding.weight
        _set_tied(merged, True)
        return merged, False
    # Whatever else is tied by the same switch (BERT's output bias) must be written out too.
    for name, source in merged.all_tied_weights_keys.items():
        shared = merged.get_parameter(name)
        if shared is merged.get_parameter(source):
            parent, _, leaf = name.rpartition(".")
            setattr(merged.get_submodule(parent), leaf, nn.Parameter(shared.detach().clone()))
    merged.all_tied_weights_keys = {}
    _set_tied(merged, False)
    return merged, True


def _untie(base: Any) -> bool:
    """Give the output embedding a matrix of its own if it shares the input one's and the adapter changes either."""
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    adapted = any(isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) for module in (embedding, head))
    if head is None or not adapted:
        return False
    inner_embedding, inner_head = _original(embedding), _original(head)
    if inner_head.weight is not inner_embedding.weight:
        return False
    inner_head.weight = nn.Parameter(inner_head.weight.detach().clone(), requires_grad=False)
    return True


def _original(module: Any) -> Any:
    """The module that PEFT has wrapped."""
    if isinstance(module, AuxiliaryTrainingWrapper):
        return module.original_module
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _set_tied(model: Any, tied: bool) -> None:
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = tied
