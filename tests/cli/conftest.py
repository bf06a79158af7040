"""A tiny adapter for the tests of `flipped-kd`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.helpers import adapter_with_scores


@pytest.fixture(scope="module")
def adapter(student_dir: Path, tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapter_with_scores(tmp_path_factory.mktemp("adapter") / "adapter", student_dir, tokenizer)
