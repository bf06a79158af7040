"""Adapters of many kinds for the tests of merging and publishing: random, saved as the trainer saves them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from flipped_kd.evaluation.match_score import LogOdds, MatchScore
from flipped_kd.prompts.pair_prompt import PairPrompt
from flipped_kd.students.lora_encoder import LoraEncoder

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# A batch of many lengths: of one word, with line breaks and Chinese, and long.
MIXED_PAIRS = [
    ("cash", "refund"),
    ("where is my card", "how long does my card take"),
    ("why was the transfer refused\nand when", "cancel the transfer please"),
    ("我的卡在哪里", "the loan has not arrived"),
    (" ".join(["an invoice has not arrived"] * 6), "the app {% raise %} {{ messages }}"),
    ("cancel my salary please", " ".join(["where is the app"] * 6)),
]


def make_base(folder: Path, kind: str, tokenizer: PreTrainedTokenizerBase, *, tied: bool, **options: Any) -> Path:
    """A random two-layer decoder, saved as a model repository; weights large enough for scores to differ."""
    torch.manual_seed(0)
    size: dict[str, Any] = {"vocab_size": len(tokenizer), "tie_word_embeddings": tied, "max_position_embeddings": 256}
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    spread: dict[str, Any] = {"initializer_range": 0.2}
    gpt2: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    heads: dict[str, Any] = {"num_key_value_heads": 1, "head_dim": 16}
    model: Any = {
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**size, **shape, **spread, num_key_value_heads=1)),
        "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**size, **shape, **spread, **heads, pad_token_id=0)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**size, **gpt2, **spread)),
        "bert": lambda: BertLMHeadModel(BertConfig(**size, **shape, **spread, is_decoder=True)),
    }[kind]()
    model.to(options.get("dtype", torch.float32)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_adapter(
    folder: Path,
    base: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int = 1,
    max_length: int = 128,
    instruction: str | None = None,
    score: bool = True,
    encoder_layers: str = "all",
    encoder_pooling: Any = "concat",
    **options: Any,
) -> Path:
    """An adapter with random A and B for a saved base; `options` are those of LoraConfig."""
    settings = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.3, "target_modules": LINEAR} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's advice on tied embeddings and Conv1D
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
            LoraConfig(task_type=TaskType.CAUSAL_LM, **settings),  # type: ignore[arg-type]
        )
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(str(folder))
    (folder / "README.md").unlink()  # PEFT's
    LoraEncoder.from_model(model, layers=encoder_layers, pooling=encoder_pooling).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    prompt = PairPrompt.from_preset(tokenizer, max_length=max_length, instruction=instruction)
    prompt.save_pretrained(folder)
    if score:
        odds = {"answer": (1.0, 0.0, 0.0), "similarity": (0.0, 3.0, -1.0), "both": (0.5, 2.0, 0.25)}
        MatchScore({kind: LogOdds(*values, threshold=0.0) for kind, values in odds.items()}).save_pretrained(folder)  # type: ignore[misc]
    return folder


def tied_adapter(folder: Path, tokenizer: PreTrainedTokenizerBase, **options: Any) -> Path:
    """An adapter on every linear layer of a tied Qwen2, which is in "base" beside it; `options` of `make_adapter`."""
    base = make_base(folder / "base", "qwen2", tokenizer, tied=True)
    return make_adapter(folder / "adapter", base, tokenizer, **options)


def close(found: Any, expected: Any) -> None:
    """Scores or vectors, to 1e-5."""
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=1e-5)


def with_lora(student: Qwen2ForCausalLM, **settings: Any) -> PeftModel:
    """The student with a LoRA adapter whose B is not zero, so that the layers above feel those below."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"r": 3, "target_modules": "all-linear", "lora_dropout": 0.0} | settings
    return fill_b(get_peft_model(student, LoraConfig(**options)), std=0.2).eval()


def fill_b(model: PeftModel, std: float) -> PeftModel:
    """Give B random weights, as after training, in place of zeros."""
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=std)
    return model
