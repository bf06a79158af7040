"""One thread reads the model, for many requests at once: their items are joined into rounds."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from .errors import Refused, closing, loading
from .observer import Observer
from .settings import Limits
from .work_queue import Entry, Item, Job, WorkQueue

logger = logging.getLogger(__name__)
T = TypeVar("T")
# How much the newest round counts in the measured speed.
NEWEST = 0.2
# Of the seconds of a round, how long the next one waits at most for those who were answered, where this is more than
# `wait`: as long as they keep coming, a larger round gains more.
WAIT_SHARE = 0.1
# A function that runs in the thread at the end, such as the loading of a model, is not waited for longer.
JOIN_SECONDS = 5.0
Compute = Callable[[list[Any]], Sequence[Any]]  # gives the value of each item's content
Outcome = tuple["asyncio.Future[Any]", Any, Exception | None]


@dataclass(frozen=True)
class _Aside:
    """A function that is called in the model's thread between two rounds."""

    function: Callable[[], Any]
    future: asyncio.Future[Any]


class Batcher:
    """The queue of what is to be computed, and the thread that computes it.

    All but `compute` is called in one event loop, that of the requests.

    Args:
        limits: how much may wait.
        wait: seconds that the thread waits for the next request, at most; it does not where none is to be expected.
        observer: is told of the work.

    Attributes:
        compute: called in the thread, one call at a time.
        round_tokens: tokens of a round, about.
        has_failed: whether the thread has ended by an error: nothing is computed any more.
    """

    def __init__(self, limits: Limits, wait: float, observer: Observer) -> None:
        self.compute: Compute = _nothing_loaded
        self.round_tokens = 16_384
        self._limits, self._wait, self._observer = limits, wait, observer
        # Guards all that follows.
        self._changed = threading.Condition()
        self._queue = WorkQueue()
        self._futures: dict[Job, asyncio.Future[Any]] = {}
        self._asides: deque[_Aside] = deque()
        self._aside_due = False
        self._expected = 1  # requests that are worth waiting for
        self._round_seconds = 0.0  # of the last one
        self._rate: float | None = None  # tokens a second
        self._closing = self.has_failed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)

    # ---- In the event loop ----

    def start(self) -> None:
        """Start the thread."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def close(self, at_once: bool = False) -> None:
        """Take nothing more, finish what is waited for, end the thread; `at_once` leaves it what it does."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive() and not at_once:
            await asyncio.to_thread(self._thread.join, None if self._futures else JOIN_SECONDS)

    @property
    def is_working(self) -> bool:
        """Whether the thread has not ended."""
        return self._thread.is_alive()

    @property
    def is_alive(self) -> bool:
        """Whether what is asked for will be computed."""
        return not self._closing

    @property
    def waiting(self) -> tuple[int, int]:
        """Requests and tokens that wait to be read."""
        return len(self._queue.jobs), self._queue.tokens

    async def run(self, items: Sequence[Item]) -> list[Any]:
        """The values of items. If this is cancelled, what nobody else waits for is not computed any more.

        Raises:
            Refused: too much waits already, or the server is being closed.
            Exception: what computing them raised.
        """
        if not items:
            return []
        job, future = self._submit(items)
        try:
            return await future
        finally:
            with self._changed:
                self._futures.pop(job, None)
                gone = self._queue.forget(job)
            if gone:
                self._observer.dropped()

    async def between(self, function: Callable[[], T]) -> T:
        """What a function gives that is called in the model's thread; while requests wait, one between two rounds."""
        aside = _Aside(function, asyncio.get_running_loop().create_future())
        with self._changed:
            if self._closing:
                raise closing(self.has_failed)
            self._asides.append(aside)
            self._changed.notify()
        try:
            return await aside.future
        finally:
            with self._changed:
                if aside in self._asides:
                    self._asides.remove(aside)

    def _submit(self, items: Sequence[Item]) -> tuple[Job, asyncio.Future[Any]]:
        with self._changed:
            if self._closing:
                raise closing(self.has_failed)
            self._check_room(items)
            job, joined = self._queue.add(items)
            future = self._futures[job] = asyncio.get_running_loop().create_future()
            # A thread that waits for company is not woken by each who comes.
            if len(self._queue.jobs) == 1 or self._is_complete():
                self._changed.notify()
        if joined:
            self._observer.joined(joined)
        return job, future

    def _check_room(self, items: Sequence[Item]) -> None:
        requests, tokens = self.waiting
        new = self._queue.new_tokens(items)
        if new and (requests >= self._limits.waiting_requests or tokens + new > self._limits.waiting_tokens):
            raise Refused(
                429,
                f"{requests} requests with {tokens} tokens wait already: try again later, or send less at a time.",
                tokens / self._rate if self._rate else 1.0,
            )

    # ---- In the model's thread ----

    def _work(self) -> None:
        try:
            while (turn := self._next()) is not None:
                if isinstance(turn, _Aside):
                    self._call(turn)
                else:
                    self._compute_round(turn)
        except BaseException as error:  # also a panic of the tokenizer; its message may quote a text
            self.has_failed = True
            logger.critical("the model's thread has ended (%s): nothing is computed any more", type(error).__name__)
            logger.debug("traceback", exc_info=True)
        finally:  # however it ended: nobody may wait for ever
            with self._changed:
                self._closing = True
                waiting = [self._futures[job] for job in self._queue.unfinished() if job in self._futures]
                self._tell([(future, None, closing(self.has_failed)) for future in waiting])
                self._refuse_asides()

    def _next(self) -> list[Entry] | _Aside | None:
        """The entries of the next round, or a function to call; None at the end."""
        with self._changed:
            while True:
                if self._closing:
                    self._refuse_asides()
                if self._asides and (self._aside_due or not self._queue.jobs):
                    self._aside_due = False
                    return self._asides.popleft()
                if self._queue.jobs:
                    self._wait_for_company()
                    if chosen := self._queue.take(self.round_tokens):
                        self._aside_due = True
                        return chosen
                elif self._closing:
                    return None
                else:
                    self._changed.wait()

    def _refuse_asides(self) -> None:
        self._tell([(aside.future, None, closing(self.has_failed)) for aside in self._asides])
        self._asides.clear()

    def _is_complete(self) -> bool:
        """Whether as many wait as were expected, or enough for a round."""
        waiting, tokens = self.waiting
        return waiting >= self._expected or tokens >= self.round_tokens or self._closing

    def _wait_for_company(self) -> None:
        """Wait for those who have just been answered: many clients ask again at once."""
        end = time.monotonic() + max(self._wait, WAIT_SHARE * self._round_seconds)
        before = -1
        while self._queue.jobs and not self._is_complete():
            left = min(self._wait, end - time.monotonic())
            # Nobody wakes it for each who comes: it looks whether they come still.
            if left <= 0 or len(self._queue.jobs) == before:
                break
            before = len(self._queue.jobs)
            self._changed.wait(left)

    def _compute_round(self, chosen: list[Entry]) -> None:
        start = time.perf_counter()
        with self._changed:
            jobs = list(dict.fromkeys(job for entry in chosen for job in entry.jobs))
        try:
            self._settle(chosen)
        except Exception as error:
            if len(jobs) == 1:
                self._fail(jobs[0], error)
            elif jobs:  # one request's texts must not fail the others
                # The message may quote a text.
                logger.warning("%d requests failed together (%s): each is read alone", len(jobs), type(error).__name__)
                for job in jobs:
                    self._compute_alone(job, chosen)
        with self._changed:
            self._queue.leave(chosen)
        self._round_seconds = seconds = time.perf_counter() - start
        tokens = sum(entry.item.tokens for entry in chosen)
        rate = tokens / max(seconds, 1e-9)
        self._rate = rate if self._rate is None else (1 - NEWEST) * self._rate + NEWEST * rate
        self._observer.round_done(len(jobs), len(chosen), tokens, seconds)

    def _compute_alone(self, job: Job, chosen: list[Entry]) -> None:
        try:
            self._settle([entry for entry in chosen if not entry.done and job in entry.jobs])
        except Exception as error:
            self._fail(job, error)

    def _settle(self, entries: list[Entry]) -> None:
        if not entries:
            return
        values = self.compute([entry.item.content for entry in entries])
        with self._changed:
            finished = self._queue.settle(entries, values)
            # Those who came meanwhile wait for those who are answered now: else the two halves stay apart, and are
            # read in turns in rounds of half the size.
            self._expected = max(1, len(self._queue.jobs) + len(finished))
            found = [(self._futures.get(job), job.values) for job in finished]
        self._tell([(future, values, None) for future, values in found if future is not None])

    def _fail(self, job: Job, error: Exception) -> None:
        with self._changed:
            self._queue.forget(job)
            future = self._futures.get(job)
        if future is not None:
            self._tell([(future, None, error)])

    def _call(self, aside: _Aside) -> None:
        try:
            self._tell([(aside.future, aside.function(), None)])
        except Exception as error:
            self._tell([(aside.future, None, error)])
        except BaseException as error:  # ends the thread, as a panic of the tokenizer does
            self._tell([(aside.future, None, RuntimeError(f"{type(error).__name__}: {error}"))])
            raise

    def _tell(self, outcomes: list[Outcome]) -> None:
        """Wake those who wait, all at once."""
        if not outcomes:
            return
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(_resolve, outcomes)
        except RuntimeError:  # the loop has ended, and with it those who waited
            logger.debug("%d results came too late", len(outcomes))


def _resolve(outcomes: list[Outcome]) -> None:
    for future, value, error in outcomes:
        if future.done():
            continue
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)


def _nothing_loaded(_contents: list[Any]) -> Sequence[Any]:
    raise loading()
