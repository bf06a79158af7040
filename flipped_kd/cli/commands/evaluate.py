"""`flipped-kd evaluate`: judge a model on labelled pairs."""

from __future__ import annotations

from argparse import Namespace

import numpy as np

from ...evaluation.match_score import ANSWER_ONLY
from ...utils.provenance import shown_name
from ..models import checked_kind, load_matcher
from ..outputs import check_report_file
from ..reports import judged_scores, labelled_pairs, metrics_table, show_report
from ..runtime import reading


def evaluate(options: Namespace) -> None:
    """Judge a model on labelled pairs."""
    if options.output is not None:
        check_report_file(options.output, options.pairs, options.model, overwrite=options.overwrite)
    pairs = labelled_pairs(options, options.pairs, both_classes=False)
    matcher, _ = load_matcher(options)
    kind = None if options.score is None else checked_kind(matcher, options.score)
    scorer = matcher.match_score or ANSWER_ONLY
    kinds = list(scorer.kinds) if kind is None else [kind]
    answer, similarity = matcher.scores(pairs, kind=kinds[0] if len(kinds) == 1 else None, **reading(options))
    judged = judged_scores(scorer, kinds, answer, similarity, np.asarray(pairs["label"]))
    report = {"model": shown_name(options.model)} | judged
    show_report(options, report, metrics_table(report))
