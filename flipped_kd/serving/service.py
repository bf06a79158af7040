"""What is behind the routes: a model that is loaded after the server has started, and its corpus."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from ..inference.joint_reading import JointReader
from ..inference.matcher import FlippedMatcher
from ..utils.choices import ScoreKind
from ..utils.redaction import redact
from .batching import Batcher
from .corpus import Corpus, CorpusSource
from .engine import Engine
from .errors import Refused, closing, loading
from .metrics import Metrics
from .settings import Settings

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Service:
    """Made before the event loop, opened in it.

    Args:
        load: gives the matcher; called in the model's thread.
        settings: of the server.
        corpus: where it is read from, if there is one.
        score: what probabilities are made of; None takes the model's own.

    Attributes:
        metrics: what /metrics tells.
        batcher: reads the model.
        corpus: None without one.
    """

    def __init__(
        self,
        load: Callable[[], FlippedMatcher],
        settings: Settings,
        corpus: CorpusSource | None = None,
        score: ScoreKind | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = Metrics(self)
        self.batcher = Batcher(settings.limits, settings.wait_ms / 1000, self.metrics)
        self.corpus = None if corpus is None else Corpus(corpus, settings.batch_size)
        self._load, self._score = load, score
        self._engine: Engine | None = None
        self._ready = False
        self._is_ending = False
        self._readings: set[asyncio.Task[Any]] = set()

    @property
    def is_ready(self) -> bool:
        """Whether model and corpus are loaded, and requests are computed."""
        return self._ready and self.batcher.is_alive

    @property
    def engine(self) -> Engine:
        """What the routes ask.

        Raises:
            Refused: it is not ready.
        """
        if not self.batcher.is_alive:
            raise closing(self.batcher.has_failed)
        if self._engine is None or not self._ready:
            raise loading()
        return self._engine

    async def open(self) -> None:
        """Load the model and the corpus.

        Raises:
            ValueError: either cannot be loaded.
        """
        self.batcher.start()
        # What is wrong with the corpus is known before the model is loaded.
        read = None if self.corpus is None else await self.corpus.in_thread(self.corpus.source.read)
        matcher, reader = await self.batcher.between(self._opened)
        limits, tokens, rows = self.settings.limits, self.settings.batch_tokens, self.settings.batch_size
        self._engine = Engine(matcher, reader, self.batcher, limits, self._score, tokens, rows)
        if self.corpus is not None:
            await self.corpus.load(matcher, self.batcher, read)
        self._ready = True

    def _opened(self) -> tuple[FlippedMatcher, JointReader]:
        matcher = self._load()
        return matcher, JointReader(matcher, self.settings.batch_size)

    async def reload_corpus(self, wait: bool = False) -> tuple[int, int, float]:
        """Read the corpus anew; on any failure the one that is served stays.

        Args:
            wait: for a reading that goes on, and read it again then.

        Returns:
            As `Corpus.load`.

        Raises:
            Refused: there is no corpus, it is being read already, or it cannot be read; the reason says why.
            Exception: anything else that it failed at.
        """
        engine = self.engine
        if self.corpus is None:
            raise Refused(404, "there is no corpus: start the server with --corpus FILE.")
        try:
            found = await self._read(self.corpus.load(engine.matcher, self.batcher, wait=wait))
        except Refused:
            raise
        except (ValueError, OSError) as error:
            self.metrics.reloaded(False)
            path = self.corpus.source.path
            reason = redact(_without_folder(error).replace(path, Path(path).name))
            logger.warning("the corpus is not read anew, the one before is served still: %s", reason)
            raise Refused(422, f"the corpus is not read anew, the one before is served still: {reason}") from None
        except Exception:
            self.metrics.reloaded(False)
            raise
        self.metrics.reloaded(True)
        return found

    async def _read(self, reading: Coroutine[Any, Any, T]) -> T:
        """What a reading of the corpus gives; the server's end does not wait for it."""
        task = asyncio.create_task(reading)
        self._readings.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if self._is_ending:
                raise closing() from None
            raise
        finally:
            self._readings.discard(task)

    def end(self) -> None:
        """The server is being closed: the corpus is not read any more."""
        self._is_ending = True
        for task in self._readings:
            task.cancel()

    @property
    def is_working(self) -> bool:
        """Whether a thread computes, reads or saves."""
        return self.batcher.is_working or (self.corpus is not None and self.corpus.is_working)

    async def close(self, at_once: bool = False) -> None:
        """Finish what was begun; `at_once` leaves it."""
        self._ready = False
        await self.batcher.close(at_once)


def _without_folder(error: Any) -> str:
    """An error's words; of a file its name alone."""
    if isinstance(error, OSError) and error.strerror:
        name = str(error.filename or "").rpartition("/")[2]
        return f"{name}: {error.strerror}" if name else error.strerror
    return str(error)
