"""How requests end otherwise: late, without a client, or failed; and the server goes on."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from flipped_kd.serving.settings import Limits
from tests.serving.running import Running, running, wait_for

BODY = {"inputs": ["where is my card"]}


class Gate:
    """Stands before a server's model: counts rounds, lets them wait, makes them fail."""

    def __init__(self, server: Running) -> None:
        self._compute = server.service.batcher.compute
        self.contents: list[list[Any]] = []
        self.open = threading.Event()
        self.open.set()
        self.fails: Exception | None = None
        server.service.batcher.compute = self

    def __call__(self, contents: list[Any]) -> Sequence[Any]:
        self.contents.append(contents)
        assert self.open.wait(30)
        if self.fails is not None:
            raise self.fails
        return self._compute(contents)


@contextmanager
def gated(load: Any, **options: Any) -> Iterator[tuple[Running, Gate]]:
    with running(load, **options) as server:
        gate = Gate(server)
        try:
            yield server, gate
        finally:
            gate.open.set()


def busy(server: Running, gate: Gate, pool: ThreadPoolExecutor) -> Any:
    """A request that the model is busy with until the gate opens."""
    gate.open.clear()
    gate.contents.clear()
    asked = pool.submit(server.answer, "/embed", {"inputs": ["busy"]})
    wait_for(lambda: gate.contents)
    return asked


def metric(server: Running, name: str) -> float:
    (line,) = [line for line in server.client.get("/metrics").text.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[-1])


def test_a_late_request_is_told_so_and_not_computed(load: Any) -> None:
    with gated(load, limits=Limits(seconds=2)) as (server, gate), ThreadPoolExecutor() as pool:
        gate.open.clear()
        first = pool.submit(server.post, "/embed", {"inputs": ["busy"]})
        wait_for(lambda: gate.contents)
        start = time.monotonic()
        late = server.post("/embed", BODY)
        assert late.status_code == 503 and 1.9 < time.monotonic() - start < 10
        assert "not there after 2 s" in late.json()["error"] and late.headers["retry-after"] == "1"
        assert first.result().status_code == 503
        gate.open.set()
        assert server.post("/embed", BODY).status_code == 200
        assert metric(server, "flipped_kd_dropped_requests_total") == 2
        assert len(gate.contents) == 2


def test_a_body_that_does_not_come_is_not_waited_for(load: Any) -> None:
    with gated(load, limits=Limits(seconds=0.3)) as (server, _):
        connection = connect(server)
        connection.sendall(b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 503 ") and b"not there after" in answer


def test_a_client_that_leaves_costs_nothing_more(load: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "flipped_kd")
    with gated(load, log_requests=True) as (server, gate), ThreadPoolExecutor() as pool:
        asked = busy(server, gate, pool)
        body = json.dumps({"inputs": [f"text {number}" for number in range(50)]}).encode()
        head = (
            f"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        connection = connect(server)
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        wait_for(lambda: server.service.batcher.waiting[0] == 1)
        connection.close()
        wait_for(lambda: server.service.batcher.waiting == (0, 0))
        gate.open.set()
        asked.result()
        server.answer("/embed", BODY)
        assert [len(contents) for contents in gate.contents] == [1, 1]
        assert metric(server, "flipped_kd_dropped_requests_total") == 1
    assert "POST /embed 499" in caplog.text and "failed" not in caplog.text


def test_a_failure_of_the_model_is_500_without_a_traceback_and_the_server_goes_on(
    load: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with gated(load) as (server, gate):
        gate.fails = RuntimeError("where is my card made the kernel fail")
        failed = server.post("/embed", BODY)
        assert failed.status_code == 500 and failed.json()["error_type"] == "Backend"
        assert failed.json()["error"] == "the server failed at this request; it goes on."
        openai = server.post("/v1/embeddings", {"input": "cash"})
        assert openai.status_code == 500 and openai.json()["error"]["type"] == "server_error"
        gate.fails = None
        assert server.post("/embed", BODY).status_code == 200
    assert "/embed failed: RuntimeError" in caplog.text
    assert "where is my card" not in caplog.text and "Traceback" not in caplog.text


def test_requests_that_come_while_the_model_is_busy_are_read_together_and_equal_ones_once(load: Any) -> None:
    with gated(load) as (server, gate), ThreadPoolExecutor(12) as pool:
        asked = busy(server, gate, pool)
        bodies = [{"inputs": ["shared", f"text {number % 5}"]} for number in range(10)]
        others = [pool.submit(server.answer, "/embed", body) for body in bodies]
        wait_for(lambda: server.service.batcher.waiting[0] == 10)
        gate.open.set()
        found = [other.result() for other in others]
        asked.result()
        assert [len(contents) for contents in gate.contents] == [1, 6]
        assert metric(server, "flipped_kd_joined_rows_total") == 9 + 5
        assert all(vectors[0] == found[0][0] for vectors in found) and found[0][1] == found[5][1] != found[1][1]


def test_long_texts_that_wait_for_the_tokenizer_are_as_bounded_as_what_waits_for_the_model(load: Any) -> None:
    long = {"inputs": ["where is my card " * 700], "truncate": True}
    with running(load, limits=Limits(waiting_requests=2)) as server, ThreadPoolExecutor(8) as pool:
        engine, goes_on = server.service.engine, threading.Event()
        engine._tokeniser.submit(goes_on.wait, 30)
        waiting = [pool.submit(server.post, "/embed", long) for _ in range(2)]
        wait_for(lambda: engine._tokenising == 2)
        refused = server.post("/embed", long)
        assert refused.status_code == 429 and "wait for the tokenizer" in refused.json()["error"]
        assert int(refused.headers["retry-after"]) >= 1
        assert server.post("/embed", BODY).status_code == 200  # short ones are tokenised where they are
        goes_on.set()
        assert [asked.result().status_code for asked in waiting] == [200, 200]
        assert server.post("/embed", long).status_code == 200 and engine._tokenising == 0


def test_a_panic_of_the_tokenizer_ends_its_request_alone(load: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Panic(BaseException):
        """As pyo3's PanicException."""

    with running(load) as server:
        prompt = server.service.engine.matcher.prompt
        encode = prompt.encode_texts

        def panics(texts: Any, **options: Any) -> Any:
            if any("secret" in text for text in texts):
                raise Panic("secret")
            return encode(texts, **options)

        prompt.encode_texts = panics  # type: ignore[method-assign]
        try:
            failed = server.post("/embed", {"inputs": ["a secret"]})
            assert failed.status_code == 500 and "it goes on" in failed.json()["error"]
            assert server.post("/embed", BODY).status_code == 200
        finally:
            del prompt.encode_texts
    assert "secret" not in caplog.text


def test_a_full_queue_is_429_with_the_time_to_come_again(load: Any) -> None:
    with gated(load, limits=Limits(waiting_requests=2)) as (server, gate), ThreadPoolExecutor(8) as pool:
        asked = busy(server, gate, pool)
        waiting = [pool.submit(server.answer, "/embed", {"inputs": [f"text {number}"]}) for number in range(2)]
        wait_for(lambda: server.service.batcher.waiting[0] == 2)
        for route, body in (("/embed", BODY), ("/v1/rerank", {"query": "cash", "documents": ["refund"]})):
            refused = server.post(route, body)
            assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
            assert "2 requests with" in refused.text and "wait already: try again later" in refused.text
        assert server.client.get("/health").status_code == 200  # who watches is not kept out
        gate.open.set()
        assert all(task.result() for task in (asked, *waiting))
        assert server.post("/embed", BODY).status_code == 200


def test_a_stop_finishes_what_was_begun(load: Any) -> None:
    answers: list[Callable[[], Any]] = []
    with ThreadPoolExecutor(8) as pool, running(load) as server:
        gate = Gate(server)
        answers.append(busy(server, gate, pool).result)
        answers += [pool.submit(server.answer, "/embed", {"inputs": [f"text {n}"]}).result for n in range(3)]
        wait_for(lambda: server.service.batcher.waiting[0] == 3)
        threading.Timer(0.5, gate.open.set).start()
    assert all(len(answer()) == 1 for answer in answers)


def connect(server: Running) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)
