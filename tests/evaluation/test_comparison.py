"""Systems of a comparison: what is made of scores and of seeds, and what the table says beside its numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from flipped_kd.evaluation.comparison import COMPARED_METRICS, SplitScores, judge_seed, markdown_table, summarise
from flipped_kd.evaluation.match_score import fit_log_odds
from flipped_kd.evaluation.metrics import best_f1_threshold

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


def test_differences_are_the_first_less_the_second_seed_by_seed() -> None:
    first, second = {"f1": [0.75, 0.5, 0.875], "auc": [0.9, 0.8, 0.7]}, {"f1": [0.5, 0.625, 0.25], "auc": [0.6] * 3}
    others = dict.fromkeys(COMPARED_METRICS, 0.5)
    seeds: list[dict[str, dict[str, float]]] = [
        {
            name: others | {metric: of_seeds[number] for metric, of_seeds in values.items()}
            for name, values in (("llm_sft", second), ("llm_flipped", first))
        }
        for number in range(3)
    ]
    found = summarise(seeds)
    assert list(found["differences"]) == ["llm_flipped - llm_sft"]
    gap = found["differences"]["llm_flipped - llm_sft"]
    assert gap["by_seed"]["f1"] == [0.25, -0.125, 0.625] and gap["f1"] == 0.25
    assert gap["by_seed"]["auc"] == pytest.approx([0.3, 0.2, 0.1]) and gap["auc"] == pytest.approx(0.2)
    # Of a sample: the squares' sum is divided by two, not by three.
    assert gap["std"]["f1"] == pytest.approx(0.375) and gap["std"]["auc"] == pytest.approx(0.1)
    assert gap["accuracy"] == gap["std"]["accuracy"] == 0.0
    of_system = found["systems"]["llm_flipped"]
    assert of_system["by_seed"]["f1"] == first["f1"] and of_system["std"]["auc"] == pytest.approx(0.1)
    assert summarise(seeds[:1])["differences"]["llm_flipped - llm_sft"]["std"]["f1"] == 0.0


def test_the_teacher_joins_the_plain_students_answer_as_the_validation_pairs_say() -> None:
    """Not as the test pairs would, on which another mixture is better; and it is no other student's answer."""
    rng = np.random.default_rng(0)
    labels = {"validation": np.arange(200) % 2, "test": (np.arange(200) // 2) % 2}

    def scores(on_validation: float, on_test: float) -> SplitScores:
        apart = {"validation": on_validation, "test": on_test}
        return SplitScores(*(rng.normal(size=200) + apart[split] * labels[split] for split in labels))

    answer, teacher = scores(2.0, 0.5), scores(0.5, 2.0)
    sft, flipped = (answer, scores(1.0, 1.0)), (scores(1.5, 1.5), scores(1.0, 1.0))
    found = judge_seed(teacher, None, sft, flipped, labels["validation"], labels["test"])["llm_sft_plus_teacher"]
    features = {split: np.stack([getattr(answer, split), getattr(teacher, split)], 1) for split in labels}
    coefficients, bias = fit_log_odds(features["validation"], labels["validation"])
    joined = {split: values @ coefficients + bias for split, values in features.items()}
    assert found["auc"] == pytest.approx(roc_auc_score(labels["test"], joined["test"]))
    tuned = best_f1_threshold(joined["validation"], labels["validation"])
    assert found["f1"] == pytest.approx(f1_score(labels["test"], joined["test"] >= tuned))
    assert found["f1_natural"] == pytest.approx(f1_score(labels["test"], joined["test"] >= 0))
    other, _ = fit_log_odds(features["test"], labels["test"])
    assert roc_auc_score(labels["test"], features["test"] @ other) > found["auc"] + 0.05
