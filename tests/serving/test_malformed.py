"""Malformed bodies: each gets a 4xx with a reason in its client's form, never a 5xx, and the server goes on."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from flipped_kd.serving import app as application
from tests.serving.running import Running

# A good body of every route that takes one.
BODIES: dict[str, dict[str, Any]] = {
    "/rerank": {"query": "cash", "texts": ["refund"], "raw_scores": True, "return_text": True, "truncate": True},
    "/embed": {"inputs": ["cash"], "normalize": True, "truncate": True},
    "/similarity": {"inputs": {"source_sentence": "cash", "sentences": ["refund"]}},
    "/v1/embeddings": {"input": ["cash"], "encoding_format": "float"},
    "/v1/rerank": {"query": "cash", "documents": ["refund", {"text": "loan"}], "top_n": 1, "return_documents": True},
    "/v2/rerank": {"query": "cash", "documents": ["refund"], "top_n": 1},
    "/match": {"pairs": [["cash", "refund"]], "score": "both", "threshold": 0.5, "all_scores": True},
    "/search": {"query": "cash", "top_k": 1, "rerank": 1, "score": "both", "all_scores": True},
}
# None of them is a value of any field. A lone surrogate is no Unicode.
JUNK: list[Any] = [
    *({}, [], "", " \t\u2003\n", "\ud800", "a\udfff", [[]], [{}], [""], ["\ud800"], [None], [[["cash"]]]),
    *(-1, 1.5, -(10**400), -0.5, float("nan"), float("inf"), {"text": 1}, {"\ud800": 1}, [1], [[1, 2]], ["a", 1]),
]
BROKEN = [
    *(
        b"",
        b" ",
        b"null",
        b"1",
        b"true",
        b'"cash"',
        b"[]",
        b"[[]]",
        b"{",
        b"}",
        b"{]",
        b'{"',
        b"\xff\xfe",
        b"\x00" * 9,
    ),
    *(b'{"query"}', b"{'query': 'cash'}", b"query=cash", b"<query/>", b"\xef\xbb\xbf", "ä".encode("latin-1"), b"nan"),
    *(b"[" * 100_000, b'{"a":' * 50_000, b"1" * 10_000, b'"\\u12"', b'{"query": "\xc3("}', b'{"query": "\x01"}'),
]
KINDS = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/xml", "\xff", "json")
EXAMPLES = 60
# As many wrong values as a body has room for, in every list and among the fields of a form of our own.
MANY = 300_000
LONG: list[tuple[str, dict[str, Any]]] = [
    ("/rerank", {"query": "a", "texts": [1] * MANY}),
    ("/embed", {"inputs": ["a", *[1] * MANY]}),
    ("/similarity", {"inputs": {"source_sentence": "a", "sentences": [1] * MANY}}),
    ("/v1/embeddings", {"input": ["a", *[1] * MANY]}),
    ("/v1/rerank", {"query": "a", "documents": [{}] * MANY}),
    ("/match", {"pairs": [1] * MANY}),
    ("/match", {"pairs": [[1] * MANY]}),
    ("/match", {"pairs": [["a", "b"]], **{f"{number:x}": 1 for number in range(MANY // 2)}}),
]


def send(server: Running, route: str, body: bytes, kind: str = "application/json") -> httpx.Response:
    return server.client.post(route, content=body, headers={"Content-Type": kind.encode("latin-1")})  # type: ignore[dict-item]


def check_refused(response: Any, route: str) -> None:
    """4xx, with a reason where the route's clients look for it."""
    assert 400 <= response.status_code < 500, (response.status_code, response.text)
    content = response.json()
    if route == "/v1/embeddings":
        reason = content["error"]["message"]
    else:
        reason = content["message" if "/v" in route else "error"]
    assert isinstance(reason, str) and len(reason) > 8
    assert "Traceback" not in response.text and ".py" not in response.text


def broken_by_hand(route: str) -> Iterator[bytes]:
    """Cut anywhere, and with a wrong value, or none, in the place of each one that is needed or typed."""
    good = json.dumps(BODIES[route]).encode()
    yield from (good[:end] for end in range(len(good)))
    yield good + b"}"
    yield good + good
    for path in places(BODIES[route]):
        for junk in JUNK:
            yield json.dumps(replaced(BODIES[route], path, junk)).encode()
    yield json.dumps({name: None for name in BODIES[route]}).encode()


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in entries:
        yield (*path, name)
        yield from places(part, (*path, name))


def replaced(body: Any, path: tuple[Any, ...], value: Any) -> Any:
    body = copy.deepcopy(body)
    inner = body
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return body


def test_by_hand(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "flipped_kd")
    sent = 0
    for route, good in BODIES.items():
        server.answer(route, good)
        for body in (*BROKEN, *broken_by_hand(route)):
            response = send(server, route, body)
            assert response.status_code != 200, (route, body)
            check_refused(response, route)
            sent += 1
        for kind in KINDS:
            check_refused(send(server, route, json.dumps(good).encode(), kind), route)
    assert sent > 1000 and server.client.get("/health").status_code == 200
    assert not caplog.text


@pytest.mark.parametrize(("route", "body"), LONG, ids=[f"{route} {list(body)[0]}" for route, body in LONG])
def test_a_body_full_of_wrong_values_costs_little(
    server: Running, route: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error for each of them would keep the event loop, and with it everybody else, for seconds."""
    told: list[int] = []
    reason = application.validation_reason

    def counted(errors: Any) -> str:
        told.append(len(errors))
        return reason(errors)

    monkeypatch.setattr(application, "validation_reason", counted)
    response = server.post(route, body)
    assert response.status_code == 422 and len(response.content) < 500
    check_refused(response, route)
    assert len(told) == 1 and told[0] <= 2  # a text or a list of texts: what is wrong with it as either


@pytest.fixture(scope="module")
def description(server: Running) -> Any:
    """What the OpenAPI page says, to those who make requests of it."""
    return schemathesis.openapi.from_dict(server.client.get("/openapi.json").json())


@pytest.mark.parametrize("route", BODIES)
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_by_the_openapi_description(server: Running, description: Any, route: str, mode: GenerationMode) -> None:
    operation = description[route]["POST"]
    statuses: list[int] = []

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        response = case.call(base_url=server.url)
        statuses.append(response.status_code)
        if mode is GenerationMode.NEGATIVE:
            check_refused(response, route)
        elif response.status_code == 200:
            case.validate_response(response)  # what is answered is what the description says
        else:
            check_refused(response, route)

    ask()
    assert len(statuses) >= EXAMPLES // 2 and (mode is GenerationMode.NEGATIVE or 200 in statuses)


def test_unknown_routes_and_methods(server: Running) -> None:
    for method, path, status in (
        ("GET", "/nothing", 404),
        ("POST", "/", 405),
        ("GET", "/embed", 405),
        ("PUT", "/v1/embeddings", 405),
        ("POST", "/embed/", 404),
        ("GET", "/../etc/passwd", 404),
        ("GET", "/%ff%00", 404),
    ):
        response = server.client.request(method, path)
        assert response.status_code == status, path
        check_refused(response, path)
