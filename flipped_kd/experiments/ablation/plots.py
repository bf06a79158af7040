"""Plots of an ablation: how every run of a group fares on each pair set. Needs the extra `plots`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...evaluation.plots import BLACK, BLUE, GRID, ORANGE, RATES, new_figure
from ..report.figures import Drawing, file_name, plain
from .plan import Group
from .tables import of_set, values

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# system, name in the legend, colour, marker, offset from the run's line
SHOWN_SCORES = (("both", "both scores", BLUE, "o", -0.14), ("answer", "answer", ORANGE, "s", 0.14))


def draw_runs(rows: Sequence[Mapping[str, Any]], groups: Sequence[Group]) -> Iterator[Drawing]:
    """F1 and AUC of a group's runs, a figure for each of its sets: dots are seeds, markers means and deviations.

    A dotted line is the teacher. Sets without finished runs are left out. ImportError: matplotlib is not installed.
    """
    for number, group in enumerate(groups, 1):
        for name in group.sets:
            found = of_set(rows, group, name)
            if not found:
                continue
            figure = new_figure(9.0, 1.6 + 0.42 * len(found))
            panels = figure.subplots(1, 2, sharey=True)
            for panel, metric in zip(panels, RATES, strict=True):
                _draw(panel, found, metric)
            panels[0].set_yticks(range(len(found)), [plain(run) for run in found])
            panels[0].set_ylim(len(found) - 0.4, -0.6)
            panels[1].legend(fontsize=8)
            seeds = len(next(iter(found.values())))
            shown = f"dots: {seeds} seeds, markers: mean ± sample standard deviation" if seeds > 1 else "one seed"
            title = f"{group.title}: {name}; {shown}"
            figure.suptitle(plain(title), fontsize=10)
            yield Drawing(f"runs_{number}_{file_name(name)}", figure, title)


def _draw(panel: Axes, found: Mapping[str, Sequence[Mapping[str, Any]]], metric: str) -> None:
    for system, label, color, marker, offset in SHOWN_SCORES:
        for line, rows in enumerate(found.values()):
            known = np.array(list(values(rows, system, metric).values()))
            if not len(known):
                continue
            if len(known) > 1:
                panel.plot(known, [line + offset] * len(known), "o", color=color, markersize=3, alpha=0.4, mew=0)
            panel.errorbar(
                known.mean(),
                line + offset,
                xerr=known.std(ddof=1) if len(known) > 1 else None,
                fmt=marker,
                color=color,
                markersize=6,
                capsize=3,
                mec="w",
                label=None if line else label,
            )
    teacher = list(values(next(iter(found.values())), "teacher", metric).values())
    if teacher:
        panel.axvline(float(np.mean(teacher)), color=BLACK, linestyle=":", linewidth=1.4, label="teacher")
    panel.set_xlabel(f"{RATES[metric]} (0 to 1, higher is better)")
    panel.grid(axis="x", color=GRID)
    panel.set_axisbelow(True)
    panel.margins(x=0.08)
    panel.locator_params(axis="x", nbins=6)
