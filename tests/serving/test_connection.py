"""Connections: heads without an end, clients that dawdle, and what is no HTTP."""

from __future__ import annotations

import asyncio
import json
import re
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import uvicorn

from flipped_kd.serving.connection import HEAD_BYTES, IN_A_ROW, Connection
from flipped_kd.serving.settings import Limits
from tests.serving.running import PATIENCE, Running, running, wait_for

HEAD = b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
BODY = b'{"inputs": "cash"}'
GOOD = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


@pytest.fixture(scope="module")
def hasty(load: Any) -> Iterator[Running]:
    with running(load, limits=Limits(seconds=1)) as server:
        yield server


def connect(server: Running) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def told(connection: socket.socket) -> tuple[int, Any]:
    """Status and content of an answer after which the server closes."""
    said = b""
    while part := connection.recv(65536):
        said += part
    head, _, body = said.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def pour(connection: socket.socket, part: bytes, size: int) -> int:
    """Send a part again and again until the server closes; how many bytes it took."""
    sent = 0
    try:
        while sent < size:
            connection.sendall(part)
            sent += len(part)
    except OSError:
        pass
    return sent


@pytest.mark.parametrize(
    ("start", "part"),
    [
        (b"GET /", b"x" * 4096),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: ", b"y" * 4096),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-", b"z" * 4096),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n", b"X-Many: yes\r\n" * 300),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX-Trailer: ", b"t" * 4096),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;", b"extension" * 500),
    ],
)
def test_a_head_without_an_end_is_refused(server: Running, start: bytes, part: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(start)
        # What the sockets' own buffers hold is taken too.
        assert pour(connection, part, 64 << 20) < 32 << 20
    with connect(server) as connection:
        connection.sendall(start)
        for _ in range(3 * HEAD_BYTES // len(part)):
            connection.sendall(part)
            if select.select([connection], [], [], 0.02)[0]:
                break
        status, content = told(connection)
        assert status == 431 and f"larger than {HEAD_BYTES} bytes" in content["error"]
    assert server.client.get("/health").status_code == 200


def test_trailers_are_not_kept(server: Running) -> None:
    """However many there are: they come after an answer, too, where nobody reads them."""
    with connect(server) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n")
        connection.sendall(b"X-Trailer: yes\r\n" * 100_000 + b"\r\n")
        connection.sendall(GOOD.replace(b"Host:", b"Connection: close\r\nHost:"))
        said = b""
        while part := connection.recv(65536):
            said += part
        assert re.findall(rb"HTTP/1.1 (\d+) ", said) == [b"200", b"200"]


def test_a_large_head_that_ends_is_answered(server: Running) -> None:
    response = server.client.get("/health", headers={"X-Large": "x" * 30_000, "X-Larger": "y" * 30_000})
    assert response.status_code == 200


@pytest.mark.parametrize("sent", [b"", b"POST /em", b"POST /embed HTTP/1.1\r\nHost: loc", GOOD + b"POST /embed HTTP"])
def test_a_head_that_does_not_come_is_not_waited_for(hasty: Running, sent: bytes) -> None:
    with connect(hasty) as connection:
        start = time.monotonic()
        connection.sendall(sent)
        said = b""
        while part := connection.recv(65536):
            said += part
        assert 0.5 < time.monotonic() - start < 10
        statuses = re.findall(rb"HTTP/1.1 (\d+)", said)
        assert statuses == ([b"200", b"408"] if sent.startswith(GOOD) else [b"408"])
        assert b"not there after 1 s" in said


@contextmanager
def uvicorn_alone(size: int, seconds: float, work: float = 0.0) -> Iterator[tuple[uvicorn.Server, int, list[str]]]:
    """A server without a model: each answer has so many bytes and takes so many seconds of work; its port and the
    paths that were asked for."""
    asked: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope["path"])
        await asyncio.sleep(work)
        length = [(b"content-length", str(size).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        await send({"type": "http.response.body", "body": b"x" * size})

    config = uvicorn.Config(app, http=partial(Connection, seconds), lifespan="off", log_config=None)  # type: ignore[arg-type]
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        wait_for(lambda: server.started)
        yield server, sock.getsockname()[1], asked
        server.should_exit = True
        thread.join(PATIENCE)


GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
UNFINISHED = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"


def answered(connection: socket.socket, request: bytes) -> None:
    """Send a request to a server without a model, and take its answer of ten bytes."""
    connection.sendall(request)
    said = b""
    while not said.endswith(b"x" * 10):
        said += connection.recv(65536)


@pytest.mark.parametrize(
    ("request_", "first", "again"),
    [(GET, b"\r\n", b""), (UNFINISHED, b"x", b""), (UNFINISHED, b"x", b"x"), (CHUNKED, b"1\r\nx\r\n0\r\n\r\n", b"")],
    ids=["line's end", "body", "body that goes on", "body that ends"],
)
def test_what_follows_an_answer_keeps_no_connection_open(request_: bytes, first: bytes, again: bytes) -> None:
    """Bytes that begin no request: uvicorn counts nobody's seconds after them."""
    with uvicorn_alone(10, 0.5) as (_, port, _), socket.create_connection(("127.0.0.1", port), 10) as connection:
        answered(connection, request_)
        connection.sendall(first)
        end = time.monotonic() + 10
        try:
            while not select.select([connection], [], [], 0.05)[0]:
                assert time.monotonic() < end, "the connection stays open"
                connection.sendall(again)
            assert connection.recv(65536) == b""  # the request has had its answer
        except ConnectionError:
            pass  # closed while more was on its way


def test_a_request_after_a_line_of_its_own_is_answered() -> None:
    with uvicorn_alone(10, 0.5) as (_, port, _), socket.create_connection(("127.0.0.1", port), 10) as connection:
        for before in (b"", b"\r\n", b"\r\n"):
            answered(connection, GET)
            connection.sendall(before)
            time.sleep(0.1)
        answered(connection, GET)
        # Once its head is there, nothing counts but uvicorn's own seconds, which are five.
        assert not select.select([connection], [], [], 1.0)[0]


@pytest.mark.parametrize(
    ("sent", "answers"),
    [
        (GET + b"garbage\r\n\r\n", 1),
        (GET + b"GET / HT", 1),
        (GET * 3 + b"garbage\r\n\r\n", 3),
        (GET + CHUNKED + b"no chunk\r\n", 1),
        (GET * 2 + b"GET / HTTP/1.1\r\nX-Long: " + b"y" * HEAD_BYTES, 2),
    ],
    ids=["garbage", "half a head", "garbage after several", "a bad body", "a large head"],
)
def test_what_is_wrong_after_a_request_does_not_take_its_answer(sent: bytes, answers: int) -> None:
    """The request is whole: it is answered, and with it the connection ends."""
    with (
        uvicorn_alone(10, 0.2, work=0.6) as (_, port, asked),
        socket.create_connection(("127.0.0.1", port), 10) as connection,
    ):
        connection.sendall(sent)
        said = b""
        while part := connection.recv(65536):
            said += part
        assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"200"] * answers and len(asked) == answers
        assert said.count(b"connection: close") == 1 and said.endswith(b"x" * 10)


def test_a_client_that_does_not_take_its_answer_is_left(caplog: pytest.LogCaptureFixture) -> None:
    """And its answer with it, which is more than the sockets hold."""
    with uvicorn_alone(4 << 20, 0.5) as (server, port, asked), socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(GET * 8)
        wait_for(lambda: server.server_state.connections)
        wait_for(lambda: not server.server_state.connections)
        assert 0 < len(asked) < 8
        wait_for(lambda: not server.server_state.tasks)
    assert "Traceback" not in caplog.text


def test_a_client_that_takes_its_time_gets_all_of_it() -> None:
    with uvicorn_alone(8 << 20, 1.0) as (_, port, _), socket.create_connection(("127.0.0.1", port), 10) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        slow.sendall(GET.replace(b"Host", b"Connection: close\r\nHost"))
        taken = 0
        while part := slow.recv(1 << 20):
            taken += len(part)
            time.sleep(0.01)
    assert taken > 8 << 20


def test_requests_that_nobody_waits_for_are_not_kept(caplog: pytest.LogCaptureFixture) -> None:
    """Those that one client has sent before their turn."""
    with uvicorn_alone(10, 5) as (server, port, asked), socket.create_connection(("127.0.0.1", port)) as connection:
        # Sooner or later a part holds more than may wait.
        pour(connection, GET * 1000, 64 << 20)
        wait_for(lambda: not server.server_state.connections)
        assert len(asked) < 1_000_000
    with (
        uvicorn_alone(10, 5) as (server, port, asked),
        socket.create_connection(("127.0.0.1", port), 10) as connection,
    ):
        connection.sendall(GET * IN_A_ROW)
        wait_for(lambda: len(asked) == IN_A_ROW)
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    "raw",
    [
        *(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"),
        *(b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n"),
        *(b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nno chunk\r\n",
    ],
)
def test_what_is_no_request_gets_4xx_with_a_reason(server: Running, raw: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(raw + b"GET /nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        said = b""
        while part := connection.recv(65536):
            said += part
        assert re.match(rb"HTTP/1.1 4\d\d ", said), said
        head, _, body = said.partition(b"\r\n\r\n")
        length = int(re.findall(rb"(?i)content-length: (\d+)", head)[0])
        assert len(json.loads(body[:length])["error"]) > 8


def test_requests_in_a_row_are_answered_in_their_order(server: Running) -> None:
    with connect(server) as connection:
        connection.sendall(GOOD * 20 + b"GET /nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        said = b""
        while part := connection.recv(65536):
            said += part
    assert re.findall(rb"HTTP/1.1 (\d+) ", said) == [b"200"] * 20 + [b"404"]
    wait_for(lambda: server.service.batcher.waiting == (0, 0))
