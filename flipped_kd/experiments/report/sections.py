"""The parts of the report page: words, tables and plots. Of what is not in a folder, a sentence says how to get it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ...evaluation.comparison import report_tables
from ...teachers.suitability import curve_rows, system_rows, warnings_of
from .ablation import ablation
from .data import ReportData
from .elements import Draw, Section, Table
from .plots import (
    NORMS,
    SYSTEM_TITLES,
    draw_dropped,
    draw_losses,
    draw_precision_recall,
    draw_results,
    draw_scores,
    draw_teacher,
    draw_updates,
    mean_norms,
    module_parts,
    moved_share,
)
from .space import draw_space, draw_spread, spread_of

ANEW = "Runs save this when they are made: train once more with another --output_dir."
SHORT = {"llm_sft": "plain", "llm_flipped": "flipped"}


def all_sections(data: ReportData, draw: Draw) -> list[Section]:
    """The page's parts in their order.

    Args:
        data: what is known.
        draw: turns drawings into pictures.
    """
    parts = (results, teacher, scores, updates, representations, training, ablation, mistakes)
    return [part(data, draw) for part in parts]


def results(data: ReportData, draw: Draw) -> Section:
    """Every system on the test pairs, and paired differences."""
    report = data.report
    section = Section("results", "Results", words=[*_verdict(report)])
    titles = ("Test pairs", "Differences, paired by seed", "All questions ranked for each query")
    for title, (heads, rows) in zip(titles, report_tables(report), strict=False):  # the last of an FAQ alone
        section.tables.append(Table(title, heads, rows))
    section.plots = draw(draw_results(report))
    spread = " ± is the sample standard deviation over seeds." if data.several else ""
    section.notes.append(f"F1 and accuracy are at the threshold with the best F1 on the validation pairs.{spread}")
    return section


def _verdict(report: Mapping[str, Any]) -> Iterable[str]:
    """The differences that the method is about, in words."""
    seeds = len(report["seeds"])
    for other, title in (("llm_sft_both", "plain fine-tuning"), ("teacher", "its teacher")):
        gap = report["differences"].get(f"llm_flipped_both - {other}")
        if gap is not None:
            wins = sum(value > 0 for value in gap["by_seed"]["auc"])
            word = "above" if gap["auc"] > 0 else "below"
            yield (
                f"The flipped student is {word} {title}: AUC {gap['auc']:+.3f}, F1 {gap['f1']:+.3f}, both scores of a "
                f"student together; AUC above in {wins} of {seeds} seed{'s' * (seeds > 1)}."
            )


def teacher(data: ReportData, draw: Draw) -> Section:
    """The check of the teacher before training."""
    section = Section("teacher", "The teacher, checked before training")
    check = data.report.get("teacher_check")
    if not check:
        section.missing.append(f"This report holds no check of the teacher. {_again(data)} adds it.")
        return section
    section.loud = warnings_of(check)
    section.words = list(check["advice"])
    head = ["system", "AUC", "average precision", "F1", "F1 at P = .5"]
    section.tables.append(Table("Validation pairs", head, system_rows(check)))
    head = ["threshold", "matches dropped (P < threshold)", "others dropped (P ≥ threshold)"]
    section.tables.append(Table("What the dual threshold would drop from L_dist", head, curve_rows(check)))
    section.plots = draw(draw_teacher(check))
    agreement = check["agreement"]
    section.notes.append(
        f"{agreement['n']:,} pairs, {agreement['positive_share']:.1%} of them matches; mean gap between probability "
        f"and share of matches {agreement['expected_calibration_error']:.3f}."
    )
    return section


def scores(data: ReportData, draw: Draw) -> Section:
    """How the scores of the two classes lie."""
    section = Section("scores", "Scores by class")
    section.plots = [*draw(draw_scores(data.seeds)), *draw(draw_precision_recall(data.seeds))]
    if not section.plots:
        section.missing.append(f"The scores of single pairs are not all in this folder. {_again(data)} adds them.")
        return section
    section.notes.append(
        "Probabilities are logistic fits on the validation pairs; of a student, of both its scores together."
        + (" Histograms are of all seeds." if data.several else "")
    )
    return section


def updates(data: ReportData, draw: Draw) -> Section:
    """How far A and B have moved."""
    section = Section("updates", "What moved: A, B and the weights")
    modules, norms = mean_norms(data.seeds)
    if not modules:
        section.missing.append(f"The norms of the updates are not in this folder. {ANEW}")
        return section
    section.words.append(
        "A is read as the encoder, B as the decoder: L_dist and L_MCL compare outputs of A, L_sup reads the answer."
    )
    kinds = [module_parts(name)[1] for name in modules]
    rows = []
    for kind in [None, *dict.fromkeys(kinds)]:
        chosen = np.array([kind in (None, found) for found in kinds])
        cells = [np.linalg.norm(norms[student][norm][chosen]) for norm in NORMS for student in norms]
        rows.append([kind or "all modules", *(f"{cell:.4g}" for cell in cells)])
    head = ["module", *(f"{title.partition(',')[0]} {SHORT[name]}" for title in NORMS.values() for name in norms)]
    section.tables.append(Table("Frobenius norms over all layers", head, rows))
    section.plots = draw(draw_updates(modules, norms))
    section.notes.append(
        "A₀ and B₀ are the values before training, s is LoRA's scaling." + (" Means over seeds." * data.several)
    )
    shares = {SHORT[name]: moved_share(arrays) for name, arrays in norms.items()}
    if not np.isnan(list(shares.values())).any():
        words = ", ".join(f"{share:.1%} ({name})" for name, share in shares.items())
        section.notes.append(f"A of a linear layer has moved by so much of its norm, on average: {words}.")
    return section


def representations(data: ReportData, draw: Draw) -> Section:
    """Alignment, uniformity and the space in two dimensions."""
    section = Section("space", "Representations before and after training")
    by_seed = [spread for spread in map(spread_of, data.seeds) if len(spread) > 1]
    if not by_seed:
        section.missing.append(f"The vectors of test texts are not in this folder. {ANEW}")
        return section
    means = {
        title: (
            float(np.mean([spread[title][0] for spread in by_seed if title in spread])),
            float(np.mean([spread[title][1] for spread in by_seed if title in spread])),
        )
        for title in by_seed[0]
    }
    first = next(seed for seed in data.seeds if seed.shared)
    matches = int((first.shared["pair_labels"] == 1).sum())
    section.words.append(
        "Alignment is the mean squared distance of texts that match, uniformity the log of the mean of "
        "exp(−2 |x − y|²) over all texts (Wang and Isola, 2020). Lower is better for both; one alone is easily had: a "
        "student that maps all texts to one point is perfectly aligned."
    )
    rows = [[title, f"{aligned:.3f}", f"{uniform:.3f}"] for title, (aligned, uniform) in means.items()]
    section.tables.append(Table("A sample of the test texts", ["representation", "alignment", "uniformity"], rows))
    section.plots = [*draw(draw_spread(means)), *draw(draw_space(first))]
    groups = first.examples.get("groups", [])
    if groups:
        shown = [[str(number), text] for number, text in enumerate(groups, 1)]
        section.tables.append(Table("The marked groups", ["group", "one of its texts"], shown, (1,)))
    section.notes.append(
        f"{len(first.shared['groups'])} texts of {len(first.shared['pairs'])} test pairs, {matches} of which match. A "
        "group is texts that matching test pairs join, directly or over others. Components are of each panel's own "
        "vectors, of the first seed" + ("; the table's numbers are means over seeds." if len(by_seed) > 1 else ".")
    )
    return section


def training(data: ReportData, draw: Draw) -> Section:
    """Loss terms and the dropped share over the steps."""
    section = Section("training", "Training")
    section.plots = [*draw(draw_losses(data.report)), *draw(draw_dropped(data.report))]
    if not any(run.get("llm_flipped", {}).get("steps", 1) for run in data.report["runs"]):
        section.missing.append("No step was trained (--max_steps 0): the student is as the start has left it.")
    elif not section.plots:
        section.missing.append(f"The runs logged no loss terms: --logging_steps 10 gives them. {ANEW}")
    return section


def mistakes(data: ReportData, draw: Draw) -> Section:
    """The most confident mistakes of each system, and what only the flipped student gets right."""
    section = Section("mistakes", "Mistakes")
    examples = next((seed.examples for seed in data.seeds if seed.examples), None)
    if examples is None:
        section.missing.append(f"The texts of mistakes are not in this folder. {_again(data)} adds them.")
        return section
    total = f"of {examples['test_pairs']:,} test pairs"
    alone = [
        ("only_flipped", "Only the flipped student is right"),
        ("all_but_flipped", "Only the flipped student is wrong"),
    ]
    found = [(title, examples[name]) for name, title in alone if name in examples]
    found += [(f"Wrong by {SYSTEM_TITLES.get(name, name)}", part) for name, part in examples["mistakes"].items()]
    for title, part in found:
        names = [name for name in SYSTEM_TITLES if all(name in pair["probability"] for pair in part["pairs"])]
        head = ["text a", "text b", "gold", *(f"P, {SYSTEM_TITLES[name]}" for name in names)]
        rows = [
            [
                *(pair["text_a"], pair["text_b"], "match" if pair["label"] else "no match"),
                *(f"{pair['probability'][name]:.3f}" for name in names),
            ]
            for pair in part["pairs"]
        ]
        shown = f", {len(rows)} shown" if len(rows) < part["count"] else ""
        section.tables.append(Table(f"{title}: {part['count']:,} {total}{shown}", head, rows, (0, 1)))
    section.notes.append(
        "The most confident ones first; of the first seed. A system decides at the threshold with the best F1 on the "
        "validation pairs, which need not be at probability .5."
    )
    return section


def _again(data: ReportData) -> str:
    command = data.report.get("command") or "that of the recipe"
    return f"The same command given again ({command}; finished runs are not repeated)"
