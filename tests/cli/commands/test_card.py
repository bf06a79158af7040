"""card writes the card that a push would."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.helpers import (
    run,
)


def test_card(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("card", folder / "adapter", "--repo-id", "me/matcher", "--print") == 0
    text = capsys.readouterr().out
    assert text.startswith("---\n") and "me/matcher" in text and not (folder / "adapter" / "README.md").exists()
    assert run("card", folder / "adapter", "--repo-id", "me/matcher") == 0
    card = folder / "adapter" / "README.md"
    assert capsys.readouterr().out == f"{card}\n" and card.read_text() == text
    card.write_text("mine")
    assert run("card", folder / "adapter") == 0 and card.read_text() == "mine"
    assert run("card", folder / "adapter", "--overwrite") == 0 and card.read_text() != "mine"
