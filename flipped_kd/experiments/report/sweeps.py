"""A metric over the values of a setting that an ablation has swept, such as the margin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...evaluation.plots import BLACK, BLUE, GREEN, GREY, ORANGE, RATES
from ..ablation.rows import Row, read_rows
from .figures import Drawing, file_name, new_panel, plain

# Settings whose values have an order, with their unit.
SWEPT = {
    "margin": "margin m_c (rad)",
    "positive_threshold": "positive threshold (match probability)",
    "negative_threshold": "negative threshold (match probability)",
    "thresholds": "threshold t for matches, 1 − t for others (match probability)",
    "temperature": "temperature",
}
LINES = {
    "both": ("both scores", BLUE, "o", "-"),
    "similarity": ("similarity", GREEN, "^", "-."),
    "answer": ("answer", ORANGE, "s", "--"),
    "teacher": ("teacher", BLACK, "", ":"),
}


def read_sweep_rows(path: Path) -> list[Row]:
    """Rows of an ablation: name, seed, settings, metrics by system, and the pair set if there are several; of those
    that `ablation.run` has made, all settings ("resolved") and the scores of single pairs too.

    Raises:
        ValueError: the file is not there, or a line is no such row.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file: give the rows of an ablation (JSON Lines), see recipes/ablation.py.")
    return read_rows(path, _sweep_row)


def _sweep_row(row: Row) -> Row:
    settings, metrics = dict(row["settings"]), dict(row["metrics"])
    named = {name: str(row.get(name, "")) for name in ("set", "name")}
    return row | named | {"seed": int(row["seed"]), "settings": settings, "metrics": metrics}


def draw_sweeps(rows: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]) -> Iterator[Drawing]:
    """F1 and AUC over each swept setting, a plot for each pair set: lines are means over seeds, points seeds.

    Args:
        rows: as `read_sweep_rows` gives them.
        defaults: a run without changes has these values of the settings, where its row does not say which.
    """
    for setting, title in SWEPT.items():
        found = [{**row, "value": value} for row in rows if (value := _value(row, setting, defaults)) is not None]
        for name in dict.fromkeys(row["set"] for row in found):
            own = _of_shared_seeds([row for row in found if row["set"] == name])
            if any(row["settings"] for row in own) and len({row["value"] for row in own}) > 1:
                for metric in RATES:
                    yield _draw(own, setting, title, name, metric)


def _of_shared_seeds(rows: Sequence[Row]) -> list[Row]:
    """One row for each value and seed, of the seeds that every value has: points then differ by the value alone."""
    by_point = {(row["value"], row["seed"]): row for row in rows}
    seeds = [{seed for value, seed in by_point if value == one} for one in {value for value, _ in by_point}]
    shared = set.intersection(*seeds) if seeds else set()
    return [row for (_, seed), row in by_point.items() if seed in shared]


def _value(row: Mapping[str, Any], setting: str, defaults: Mapping[str, Any]) -> float | None:
    """The setting's value in a run that changes nothing else; None for other runs."""
    changed = row["settings"]
    names = ("positive_threshold", "negative_threshold") if setting == "thresholds" else (setting,)
    # Other trainers change no setting of ours either; they have no second score.
    if set(changed) != set(names) if changed else "both" not in row["metrics"]:
        return None
    known = {**defaults, **row.get("resolved", {}), **changed}
    values: list[Any] = [known.get(name) for name in names]
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        return None
    if len(values) == 2 and abs(values[0] + values[1] - 1) > 1e-9:
        return None
    return float(values[0])


def _draw(rows: Sequence[Mapping[str, Any]], setting: str, title: str, name: str, metric: str) -> Drawing:
    of_set = f", {name}" if name else ""
    figure, panel = new_panel(f"{RATES[metric]}{of_set}", title, f"{RATES[metric]} on the test pairs")
    for system, (label, color, marker, line) in LINES.items():
        points = [
            (row["value"], row["metrics"][system][metric])
            for row in rows
            if metric in (row["metrics"].get(system) or {})
        ]
        if not points:
            continue
        x, y = np.array(points, np.float64).T
        values = np.unique(x)
        if system == "teacher":  # the same whatever is swept
            panel.axhline(y.mean(), color=color, linestyle=line, linewidth=1.4, label=label)
            continue
        panel.plot(x, y, marker, color=color, markersize=3, alpha=0.35, mew=0)
        means = [y[x == value].mean() for value in values]
        panel.plot(values, means, line, color=color, marker=marker, markersize=5, linewidth=1.6, label=plain(label))
    if setting != "temperature":
        default = 0.06 if setting == "margin" else 0.5
        panel.axvline(default, color=GREY, linestyle=(0, (1, 3)), linewidth=1, label="the paper's value")
    panel.legend(fontsize=8)
    seeds = len({row["seed"] for row in rows})
    return Drawing(
        f"sweep_{setting}_{metric}" + (f"_{file_name(name)}" if name else ""),
        figure,
        f"{RATES[metric]} over {title}{of_set}; lines are means over {seeds} seed{'s' * (seeds > 1)}.",
    )
