"""The verbs rank and search of `flipped-kd`."""

from __future__ import annotations

import logging
from argparse import Namespace
from pathlib import Path

import numpy as np
import pyarrow as pa
from accelerate import PartialState

from ..data.tables import STANDARD
from ..data.text_tables import Chunk, digest_of
from ..inference.matcher import FlippedMatcher
from ..inference.search_index import INDEX_FILE, SearchIndex
from ..utils.atomic import check_target
from .arguments import UsageError
from .runtime import Work, open_matcher, read_all, run_job, shows_progress
from .score import checked_kind

logger = logging.getLogger(__name__)


def rank(options: Namespace) -> None:
    """Rank documents by their probability of matching a query."""
    if not options.query.strip():
        raise UsageError("QUERY is empty: give a text")
    schema = pa.schema([("corpus_id", _id_type(options.id_column)), ("score", pa.float64()), ("text", pa.string())])

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

    run_job(
        options,
        options.documents,
        {"--text-column": options.text_column},
        {name: getattr(options, name) for name in ("query", "score", "top_k")},
        [],
        open_work,
        id_column=_named("--id-column", options.id_column),
        keep_rows=False,
    )


def search(options: Namespace) -> None:
    """Find the texts of a corpus that match queries."""
    if options.rerank and options.rerank < options.top_k:
        raise UsageError(
            f"--rerank {options.rerank} is less than --top-k {options.top_k}: rank at least as many again"
        )
    if options.score is not None and not options.rerank:
        raise UsageError(f"--score {options.score} is what --rerank ranks by: give --rerank {options.top_k} or more")
    if options.queries == options.corpus == STANDARD:
        raise UsageError("QUERIES and CORPUS are both -: standard input holds one of them, give the other as a file")
    corpus = _Corpus(options)
    query_id = _id_type(options.query_id_column)
    schema = pa.schema(
        [("query_id", query_id), ("query", pa.string()), ("rank", pa.int64())]
        + [("corpus_id", corpus.id_type), ("score", pa.float64()), ("text", pa.string())]
    )

    def open_work(state: PartialState) -> Work:
        matcher, digest = open_matcher(options, state)
        if options.rerank:
            checked_kind(matcher, options.score)
        index = corpus.index(matcher)

        def compute(chunk: Chunk) -> pa.Table:
            found = matcher.search(
                chunk.texts[0],
                index,
                options.top_k,
                rerank=options.rerank,
                score=options.score,
                return_documents=True,
                batch_size=options.batch_size,
                show_progress_bar=False,
            )
            rows = [
                (name, query, place, corpus.ids[hit["corpus_id"]], hit["score"], hit["text"])
                for name, query, hits in zip(chunk.ids, chunk.texts[0], found, strict=True)
                for place, hit in enumerate(hits, start=1)
            ]
            columns = [[row[place] for row in rows] for place in range(len(schema))]
            return pa.table(columns, schema=schema)

        return Work(compute, schema, digest)

    run_job(
        options,
        options.queries,
        {"--query-column": options.query_column},
        {name: getattr(options, name) for name in ("top_k", "rerank", "score")} | {"corpus": corpus.digest},
        [],
        open_work,
        id_column=_named("--query-id-column", options.query_id_column),
        keep_rows=False,
    )


def _named(option: str, column: str | None) -> tuple[str, str] | None:
    return None if column is None else (option, column)


def _id_type(column: str | None) -> pa.DataType:
    """Row numbers, or the values of a column as text."""
    return pa.int64() if column is None else pa.string()


class _Corpus:
    """The corpus, from a table or from a kept index, and the names of its texts.

    Raises:
        ValueError: it cannot be read, or --save-index names a folder of something else.
    """

    def __init__(self, options: Namespace) -> None:
        self._options = options
        self._kept: SearchIndex | None = None
        place = Path(options.corpus)
        if place.is_dir():
            if options.id_column is not None or options.save_index is not None:
                raise UsageError("--id-column and --save-index are for a CORPUS file, not for a folder with an index")
            self._kept = SearchIndex.load(place)
            self.texts, self.ids = self._kept.texts, self._kept.ids or list(range(len(self._kept)))
            self.digest = digest_of(self.texts, map(str, self.ids))
            return
        self.texts, self.ids = read_all(
            options.corpus,
            ("--text-column", options.text_column),
            _named("--id-column", options.id_column),
            options.skip_bad_rows,
        )
        self.digest = digest_of(self.texts, map(str, self.ids))
        if options.save_index is None:
            return
        check_target(Path(options.save_index), INDEX_FILE)
        if (Path(options.save_index) / INDEX_FILE).is_file():
            self._kept = SearchIndex.load(options.save_index)
            if self._kept.texts != self.texts:  # names are the file's, whatever the index calls them
                raise ValueError(
                    f"{options.save_index} holds the index of another corpus: name another folder by --save-index, or "
                    "remove this one."
                )

    @property
    def id_type(self) -> pa.DataType:
        """Row numbers, or the values of a column as text; those that an index was made with stay."""
        return pa.string() if self.ids and isinstance(self.ids[0], str) else pa.int64()

    def index(self, matcher: FlippedMatcher) -> SearchIndex:
        """The corpus's vectors: those kept, or made now and kept where that was asked for."""
        if self._kept is not None:
            logger.info("vectors of %d texts read from their index", len(self._kept))
            return self._kept
        logger.info("encoding %d texts", len(self.texts))
        index = matcher.index(
            self.texts, batch_size=self._options.batch_size, show_progress_bar=shows_progress(self._options)
        )
        index.ids = self.ids
        if self._options.save_index is not None:
            index.save(self._options.save_index)
            logger.info("%s: vectors of %d texts", self._options.save_index, len(index))
        return index
