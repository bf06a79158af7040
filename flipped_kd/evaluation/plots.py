"""Plots of a report: how every system fares over the seeds, and how the loss terms fall. Needs the extra `plots`."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..utils.atomic import replacing
from .comparison import SYSTEMS, completed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SYSTEMS_PLOT = "results.png"
LOSSES_PLOT = "losses.png"
# Okabe and Ito's palette, told apart in every common form of colour blindness (Wong, Nature Methods 8, 441, 2011);
# markers differ too.
BLACK, BLUE, ORANGE, GREEN, GREY = "#000000", "#0072B2", "#D55E00", "#009E73", "#666666"
GRID, WHITE = "#dddddd", "#ffffff"
SYSTEM_MARKERS = (("llm_flipped", BLUE, "o"), ("llm_sft", ORANGE, "s"), ("llm", GREY, "D"), ("teacher", BLACK, "^"))
TERMS = (
    ("loss_sup", "L_sup: answer", "cross-entropy (nats)"),
    ("loss_dist", "L_dist: similarities", ""),  # its unit depends on dist_loss
    ("loss_mcl", "L_MCL: contrast", "contrast (units of cosine)"),
)
RATES = {"f1": "F1", "auc": "AUC"}
DIST_UNITS = {
    **dict.fromkeys(("mse", "margin_mse"), "scaled squared error (no unit)"),
    "kl": "scaled divergence (nats)",
    "pearson": "(1 − correlation) / 2 (no unit)",
    "sinkhorn": "transport cost (no unit)",
    **dict.fromkeys(("pairwise_logistic", "plackett_luce", "cosent", "angle"), "ranking loss (units of cosine)"),
}
DOTS_PER_INCH = 120


def have_matplotlib() -> bool:
    """Whether plots can be drawn here."""
    return importlib.util.find_spec("matplotlib") is not None


def plot_systems(report: Mapping[str, Any]) -> Figure:
    """F1 and AUC of every system on the test pairs: each seed a dot, the mean a marker with its standard deviation.

    Dotted lines: what calling every pair a match, and guessing, would give. ImportError: matplotlib is not installed.
    """
    names = list(report["systems"])
    figure = new_figure(9.0, 1.4 + 0.36 * len(names))
    panels = figure.subplots(1, 2, sharey=True)
    several = len(report["seeds"]) > 1
    for panel, metric in zip(panels, RATES, strict=True):
        draw_systems(panel, report, metric)
    seeds = len(report["seeds"])
    shown = f"dots: {seeds} seeds, markers: mean ± sample standard deviation" if several else "one seed"
    figure.suptitle(f"{report['data']['test']:,} test pairs; {shown}", fontsize=10)
    return figure


def draw_systems(panel: Axes, report: Mapping[str, Any], metric: str) -> None:
    """One metric ("f1" or "auc") of every system into `panel`, a row each, as `plot_systems` shows it."""
    names = list(report["systems"])
    several = len(report["seeds"]) > 1
    positive = report["data"]["positive_share"]["test"]
    trivial, meaning = (2 * positive / (1 + positive), "all match") if metric == "f1" else (0.5, "guessing")
    for row, name in enumerate(names):
        values = report["systems"][name]
        color, marker = next((color, marker) for start, color, marker in SYSTEM_MARKERS if name.startswith(start))
        by_seed = values["by_seed"][metric]
        if several:
            panel.plot(by_seed, [row + 0.3] * len(by_seed), "o", color=color, markersize=4, alpha=0.5, mew=0)
        spread = values["std"][metric] if several else None
        panel.errorbar(values[metric], row, xerr=spread, fmt=marker, color=color, markersize=7, capsize=3, mec="w")
    panel.set_xlabel(f"{RATES[metric]} (0 to 1, higher is better)")
    panel.grid(axis="x", color=GRID)
    panel.set_axisbelow(True)
    panel.axvline(trivial, color=GREY, linestyle=":", linewidth=1.2, zorder=0)
    panel.annotate(f" {meaning}", (trivial, -0.6), color=GREY, va="center", fontsize=8)
    panel.margins(x=0.12)
    panel.set_yticks(range(len(names)), [SYSTEMS.get(name, name) for name in names])
    panel.set_ylim(len(names) - 0.4, -0.9)


def plot_losses(report: Mapping[str, Any]) -> Figure | None:
    """The three loss terms of the flipped runs over the steps, L_sup of plain fine-tuning beside; None if not logged.

    Thin lines are seeds, the thick one their mean. Each point is the mean since the one before.

    Raises:
        ImportError: matplotlib is not installed.
    """
    flipped = [curves_of(run.get("llm_flipped", {}), [term for term, _, _ in TERMS]) for run in report["runs"]]
    if not any("loss_sup" in curves for curves in flipped):
        return None
    figure = new_figure(10.5, 3.4)
    panels = figure.subplots(1, len(TERMS))
    for panel, (term, _, _) in zip(panels, TERMS, strict=True):
        draw_term(panel, report, term)
    panels[0].legend(fontsize=8)
    several = "; thin lines: seeds, thick lines: their mean" if len(flipped) > 1 else ""
    figure.suptitle(f"Unweighted loss terms of the training batches{several}", fontsize=10)
    return figure


def draw_term(panel: Axes, report: Mapping[str, Any], term: str) -> None:
    """One loss term of the flipped runs into `panel`; for "loss_sup" that of plain fine-tuning too."""
    _, title, unit = next(found for found in TERMS if found[0] == term)
    settings = report["settings"]["training"]
    flipped = [curves_of(run.get("llm_flipped", {}), [term]) for run in report["runs"]]
    # Another quantity than plain fine-tuning's where the teacher teaches the answer too: it does not go down to 0.
    taught = term == "loss_sup" and completed(report)["settings"]["training"]["answer_teacher_weight"]
    name = "flipped, by labels and teacher" if taught else "flipped"
    _draw([curves[term] for curves in flipped if curves], panel, BLUE, "-", name)
    # Plain fine-tuning has no other term, so its loss is L_sup times its weight.
    weight = settings["sup_weight"]
    if term == "loss_sup" and weight:
        plain = [curves_of(run.get("llm_sft", {}), ["loss"]) for run in report["runs"]]
        scaled = [(steps, values / weight) for steps, values in (curves["loss"] for curves in plain if curves)]
        _draw(scaled, panel, ORANGE, "--", "plain fine-tuning")
    panel.set_title(title, fontsize=10)
    panel.set_xlabel("optimizer step")
    panel.set_ylabel(unit or DIST_UNITS.get(settings["dist_loss"], "objective (no unit)"))
    locator: Any = panel.xaxis.get_major_locator()
    locator.set_params(integer=True)
    panel.grid(color=GRID)
    panel.set_ylim(bottom=0)


def write_plots(report: Mapping[str, Any], folder: str | os.PathLike[str]) -> list[Path]:
    """Draw both plots into `folder`, each file whole or not at all; what the report does not hold is left out.

    Returns:
        Paths of results.png and, if the loss terms were logged, losses.png.

    Raises:
        ImportError: matplotlib is not installed.
    """
    written = []
    for name, draw in ((SYSTEMS_PLOT, plot_systems), (LOSSES_PLOT, plot_losses)):
        figure = draw(report)
        if figure is None:
            continue
        path = Path(folder) / name
        about = {"Software": None, "Source": report_digest(report)}
        with replacing(path) as partial:
            figure.savefig(partial, format="png", dpi=DOTS_PER_INCH, metadata=about)
        written.append(path)
    return written


def report_digest(report: Mapping[str, Any]) -> str:
    """Names the report that a plot was drawn from; it stands in the PNG's text chunk "Source"."""
    return "sha256:" + hashlib.sha256(json.dumps(report, sort_keys=True).encode()).hexdigest()


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, drawn by Agg whatever backend is set and without pyplot's global state."""
    if not have_matplotlib():
        raise ImportError("plots need matplotlib, which is not installed: pip install 'flipped_kd[plots]'.")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def curves_of(facts: Mapping[str, Any], names: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(steps, values) of each logged quantity of one run, both (points,)."""
    curves = {}
    for name in names:
        points = [(entry["step"], entry[name]) for entry in facts.get("log_history", []) if name in entry]
        if points:
            steps, values = zip(*points, strict=True)
            curves[name] = (np.asarray(steps), np.asarray(values, np.float64))
    return curves


def _draw(curves: Sequence[tuple[np.ndarray, np.ndarray]], panel: Axes, color: str, line: str, label: str) -> None:
    """Thin lines for the seeds and a thick one for their mean; runs logged at other steps have no common mean."""
    same_steps = all(np.array_equal(steps, curves[0][0]) for steps, _ in curves)
    for steps, values in curves:
        alone = len(curves) == 1 or not same_steps
        panel.plot(steps, values, line, color=color, linewidth=2 if alone else 0.8, alpha=1 if alone else 0.4)
    if same_steps and len(curves) > 1:
        panel.plot(curves[0][0], np.mean([values for _, values in curves], 0), line, color=color, linewidth=2)
    if curves:
        panel.lines[-1].set_label(label)
