"""The peer of a flipped student: the same bare student in the hands of sentence-transformers' own trainer."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from peft import LoraConfig
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder import CrossEncoderTrainer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flipped_kd.prompts.pair_prompt import PairPrompt
from flipped_kd.publishing.crossencoder_layout import prepare_tokenizer, write_layout


class PairTrainer(CrossEncoderTrainer):
    """Without a card: its statistics would render single texts, which the template of a pair refuses."""

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Add none."""


def trainable_cross_encoder(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: PairPrompt,
    peft_config: LoraConfig,
    device: str | None = None,
) -> CrossEncoder:
    """The bare student as sentence-transformers' own trainer would take it, with a new adapter: the peer of ours.

    Args:
        model: the student, without adapter.
        tokenizer: its tokenizer, which gets the pair's chat template.
        prompt: how a pair is read.
        peft_config: of the new adapter.
        device: where to; None takes the best there is.
    """
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        prepare_tokenizer(tokenizer, prompt)
        tokenizer.save_pretrained(folder)
        write_layout(Path(folder), prompt)
        peer = CrossEncoder(folder, device=device, local_files_only=True)
    peer.add_adapter(peft_config)
    return peer
