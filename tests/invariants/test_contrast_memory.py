"""Memory stays flat as the contrast grows, by the gradient cache; read at once it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.contrast_memory import LIMIT
from benchmarks.harness import elsewhere


@pytest.fixture(scope="module")
def wide_student(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough for its activations to show beside the libraries'."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("wide_student")
    Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_peak_memory_of_a_contrast_of_1024(wide_student: Path, teacher_dir: Path, tmp_path: Path) -> None:
    lines = [{"text_a": f"my card {n % 997}", "text_b": f"a refund {n % 991}", "label": n % 2} for n in range(1024)]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    peak = {
        (contrast, mini_batch): elsewhere(
            "contrast_memory", wide_student, teacher_dir, pairs, pairs, rows, contrast, mini_batch
        )["peak"]
        # Four steps of 32 are as good as all: their texts are as long.
        for rows, contrast, mini_batch in ((128, 32, 32), (1024, 1024, 32), (1024, 1024, 0))
    }
    assert peak[1024, 32] <= LIMIT * peak[32, 32]
    assert peak[1024, 0] > LIMIT * peak[32, 32]
