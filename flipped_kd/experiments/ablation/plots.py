"""Plots of an ablation: runs, differences and learning curves of each pair set. Needs the extra `plots`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...evaluation.plots import BLACK, BLUE, GREEN, GREY, GRID, ORANGE, RATES, new_figure
from ..report.figures import Drawing, file_name, new_panel, plain
from .plan import Group
from .tables import compare, of_set, values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# system, name in the legend, colour, marker, offset from the run's line
# Of curves: those of Okabe and Ito, which colour-blind readers tell apart.
COLORS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9")
SHOWN_SCORES = (("both", "both scores", BLUE, "o", -0.14), ("answer", "answer", ORANGE, "s", 0.14))
# Of a model of vectors alone.
VECTORS_ALONE = ("similarity", "similarity alone", GREY, "D", 0.0)


def draw_runs(rows: Sequence[Mapping[str, Any]], groups: Sequence[Group]) -> Iterator[Drawing]:
    """F1 and AUC of a group's runs, a figure for each of its sets: dots are seeds, markers means and deviations.

    A dotted line is the teacher. Sets without finished runs are left out. ImportError: matplotlib is not installed.
    """
    for number, group, name, found in _sets(rows, groups):
        if not found:
            continue
        figure, panels = _panels(list(found), 0.42)
        for panel, metric in zip(panels, RATES, strict=True):
            _draw(panel, found, metric)
        panels[1].legend(fontsize=8)
        seeds = len(next(iter(found.values())))
        shown = f"dots: {seeds} seeds, markers: mean ± sample standard deviation" if seeds > 1 else "one seed"
        title = f"{group.title}: {name}; {shown}"
        figure.suptitle(plain(title), fontsize=10)
        yield Drawing(f"runs_{number}_{file_name(name)}", figure, title)


def draw_differences(rows: Sequence[Mapping[str, Any]], groups: Sequence[Group]) -> Iterator[Drawing]:
    """What the reference of a group gains on each other run and on its teacher, with 95 % intervals (a forest plot).

    Sets whose rows keep no scores of single pairs have no intervals and are left out.

    Args:
        rows: finished rows.
        groups: which runs of which sets.

    Raises:
        ImportError: matplotlib is not installed.
    """
    for number, group, name, found in _sets(rows, groups):
        mine = found.pop(group.reference, [])
        against = [(run, part, ("both", "both")) for run, part in found.items()]
        against += [(run, part, ("answer", "answer")) for run, part in found.items()]
        against += [("its teacher", mine, ("both", "teacher"))]
        lines = [
            (f"{systems[0]}: {run}", [compare(mine, part, systems, metric) for metric in RATES])
            for run, part, systems in against
        ]
        shown = [(run, gaps) for run, gaps in lines if all(gap is not None and gap.interval for gap in gaps)]
        if not shown:
            continue
        figure, panels = _panels([run for run, _ in shown], 0.34)
        for place, (panel, metric) in enumerate(zip(panels, RATES, strict=True)):
            for line, (_, gaps) in enumerate(shown):
                gap = gaps[place]
                assert gap is not None and gap.interval is not None
                color = BLUE if gap.interval.low > 0 else ORANGE if gap.interval.high < 0 else GREY
                panel.plot([gap.interval.low, gap.interval.high], [line, line], color=color, linewidth=2)
                panel.plot([gap.mean], [line], "o", color=color, markersize=6, mec="w")
            panel.axvline(0, color=BLACK, linestyle=":", linewidth=1.4)
            panel.set_xlabel(f"{RATES[metric]} gained")
        title = f"{group.title}: {name}\n{group.reference} minus each, 95 % intervals over test pairs and seeds"
        figure.suptitle(plain(title), fontsize=10)
        yield Drawing(f"differences_{number}_{file_name(name)}", figure, title)


def draw_learning_curves(rows: Sequence[Mapping[str, Any]], groups: Sequence[Group]) -> Iterator[Drawing]:
    """AUC against the number of labelled pairs, of groups whose runs differ in it.

    "full, 250 pairs" is a point of the line "full", as is the run "full" itself.

    Args:
        rows: finished rows.
        groups: which runs of which sets.

    Raises:
        ImportError: matplotlib is not installed.
    """
    for number, group, name, found in _sets(rows, groups):
        points: dict[str, dict[int, Sequence[Mapping[str, Any]]]] = {}
        for run, part in found.items():
            if pairs := part[0].get("resolved", {}).get("max_train_pairs"):
                points.setdefault(re.sub(r", [\d,]+ pairs$", "", run), {})[pairs] = part
        if not any(len(line) > 1 for line in points.values()):
            continue
        figure, panel = new_panel(
            f"{group.title}: {name}", "labelled pairs", "AUC (0 to 1, higher is better)", height=3.8
        )
        styles = itertools.product(points.items(), (("both", "o-"), ("answer", "s--")))
        for place, ((run, line), (system, style)) in enumerate(styles):
            scored = {pairs: list(values(part, system, "auc").values()) for pairs, part in line.items()}
            means = {pairs: float(np.mean(found)) for pairs, found in scored.items() if found}
            if not means:  # a peer without this score
                continue
            color = COLORS[place // 2 % len(COLORS)]
            panel.plot(sorted(means), [means[pairs] for pairs in sorted(means)], style, color=color, mec="w")
            panel.plot([], [], style, color=color, label=f"{run}: {system}")
        teacher = values(next(iter(next(iter(points.values())).values())), "teacher", "auc")
        panel.axhline(float(np.mean(list(teacher.values()))), color=BLACK, linestyle=":", label="teacher")
        panel.set_xscale("log")
        ticks = sorted({pairs for line in points.values() for pairs in line})
        panel.set_xticks(ticks, [f"{pairs:,}" for pairs in ticks])
        panel.minorticks_off()
        panel.legend(fontsize=8)
        words = f"{group.title}: AUC by labelled pairs on {name}, mean over seeds"
        yield Drawing(f"curve_{number}_{file_name(name)}", figure, words)


def _sets(
    rows: Sequence[Mapping[str, Any]], groups: Sequence[Group]
) -> Iterator[tuple[int, Group, str, dict[str, list[Mapping[str, Any]]]]]:
    """Each set of each group, with the group's number and the rows by run."""
    for number, group in enumerate(groups, 1):
        for name in group.sets:
            yield number, group, name, of_set(rows, group, name)


def _panels(lines: Sequence[str], height: float) -> tuple[Figure, Sequence[Axes]]:
    """A panel for F1 and one for AUC, with a line of that height for each name."""
    figure = new_figure(9.0, 1.6 + height * len(lines))
    panels = figure.subplots(1, 2, sharey=True)
    panels[0].set_yticks(range(len(lines)), [plain(line) for line in lines])
    panels[0].set_ylim(len(lines) - 0.4, -0.6)
    for panel in panels:
        panel.grid(axis="x", color=GRID)
        panel.set_axisbelow(True)
        panel.locator_params(axis="x", nbins=6)
    return figure, panels


def _draw(panel: Axes, found: Mapping[str, Sequence[Mapping[str, Any]]], metric: str) -> None:
    for system, label, color, marker, offset in (*SHOWN_SCORES, VECTORS_ALONE):
        unnamed = True
        for line, rows in enumerate(found.values()):
            known = np.array(list(values(rows, system, metric).values()))
            others = any(values(rows, other, metric) for other, *_ in SHOWN_SCORES)
            if not len(known) or (system == VECTORS_ALONE[0] and others):
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
                label=label if unnamed else None,
            )
            unnamed = False
    teacher = list(values(next(iter(found.values())), "teacher", metric).values())
    if teacher:
        panel.axvline(float(np.mean(teacher)), color=BLACK, linestyle=":", linewidth=1.4, label="teacher")
    panel.set_xlabel(f"{RATES[metric]} (0 to 1, higher is better)")
    panel.margins(x=0.08)
