"""Reports of labelled pairs: reading the pairs, metrics as a table, and the report on screen or in a file."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np

from ..data.loading import load_pairs
from ..data.tables import STANDARD
from ..data.validation import PairColumns
from ..evaluation.match_score import ANSWER_ONLY, MatchScore
from ..evaluation.metrics import matching_metrics
from ..utils.choices import ScoreKind
from ..utils.json_files import finite, write_json
from ..utils.markdown import table
from .runtime import hide_bars


def judged_scores(
    scorer: MatchScore, kinds: Sequence[ScoreKind], answer: np.ndarray, similarity: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """Metrics of each kind of score at its natural threshold and at the chosen one, where one was chosen."""
    scores = {}
    for kind in kinds:
        tuned = None if scorer is ANSWER_ONLY else scorer.kinds[kind].threshold
        log_odds = scorer.log_odds(answer, similarity, kind)
        scores[kind] = matching_metrics(log_odds, labels, threshold=0.0, tuned_threshold=tuned) | {"threshold": 0.5}
        if tuned is not None:
            scores[kind]["threshold_tuned"] = scorer.threshold(kind)
    return {
        "pairs": len(labels),
        "positive_share": float(labels.mean()),
        "default_score": scorer.default,
        "scores": scores,
    }


def labelled_pairs(options: Namespace, source: str, both_classes: bool = True) -> datasets.Dataset:
    """The pairs that the options of `add_labelled` describe; `both_classes`: those of one class are refused."""
    hide_bars(options)
    return load_pairs(
        source,
        split=options.split,
        columns=PairColumns(options.text_a_column, options.text_b_column, options.label_column),
        label_threshold=options.label_threshold,
        skip_bad_rows=options.skip_bad_rows,
        max_rows=options.max_pairs,
        require_both_classes=both_classes,
    )


def metrics_table(report: Mapping[str, Any]) -> str:
    """The metrics as a Markdown table, those at the chosen threshold where there is one."""
    heads = ("F1", "precision", "recall", "accuracy", "AUC", "average precision")
    rows = []
    for kind, metrics in report["scores"].items():
        for end, chosen in (("_tuned", "validation"), ("", "fixed")):
            if f"f1{end}" not in metrics:
                continue
            values = [metrics[f"{name}{end}"] for name in ("f1", "precision", "recall", "accuracy")]
            values += [metrics["roc_auc"], metrics["average_precision"]]
            default = ", default" if kind == report["default_score"] else ""
            cells = ["-" if math.isnan(value) else f"{value:.4f}" for value in values]
            rows.append([f"{kind}{default}", f"{metrics[f'threshold{end}']:.4f} ({chosen})", *cells])
    size = f"{report['pairs']} pairs, {report['positive_share']:.1%} of them matches"
    return f"{size}\n\n{table(['score', 'threshold', *heads], rows)}"


def show_report(options: Namespace, report: Mapping[str, Any], shown: str) -> None:
    """The table on the screen; the report as JSON in the file asked for, or on the screen instead of the table."""
    if options.output == STANDARD:  # in ASCII, which every encoding of a screen has
        print(json.dumps(finite(report), indent=2), file=options.stdout, flush=True)
    elif options.output is None:
        print(shown, file=options.stdout, flush=True)
    else:
        write_json(options.output, finite(report), ensure_ascii=False)
        print(shown, file=options.screen)
