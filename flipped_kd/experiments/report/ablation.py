"""The report page's section on an ablation: its runs side by side, and what its sweeps show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...evaluation.plots import RATES
from ..ablation.plan import Group
from ..ablation.plots import draw_runs
from ..ablation.tables import cells, compare, mean_cell, of_set, values
from .data import ReportData
from .elements import Draw, Section, Table
from .sweeps import draw_sweeps

HOW = "recipes/ablation.py makes the rows, flipped-kd report FOLDER --ablation rows.jsonl draws them."
REFERENCE = "full"


def ablation(data: ReportData, draw: Draw) -> Section:
    """Runs, margins and thresholds."""
    section = Section("ablation", "Ablation: runs, margins and thresholds")
    if data.ablation_rows is None:
        section.missing.append(f"No ablation was named: {HOW}")
        return section
    groups = list(_groups(data.ablation_rows))
    section.tables = [_table(data.ablation_rows, group) for group in groups]
    section.plots = draw(draw_runs(data.ablation_rows, groups))
    if groups:
        section.notes.append(
            "Means ± sample standard deviations over the seeds that all runs of a set share. A difference shows its "
            "95 % interval, or ± its spread over seeds where rows keep no scores of single pairs, and how many seeds "
            "gain. A star: significant at .05 among all cells of the table (Holm), by a bootstrap over test pairs and "
            "seeds, or by the paired t-test over seeds. Scores are both of a student together, or the answer or "
            "similarity where a run has no other; like is compared with like."
        )
    swept = draw(draw_sweeps(data.ablation_rows, data.report["settings"]["training"]))
    section.plots += swept
    if not swept:
        section.missing.append(f"The ablation holds no runs with two values of a margin or threshold: {HOW}")
    return section


def _groups(rows: Sequence[Mapping[str, Any]]) -> Iterator[Group]:
    """A group for each pair set with several named runs; those of a sweep are drawn as one."""
    for name in dict.fromkeys(row["set"] for row in rows):
        own = [row for row in rows if row["set"] == name and row["name"] and "=" not in row["name"]]
        runs = tuple(dict.fromkeys(row["name"] for row in own))
        if len(runs) > 1:
            seeds = tuple(sorted({row["seed"] for row in own}))
            yield Group("Runs", (name,), seeds, runs, REFERENCE if REFERENCE in runs else runs[0])


def _table(rows: Sequence[Mapping[str, Any]], group: Group) -> Table:
    (name,) = group.sets
    found = of_set(rows, group, name)
    reference = found.get(group.reference, [])
    body = []
    systems = {
        run: next((system for system in ("both", "answer") if values(part, system, "f1")), "similarity")
        for run, part in found.items()
    }
    gaps = [
        [compare(reference, part, (systems[run],) * 2, metric) if run != group.reference else None for metric in RATES]
        for run, part in found.items()
    ]
    for (run, part), gains in zip(found.items(), cells(gaps, 3), strict=True):
        means = [mean_cell(part, systems[run], metric, 3) for metric in RATES]
        body.append([run, *means, *(gain.replace("\\", "") for gain in gains)])
    titles = list(RATES.values())
    head = ["run", *titles, *(f"{title} of {group.reference} minus this" for title in titles)]
    return Table(f"{name}: {len(reference)} seed{'s' * (len(reference) != 1)}", head, body)
