"""How a request ends that is not answered in the usual way: out of time, its client gone, or failed."""

from __future__ import annotations

import asyncio
import logging
import math
import time

import anyio
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .guard import answer_error
from .metrics import Metrics
from .settings import Settings

logger = logging.getLogger(__name__)
# It goes on when its client has gone, and may take long.
UNBOUNDED = ("/corpus/reload",)
# What a log says where a client did not wait for its answer; no client ever sees it.
CLIENT_GONE = 499


class Bounds:
    """Ends a request that is too large, too late, or whose client has gone; answers 500 to one that failed."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self.app, self._metrics = app, metrics
        self._seconds, self._bytes = settings.limits.seconds, settings.limits.body_bytes
        self._logs = settings.log_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request within its bounds."""
        with self._metrics.open_requests.track_inprogress():
            await self._run(scope, receive, send)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.perf_counter()
        bounded = scope["path"] not in UNBOUNDED
        # Time and client end in a cancellation of what the request waits for, which drops its work.
        with anyio.CancelScope(deadline=anyio.current_time() + self._seconds if bounded else math.inf) as limit:
            exchange = _Exchange(receive, send, limit if bounded else None, self._bytes)
            try:
                await self.app(scope, exchange.receive, exchange.send)
            except Exception as error:
                if not exchange.gone:
                    # The message may quote a text, so it is shown at DEBUG alone.
                    logger.error("%s failed: %s", _route(scope), type(error).__name__)
                    logger.debug("traceback", exc_info=True)
                    if not exchange.status:
                        reason = "the server failed at this request; it goes on."
                        await answer_error(scope, exchange.send, 500, reason)
            finally:
                exchange.close()
        if limit.cancelled_caught and not exchange.gone and not exchange.status:
            reason = f"the answer was not there after {self._seconds:g} s: send less at a time, or try again later."
            await answer_error(scope, exchange.send, 503, reason, {"Retry-After": "1"})
        status = exchange.status or CLIENT_GONE
        seconds = time.perf_counter() - start
        self._metrics.answered(_route(scope), status, seconds)
        if self._logs:
            logger.info("%s %s %d %.1f ms", scope["method"], _route(scope), status, 1000 * seconds)


class _Exchange:
    """A request's messages and its answer's; once its body is there, watches whether its client goes.

    Attributes:
        gone: whether the client went before its answer was whole.
        status: of the answer; 0 before it has begun.
    """

    def __init__(self, receive: Receive, send: Send, limit: anyio.CancelScope | None, most: int) -> None:
        self._receive, self._send, self._limit, self._most = receive, send, limit, most
        self._watching: asyncio.Future[Message] | None = None
        self._answered = False
        self._bytes = 0
        self.gone = False
        self.status = 0

    async def receive(self) -> Message:
        """The next message of the client's."""
        if self._watching is not None:
            return await asyncio.shield(self._watching)
        message = await self._receive()
        self._bytes += len(message.get("body", b""))
        if message["type"] == "http.disconnect":
            self.gone = True
        elif self._bytes > self._most:
            raise HTTPException(413, f"the body is larger than {self._most} bytes: send less at a time.")
        elif self._limit is not None and not message.get("more_body", False):
            self._watching = asyncio.ensure_future(self._receive())
            self._watching.add_done_callback(self._leave)
        return message

    async def send(self, message: Message) -> None:
        """Pass on a message of the answer's."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif not message.get("more_body", False):
            self._answered = True
        await self._send(message)

    def close(self) -> None:
        """Watch no longer."""
        if self._watching is not None:
            self._watching.cancel()

    def _leave(self, watching: asyncio.Future[Message]) -> None:
        if self._limit is not None and not self._answered and not watching.cancelled():
            self.gone = True
            self._limit.cancel()


def _route(scope: Scope) -> str:
    """The route's own path: what was asked for may hold anything."""
    return getattr(scope.get("route"), "path", "other")
