"""The guards: token, names of the host, limits, headers, and what never gets into a log."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from flipped_kd.serving import guard
from flipped_kd.serving.corpus import CorpusSource
from flipped_kd.serving.settings import Limits
from flipped_kd.utils.redaction import redact
from tests.serving.running import Running, running

TOKEN = "a-token-of-tests"
# Every route, and whether it is open to all.
ROUTES = [
    *(("GET", path, True) for path in ("/", "/docs", "/openapi.json", "/health")),
    *(("GET", path, False) for path in ("/info", "/metrics", "/nothing-here")),
    *(("POST", path, False) for path in ("/rerank", "/embed", "/similarity", "/v1/embeddings", "/v1/rerank")),
    *(("POST", path, False) for path in ("/v2/rerank", "/match", "/search", "/corpus/reload")),
]


@pytest.fixture(scope="module")
def guarded(load: Any, corpus_file: Any) -> Iterator[Running]:
    limits = Limits(body_bytes=4000, texts=8, tokens=200, seconds=20)
    with running(load, CorpusSource(str(corpus_file)), token=TOKEN, limits=limits, log_requests=True) as server:
        yield server


@pytest.mark.parametrize(("method", "path", "is_open"), ROUTES)
def test_without_the_token_nothing_is_told(guarded: Running, method: str, path: str, is_open: bool) -> None:
    given = ("", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer", "Bearer \udcff")
    for value in given:
        raw = [(b"host", b"localhost")] + (
            [(b"authorization", value.encode("utf-8", "surrogateescape"))] if value else []
        )
        response = httpx.request(method, guarded.url + path, headers=raw, json={} if method == "POST" else None)
        assert (response.status_code == 401) != is_open, value
        if not is_open:
            assert response.headers["www-authenticate"] == "Bearer" and TOKEN not in response.text
            assert "Authorization: Bearer TOKEN" in response.text
    assert guarded.client.request(method, path).status_code != 401


def test_tokens_are_compared_in_constant_time(guarded: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(given: bytes, token: bytes) -> bool:
        compared.append((given, token))
        return given == token

    monkeypatch.setattr(guard.hmac, "compare_digest", compare)
    assert guarded.client.get("/info").status_code == 200
    assert httpx.get(f"{guarded.url}/info", headers={"Authorization": "Bearer no"}).status_code == 401
    assert compared == [(TOKEN.encode(), TOKEN.encode()), (b"no", TOKEN.encode())]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "[", "a\udcff"])
def test_another_sites_name_is_no_way_in(guarded: Running, host: str) -> None:
    """As a page has it whose name leads to this machine all of a sudden."""
    raw = f"GET /info HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n\r\n"
    answer = exchange(guarded, raw.encode("utf-8", "surrogateescape"))
    assert answer.startswith(b"HTTP/1.1 400 ") and b"tiny" not in answer


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1234", "127.0.0.1:80", "[::1]:80"])
def test_names_of_this_machine_are(guarded: Running, host: str) -> None:
    assert guarded.client.get("/info", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    ("route", "body", "status", "reason"),
    [
        ("/embed", {"inputs": ["x" * 5000]}, 413, "the body is larger than 4000 bytes"),
        ("/v1/embeddings", {"input": ["x" * 5000]}, 413, "the body is larger than 4000 bytes"),
        ("/embed", {"inputs": ["cash"] * 9}, 422, "9 texts in one request, 8 at most"),
        ("/match", {"pairs": [["cash", "refund"]] * 5}, 422, "10 texts in one request, 8 at most"),
        ("/rerank", {"query": "cash", "texts": ["refund"] * 8}, 422, "9 texts in one request, 8 at most"),
        ("/embed", {"inputs": [f"{number} where is the loan " * 9 for number in range(8)]}, 413, "200 at most"),
    ],
)
def test_limits_are_named(guarded: Running, route: str, body: dict, status: int, reason: str) -> None:
    response = guarded.post(route, body)
    assert response.status_code == status and reason in response.text, response.text
    assert set(response.json()) == ({"error"} if route == "/v1/embeddings" else {"error", "error_type"})


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/rerank", {"query": "cash", "texts": ["refund"] * 7}),
        ("/v1/rerank", {"query": "cash", "documents": ["refund"] * 7}),
        ("/search", {"query": "cash", "top_k": 5, "rerank": 6}),
    ],
)
def test_a_query_counts_once_however_many_texts_it_has(guarded: Running, route: str, body: dict) -> None:
    assert guarded.post(route, body).status_code == 200


def test_equal_texts_count_once_in_tokens(guarded: Running) -> None:
    assert guarded.post("/embed", {"inputs": ["where is the loan " * 9] * 8}).status_code == 200


def test_a_body_in_chunks_is_counted_too(guarded: Running) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"inputs": "'
        for _ in range(50):
            yield b"x" * 100
        yield b'"}'

    response = guarded.client.post("/embed", content=chunks(), headers={"Content-Type": "application/json"})
    assert response.status_code == 413 and "larger than 4000 bytes" in response.json()["error"]


def test_browsers_are_told_to_run_and_share_nothing(guarded: Running) -> None:
    answers = [
        guarded.post("/embed", {"inputs": "cash"}),
        guarded.post("/embed", {}),
        guarded.client.get("/nothing-here"),
        httpx.get(f"{guarded.url}/info"),
        guarded.client.get("/"),
        guarded.client.get("/docs"),
    ]
    assert [answer.status_code for answer in answers] == [200, 422, 404, 401, 200, 200]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer" and answer.headers["cache-control"] == "no-store"
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "server" not in answer.headers


def test_no_other_site_may_ask(guarded: Running) -> None:
    """Neither by script (no CORS), nor by a form, which cannot send JSON."""
    theirs = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    asked = [
        guarded.client.options("/embed", headers=theirs),
        guarded.post("/embed", {"inputs": "cash"}, headers={"Origin": "https://evil.example"}),
    ]
    assert asked[0].status_code == 405
    assert not [name for answer in asked for name in answer.headers if name.startswith("access-control-")]
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        body = b'{"inputs": "cash"}'
        sent = guarded.client.post("/embed", content=body, headers={"Content-Type": kind})
        assert sent.status_code == 422, kind


def test_logs_hold_no_text_no_path_and_no_token(guarded: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    guarded.post("/match", {"pairs": [["my secret question", "an answer"]]})
    guarded.post("/match", {"pairs": [["my secret question", 1]]})
    guarded.client.get("/my-secret-path?and=my-secret-query")
    guarded.post("/embed", {"inputs": "my secret question \ud800"})
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("flipped_kd.serving")]
    told = [line for line in lines if "/match" in line or "other" in line]
    assert [line.rsplit(" ", 2)[0] for line in told] == ["POST /match 200", "POST /match 422", "GET other 404"]
    everything = "\n".join(record.getMessage() for record in caplog.records if not record.name.startswith("http"))
    assert "secret" not in everything and TOKEN not in everything


def test_a_token_is_hidden_wherever_messages_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    from flipped_kd.cli.commands.serve import read_token

    monkeypatch.setenv("FLIPPED_KD_TOKEN", "one-of-the-variable")
    assert read_token(None) == "one-of-the-variable"
    (tmp_path / "token").write_text(" one-of-the-file\n")
    assert read_token(str(tmp_path / "token")) == "one-of-the-file"
    assert redact("one-of-the-file and one-of-the-variable") == "*** and ***"


def exchange(server: Running, request: bytes) -> bytes:
    """What comes back of bytes that no client would send."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request)
        found = b""
        while part := connection.recv(65536):
            found += part
    return found
