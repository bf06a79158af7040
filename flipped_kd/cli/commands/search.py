"""`flipped-kd search`: find the texts of a corpus that match queries."""

from __future__ import annotations

import logging
import os
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
from accelerate import PartialState

from ...data.tables import STANDARD
from ...data.text_tables import Chunk, columns_digest, read_texts
from ...inference.matcher import FlippedMatcher
from ...inference.search_index import INDEX_FILE, SearchIndex
from ...utils.atomic import check_target, recover
from ...utils.locking import sole_writer_of
from ..arguments import UsageError
from ..models import checked_kind, open_matcher
from ..outputs import refuse_inputs
from ..runtime import Work, id_type, named_column, run_table_job, shows_progress

logger = logging.getLogger(__name__)


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
    index_folder = Path(os.path.realpath(options.save_index or ""))
    inside = options.output != STANDARD and index_folder in Path(os.path.realpath(options.output)).parents
    if options.save_index and inside and not (index_folder / INDEX_FILE).is_file():
        raise UsageError(f"--output {options.output} lies in the folder of --save-index: write to another place")
    refuse_inputs(options.output, options.corpus)  # before it is read
    corpus = _Corpus(options)
    query_id = id_type(options.query_id_column)
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

    alone = nullcontext() if corpus.is_kept else sole_writer_of(index_folder, "--save-index")
    with alone:
        run_table_job(
            options,
            options.queries,
            {"--query-column": options.query_column},
            {name: getattr(options, name) for name in ("top_k", "rerank", "score")}
            | {"corpus": corpus.digest}
            # Only where it is not as before there was a choice, so that jobs begun then go on.
            | ({} if options.index_kind is None else {"index_kind": options.index_kind}),
            [],
            open_work,
            id_column=named_column("--query-id-column", options.query_id_column),
            keep_rows=False,
        )
    if corpus.not_saved is not None:
        raise corpus.not_saved


class _Corpus:
    """The corpus, from a table or from a kept index, and the names of its texts.

    Raises:
        ValueError: it cannot be read, or --save-index names a folder of something else.
    """

    def __init__(self, options: Namespace) -> None:
        self._options = options
        self._kept: SearchIndex | None = None
        self._is_renamed = False  # the kept index has these texts by other names
        self.not_saved: OSError | ValueError | None = None
        place = Path(options.corpus)
        for folder in (place, Path(options.save_index or place)):
            recover(folder)  # a server that was killed while it wrote its index may have left it without its name
        if place.is_dir():
            for name in ("id_column", "save_index", "index_kind"):
                if getattr(options, name) is not None:
                    flag = "--" + name.replace("_", "-")
                    raise UsageError(f"{flag} is for a CORPUS file, not for a folder with an index")
            self._kept = SearchIndex.load(place)
            self.texts, self.ids = self._kept.texts, self._kept.names
            self.digest = columns_digest(self.texts, map(str, self.ids))
            return
        self.texts, self.ids = read_texts(
            options.corpus,
            ("--text-column", options.text_column),
            named_column("--id-column", options.id_column),
            options.skip_bad_rows,
        )
        self.digest = columns_digest(self.texts, map(str, self.ids))
        if options.save_index is None:
            return
        check_target(Path(options.save_index), INDEX_FILE)
        if (Path(options.save_index) / INDEX_FILE).is_file():
            self._kept = SearchIndex.load(options.save_index)
            if self._kept.texts != self.texts:
                raise ValueError(
                    f"{options.save_index} holds the index of another corpus: name another folder by --save-index, or "
                    "remove this one."
                )
            if options.index_kind not in (None, "auto", self._kept.kind):
                raise ValueError(
                    f"{options.save_index} holds an index of kind {self._kept.kind}, not {options.index_kind}: name "
                    "another folder by --save-index, or leave --index-kind out."
                )
            self._is_renamed = self._kept.names != self.ids
            self._kept.ids = self.ids

    @property
    def is_kept(self) -> bool:
        """Whether there is no index to keep, or it is kept already."""
        return self._options.save_index is None or (self._kept is not None and not self._is_renamed)

    @property
    def id_type(self) -> pa.DataType:
        """Row numbers, or the values of a column as text; those that an index was made with stay."""
        return pa.string() if self.ids and isinstance(self.ids[0], str) else pa.int64()

    def index(self, matcher: FlippedMatcher) -> SearchIndex:
        """The corpus's vectors: those kept, or made now and kept where that was asked for."""
        if self._kept is not None:
            logger.info("vectors of %d texts read from their index", len(self._kept))
            if self._is_renamed:
                self._save(self._kept, overwrite=True)
            return self._kept
        logger.info("encoding %d texts", len(self.texts))
        index = matcher.index(
            self.texts,
            kind=self._options.index_kind or "auto",
            batch_size=self._options.batch_size,
            show_progress_bar=shows_progress(self._options),
        )
        index.ids = self.ids
        if self._options.save_index is not None:
            self._save(index)
        return index

    def _save(self, index: SearchIndex, overwrite: bool = False) -> None:
        try:
            index.save(self._options.save_index, overwrite=overwrite)
            logger.info("%s: vectors of %d texts", self._options.save_index, len(index))
        except (OSError, ValueError) as error:  # what was encoded answers the queries first
            self.not_saved = error
            logger.warning("--save-index %s: the vectors are not kept: %s", self._options.save_index, error)
