"""What goes over the wire to and from the loopback Hub, and the faults that can be put in between."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from io import BufferedIOBase
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs

from tests.hub.repositories import HubError

CHUNK = 64 * 1024
FaultKind = Literal["answer", "cut upload", "cut download", "lose answer"]


class ConnectionCut(Exception):
    """The connection ends here, without an answer."""


class Body:
    """The content of a request, read once, from a stream with a length or in chunks.

    `cut_after`: end the connection once this many bytes have been read, or at the end of a shorter body.
    """

    def __init__(self, stream: BufferedIOBase, headers: Message, cut_after: int | None = None) -> None:
        self._stream = stream
        self._chunked = "chunked" in (headers.get("Transfer-Encoding") or "").lower()
        self._left = int(headers.get("Content-Length") or 0)
        self._cut_after = cut_after
        self._chunks = self._read()

    def chunks(self) -> Iterator[bytes]:
        """What is left of the body, piece by piece."""
        return self._chunks

    def read(self) -> bytes:
        """What is left of the body."""
        return b"".join(self._chunks)

    def json(self) -> dict[str, Any]:
        """The body as a JSON object; HubError 400 if it is none."""
        try:
            value = json.loads(self.read() or b"{}")
        except ValueError as error:
            raise HubError(400, f"Invalid JSON: {error}") from error
        if not isinstance(value, dict):
            raise HubError(400, "The body must be a JSON object")
        return value

    def _read(self) -> Iterator[bytes]:
        passed = 0
        for chunk in self._in_chunks() if self._chunked else self._with_length():
            passed += len(chunk)
            if self._cut_after is not None and passed >= self._cut_after:
                raise ConnectionCut
            yield chunk
        if self._cut_after is not None:
            raise ConnectionCut

    def _with_length(self) -> Iterator[bytes]:
        while self._left:
            yield self._take(min(CHUNK, self._left))

    def _in_chunks(self) -> Iterator[bytes]:
        while size := int(self._stream.readline().split(b";")[0], 16):
            self._left = size
            yield from self._with_length()
            self._stream.readline()
        while self._stream.readline().strip():
            pass

    def _take(self, size: int) -> bytes:
        chunk = self._stream.read(size)
        if len(chunk) < size:  # the client went away
            raise ConnectionCut
        self._left -= size
        return chunk


@dataclass
class Call:
    """A request on its way to a route: who asks (None: nobody known), with which values in the path."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    user: str | None
    body: Body
    values: dict[str, str] = field(default_factory=dict)

    def flag(self, name: str) -> bool:
        """A yes or no of the query."""
        return self.query.get(name, ["false"])[0].lower() in ("true", "1")

    def form(self) -> dict[str, list[str]]:
        """The body as an HTML form."""
        return parse_qs(self.body.read().decode())


@dataclass
class Reply:
    """An answer; its body is JSON, or a file (of which a Range may be asked), or bytes."""

    json: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    file: Path | None = None
    content: bytes = b""


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First and last byte of a Range header, both included; None without one; HubError 416 beyond the content."""
    if not header:
        return None
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    if match is None or not any(match.groups()):
        return None  # an invalid range is ignored, as RFC 9110 has it
    start, end = match.groups()
    first = int(start) if start else max(size - int(end), 0)
    last = min(int(end), size - 1) if start and end else size - 1
    if first > last:
        raise HubError(416, f"Range {header} of {size} bytes", headers={"Content-Range": f"bytes */{size}"})
    return first, last


@dataclass
class Fault:
    """Something that goes wrong with the next `left` requests to a path; `left` counts down."""

    kind: FaultKind
    pattern: str
    left: int
    method: str | None = None
    status: int = 500
    after: int = 0


class Faults:
    """What goes wrong on demand. Patterns are regular expressions, searched in the unquoted path of a request.

    A path is that of the Hub (``/api/models/...``, ``/<repo>/resolve/...``) or that of its storage host
    (``/objects/<sha256>``, ``/parts/<sha256>/<number>``), where large files are put and fetched.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._planned: list[Fault] = []

    def answer(self, pattern: str, status: int = 500, times: int = 1, method: str | None = None) -> Fault:
        """Answer with an error instead of doing what is asked."""
        return self.plan(Fault("answer", pattern, times, method, status))

    def cut_upload(self, pattern: str, after: int = 0, times: int = 1, method: str | None = None) -> Fault:
        """Cut the connection when `after` bytes of the request's body have been read; nothing is done."""
        return self.plan(Fault("cut upload", pattern, times, method, after=after))

    def cut_download(self, pattern: str, after: int = 0, times: int = 1, method: str | None = "GET") -> Fault:
        """Cut the connection when `after` bytes of the answer's body have been sent."""
        return self.plan(Fault("cut download", pattern, times, method, after=after))

    def lose_answer(self, pattern: str, times: int = 1, method: str | None = None) -> Fault:
        """Do what is asked, then cut the connection instead of saying so."""
        return self.plan(Fault("lose answer", pattern, times, method))

    def clear(self) -> None:
        """Nothing goes wrong any more."""
        with self._lock:
            self._planned.clear()

    def take(self, method: str, path: str) -> Fault | None:
        """The fault for this request, which is then used up once."""
        with self._lock:
            for fault in self._planned:
                if fault.left and fault.method in (None, method) and re.search(fault.pattern, path):
                    fault.left -= 1
                    return fault
        return None

    def plan(self, fault: Fault) -> Fault:
        """Any of these."""
        with self._lock:
            self._planned.append(fault)
        return fault
