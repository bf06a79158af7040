"""The verbs predict, encode, evaluate and calibrate of `flipped-kd`."""

from __future__ import annotations

import json
import logging
import math
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from accelerate import PartialState
from scipy.special import expit

from ..data.loading import PairColumns, load_pairs
from ..data.tables import STANDARD
from ..data.text_tables import Chunk
from ..evaluation.match_score import KINDS, SCORE_FILE, LogOdds, MatchScore, ScoreKind
from ..evaluation.metrics import matching_metrics
from ..inference.matcher import FlippedMatcher
from ..utils.atomic_file import write_atomically
from ..utils.provenance import shown_name
from .arguments import UsageError
from .runtime import Work, open_matcher, run_job, shows_progress

logger = logging.getLogger(__name__)
# What an adapter without match_score.json has: the answer's log-odds as they are.
ANSWER_ONLY = MatchScore({"answer": LogOdds(1.0, 0.0, 0.0, threshold=0.0)}, "answer")


def predict(options: Namespace) -> None:
    """Add match probabilities to a table of pairs."""
    names = {"score": pa.float64()}
    if options.all_scores:
        names |= {f"score_{kind}": pa.float64() for kind in KINDS}
        names |= {"answer_log_odds": pa.float64(), "cosine": pa.float64()}
    if options.threshold is not None:
        names["match"] = pa.bool_()
    prefix = options.column_prefix

    def open_work(state: PartialState) -> Work:
        matcher, digest = open_matcher(options, state)
        kind = checked_kind(matcher, options.score)
        scorer = matcher.match_score or ANSWER_ONLY
        if options.threshold == "tuned" and matcher.match_score is None:
            raise UsageError(
                f"--threshold tuned: {matcher.source!r} has no match_score.json, so no threshold was chosen for it: "
                "train it with validation pairs, or give a number in [0, 1]"
            )
        there = {name: type_ for name, type_ in names.items() if name.removeprefix("score_") not in KINDS}
        there |= {f"score_{each}": pa.float64() for each in scorer.kinds if options.all_scores}
        schema = pa.schema([(prefix + name, type_) for name, type_ in names.items() if name in there])

        def compute(chunk: Chunk) -> pa.Table:
            answer, similarity = matcher.scores(
                list(zip(*chunk.texts, strict=True)),
                batch_size=options.batch_size,
                show_progress_bar=False,
                kind=None if options.all_scores else kind,
            )
            log_odds = {each: scorer.log_odds(answer, similarity, each) for each in scorer.kinds}
            columns = {f"score_{each}": expit(values) for each, values in log_odds.items()}
            columns |= {"score": expit(log_odds[kind]), "answer_log_odds": answer, "cosine": similarity}
            if options.threshold == "tuned":
                columns["match"] = scorer.matches(answer, similarity, kind)
            elif options.threshold is not None:
                columns["match"] = columns["score"] >= options.threshold
            return pa.table([columns[name.removeprefix(prefix)] for name in schema.names], schema=schema)

        return Work(compute, schema, digest)

    run_job(
        options,
        options.pairs,
        {"--text-a-column": options.text_a_column, "--text-b-column": options.text_b_column},
        {name: getattr(options, name) for name in ("score", "all_scores", "threshold", "column_prefix")},
        [prefix + name for name in names],
        open_work,
    )


def checked_kind(matcher: FlippedMatcher, score: str | None) -> ScoreKind:
    """The score to use, the model's own by default.

    Raises:
        UsageError: the model has no such score.
    """
    scorer = matcher.match_score or ANSWER_ONLY
    if score is None:
        return scorer.default
    for kind in scorer.kinds:
        if kind == score:
            return kind
    raise UsageError(
        f"--score {score}: {matcher.source!r} has {' and '.join(scorer.kinds)} only: the others are fitted when it is "
        "trained with validation pairs"
    )


def encode(options: Namespace) -> None:
    """Add vectors to a table of texts."""
    name = f"{options.column_prefix}vector"

    def open_work(state: PartialState) -> Work:
        matcher, digest = open_matcher(options, state)
        dimension = matcher.encoder.dimension
        schema = pa.schema([(name, pa.list_(pa.float32(), dimension))])

        def compute(chunk: Chunk) -> pa.Table:
            vectors = matcher.encode(chunk.texts[0], batch_size=options.batch_size, show_progress_bar=False)
            flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
            return pa.table([pa.FixedSizeListArray.from_arrays(flat, dimension)], schema=schema)

        return Work(compute, schema, digest)

    columns = {"--text-column": options.text_column}
    depends_on = {"column_prefix": options.column_prefix}
    run_job(options, options.texts, columns, depends_on, [name], open_work, vectors=True)


def evaluate(options: Namespace) -> None:
    """Judge a model on labelled pairs."""
    check_report_file(options.output)
    pairs = labelled_pairs(options, options.pairs)
    matcher, _ = open_matcher(options)
    kind = None if options.score is None else checked_kind(matcher, options.score)
    scorer = matcher.match_score or ANSWER_ONLY
    kinds = list(scorer.kinds) if kind is None else [kind]
    answer, similarity = matcher.scores(
        pairs,
        batch_size=options.batch_size,
        show_progress_bar=shows_progress(options),
        kind=kinds[0] if len(kinds) == 1 else None,
    )
    judged = _judged(scorer, kinds, answer, similarity, np.asarray(pairs["label"]))
    report = {"model": shown_name(options.model)} | judged
    write_report(options, report, _metrics_table(report))


def calibrate(options: Namespace) -> None:
    """Fit a model's match score and thresholds anew on labelled pairs."""
    if options.output is None and not Path(options.model).is_dir():
        raise UsageError(
            f"{options.model} is no folder, and match_score.json is written into the model's: download it first, or "
            "name the file by --output"
        )
    target = Path(options.output or Path(options.model) / SCORE_FILE)
    check_report_file(str(target))
    pairs = labelled_pairs(options, options.pairs)
    matcher, _ = open_matcher(options)
    answer, similarity = matcher.scores(
        pairs, batch_size=options.batch_size, show_progress_bar=shows_progress(options)
    )
    labels = np.asarray(pairs["label"])
    default = matcher.match_score.default if matcher.match_score is not None else "both"
    score = MatchScore.fit(answer, similarity, labels, options.score or default, options.min_precision)
    write_atomically(target, score.to_json())
    print(_metrics_table(_judged(score, KINDS, answer, similarity, labels)), file=options.stdout)
    logger.info(
        "%s is fitted on these pairs, whose metrics flatter it: judge it on others by `flipped-kd evaluate`. "
        "`flipped-kd card` writes the thresholds into the card.",
        target,
    )


def _judged(
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


def labelled_pairs(options: Namespace, source: str) -> datasets.Dataset:
    """The pairs that the options of `_add_labelled` describe."""
    return load_pairs(
        source,
        split=options.split,
        columns=PairColumns(options.text_a_column, options.text_b_column, options.label_column),
        label_threshold=options.label_threshold,
        skip_bad_rows=options.skip_bad_rows,
        max_rows=options.max_pairs,
    )


def _metrics_table(report: Mapping[str, Any]) -> str:
    """The metrics as a Markdown table, those at the chosen threshold where there is one."""
    heads = ("F1", "precision", "recall", "accuracy", "AUC", "average precision")
    lines = [f"| score | threshold | {' | '.join(heads)} |", "|---" * (len(heads) + 2) + "|"]
    for kind, metrics in report["scores"].items():
        for end, chosen in (("_tuned", "validation"), ("", "natural")):
            if f"f1{end}" not in metrics:
                continue
            values = [metrics[f"{name}{end}"] for name in ("f1", "precision", "recall", "accuracy")]
            values += [metrics["roc_auc"], metrics["average_precision"]]
            default = ", default" if kind == report["default_score"] else ""
            cells = " | ".join("-" if math.isnan(value) else f"{value:.4f}" for value in values)
            lines.append(f"| {kind}{default} | {metrics[f'threshold{end}']:.4f} ({chosen}) | {cells} |")
    return f"{report['pairs']} pairs, {report['positive_share']:.1%} of them matches\n\n" + "\n".join(lines)


def check_report_file(output: str | None) -> None:
    """Refuse a place for a report that is none, before any work."""
    if output not in (None, STANDARD):
        path = Path(str(output))
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise UsageError(f"--output {output} is a folder, or in one that does not exist: name a file")


def write_report(options: Namespace, report: Mapping[str, Any], table: str) -> None:
    """The table on the screen; the report as JSON in the file asked for, or on the screen instead of the table."""
    text = json.dumps(_finite(report), indent=2, ensure_ascii=False) + "\n"
    if options.output == STANDARD:
        options.stdout.write(text)
        return
    if options.output is not None:
        write_atomically(Path(options.output), text)
    print(table, file=options.stdout)


def _finite(value: Any) -> Any:
    """NaN as null, which JSON has."""
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
