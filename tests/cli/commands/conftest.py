"""The matcher of the tiny adapter, and pairs for the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flipped_kd.inference.matcher import FlippedMatcher
from tests.cli.helpers import (
    adapter_with_scores,
    pair_rows,
    write_rows,
)


@pytest.fixture(scope="module")
def matcher(adapter: Path) -> FlippedMatcher:
    return FlippedMatcher.from_pretrained(adapter, device="cpu")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return pair_rows(13)


@pytest.fixture
def pairs(rows: list[dict[str, Any]], tmp_path: Path) -> Path:
    return write_rows(tmp_path / "pairs.jsonl", rows)


@pytest.fixture(scope="module")
def documents() -> list[dict[str, str]]:
    texts = list(dict.fromkeys(row["text_b"] for row in pair_rows(60, seed=3)))
    return [{"text": text, "key": f"doc-{place}"} for place, text in enumerate(texts)]


@pytest.fixture(scope="module")
def folder(student_dir: Path, tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter and labelled pairs."""
    folder = tmp_path_factory.mktemp("models")
    adapter_with_scores(folder / "adapter", student_dir, tokenizer)
    write_rows(folder / "pairs.jsonl", pair_rows(40))
    write_rows(folder / "validation.jsonl", pair_rows(24, seed=1))
    return folder
