"""A server in a thread of the tests' own process, and requests to it over loopback."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from flipped_kd import FlippedMatcher
from flipped_kd.serving.corpus import CorpusSource
from flipped_kd.serving.runtime import serve
from flipped_kd.serving.service import Service
from flipped_kd.serving.settings import Settings

PATIENCE = 30.0


@dataclass
class Running:
    """A server that runs.

    Attributes:
        service: what is behind its routes.
        url: its address.
        client: asks it.
        stop: ends it as a signal does.
    """

    service: Service
    url: str
    client: httpx.Client
    stop: Callable[[], None]

    def post(self, route: str, body: Any, **options: Any) -> httpx.Response:
        """A request with a JSON body."""
        headers = {"Content-Type": "application/json"} | options.pop("headers", {})
        return self.client.post(route, content=json.dumps(body), headers=headers, **options)

    def answer(self, route: str, body: Any, **options: Any) -> Any:
        """What the server says to a request that it does."""
        response = self.post(route, body, **options)
        assert response.status_code == 200, response.text
        return response.json()


@contextmanager
def running(
    load: FlippedMatcher | Callable[[], FlippedMatcher],
    corpus: CorpusSource | None = None,
    ready: bool = True,
    score: Any = None,
    **settings: Any,
) -> Iterator[Running]:
    """A server for a matcher, on a free port; by default once it is ready."""
    service = Service(
        load if not isinstance(load, FlippedMatcher) else lambda: load,
        Settings(port=0, **settings),
        corpus,
        score,
    )
    told: list[tuple[int, Callable[[], None]]] = []
    listens = threading.Event()
    failed: list[BaseException] = []

    def listening(port: int, stop: Callable[[], None]) -> None:
        told.append((port, stop))
        listens.set()

    def run() -> None:
        try:
            serve(service, listening)
        except BaseException as error:
            failed.append(error)
        finally:
            listens.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    listens.wait(PATIENCE)
    assert told, failed
    ((port, stop),) = told
    url = f"http://127.0.0.1:{port}"
    token = settings.get("token")
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=url, headers=headers, timeout=PATIENCE) as client:
        if ready:
            wait_for(lambda: not thread.is_alive() or is_ready(client))
            assert thread.is_alive(), failed
        try:
            yield Running(service, url, client, stop)
        finally:
            stop()
            thread.join(PATIENCE)
            assert not thread.is_alive(), "the server does not end"


def is_ready(client: httpx.Client) -> bool:
    """Whether a server answers; False where none is there."""
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def wait_for(condition: Callable[[], Any], seconds: float = PATIENCE) -> None:
    """Until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
