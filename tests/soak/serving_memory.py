"""A server under load for long: does its memory stay where it is?

`python -m tests.soak.serving_memory --minutes 60 --plot docs/serving_memory.svg` starts `flipped-kd serve` with the
tests' tiny model, whose requests are so cheap that there are many, and asks it by several clients: every route, texts
that were never sent before, bodies that are refused, clients that leave, a corpus that changes. It samples the
server's memory, threads and open files, draws them, and exits with 1 if the memory grows.

One file, though long: requests, clients, samples and plot serve this run alone.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.serving import _free_port, _is_ready
from flipped_kd.utils.atomic import write_atomically
from tests.soak import forks
from tests.soak.serving import Server as Folder

TOKEN = "a-token-of-soaks"
# Of the run: what is not counted, since pools fill and every route is asked for the first time.
WARM_UP = 1 / 6
# MiB by which the last part may lie above the first after the warm-up.
ALLOWED = 8.0
PATIENCE = 120.0
CORPUS, RELOAD_SECONDS = 500, 20.0
WORDS = (
    "where is my card how long does a refund take cancel the loan please why was salary refused invoice app".split()
)
KINDS = (
    *("rerank", "embed", "similarity", "openai", "cohere", "match", "search", "wrong field", "broken", "too many"),
    *("too large", "no such route", "no token", "metrics", "pages"),
)
# Method, path, body, headers, and the status of the answer.
Request = tuple[str, str, bytes | None, dict[str, str], int]
LEAKING = """\
import sys
from flipped_kd.cli.main import main
from flipped_kd.serving.engine import Engine
kept, run = [], Engine._run
async def leaking(self, items):
    kept.append([json.dumps(item.key) for item in items])
    return await run(self, items)
import json
Engine._run = leaking
sys.exit(main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Sample:
    """What was seen of the server at one moment.

    Attributes:
        minutes: since the first sample.
        memory: its own, without files that are mapped (RssAnon), in MiB.
        threads: of the process.
        files: that are open, connections among them.
        requests: that the clients had sent.
    """

    minutes: float
    memory: float
    threads: int
    files: int
    requests: int


class Clients:
    """Threads that ask a server until they are stopped.

    Attributes:
        statuses: how many requests of which kind got which status; 0 where the client did not wait.
        faults: what should not have happened.
    """

    def __init__(self, port: int, corpus: Path, count: int, pause: float) -> None:
        self.port, self._corpus, self._pause = port, corpus, pause
        self.statuses: Counter[str] = Counter()
        self.faults: list[str] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(number,), daemon=True) for number in range(count)]
        self._threads.append(threading.Thread(target=self._reload, daemon=True))

    @property
    def requests(self) -> int:
        """Sent so far."""
        return sum(self.statuses.values())

    def start(self) -> None:
        """Begin to ask."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ask no more."""
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def _ask(self, number: int) -> None:
        rng = random.Random(number)
        connection = None
        while not self._stop.is_set():
            # Now and then a new connection, and now and then one that is left before the answer.
            if connection is None or rng.random() < 0.02:
                connection = self._connected(connection)
            kind = rng.choice(KINDS)
            method, path, body, headers, expected = request(kind, rng)
            try:
                connection.request(method, path, body, headers)
                if rng.random() < 0.02:
                    self._count(kind, 0)
                    connection = self._connected(connection)
                    continue
                response = connection.getresponse()
                response.read()
                self._count(kind, response.status, expected)
            except (OSError, http.client.HTTPException) as error:
                self.faults.append(f"{kind}: {type(error).__name__}: {error}")
                connection = None
            self._stop.wait(rng.uniform(0, 2 * self._pause))

    def _connected(self, old: http.client.HTTPConnection | None) -> http.client.HTTPConnection:
        if old is not None:
            old.close()
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)

    def _count(self, kind: str, status: int, expected: int | None = None) -> None:
        with self._lock:
            self.statuses[f"{kind} {status}"] += 1
        if expected is not None and status != expected:
            self.faults.append(f"{kind}: {status} in the place of {expected}")

    def _reload(self) -> None:
        version = 0
        while not self._stop.wait(RELOAD_SECONDS if version else 0.5):
            version += 1
            write_corpus(self._corpus, version)
            connection = self._connected(None)
            try:
                connection.request("POST", "/corpus/reload", headers=_headers())
                self._count("reload", connection.getresponse().status, 200)
            except (OSError, http.client.HTTPException) as error:
                self.faults.append(f"reload: {type(error).__name__}: {error}")
            connection.close()


def request(kind: str, rng: random.Random) -> Request:
    """A request of a kind, with texts that nobody has sent before, and the status that it gets."""

    def text() -> str:
        words = int(min(400, 3 + rng.expovariate(1 / 12)))
        return " ".join([*(rng.choice(WORDS) for _ in range(words)), f"{rng.getrandbits(64):x}"])

    def texts() -> list[str]:
        return [text() for _ in range(rng.choice([1, 2, 8, 32]))]

    path, expected, body = {
        "rerank": lambda: ("/rerank", 200, {"query": text(), "texts": texts()}),
        "embed": lambda: ("/embed", 200, {"inputs": texts()}),
        "similarity": lambda: ("/similarity", 200, {"inputs": {"source_sentence": text(), "sentences": texts()}}),
        "openai": lambda: ("/v1/embeddings", 200, {"input": texts(), "encoding_format": "base64"}),
        "cohere": lambda: ("/v2/rerank", 200, {"query": text(), "documents": texts(), "return_documents": True}),
        "match": lambda: ("/match", 200, {"pairs": [[text(), text()]], "all_scores": True}),
        "search": lambda: ("/search", 200, {"query": text(), "top_k": 5, "rerank": 10}),
        "wrong field": lambda: ("/match", 422, {"pairs": [[text()]], text(): text()}),
        "broken": lambda: ("/embed", 422, text().encode()),
        "too many": lambda: ("/embed", 422, {"inputs": ["cash"] * 2049}),
        "too large": lambda: ("/embed", 413, b"x" * (3 << 20)),
        "no such route": lambda: (f"/{text().replace(' ', '/')}", 404, None),
        "no token": lambda: (f"/info?{text().replace(' ', '+')}", 401, None),
        "metrics": lambda: ("/metrics", 200, None),
        "pages": lambda: (rng.choice(["/", "/docs", "/openapi.json"]), 200, None),
    }[kind]()
    headers = {} if kind == "no token" else _headers()
    if body is None:
        return "GET", path, None, headers, expected
    return "POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), headers, expected


def _headers() -> dict[str, str]:
    return {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}


def write_corpus(path: Path, version: int) -> None:
    """Each time a tenth of it is new."""
    first = version * CORPUS // 10
    write_atomically(path, "".join(f"where is my card number {n}\n" for n in range(first, first + CORPUS)))


def look(pid: int, start: float, sent: int) -> Sample:
    """A sample of a process."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    numbers = {name: int(value) for name, value in re.findall(r"^(RssAnon|Threads):\s+(\d+)", status, re.M)}
    files = len(os.listdir(f"/proc/{pid}/fd"))
    return Sample((time.monotonic() - start) / 60, numbers["RssAnon"] / 1024, numbers["Threads"], files, sent)


def growth(samples: Sequence[Sample]) -> float:
    """MiB by which the last sixth of a run lies above the sixth after the warm-up, by their medians."""
    end = samples[-1].minutes
    first = [sample.memory for sample in samples if WARM_UP <= sample.minutes / end < WARM_UP + 1 / 6]
    last = [sample.memory for sample in samples if sample.minutes / end >= 5 / 6]
    return float(np.median(last) - np.median(first))


def soak(
    folder: Path, minutes: float, clients: int, pause: float, leaks: bool = False
) -> tuple[list[Sample], Counter[str], list[str]]:
    """(samples, statuses, faults) of a server in `folder`, which is empty."""
    files = Folder(folder)
    if forks.run(files.prepare, files.log) != 0:
        raise SystemExit(f"the model cannot be made:\n{files.log.read_text(encoding='utf-8')[-2000:]}")
    write_corpus(folder / "faq.txt", 0)
    port = _free_port()
    started = ["-c", LEAKING] if leaks else ["-m", "flipped_kd"]
    options = ["--corpus", folder / "faq.txt", "--save-index", folder / "index", "--port", port, "--device", "cpu"]
    with (folder / "serve.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *started, "serve", *map(str, [folder / "adapter", *options])],
            env={**os.environ, "FLIPPED_KD_TOKEN": TOKEN},
            stderr=log,
        )
    try:
        _until(lambda: _is_ready(port) or process.poll() is not None)
        asking = Clients(port, folder / "faq.txt", clients, pause)
        asking.start()
        samples, start = [], time.monotonic()
        every = min(5.0, minutes * 60 / 200)
        while (time.monotonic() - start) / 60 < minutes and process.poll() is None:
            samples.append(look(process.pid, start, asking.requests))
            time.sleep(every)
        asking.stop()
        process.send_signal(signal.SIGTERM)
        status = process.wait(PATIENCE)
    finally:
        process.kill()
        process.wait()
    faults = list(dict.fromkeys(asking.faults)) + ([] if status == 0 else [f"the server ended with {status}"])
    said = (folder / "serve.log").read_text(encoding="utf-8")
    return samples, asking.statuses, faults + (["a traceback is in its log"] if "Traceback" in said else [])


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise SystemExit("the server does not start")
        time.sleep(0.1)


def draw(samples: Sequence[Sample], title: str, path: Path) -> None:
    """Memory, threads and open files over the run."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "flipped_kd"
    from matplotlib.figure import Figure

    minutes = [sample.minutes for sample in samples]
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot(minutes, [sample.memory for sample in samples], color="#0072B2", linewidth=1)
    upper.axvspan(0, WARM_UP * minutes[-1], color="#dddddd", label="warm-up, not counted")
    upper.set_ylim(0, 1.25 * max(sample.memory for sample in samples))
    upper.set_ylabel("memory (RssAnon, MiB)")
    upper.set_title(title, fontsize=10)
    upper.legend(loc="lower right", frameon=False)
    lower.plot(minutes, [sample.threads for sample in samples], color="#D55E00", linewidth=1, label="threads")
    lower.plot(minutes, [sample.files for sample in samples], color="#009E73", linewidth=1, label="open files")
    lower.set_ylim(0, None)
    lower.set_xlabel("minutes")
    lower.legend(loc="lower right", frameon=False, ncols=2)
    for panel in (upper, lower):
        panel.grid(color="#dddddd", linewidth=0.5)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="svg", metadata={"Date": None})


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="how long")
    parser.add_argument("--clients", type=int, default=4, help="how many")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds between requests of a client, on average")
    parser.add_argument("--allowed", type=float, default=ALLOWED, help="MiB by which the memory may grow")
    parser.add_argument("--plot", type=Path, help="draw what was seen (SVG)")
    parser.add_argument("--report", type=Path, help="write what was seen as JSON")
    parser.add_argument("--leaks", action="store_true", help="a server that keeps every text, to see that it is seen")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        found = soak(Path(folder), options.minutes, options.clients, options.pause, options.leaks)
    samples, statuses, faults = found
    grown = growth(samples)
    title = (
        f"flipped-kd serve: {samples[-1].requests:,} requests in {samples[-1].minutes:.0f} minutes, "
        f"{options.clients} clients; memory {grown:+.1f} MiB after the warm-up"
    )
    print(title, *(f"{count:8,d} {name}" for name, count in sorted(statuses.items())), *faults, sep="\n")
    if options.plot:
        draw(samples, title, options.plot)
    if options.report:
        report = {
            "growth": grown,
            "samples": [asdict(sample) for sample in samples],
            "statuses": statuses,
            "faults": faults,
        }
        options.report.write_text(json.dumps(report, indent=2), encoding="utf-8")
    return 1 if faults or grown > options.allowed else 0


if __name__ == "__main__":
    sys.exit(main())
