"""`flipped-kd predict`: add match probabilities to a table of pairs."""

from __future__ import annotations

from argparse import Namespace

import pyarrow as pa
from accelerate import PartialState
from scipy.special import expit

from ...data.text_tables import Chunk
from ...evaluation.match_score import ANSWER_ONLY
from ...utils.choices import SCORE_KINDS
from ..arguments import UsageError
from ..models import checked_kind, open_matcher
from ..runtime import Work, run_table_job


def predict(options: Namespace) -> None:
    """Add match probabilities to a table of pairs."""
    names = {"score": pa.float64()}
    if options.all_scores:
        names |= {f"score_{kind}": pa.float64() for kind in SCORE_KINDS}
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
        absent = {f"score_{each}" for each in SCORE_KINDS if each not in scorer.kinds}
        schema = pa.schema([(prefix + name, type_) for name, type_ in names.items() if name not in absent])

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

    run_table_job(
        options,
        options.pairs,
        {"--text-a-column": options.text_a_column, "--text-b-column": options.text_b_column},
        {name: getattr(options, name) for name in ("score", "all_scores", "threshold", "column_prefix")},
        [prefix + name for name in names],
        open_work,
    )
