"""What the table of a comparison says beside its numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flipped_kd.evaluation.comparison import markdown_table

REPORT = Path(__file__).parents[2] / "model_cards" / "fin_mini" / "report.json"


@pytest.mark.parametrize(("plain", "told"), [(0.50, True), (0.519, True), (0.521, False), (0.8, False)])
def test_a_baseline_that_has_learned_nothing_is_said_to_be_none(plain: float, told: bool) -> None:
    report: dict[str, Any] = json.loads(REPORT.read_text(encoding="utf-8"))
    report["systems"]["llm"]["auc"], report["systems"]["llm_sft"]["auc"] = 0.5, plain
    said = f"its answer has an AUC of {plain:.3f}, where the LLM before training has 0.500"
    assert (said in markdown_table(report)) is told
    del report["systems"]["llm_sft"]
    assert "has not learned" not in markdown_table(report)
