"""Bounds of a connection that uvicorn has not: how large a request's head may be, and how long clients may dawdle."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .errors import error_body

# Of the address and the headers together; nginx takes half of it.
HEAD_BYTES = 65_536


class _TooLarge(Exception):
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
        self._too_large = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._answer_timer: asyncio.TimerHandle | None = None

    # ---- The head ----

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first head."""
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(self._seconds, self._too_late)

    def data_received(self, data: bytes) -> None:
        """Parse; what the parser keeps to itself, such as a header without an end, is bounded too."""
        self._silent_bytes += len(data)
        super().data_received(data)
        if self._silent_bytes > HEAD_BYTES and not self.transport.is_closing():
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self._seconds, self._too_late)

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
            self._too_large = True
            raise _TooLarge

    def send_400_response(self, msg: str) -> None:
        """Answer what cannot be parsed, or was not parsed to its end."""
        self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE if self._too_large else HTTPStatus.BAD_REQUEST)

    def _too_late(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)

    def _refuse(self, status: HTTPStatus) -> None:
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
        runs = self.cycle is not None and not self.cycle.response_complete
        # Nothing may stand between the parts of an answer that is being sent, nor before one that comes first.
        if not self.pipeline and not (runs and self.cycle.response_started):
            self.transport.write(head.encode("ascii") + body)
            if runs:
                self.cycle.disconnected = True  # its own answer would come after this one
        self.transport.close()

    # ---- The answer ----

    def pause_writing(self) -> None:
        """The client does not take its answer."""
        super().pause_writing()
        if self._answer_timer is None:
            self._answer_timer = self.loop.call_later(self._seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """It has taken some."""
        super().resume_writing()
        _stop(self._answer_timer)
        self._answer_timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        _stop(self._head_timer)
        _stop(self._answer_timer)
        super().connection_lost(exc)


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
