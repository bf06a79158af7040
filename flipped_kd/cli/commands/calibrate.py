"""`flipped-kd calibrate`: fit a model's match score and thresholds anew on labelled pairs."""

from __future__ import annotations

import logging
from argparse import Namespace
from pathlib import Path

import numpy as np

from ...data.tables import STANDARD
from ...evaluation.match_score import SCORE_FILE, MatchScore
from ...utils.atomic import write_atomically
from ...utils.choices import SCORE_KINDS
from ..arguments import UsageError
from ..models import load_matcher, refuse_hub_cache
from ..outputs import check_report_file
from ..reports import judged_scores, labelled_pairs, metrics_table
from ..runtime import reading

logger = logging.getLogger(__name__)


def calibrate(options: Namespace) -> None:
    """Fit a model's match score and thresholds anew on labelled pairs."""
    if options.min_precision == 0:
        raise UsageError("--min-precision 0 asks for nothing: give a precision above 0, or leave it out")
    if options.output is None and not Path(options.model).is_dir():
        raise UsageError(
            f"{options.model} is no folder, and match_score.json is written into the model's: download it first, or "
            "name the file by --output"
        )
    if options.output is None:
        refuse_hub_cache(options.model, "name the file by --output")
    target = options.output or str(Path(options.model) / SCORE_FILE)
    # The model's own is what one calibrates anew.
    own = Path(options.model) / SCORE_FILE
    inputs = [options.pairs] if Path(target).resolve() == own.resolve() else [options.pairs, options.model]
    check_report_file(target, *inputs, overwrite=options.overwrite or options.output is None)
    pairs = labelled_pairs(options, options.pairs)
    matcher, _ = load_matcher(options)
    answer, similarity = matcher.scores(pairs, **reading(options))
    labels = np.asarray(pairs["label"])
    default = matcher.match_score.default if matcher.match_score is not None else "both"
    score = MatchScore.fit(answer, similarity, labels, options.score or default, options.min_precision)
    if target == STANDARD:
        print(score.to_json(), end="", file=options.stdout, flush=True)
    else:
        write_atomically(target, score.to_json())
        print(metrics_table(judged_scores(score, SCORE_KINDS, answer, similarity, labels)), file=options.screen)
    logger.info(
        "%s is fitted on these pairs, whose metrics flatter it: judge it on others by `flipped-kd evaluate`. "
        "`flipped-kd card` writes the thresholds into the card.",
        SCORE_FILE if target == STANDARD else target,
    )
