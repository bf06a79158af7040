"""Bounds of a connection that uvicorn has not: how large a request's head may be, and how long clients may dawdle."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from .errors import error_body

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

# Of the address and the headers together; nginx takes half of it.
HEAD_BYTES = 65_536
# Requests that were sent before the answer to the one before them; uvicorn keeps any number.
IN_A_ROW = 64


class _TooMuch(Exception):
    """Ends the parsing."""


class Connection(HttpToolsProtocol):
    """One client's connection.

    Args:
        seconds: in which a request's head must have come, and in which a client must have taken some of its answer.
        options: of uvicorn's own class.
    """

    def __init__(self, seconds: float, **options: Any) -> None:
        super().__init__(**options)
        self._seconds = seconds
        self._head_bytes = self._silent_bytes = 0
        self._in_head = True
        self._ends = False  # with the answers that are being given
        self._wrong = HTTPStatus.BAD_REQUEST
        self._running: RequestResponseCycle | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._answer_timer: asyncio.TimerHandle | None = None

    # ---- The head ----

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first head."""
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Parse; what the parser keeps to itself, such as a header without an end, is bounded too."""
        if self._ends:
            return
        self._silent_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing() or self._ends:
            return
        if self._silent_bytes > HEAD_BYTES:
            self._wrong = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            self._refuse()
        elif self.cycle is None or self.cycle.response_complete:
            # Bytes that begin no head, such as the rest of a body that was answered already, have ended uvicorn's
            # own waiting. Those that follow do not prolong this one.
            self._wait_for_head()

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        self._wait_for_head()

    def on_url(self, url: bytes) -> None:
        """A part of the address."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; those after a body say nothing to anybody here."""
        self._count(len(name) + len(value))
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is there."""
        if len(self.pipeline) >= IN_A_ROW:
            raise _TooMuch  # the connection ends with the answers to the requests before
        self._in_head, self._silent_bytes = False, 0
        _stop(self._head_timer)
        self._head_timer = None
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body, which `Bounds` counts."""
        self._silent_bytes = 0
        super().on_body(body)

    def _count(self, size: int) -> None:
        self._silent_bytes = 0
        self._head_bytes += size
        if self._in_head and self._head_bytes > HEAD_BYTES:
            self._wrong = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            raise _TooMuch

    def send_400_response(self, msg: str) -> None:
        """Answer what cannot be parsed, or was not parsed to its end."""
        self._refuse()

    def _wait_for_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self._seconds, self._too_late)

    def _too_late(self) -> None:
        self._head_timer = None
        if not self._in_head:  # no request has begun that could be answered
            self.transport.close()
        elif not self.transport.is_closing():
            self._wrong = HTTPStatus.REQUEST_TIMEOUT
            self._refuse()

    def _refuse(self) -> None:
        if self.pipeline and self.cycle.more_body:
            self.pipeline.popleft()  # the request that was sent last: what is wrong is in its body
        last = self.pipeline[0][0] if self.pipeline else self._running
        if last is not None and not last.response_complete and not last.more_body:
            # What is wrong comes after requests that are whole: the connection ends once these are answered.
            last.keep_alive, self._ends = False, True
            _stop(self._head_timer)
            return
        status = self._wrong
        reason = {
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: f"the request's head is larger than {HEAD_BYTES} bytes: "
            "send less.",
            HTTPStatus.REQUEST_TIMEOUT: f"the request's head was not there after {self._seconds:g} s.",
        }.get(status, "this is no HTTP request that can be read.")
        body = error_body("", status, reason)
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        # Nothing may stand between the parts of an answer that is being sent.
        if last is None or last.response_complete or not last.response_started:
            self.transport.write(head.encode("ascii") + body)
        self._leave()
        self.transport.close()

    # ---- The answer ----

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """The next request runs; `self.cycle` is the one that was sent last."""
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _leave(self) -> None:
        """Nobody is there for the answers that are to come."""
        for cycle in (self._running, *(waiting for waiting, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        self.pipeline.clear()

    def pause_writing(self) -> None:
        """The client does not take its answer."""
        super().pause_writing()
        if self._answer_timer is None:
            self._look_again(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """It has taken almost all that there is."""
        super().resume_writing()
        _stop(self._answer_timer)
        self._answer_timer = None

    def _look_again(self, left: int) -> None:
        self._answer_timer = self.loop.call_later(self._seconds, self._has_taken, left)

    def _has_taken(self, before: int) -> None:
        left = self.transport.get_write_buffer_size()
        if left < before:
            self._look_again(left)
        else:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        _stop(self._head_timer)
        _stop(self._answer_timer)
        self._leave()
        super().connection_lost(exc)


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
