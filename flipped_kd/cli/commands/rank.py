"""`flipped-kd rank`: rank documents by their probability of matching a query."""

from __future__ import annotations

from argparse import Namespace

import numpy as np
import pyarrow as pa
from accelerate import PartialState

from ...data.text_tables import Chunk
from ..arguments import UsageError
from ..models import checked_kind, open_matcher
from ..runtime import Work, id_type, named_column, run_table_job


def rank(options: Namespace) -> None:
    """Rank documents by their probability of matching a query."""
    if not options.query.strip():
        raise UsageError("QUERY is empty: give a text")
    schema = pa.schema([("corpus_id", id_type(options.id_column)), ("score", pa.float64()), ("text", pa.string())])

    def open_work(state: PartialState) -> Work:
        matcher, digest = open_matcher(options, state)
        kind = checked_kind(matcher, options.score)

        def compute(chunk: Chunk) -> pa.Table:
            (texts,) = chunk.texts
            found = matcher.rank(
                options.query, texts, score=kind, batch_size=options.batch_size, show_progress_bar=False
            )
            scores = np.empty(len(texts))
            scores[[hit["corpus_id"] for hit in found]] = [hit["score"] for hit in found]
            return pa.table([chunk.ids, scores, texts], schema=schema)

        def best_first(table: pa.Table) -> pa.Table:
            order = np.argsort(-table["score"].to_numpy(), kind="stable")[: options.top_k]
            return table.take(pa.array(order))

        return Work(compute, schema, digest, best_first)

    run_table_job(
        options,
        options.documents,
        {"--text-column": options.text_column},
        {name: getattr(options, name) for name in ("query", "score", "top_k")},
        [],
        open_work,
        id_column=named_column("--id-column", options.id_column),
        keep_rows=False,
    )
