"""The plots show what the report says, in whole PNG files, and only need matplotlib when they are drawn."""

from __future__ import annotations

import copy
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flipped_kd.evaluation.comparison import SYSTEMS
from flipped_kd.evaluation.plots import (
    LOSSES_PLOT,
    SYSTEMS_PLOT,
    TERMS,
    plot_losses,
    plot_systems,
    report_digest,
    write_plots,
)

ROOT = Path(__file__).parents[2]


def with_one_seed(report: dict[str, Any]) -> dict[str, Any]:
    """The same report as if only its first seed had been run."""
    one = copy.deepcopy(report)
    one["seeds"], one["runs"] = one["seeds"][:1], one["runs"][:1]
    for system in one["systems"].values():
        system["by_seed"] = {metric: values[:1] for metric, values in system["by_seed"].items()}
        for metric, values in system["by_seed"].items():
            system[metric], system["std"][metric] = values[0], 0.0
    return one


def test_systems_plot_shows_every_mean_spread_and_seed(report: dict[str, Any]) -> None:
    assert len(report["seeds"]) > 1
    figure = plot_systems(report)
    names = list(report["systems"])
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == [SYSTEMS[name] for name in names]
    for panel, metric in zip(figure.axes, ("f1", "auc"), strict=True):
        for row, name in enumerate(names):
            values, bars = report["systems"][name], panel.containers[row]
            assert bars.lines[0].get_xdata()[0] == values[metric]
            (low, high), _ = zip(*bars.lines[2][0].get_segments()[0], strict=True)
            assert (high - low) / 2 == pytest.approx(values["std"][metric])
            dots = [
                line.get_xdata()
                for line in panel.lines
                if list(line.get_ydata()) == [row + 0.3] * len(line.get_ydata())
            ]
            assert [list(seeds) for seeds in dots] == [values["by_seed"][metric]]


def test_one_seed_has_no_spread(report: dict[str, Any]) -> None:
    for panel in plot_systems(with_one_seed(report)).axes:
        assert all(not bars.has_xerr for bars in panel.containers)  # type: ignore[attr-defined]


def test_axes_are_named_with_units(report: dict[str, Any]) -> None:
    systems, losses = plot_systems(report), plot_losses(report)
    assert losses is not None
    assert ["F1" in systems.axes[0].get_xlabel(), "AUC" in systems.axes[1].get_xlabel()] == [True, True]
    assert all("0 to 1" in panel.get_xlabel() for panel in systems.axes)
    assert {panel.get_xlabel() for panel in losses.axes} == {"optimizer step"}
    units = [panel.get_ylabel() for panel in losses.axes]
    assert len(set(units)) == len(TERMS) and all("(" in unit for unit in units)


def test_losses_plot_shows_each_seed_and_their_mean(report: dict[str, Any]) -> None:
    figure = plot_losses(report)
    assert figure is not None
    for panel, (term, _, _) in zip(figure.axes, TERMS, strict=True):
        seeds = [
            [entry[term] for entry in run["llm_flipped"]["log_history"] if term in entry] for run in report["runs"]
        ]
        drawn = [list(line.get_ydata()) for line in panel.lines]
        assert all(values in drawn for values in seeds)
        if len(seeds) > 1:
            assert any(np.allclose(values, np.mean(seeds, 0)) for values in drawn)


def test_plain_fine_tuning_is_drawn_unweighted(report: dict[str, Any]) -> None:
    report = with_one_seed(report)
    report["settings"]["training"]["sup_weight"] = 4.0
    figure = plot_losses(report)
    assert figure is not None
    logged = [entry["loss"] for entry in report["runs"][0]["llm_sft"]["log_history"] if "loss" in entry]
    line = next(line for line in figure.axes[0].lines if line.get_label() == "plain fine-tuning")
    assert np.allclose(line.get_ydata(), np.array(logged) / 4)


def test_runs_logged_at_other_steps_have_no_mean(report: dict[str, Any]) -> None:
    report["runs"] = [report["runs"][0], copy.deepcopy(report["runs"][0])]
    report["runs"][1]["llm_flipped"]["log_history"].pop()
    figure = plot_losses(report)
    assert figure is not None and len(figure.axes[1].lines) == 2


def test_files_are_whole_and_name_their_report(report: dict[str, Any], tmp_path: Path) -> None:
    paths = write_plots(report, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOSSES_PLOT, SYSTEMS_PLOT]
    for path in paths:
        with Image.open(path) as picture:
            picture.load()
            assert picture.format == "PNG" and picture.width > 600 and picture.height > 250
            assert picture.text["Source"] == report_digest(report)  # type: ignore[attr-defined]
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in write_plots(report, tmp_path)] == before


def test_a_report_without_loss_terms_has_one_plot(report: dict[str, Any], tmp_path: Path) -> None:
    """Weights (1, 0, 0): nothing but the loss was logged."""
    report = with_one_seed(report)
    for entry in report["runs"][0]["llm_flipped"]["log_history"]:
        for term, _, _ in TERMS:
            entry.pop(term, None)
    assert [path.name for path in write_plots(report, tmp_path)] == [SYSTEMS_PLOT]


def test_without_matplotlib_the_error_names_the_extra(
    report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"flipped_kd\[plots\]"):
        write_plots(report, tmp_path)
    assert not list(tmp_path.iterdir())


def test_importing_the_module_imports_no_matplotlib() -> None:
    code = "import sys; import flipped_kd.evaluation.plots; print('matplotlib' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
