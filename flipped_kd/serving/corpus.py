"""The corpus that is searched: read from its file, encoded beside the requests, exchanged while it is served."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..data.text_tables import read_texts
from ..inference.matcher import FlippedMatcher
from ..inference.nearest import resolved_kind
from ..inference.search_index import INDEX_FILE, SearchIndex, check_place
from ..utils.atomic import recover
from ..utils.choices import IndexKind
from .batching import Batcher
from .errors import Refused

logger = logging.getLogger(__name__)
# How long requests wait at most for texts of the corpus that are encoded between them, about.
PART_SECONDS = 0.1
FIRST_PART, LARGEST_PART = 8, 4096
# Texts, their names, and an index with vectors of at least some of them.
CorpusRead = tuple[list[str], list[Any], SearchIndex | None]
# Of a text, an index that has its vector, and where in it.
Places = dict[str, tuple[SearchIndex, int]]
T = TypeVar("T")


@dataclass(frozen=True)
class CorpusSource:
    """Where the corpus is read from, at the start and whenever it is read anew.

    Attributes:
        path: a table (JSON Lines, CSV, TSV, Parquet, or text with a text a line), or a folder of `SearchIndex.save`.
        text_column: of the table.
        id_column: whose values name the texts; None: their row numbers do.
        skip_bad_rows: leave out rows without a proper text.
        index_folder: where the vectors of a table are kept, so that the next start encodes only what is new; an index
            that is there is replaced when the corpus has changed.
        kind: how a table is searched, see `FlippedMatcher.index`.

    Raises:
        ValueError: options that do not go together, or something else is where the index is to be kept.
        ImportError: `kind` needs FAISS, which is not installed.
    """

    path: str
    text_column: str = "text"
    id_column: str | None = None
    skip_bad_rows: bool = False
    index_folder: Path | None = None
    kind: IndexKind = "auto"

    def __post_init__(self) -> None:
        if self.is_index and (self.id_column is not None or self.index_folder is not None):
            raise ValueError("--id-column and --save-index are for a CORPUS file, not for a folder with an index")
        if self.is_index and self.kind != "auto":
            raise ValueError("--index-kind is for a CORPUS file, not for a folder with an index")
        if self.kind != "auto":
            resolved_kind(self.kind, 0)  # whether FAISS is there, before a large corpus is encoded
        if self.index_folder is not None:
            recover(self.index_folder)
            check_place(self.index_folder, overwrite=True)
            if Path(os.path.realpath(self.path)).is_relative_to(os.path.realpath(self.index_folder)):
                raise ValueError(
                    f"the corpus {self.path} lies in the folder of --save-index, which is replaced as a whole"
                )

    @property
    def is_index(self) -> bool:
        """Whether it is a folder with vectors."""
        return Path(self.path).is_dir()

    def read(self) -> CorpusRead:
        """Texts, their names, and an index with vectors of at least some of them.

        Raises:
            ValueError: the file cannot be read, or holds no texts.
        """
        kept = None
        if self.is_index:
            recover(Path(self.path))
            kept = SearchIndex.load(self.path)
            texts, ids = kept.texts, kept.names
        else:
            id_column = None if self.id_column is None else ("--id-column", self.id_column)
            texts, ids = read_texts(self.path, ("--text-column", self.text_column), id_column, self.skip_bad_rows)
            if self.index_folder is not None and (self.index_folder / INDEX_FILE).is_file():
                try:
                    kept = SearchIndex.load(self.index_folder)
                except ValueError:  # the texts are here: it is made again, and replaced
                    logger.warning("the index of --save-index cannot be read: all texts are encoded anew")
                    logger.debug("traceback", exc_info=True)
        if not texts:
            raise ValueError(f"{Path(self.path).name!r} holds no texts: give a corpus with at least one")
        return texts, ids, kept


class Corpus:
    """The index that is served.

    Args:
        source: where the corpus is read from.
        batch_size: texts that are encoded at a time, at most.

    Attributes:
        index: None until it was loaded.
    """

    def __init__(self, source: CorpusSource, batch_size: int = 32) -> None:
        self.source = source
        self._batch_size = batch_size
        self.index: SearchIndex | None = None
        self._loading = asyncio.Lock()
        self._working: set[object] = set()

    @property
    def is_working(self) -> bool:
        """Whether a thread reads, builds or saves; none of it can be interrupted."""
        return bool(self._working)

    async def in_thread(self, function: Callable[..., T], *args: Any, **options: Any) -> T:
        """What a function gives, called in a thread of its own beside the requests."""

        this = object()

        def call() -> T:
            try:
                return function(*args, **options)
            finally:
                self._working.discard(this)

        self._working.add(this)
        return await asyncio.to_thread(call)

    async def load(
        self, matcher: FlippedMatcher, batcher: Batcher, read: CorpusRead | None = None, wait: bool = False
    ) -> tuple[int, int, float]:
        """Read the corpus, and serve it once it is ready; the one before is served until then, and if this fails.

        Args:
            matcher: encodes its texts.
            batcher: in whose thread.
            read: what `CorpusSource.read` gave, if it was asked already.
            wait: where it is being read, read it again after that; what is read now may be what was there before.

        Returns:
            (texts, texts that had to be encoded, seconds).

        Raises:
            Refused: it is being read already, and `wait` is off.
            ValueError: it cannot be read, or there is an index of something else in its place.
        """
        if self._loading.locked() and not wait:
            raise Refused(409, "the corpus is being read already: ask again when that has ended.")
        async with self._loading:
            start = time.monotonic()
            texts, ids, kept = await self.in_thread(self.source.read) if read is None else read
            if kept is not None and not await batcher.between(partial(_fits, matcher, kept)):
                if self.source.is_index:
                    raise ValueError(f"the index {Path(self.source.path).name!r} is another encoder's: make it again")
                logger.warning("the index that is kept is another encoder's: it is made again")
                kept = None
            if kept is not None and kept.texts == texts and self.source.kind in ("auto", kept.kind):
                index, encoded = kept, 0
                changed = kept.names != ids
            else:
                known = [index for index in (self.index, kept) if index is not None]
                places, new = await self.in_thread(_plan, texts, known)
                vectors, encoded = await _encode(matcher, batcher, new, self._batch_size), len(new)
                index = await self.in_thread(_assemble, matcher, texts, vectors, places, self.source.kind)
                changed = True
            index.ids = ids
            if changed and self.source.index_folder is not None:
                await self._save(index, self.source.index_folder)
            self.index = index
            seconds = time.monotonic() - start
            logger.info("the corpus is served: %d texts, %d encoded, %.1f s", len(index), encoded, seconds)
            return len(index), encoded, seconds

    async def _save(self, index: SearchIndex, folder: Path) -> None:
        """Keep an index that is ready; it is served also where it cannot be kept."""
        try:
            await self.in_thread(index.save, folder, overwrite=True)
        except (OSError, ValueError) as error:
            number = getattr(error, "errno", None)
            why = os.strerror(number) if number else "something else is in its folder"
            logger.warning("the index is served, but cannot be kept (%s): the next start encodes it again", why)


def _fits(matcher: FlippedMatcher, index: SearchIndex) -> bool:
    """Whether an index's vectors are this matcher's."""
    try:
        matcher.search(index.texts[:1], index, 1, show_progress_bar=False)
    except ValueError:
        return False
    return True


def _plan(texts: Sequence[str], known: Sequence[SearchIndex]) -> tuple[Places, list[str]]:
    """Where vectors are that some index has, and the texts that none has."""
    places = {text: (index, row) for index in known for row, text in enumerate(index.texts)}
    # Longest first, so that what is encoded together is of like length.
    return places, sorted({text for text in texts if text not in places}, key=len, reverse=True)


async def _encode(
    matcher: FlippedMatcher, batcher: Batcher, new: Sequence[str], batch_size: int
) -> dict[str, np.ndarray]:
    """Vectors of texts, made between the requests."""
    vectors: dict[str, np.ndarray] = {}
    size = FIRST_PART
    while len(vectors) < len(new):
        part = new[len(vectors) : len(vectors) + size]
        found, seconds = await batcher.between(partial(_encoded, matcher, part, batch_size))
        vectors |= zip(part, found, strict=True)
        wanted = len(part) * PART_SECONDS / max(seconds, 1e-6)
        size = int(min(max(1, wanted), 2 * size, LARGEST_PART))
    return vectors


def _encoded(matcher: FlippedMatcher, texts: Sequence[str], batch_size: int) -> tuple[np.ndarray, float]:
    """Vectors of texts, and the seconds that they took: not those until it was their turn."""
    start = time.perf_counter()
    vectors = matcher.encode(texts, batch_size=batch_size, show_progress_bar=False)
    return vectors, time.perf_counter() - start


def _assemble(
    matcher: FlippedMatcher,
    texts: Sequence[str],
    vectors: dict[str, np.ndarray],
    places: Places,
    kind: IndexKind,
) -> SearchIndex:
    rows = np.empty((len(texts), matcher.encoder.dimension), np.float32)
    held = {id(index): index.embeddings.numpy() for index, _ in places.values()}
    for number, text in enumerate(texts):
        if text in vectors:
            rows[number] = vectors[text]
        else:
            index, row = places[text]
            rows[number] = held[id(index)][row]
    return SearchIndex.of_matcher(matcher, texts, rows, kind)  # reads no text: this is not the model's thread
