"""What the table of a comparison says beside its numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flipped_kd.evaluation.comparison import COMPARED_METRICS, markdown_table, summarise

REPORT = Path(__file__).parents[2] / "model_cards" / "fin_mini" / "report.json"


@pytest.mark.parametrize(("plain", "told"), [(0.50, True), (0.519, True), (0.521, False), (0.8, False)])
def test_a_baseline_that_has_learned_nothing_is_said_to_be_none(plain: float, told: bool) -> None:
    report: dict[str, Any] = json.loads(REPORT.read_text(encoding="utf-8"))
    report["systems"]["llm"]["auc"], report["systems"]["llm_sft"]["auc"] = 0.5, plain
    said = f"its answer has an AUC of {plain:.3f}, where the LLM before training has 0.500"
    assert (said in markdown_table(report)) is told
    report["systems"]["llm"]["auc"], report["systems"]["llm_sft"]["auc"] = 0.97, 0.98  # a good one had little to learn
    assert "has not learned" not in markdown_table(report)
    del report["systems"]["llm_sft"]
    assert "has not learned" not in markdown_table(report)


@pytest.mark.parametrize("asked", [0, 1])
def test_a_system_that_some_seed_lacks_is_left_out(asked: int) -> None:
    """The bare LLM, where seeds were added without the baseline."""
    values = dict.fromkeys(COMPARED_METRICS, 0.5)
    seeds: list[dict[str, dict[str, float]]] = [{"teacher": values, "llm_flipped": values} for _ in range(2)]
    seeds[asked] = {"llm": values, **seeds[asked]}
    assert summarise(seeds)["systems"].keys() == {"teacher", "llm_flipped"}
