"""Plots of an ablation: what is drawn is what the rows hold, and nothing is drawn of what they lack."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flipped_kd.experiments.ablation import significance
from flipped_kd.experiments.ablation.plan import Group
from flipped_kd.experiments.ablation.plots import draw_differences, draw_learning_curves, draw_runs
from flipped_kd.experiments.ablation.tables import compare
from tests.experiments.ablation.test_significance import few_draws, rows_of  # noqa: F401

METRICS = ("teacher", "answer", "similarity", "both")


def complete(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for row in rows:
        row["metrics"] = {system: {"auc": 0.7 + 0.01 * row["seed"], "f1": 0.6} for system in METRICS}
    return rows


def test_a_difference_is_drawn_with_its_interval() -> None:
    full, plain = complete(rows_of("full", 1.5)), complete(rows_of("plain", 0.3))
    group = Group("Main", ("tiny", "absent"), (0, 1, 2), ("plain", "full"), "full")
    (drawing,) = draw_differences(full + plain, [group])
    for panel, metric in zip(drawing.figure.axes, ("f1", "auc"), strict=True):
        labels = [label.get_text() for label in drawing.figure.axes[0].get_yticklabels()]
        assert labels == ["both: plain", "answer: plain", "both: its teacher"]
        lines = [line.get_xdata() for line in panel.get_lines()]
        expected = compare(full, plain, ("both", "both"), metric)
        assert expected is not None and expected.interval is not None
        np.testing.assert_allclose(lines[0], (expected.interval.low, expected.interval.high))
        np.testing.assert_allclose(lines[1], [expected.mean])
    for row in plain:
        row.pop("scores")
    (drawing,) = draw_differences(full + plain, [group])
    assert [label.get_text() for label in drawing.figure.axes[0].get_yticklabels()] == ["both: its teacher"]
    assert not list(draw_differences(plain, [group]))
    assert len(list(draw_runs(full + plain, [group]))) == 1


def test_a_curve_has_a_point_for_each_number_of_pairs() -> None:
    runs = {"plain, 250 pairs": 250, "full, 250 pairs": 250, "plain": 1000, "full": 1000}
    rows = [
        row | {"resolved": {"max_train_pairs": pairs}}
        for run, pairs in runs.items()
        for row in complete(rows_of(run, 1.0, seeds=2))
    ]
    group = Group("Labels", ("tiny",), (0, 1), tuple(runs), "full")
    (drawing,) = draw_learning_curves(rows, [group])
    (panel,) = drawing.figure.axes
    curves = [line for line in panel.get_lines() if len(line.get_xdata()) == 2 and line.get_label().startswith("_c")]
    assert [list(line.get_xdata()) for line in curves[:4]] == [[250, 1000]] * 4
    for line in curves[:4]:
        np.testing.assert_allclose(line.get_ydata(), [0.705, 0.705])
    assert {text.get_text() for text in panel.get_legend().get_texts()} == {
        *(f"{name}: {system}" for name in ("plain", "full") for system in ("both", "answer")),
        "teacher",
    }
    assert not list(draw_learning_curves(rows, [Group("One", ("tiny",), (0, 1), ("full",), "full")]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(significance, "DRAWS", 10)  # curves need no bootstrap
        assert len(list(draw_learning_curves(rows, [group]))) == 1
