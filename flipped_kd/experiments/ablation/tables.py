"""Tables of an ablation: means and spreads over seeds, and paired differences with their significance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from ...utils.markdown import table
from .plan import Group
from .significance import Interval, bootstrap, holm, shared_scores

Row = Mapping[str, Any]
COLUMNS = (
    ("answer", "f1", "F1 answer"),
    ("answer", "auc", "AUC answer"),
    ("similarity", "auc", "AUC similarity"),
    ("both", "f1", "F1 both"),
    ("both", "auc", "AUC both"),
)
# Two models at prediction time: what a student adds to its teacher, title, run and system.
COMBINED = (
    ("plain: answer + teacher", "plain", "answer_plus_teacher"),
    ("full: both + teacher", "full", "both_plus_teacher"),
)
# Like with like: answer with answer, both with both.
COMPARED = (("answer", "f1"), ("answer", "auc"), ("both", "f1"), ("both", "auc"))


@dataclass(frozen=True)
class Difference:
    """A paired difference over seeds.

    Attributes:
        mean: mean of first - second.
        std: sample standard deviation; 0 for a single seed.
        p: two-sided p-value of the paired t-test; None below two seeds or without any spread.
        wins: seeds with first > second.
        seeds: how many there are.
        interval: of a bootstrap over test pairs and seeds; None where the rows keep no scores.
    """

    mean: float
    std: float
    p: float | None
    wins: int
    seeds: int
    interval: Interval | None = None

    @classmethod
    def of(cls, first: Sequence[float], second: Sequence[float], interval: Interval | None = None) -> Difference:
        """Compare two systems seed by seed.

        Args:
            first: (seeds,) values of the one.
            second: (seeds,) of the other, same seeds in the same order.
            interval: of a bootstrap.

        Raises:
            ValueError: there is no seed, or not as many of both.
        """
        if not first or len(first) != len(second):
            raise ValueError(f"{len(first)} and {len(second)} seeds: give the same seeds of both, at least one.")
        gaps = np.asarray(first, np.float64) - np.asarray(second, np.float64)
        std = float(gaps.std(ddof=1)) if len(gaps) > 1 else 0.0
        if std <= 1e-12 * float(np.abs(gaps).max()):  # rounding alone, of which a t-test would make certainty
            std = 0.0
        p = float(stats.ttest_1samp(gaps, 0.0).pvalue) if std > 0 else None
        return cls(float(gaps.mean()), std, p, int((gaps > 0).sum()), len(gaps), interval)

    @property
    def chance(self) -> float | None:
        """The p-value that a star goes by: the bootstrap's where there is one, else the t-test's."""
        return self.p if self.interval is None else self.interval.p

    def cell(self, star: bool, digits: int) -> str:
        """Mean; the interval in brackets, else ± the spread; how many seeds gain; a star if it is significant.

        The star is escaped for Markdown.
        """
        if self.interval is not None:
            around = f" [{self.interval.low:+.{digits}f}, {self.interval.high:+.{digits}f}]"
        else:
            around = f" ± {self.std:.{digits}f}" if self.seeds > 1 else ""
        return f"{self.mean:+.{digits}f}{around} ({self.wins}/{self.seeds})" + "\\*" * star


def cells(differences: Sequence[Sequence[Difference | None]], digits: int) -> list[list[str]]:
    """The cells of a table of differences, as `Difference.cell` writes them.

    A star: significant at .05 among all cells of the table (Holm's correction), by the bootstrap over test pairs and
    seeds where the rows keep scores, else by the paired t-test over seeds.
    """
    flat = [one for row in differences for one in row]
    stars = iter(holm([None if one is None else one.chance for one in flat]))
    starred = [[(one, next(stars)) for one in row] for row in differences]
    return [["" if one is None else one.cell(star, digits) for one, star in row] for row in starred]


def values(rows: Sequence[Row], system: str, metric: str) -> dict[int, float]:
    """A metric of a system by seed, of the rows that have it."""
    return {row["seed"]: row["metrics"][system][metric] for row in rows if system in row["metrics"]}


def of_run(rows: Sequence[Row], set_name: str, name: str) -> list[Row]:
    """The rows of one run, by seed; of two of the same seed the last."""
    found = {row["seed"]: row for row in rows if (row["set"], row["name"]) == (set_name, name)}
    return [found[seed] for seed in sorted(found)]


def of_set(rows: Sequence[Row], group: Group, set_name: str) -> dict[str, list[Row]]:
    """The rows of a group's runs of one set, of the seeds that all of them have: means then differ as pairs do.

    A run without any row is left out. Rows that keep scores have the labels and the teacher's scores too, which those
    of the first seed keep for all: a run may lack just that one, and then has those of others with its teacher.
    """
    found: dict[str, list[Row]] = {}
    for run in group.runs:
        own = of_run(rows, set_name, run)
        teachers = {_teacher_of(row) for row in own}
        alike = [row for row in rows if row["set"] == set_name and _teacher_of(row) in teachers]
        kept = shared_scores(own) or shared_scores(alike) or {}
        part = [row for row in own if row["seed"] in group.seeds]
        if part:
            found[run] = [{**row, "scores": {**kept, **row["scores"]}} if row.get("scores") else row for row in part]
    seeds = [{row["seed"] for row in part} for part in found.values()]
    shared = set.intersection(*seeds) if seeds else set()
    return {run: [row for row in part if row["seed"] in shared] for run, part in found.items()} if shared else {}


def with_more_seeds(rows: Sequence[Row], group: Group, set_name: str) -> dict[str, list[Row]]:
    """As `of_set`, of those runs alone that have more seeds than all of them share; empty without any, or without the
    reference.
    """
    shared = max((len(part) for part in of_set(rows, group, set_name).values()), default=0)
    counts = {
        run: len([row for row in of_run(rows, set_name, run) if row["seed"] in group.seeds]) for run in group.runs
    }
    fuller = tuple(run for run, count in counts.items() if count > shared)
    if group.reference not in fuller or len(fuller) < 2:
        return {}
    found = of_set(rows, replace(group, runs=fuller), set_name)
    return found if len(next(iter(found.values()), [])) > shared else {}


def _teacher_of(row: Row) -> Any:
    return row.get("resolved", {}).get("teacher")


def compare(rows: Sequence[Row], other: Sequence[Row], systems: tuple[str, str], metric: str) -> Difference | None:
    """Difference of a metric over the seeds that both have; None if they share none."""
    first, second = values(rows, systems[0], metric), values(other, systems[1], metric)
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    by_seed = [{row["seed"]: row for row in part} for part in (rows, other)]
    mine, theirs = ([part[seed] for seed in seeds] for part in by_seed)
    interval = bootstrap(mine, theirs, systems, metric, shared_scores([*rows, *other]))
    return Difference.of([first[seed] for seed in seeds], [second[seed] for seed in seeds], interval)


def group_tables(rows: Sequence[Row], group: Group) -> str:
    """Markdown of a group: an overview by both scores and by the answer, then each of its sets more closely.

    An overview by the similarity stands between them where a run has no other score.
    """
    parts = [f"## {group.title}", overview(rows, group), overview(rows, group, "answer")]
    if any(row["metrics"].keys().isdisjoint(("both", "answer")) for row in rows if row["name"] in group.runs):
        parts.append(overview(rows, group, "similarity"))  # a model of vectors alone has nothing else
    for name in group.sets:
        found = of_set(rows, group, name)
        if not found:
            continue
        parts += [f"### {name}", means_table(found), differences_table(found, group.reference)]
        if more := with_more_seeds(rows, group, name):
            parts += [
                f"### {name}, the runs with more seeds",
                means_table(more),
                differences_table(more, group.reference),
            ]
    return "\n\n".join(part for part in parts if part)


def overview(rows: Sequence[Row], group: Group, system: str = "both") -> str:
    """Markdown of a group over all its sets at once: F1 and AUC of one system, and what the reference gains.

    A table of means ± sample standard deviations, and one of paired differences, like with like (`cells`);
    empty without rows.
    """
    by_set = {name: of_set(rows, group, name) for name in group.sets}
    sets = [name for name in group.sets if by_set[name]]
    found = {(name, run): by_set[name].get(run, []) for name in sets for run in group.runs}
    runs = [run for run in group.runs if any(found[name, run] for name in sets)]
    if not runs:
        return ""
    metrics = (("f1", "F1"), ("auc", "AUC"))
    heads = [f"{name} {title}" for name in sets for _, title in metrics]
    seeds = {name: len(next(iter(by_set[name].values()))) for name in sets}

    def means(title: str, run: str, of: str) -> list[str]:
        return [
            title,
            *(mean_cell(found.get((name, run), []), of, metric, 3) for name in sets for metric, _ in metrics),
        ]

    def gains(other: str, systems: tuple[str, str]) -> list[Difference | None]:
        return [
            compare(found[name, group.reference], found[name, other], systems, metric)
            for name in sets
            for metric, _ in metrics
        ]

    rows_of_means = [
        ["seeds", *(str(seeds[name]) for name in sets for _ in metrics)],
        means("teacher", runs[0], "teacher"),
        *([means(f"{group.reference}: before any step", group.reference, "start")] if system != "answer" else []),
        *(means(run, run, system) for run in runs),
        *([means(title, run, of) for title, run, of in COMBINED] if system == "both" else []),
    ]
    rows_of_means = [line for line in rows_of_means if any(line[1:])]
    tables = [table([system, *heads], rows_of_means)]
    if group.reference in runs:
        against = {run: gains(run, (system, system)) for run in runs if run != group.reference}
        against["its teacher"] = gains(group.reference, (system, "teacher"))
        if "plain" in runs and group.reference != "plain":
            against["plain: answer + teacher"] = gains("plain", (system, "answer_plus_teacher"))
        lines = zip(against, cells(list(against.values()), 3), strict=True)
        tables.append(table([f"{group.reference} minus", *heads], [[title, *line] for title, line in lines]))
    return "\n\n".join(tables)


def means_table(found: Mapping[str, Sequence[Row]]) -> str:
    """Mean ± sample standard deviation of each run, the teacher first."""
    heads = ["run", "seeds", "matches, others dropped", *(title for _, _, title in COLUMNS)]
    first = next(iter(found.values()))
    of_teacher = [mean_cell(first, "teacher", metric) for metric in ("f1", "auc")]
    lines: list[list[object]] = [["teacher", *[""] * 5, *of_teacher]]
    # The same for every seed, so that one row keeps it for all.
    bare = [row for rows in found.values() for row in rows if "llm" in row["metrics"]][:1]
    if bare:
        lines.append(["LLM, not trained", "", "", *(mean_cell(bare, "llm", m) for m in ("f1", "auc")), *[""] * 3])
    for run, rows in found.items():
        cells = [mean_cell(rows, system, metric) for system, metric, _ in COLUMNS]
        lines.append([run, len(rows), _dropped(rows), *cells])
    return table(heads, lines)


def _dropped(rows: Sequence[Row]) -> str:
    """Mean shares of the training pairs of each class that the thresholds dropped."""
    shares = [row["metrics"].get("run", {}).get("dropped_share", {}) for row in rows]
    found = [[share.get(label) for share in shares] for label in ("positive", "negative")]
    if any(value is None for of_class in found for value in of_class):
        return ""
    return ", ".join(f"{np.mean(of_class):.0%}" for of_class in found)


def differences_table(found: Mapping[str, Sequence[Row]], reference: str) -> str:
    """The reference minus each other run, like with like, and minus its teacher; empty without the reference."""
    mine = found.get(reference)
    if mine is None:
        return ""
    heads = [f"Δ{'F1' if metric == 'f1' else 'AUC'} {system}" for system, metric in COMPARED]

    def gains(rows: Sequence[Row], other: str | None = None) -> list[Difference | None]:
        return [compare(mine, rows, (system, other or system), metric) for system, metric in COMPARED]

    against = {run: gains(rows) for run, rows in found.items() if run != reference}
    against |= {"its teacher": gains(mine, "teacher"), "its answer + teacher": gains(mine, "answer_plus_teacher")}
    if "plain" in found and reference != "plain":
        against["plain: answer + teacher"] = gains(found["plain"], "answer_plus_teacher")
    lines = zip(against, cells(list(against.values()), 4), strict=True)
    return table([f"{reference} minus", *heads], [[title, *line] for title, line in lines])


def mean_cell(rows: Sequence[Row], system: str, metric: str, digits: int = 4) -> str:
    """Mean ± sample standard deviation of a system's metric, and of how many rows, where not of all; "" of none."""
    found = np.array(list(values(rows, system, metric).values()))
    if not len(found):
        return ""
    spread = f" ± {found.std(ddof=1):.{digits}f}" if len(found) > 1 else ""
    some = f" ({len(found)} of {len(rows)})" if len(found) < len(rows) else ""
    return f"{found.mean():.{digits}f}{spread}{some}"
