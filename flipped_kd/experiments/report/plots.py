"""Plots of the report page (extra `plots`): drawings of one panel each, none where their data are not there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve

from ...evaluation.plots import BLACK, BLUE, GREY, ORANGE, RATES, TERMS, curves_of, draw_systems, draw_term
from ...students.encoder_modules import LAYER_NUMBER
from ...teachers.calibration import DROPPED_SHARE_LIMIT
from .data import SeedData
from .figures import Drawing, new_panel, plain

SYSTEM_TITLES = {"teacher": "teacher", "llm_sft": "plain fine-tuning", "llm_flipped": "flipped"}
SYSTEM_LINES = {"teacher": (BLACK, "-", "^"), "llm_sft": (ORANGE, "--", "s"), "llm_flipped": (BLUE, "-.", "o")}
NORMS = {
    "a_moved": "|A − A₀|",
    "b_moved": "|B − B₀|",
    "update": "|ΔW|, ΔW = s (B A − B₀ A₀)",
}
FAR_ABOVE = 8  # times the median: from there on a scale is logarithmic
NAMED_MODULES = 30  # up to so many modules are named below the plot, of more only the layers


def draw_results(report: Mapping[str, Any]) -> Iterator[Drawing]:
    """F1 and AUC of every system, as the card shows them."""
    seeds = len(report["seeds"])
    for metric, title in RATES.items():
        figure, panel = new_panel(f"{title} on the test pairs", "", "", height=1.4 + 0.3 * len(report["systems"]))
        panel.grid(False)
        draw_systems(panel, report, metric)
        panel.tick_params(labelsize=8)
        spread = f"marker and bar: mean ± standard deviation, dots: {seeds} seeds" if seeds > 1 else "one seed"
        yield Drawing(f"results_{metric}", figure, f"{title} of every system on the test pairs; {spread}.")


def draw_teacher(check: Mapping[str, Any]) -> Iterator[Drawing]:
    """Share of each class that a threshold would drop, against the threshold."""
    curve = check["threshold_curve"]
    figure, panel = new_panel(
        "Pairs that a threshold drops", "threshold on the teacher's probability", "dropped (% of the class)"
    )
    x = [row["threshold"] for row in curve]
    for label, title, color, line, marker in (
        ("positive", "matches (P below)", BLUE, "-", "o"),
        ("negative", "others (P at or above)", ORANGE, "--", "s"),
    ):
        y = [100 * row[f"dropped_{label}_share"] for row in curve]
        panel.plot(x, y, line, color=color, marker=marker, markersize=5, linewidth=1.6, label=title)
    limit = 100 * DROPPED_SHARE_LIMIT
    panel.axhline(limit, color=GREY, linestyle=":", linewidth=1.2, label=f"{limit:.0f} %: too many")
    panel.set_xlim(0, 1)
    panel.set_ylim(bottom=0)
    panel.legend(fontsize=8)
    yield Drawing("teacher_thresholds", figure, "Share of matches and of other pairs that each threshold would drop.")


def draw_scores(seeds: Sequence[SeedData]) -> Iterator[Drawing]:
    """Match probabilities of test pairs by class, a plot for each system, all seeds together."""
    judged = [seed for seed in seeds if seed.judged]
    bins = np.linspace(0, 1, 26).tolist()
    for name, title in SYSTEM_TITLES.items():
        parts = [(seed.judged[name].probability, seed.labels) for seed in judged if name in seed.judged]
        if not parts:
            continue
        probability, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
        figure, panel = new_panel(
            title[0].upper() + title[1:], "match probability", "share of the class (%)", height=2.8
        )
        for label, color, hatch, meaning in ((0, ORANGE, "////", "gold: no match"), (1, BLUE, "", "gold: match")):
            part = probability[labels == label]
            weights = np.full(len(part), 100 / max(len(part), 1))
            style: dict[str, Any] = {"color": color, "alpha": 0.45, "hatch": hatch, "histtype": "stepfilled"}
            panel.hist(part, bins, weights=weights, label=meaning, **style)
            panel.hist(part, bins, weights=weights, color=color, histtype="step", linestyle="-" if label else "--")
        panel.set_xlim(0, 1)
        panel.legend(fontsize=8)
        words = f"Match probabilities by {title}, in percent of each gold class: the less they overlap, the better."
        yield Drawing(f"scores_{name.removeprefix('llm_')}", figure, words)


def draw_precision_recall(seeds: Sequence[SeedData]) -> Iterator[Drawing]:
    """Precision against recall on the test pairs, a thin line for each seed."""
    judged = [seed for seed in seeds if seed.judged]
    if not judged:
        return
    figure, panel = new_panel("Precision against recall", "recall", "precision", height=3.8)
    for name in judged[0].judged:
        title, (color, line, _) = SYSTEM_TITLES[name], SYSTEM_LINES[name]
        areas = [average_precision_score(seed.labels, seed.judged[name].probability) for seed in judged]
        # Every seed has the same teacher.
        for number, seed in enumerate(judged[:1] if name == "teacher" else judged):
            precision, recall, _ = precision_recall_curve(seed.labels, seed.judged[name].probability)
            label = f"{title} (average precision {np.mean(areas):.3f})" if number == 0 else None
            panel.plot(
                recall, precision, line, color=color, linewidth=1.4, alpha=1 if number == 0 else 0.5, label=label
            )
    panel.axhline(float(np.mean([seed.labels.mean() for seed in judged])), color=GREY, linestyle=":", label="guessing")
    panel.set(xlim=(0, 1), ylim=(0, 1.02))
    panel.legend(fontsize=8, loc="lower left")
    several = f"; a line for each of {len(judged)} seeds" if len(judged) > 1 else ""
    yield Drawing("precision_recall", figure, f"Precision against recall on the test pairs{several}.")


def mean_norms(seeds: Sequence[SeedData]) -> tuple[list[str], dict[str, dict[str, np.ndarray]]]:
    """Modules in the order of the model, and by student the norms of evidence.npz (m,), averaged over the seeds.

    Only seeds whose runs of all kinds have them, and students that were adapted alike, are compared.
    """
    found = [seed.students for seed in seeds if all("update" in arrays for arrays in seed.students.values())]
    modules = [tuple(arrays["modules"]) for students in found for arrays in students.values()]
    if not found or len(set(modules)) > 1:
        return [], {}
    names = ("a_start", *NORMS)
    return [str(name) for name in modules[0]], {
        student: {norm: np.mean([students[student][norm] for students in found], 0) for norm in names}
        for student in found[0]
    }


def moved_share(norms: Mapping[str, np.ndarray]) -> float:
    """Mean of |A − A₀| / |A₀| over the modules whose A did not start at 0, as that of an embedding does; else nan."""
    started = norms["a_start"] > 0
    return float(np.mean(norms["a_moved"][started] / norms["a_start"][started])) if started.any() else float("nan")


def module_parts(name: str) -> tuple[str, str]:
    """("3", "mlp.down_proj") of model.layers.3.mlp.down_proj; of a module outside the layers ("", its name)."""
    parts = LAYER_NUMBER.split(name, maxsplit=1)
    return (parts[1], parts[2]) if len(parts) == 3 else ("", name)


def draw_updates(modules: Sequence[str], norms: Mapping[str, Mapping[str, np.ndarray]]) -> Iterator[Drawing]:
    """How far A and B have moved, and by how much the weights have changed, module by module."""
    if not modules:
        return
    layers, endings = zip(*map(module_parts, modules), strict=True)
    places = np.arange(len(modules))
    starts = [place for place in places if place == 0 or layers[place] != layers[place - 1]]
    for norm, title in NORMS.items():
        few = len(modules) <= NAMED_MODULES
        figure, panel = new_panel(
            title, "adapted module, layer by layer", "Frobenius norm", height=4.2 if few else 3.3
        )
        for student, arrays in norms.items():
            color, line, marker = SYSTEM_LINES[student]
            panel.plot(
                places,
                arrays[norm],
                line,
                color=color,
                marker=marker,
                markersize=4,
                linewidth=1,
                label=SYSTEM_TITLES[student],
            )
        if few:
            labels = [
                f"{layer} {ending.rpartition('.')[2]}".strip() for layer, ending in zip(layers, endings, strict=True)
            ]
            panel.set_xticks(places, [plain(label) for label in labels], rotation=90, fontsize=7)
        else:
            panel.set_xticks(starts, [layers[place] for place in starts])
        for place in starts[1:]:
            panel.axvline(place - 0.5, color=GREY, linestyle=":", linewidth=1)
        values = np.concatenate([arrays[norm] for arrays in norms.values()])
        if values.min() > 0 and values.max() > FAR_ABOVE * np.median(values):  # an embedding's would hide all others
            panel.set_yscale("log")
            panel.set_ylabel("Frobenius norm (log scale)", fontsize=9)
        else:
            panel.set_ylim(bottom=0)
        panel.legend(fontsize=8)
        students = " and ".join(SYSTEM_TITLES[name] for name in norms)
        words = f"Frobenius norm of {title.partition(',')[0]} of every adapted module, {students}."
        yield Drawing(f"updates_{norm}", figure, words)


def draw_losses(report: Mapping[str, Any]) -> Iterator[Drawing]:
    """The loss terms over the steps, as the card shows them."""
    for term, title, _ in TERMS:
        if any(curves_of(run.get("llm_flipped", {}), [term]) for run in report["runs"]):
            figure, panel = new_panel("", "", "", height=2.9)
            draw_term(panel, report, term)
            panel.legend(fontsize=8)
            several = "; thin lines are seeds, the thick one their mean" if len(report["runs"]) > 1 else ""
            yield Drawing(term, figure, f"{title}, unweighted, over the optimizer steps{several}.")


def draw_dropped(report: Mapping[str, Any]) -> Iterator[Drawing]:
    """Share of each class that the dual threshold dropped, over the steps of the flipped runs."""
    lines = {"dropped_positive": ("matches", BLUE, "-", "o"), "dropped_negative": ("others", ORANGE, "--", "s")}
    runs = [curves_of(run.get("llm_flipped", {}), list(lines)) for run in report["runs"]]
    if not any(runs):
        return
    figure, panel = new_panel(
        "Dropped by the dual threshold", "optimizer step", "dropped (% of the class)", height=2.9
    )
    for name, (title, color, line, marker) in lines.items():
        for number, (steps, values) in enumerate(curves[name] for curves in runs if name in curves):
            alpha = 1 if number == 0 else 0.5
            style: dict[str, Any] = {
                "color": color,
                "marker": marker,
                "markersize": 3,
                "linewidth": 1.2,
                "alpha": alpha,
            }
            panel.plot(steps, 100 * values, line, label=title if number == 0 else None, **style)
    panel.set_ylim(bottom=0)
    panel.legend(fontsize=8)
    several = "; a line for each seed" if len(runs) > 1 else ""
    yield Drawing("dropped", figure, f"Share of the batches' pairs that L_dist left out, by class{several}.")
