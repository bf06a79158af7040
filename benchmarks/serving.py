"""`flipped-kd serve` under load, against a FastAPI endpoint that loads the model once and calls `predict` per request.

Each server is a process of its own with all threads, asked in turns over loopback by 32 clients, each of which sends
its next request when it has its answer. The same pairs in one call of `predict`, without HTTP, are the bound.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from flipped_kd import FlippedMatcher, load_pairs

from .harness import BANKING, FAQ, ROOT, STAND_IN, STUDENT, Row, json_lines, missing, ratios, take_turns
from .inference import merged_model

CLIENTS = 32
PATIENCE = 300.0
TOLERANCE = 1e-5
PEER = "a FastAPI endpoint that calls predict"
Pair = tuple[str, str]


@dataclass(frozen=True)
class Load:
    """What came of many requests.

    Attributes:
        seconds: from the first request to the last answer.
        latencies: of each request, in seconds.
        probabilities: of each pair.
    """

    seconds: float
    latencies: list[float]
    probabilities: list[float]

    def percentile(self, percent: float) -> float:
        """Of the latencies, in milliseconds."""
        return 1000 * float(np.percentile(self.latencies, percent))


def main(quick: bool = False) -> list[Row]:
    """Requests a second, ours / the peer's; and what of `predict`'s speed is left."""
    if missing(STUDENT, BANKING, FAQ):
        return []
    tiny = STUDENT == STAND_IN
    rounds, count = (3, 8 * CLIENTS) if quick or not tiny else (7, 32 * CLIENTS)
    test = load_pairs(BANKING / "test.jsonl", max_rows=count)
    distinct = list(zip(test["text_a"], test["text_b"], strict=True))
    shared = _one_query_for_all(count)
    with tempfile.TemporaryDirectory() as folder:
        merged = merged_model(Path(folder))
        matcher = FlippedMatcher.from_pretrained(merged, device="cpu")
        ours = [sys.executable, "-m", "flipped_kd", "serve", str(merged), "--device", "cpu", "--quiet", "--port"]
        peers = [sys.executable, "-m", "benchmarks.serving", str(merged)]
        with _server(ours) as our_port, _server(peers) as peer_port:
            _check_same(matcher, our_port, peer_port, distinct[:CLIENTS])
            return [
                *_under_load(matcher, our_port, peer_port, distinct, rounds, ">= 3" if tiny else ">= 1"),
                *_sharing(our_port, peer_port, shared, rounds, "" if tiny else ">= 2"),
                *_at_rest(our_port, peer_port, distinct[: count // 8], rounds),
            ]


def _under_load(
    matcher: FlippedMatcher, ours: int, peer: int, pairs: list[Pair], rounds: int, reach: str
) -> list[Row]:
    loads: dict[str, list[Load]] = {"ours": [], "peer": []}

    def predict(at_a_time: int) -> float:
        start = time.perf_counter()
        for first in range(0, len(pairs), at_a_time):
            matcher.predict(pairs[first : first + at_a_time], show_progress_bar=False)
        return time.perf_counter() - start

    seconds = take_turns(
        {
            "ours": partial(_timed, loads["ours"], ours, pairs, CLIENTS),
            "peer": partial(_timed, loads["peer"], peer, pairs, CLIENTS),
            "predict": partial(predict, len(pairs)),
            "predict a few": partial(predict, CLIENTS),
        },
        rounds,
    )
    speed, each = ratios(seconds["peer"], seconds["ours"])
    rates = {name: f"{len(pairs) / statistics.median(values):.0f} pairs/s" for name, values in seconds.items()}
    work = f"{CLIENTS} clients, a pair each"
    return [
        Row(f"serve: {work}", f"flipped-kd serve {rates['ours']}", f"{PEER} {rates['peer']}", speed, reach, each),
        *(
            Row(
                f"    share of predict's speed on the same pairs {how}",
                f"flipped-kd serve {rates['ours']}",
                f"matcher.predict {rates[name]}",
                share,
                aim,
                of_predict,
            )
            for name, how, aim in (
                ("predict", "in one batch", ">= 0.9"),
                ("predict a few", f"by {CLIENTS}, as they wait", ""),
            )
            for share, of_predict in [ratios(seconds[name], seconds["ours"])]
        ),
        *_latencies(loads, "    latency with them"),
    ]


def _sharing(ours: int, peer: int, pairs: list[Pair], rounds: int, reach: str) -> list[Row]:
    seconds = take_turns(
        {"ours": partial(_timed, [], ours, pairs, CLIENTS), "peer": partial(_timed, [], peer, pairs, CLIENTS)}, rounds
    )
    speed, each = ratios(seconds["peer"], seconds["ours"])
    first, second = (f"{len(pairs) / statistics.median(seconds[name]):.0f} pairs/s" for name in ("ours", "peer"))
    work = f"serve: {CLIENTS} requests at a time that share a query"
    return [Row(work, f"flipped-kd serve {first}", f"{PEER} {second}", speed, reach, each)]


def _at_rest(ours: int, peer: int, pairs: list[Pair], rounds: int) -> list[Row]:
    loads: dict[str, list[Load]] = {"ours": [], "peer": []}
    take_turns(
        {
            "ours": partial(_timed, loads["ours"], ours, pairs, 1),
            "peer": partial(_timed, loads["peer"], peer, pairs, 1),
        },
        rounds,
    )
    return _latencies(loads, "    latency of one client alone")


def _latencies(loads: dict[str, list[Load]], work: str) -> list[Row]:
    """Of the rounds that count: the peer's / ours."""
    rows = []
    for percent in (50, 99):
        ours, peer = ([load.percentile(percent) for load in loads[name][1:]] for name in ("ours", "peer"))
        ratio, each = ratios(peer, ours)
        shown = [f"{statistics.median(values):.0f} ms" for values in (ours, peer)]
        rows.append(Row(f"{work}, p{percent}", f"flipped-kd serve {shown[0]}", f"{PEER} {shown[1]}", ratio, "", each))
    return rows


def _check_same(matcher: FlippedMatcher, ours: int, peer: int, pairs: list[Pair]) -> None:
    expected = matcher.predict(pairs, show_progress_bar=False)
    for port in (ours, peer):
        found = asyncio.run(_ask(port, pairs, CLIENTS)).probabilities
        if not np.allclose(found, expected, rtol=0, atol=TOLERANCE):
            raise RuntimeError(f"the server at port {port} gives other probabilities than predict: nothing is timed")


def _one_query_for_all(count: int) -> list[Pair]:
    """Customers' queries, each against as many of the bank's questions as there are clients."""
    questions = cycle([row["question"] for row in json_lines(FAQ / "questions.jsonl")])
    queries = [row["query"] for row in json_lines(FAQ / "test.jsonl")[: count // CLIENTS]]
    return [(query, question) for query in queries for question in islice(questions, CLIENTS)]


# ---- Load ----


def _timed(kept: list[Load], port: int, pairs: Sequence[Pair], clients: int) -> float:
    load = asyncio.run(_ask(port, pairs, clients))
    kept.append(load)
    return load.seconds


async def _ask(port: int, pairs: Sequence[Pair], clients: int) -> Load:
    """Clients send the pairs in their order, each its next one when it has its answer."""
    bodies = [json.dumps({"pairs": [pair]}).encode() for pair in pairs]
    head = "POST /match HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
    requests = [head.format(len(body)).encode() + body for body in bodies]
    latencies, probabilities = [0.0] * len(pairs), [0.0] * len(pairs)
    numbers = iter(range(len(pairs)))

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in numbers:
            start = time.perf_counter()
            writer.write(requests[number])
            answer = await _answer(reader)
            latencies[number] = time.perf_counter() - start
            probabilities[number] = answer["results"][0]["probability"]
        writer.close()

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return Load(time.perf_counter() - start, latencies, probabilities)


async def _answer(reader: asyncio.StreamReader) -> dict:
    head = await reader.readuntil(b"\r\n\r\n")
    status, *fields = head.decode("latin-1").split("\r\n")
    length = next(int(field.split(":")[1]) for field in fields if field.lower().startswith("content-length:"))
    body = await reader.readexactly(length)
    if " 200 " not in status:
        raise RuntimeError(f"{status}: {body[:500]!r}")
    return json.loads(body)


# ---- Servers ----


@contextmanager
def _server(command: list[str]) -> Iterator[int]:
    """A server in a process of its own, once it is ready; its port."""
    port = _free_port()
    process = subprocess.Popen([*command, str(port)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        end = time.monotonic() + PATIENCE
        while not _is_ready(port):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{' '.join(command)} does not serve (exit code {process.poll()})")
            time.sleep(0.1)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


class Match(BaseModel):
    """What both servers are sent."""

    pairs: list[tuple[str, str]]


def peer(folder: str, port: int) -> None:
    """What one would write: the model loaded once, `predict` called for each request, in FastAPI's threads."""
    matcher = FlippedMatcher.from_pretrained(folder, device="cpu")
    app = FastAPI()

    @app.get("/health")
    def health() -> str:
        return "ready"

    @app.post("/match")
    def match(body: Match) -> dict[str, list[dict[str, float]]]:
        found = matcher.predict(body.pairs, show_progress_bar=False)
        return {"results": [{"probability": probability} for probability in found.tolist()]}

    uvicorn.run(app, port=port, log_level="warning")


if __name__ == "__main__":
    peer(sys.argv[1], int(sys.argv[2]))
