"""A tiny matcher, a corpus, and one server for all tests that only ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flipped_kd import FlippedMatcher
from flipped_kd.serving.corpus import CorpusSource
from tests.adapters import make_base
from tests.cli.helpers import adapter_with_scores
from tests.serving.running import Running, running

CORPUS = [
    "where is my card",
    "how long does a refund take",
    "cancel the loan please",
    "why was my salary refused",
    "an invoice has not arrived",
    "the app is <b>slow</b> & ugly",
]


@pytest.fixture(scope="session")
def adapter_dir(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter whose thresholds are not the natural ones."""
    folder = tmp_path_factory.mktemp("served")
    base = make_base(folder / "base", "qwen2", tokenizer, tied=True)
    return adapter_with_scores(folder / "adapter", base, tokenizer)


@pytest.fixture(scope="session")
def matcher(adapter_dir: Path) -> FlippedMatcher:
    """What the server's numbers are held against; it reads in the tests' thread, the server's copy in its own."""
    return FlippedMatcher.from_pretrained(adapter_dir, device="cpu")


@pytest.fixture(scope="session")
def load(adapter_dir: Path) -> Any:
    """Gives a server its matcher."""
    return lambda: FlippedMatcher.from_pretrained(adapter_dir, device="cpu")


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text a line."""
    path = tmp_path_factory.mktemp("corpus") / "faq.txt"
    path.write_text("".join(f"{text}\n" for text in CORPUS), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def server(load: Any, corpus_file: Path) -> Iterator[Running]:
    """With the corpus, and without a token."""
    with running(load, CorpusSource(str(corpus_file)), name="tiny") as server:
        yield server
