"""Kill a server at random moments while its corpus changes and its index is saved, and start it again.

`python -m tests.soak.serving --kills 50` prints a line for each kill and a table at the end; it exits with 1 if an
index was ever lost, half-written or another corpus's, or if the last server does not serve the last corpus. Half of
the kills fall anywhere, half while the index is saved.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import random
import signal
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

from flipped_kd import FlippedMatcher
from flipped_kd.inference.search_index import INDEX_FILE, SearchIndex
from flipped_kd.serving.corpus import CorpusSource
from flipped_kd.serving.runtime import serve
from flipped_kd.serving.service import Service
from flipped_kd.serving.settings import Settings
from flipped_kd.utils.atomic import write_atomically
from tests import conftest
from tests.adapters import make_adapter
from tests.soak import forks

TEXTS, NEW = 120, 12  # of a corpus, and those of them that the one before had not
SYNC_SECONDS = 0.004  # what the disk takes for a file, which is no time in the tests
SAVE_SECONDS = 0.02  # about what one save takes
CHANGE_SECONDS = 0.02
POLL_SECONDS = 0.0003
PATIENCE = 60.0


@dataclass
class Kill:
    """One kill.

    Attributes:
        seconds: after the process had started.
        hit: what the process was doing.
        version: of the corpus whose index was found afterwards; None where there was none.
        faults: what was wrong with it.
    """

    seconds: float
    hit: str
    version: int | None
    faults: list[str]


def corpus(version: int) -> list[str]:
    """The texts of a version: the newest replace the oldest."""
    return [f"where is my card number {number}" for number in range(version * NEW, version * NEW + TEXTS)]


def version_of(texts: Sequence[str]) -> int | None:
    """Which corpus these are, whole and in order; None if it is none."""
    first = int(texts[0].rsplit(" ", 1)[1]) if texts else 1
    return first // NEW if list(texts) == corpus(first // NEW) else None


class Server:
    """What the soak does with a folder that holds the model, the corpus and its index."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.version = folder, 0
        self.log = folder / "server.log"

    @property
    def source(self) -> CorpusSource:
        """Of the corpus; making it puts right what a kill has left, as the server does when it starts."""
        return CorpusSource(str(self.folder / "faq.txt"), index_folder=self.folder / "index")

    def prepare(self) -> None:
        """Write the tests' tiny model and the first corpus; in a child, as torch runs."""
        places = SimpleNamespace(mktemp=lambda name: self._made(name))
        tokenizer = inspect.unwrap(conftest.tokenizer)()
        base = inspect.unwrap(conftest.student_dir)(inspect.unwrap(conftest._student)(tokenizer), tokenizer, places)
        make_adapter(self.folder / "adapter", base, tokenizer)

    def _made(self, name: str) -> Path:
        (self.folder / name).mkdir(parents=True)
        return self.folder / name

    def run(self) -> None:
        """Serve, until a signal; in a child, whose files are synced as slowly as on a disk."""
        os.fsync = lambda _: time.sleep(SYNC_SECONDS)
        service = Service(
            lambda: FlippedMatcher.from_pretrained(self.folder / "adapter", device="cpu"),
            Settings(port=0),
            self.source,
        )
        serve(service, lambda port, _: write_atomically(self.folder / "port", f"{os.getpid()} {port}"))

    def change(self) -> None:
        """The next version of the corpus."""
        self.version += 1
        write_atomically(self.folder / "faq.txt", "".join(f"{text}\n" for text in corpus(self.version)))

    def partial(self) -> set[str]:
        """Names of what is being written."""
        return {path.name for path in self.folder.glob(".index.partial-*") if not path.name.endswith(".lock")}

    def look(self) -> None:
        """What a start finds of the index, written beside it; in a child, as torch runs."""
        source = self.source
        assert source.index_folder is not None
        faults = [f"{name} is left" for name in self.partial()]
        version = None
        if (source.index_folder / INDEX_FILE).is_file():
            try:
                version = version_of(SearchIndex.load(source.index_folder).texts)
                faults += ["it holds another corpus"] if version is None else []
            except ValueError as error:
                faults.append(str(error))
        write_atomically(self.folder / "found.json", json.dumps([version, faults]))

    def found(self) -> tuple[int | None, list[str]]:
        """What `look` finds."""
        forks.must(forks.run(self.look, self.log), self.log)
        version, faults = json.loads((self.folder / "found.json").read_text())
        return version, faults

    def ask(self, child: int, route: str, body: object | None = None) -> object:
        """What a server answers once it is ready."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                number, port = (self.folder / "port").read_text().split()
                assert int(number) == child
                data = None if body is None else json.dumps(body).encode()
                request = urllib.request.Request(
                    f"http://127.0.0.1:{port}{route}", data, {"Content-Type": "application/json"}
                )
                with urllib.request.urlopen(request, timeout=PATIENCE) as response:
                    return json.load(response)
            except (OSError, AssertionError, ValueError):
                time.sleep(0.02)
        raise SystemExit(f"the server does not answer:\n{self.log.read_text(encoding='utf-8')[-2000:]}")


def soak(server: Server, kills: int, seed: int = 0) -> tuple[list[Kill], list[str]]:
    """Kill so many servers; (the kills, what was wrong with the last one, which was not killed)."""
    rng = random.Random(seed)
    server.change()
    child = forks.start(server.run, server.log)
    began = time.monotonic()
    server.ask(child, "/health")
    length = 2 * (time.monotonic() - began)
    _end(child, signal.SIGKILL)
    done: list[Kill] = []
    newest, _ = server.found()
    while len(done) < kills:
        stale = server.partial()
        child = forks.start(server.run, server.log)
        began = time.monotonic()
        if len(done) % 2:
            _change_for(server, child, rng.uniform(0, length))
        else:
            _change_until_saving(server, child, stale, rng)
        hit = "saving" if server.partial() - stale else "starting or serving"
        _end(child, signal.SIGKILL)
        seconds = time.monotonic() - began
        version, faults = server.found()
        if newest is not None and (version is None or version < newest):
            faults.append(f"the index of version {newest} was there before")
        newest = version if newest is None else max(newest, version or 0)
        done.append(Kill(seconds, hit, version, faults))
        told = "; ".join(faults) or ("no index yet" if version is None else f"index of corpus {version}, whole")
        print(f"kill {len(done)}/{kills}: {seconds:.2f} s, {hit}; {told}", flush=True)
    return done, _last(server)


def _last(server: Server) -> list[str]:
    """Start once more, and hold what is served against the corpus."""
    child = forks.start(server.run, server.log)
    server.ask(child, "/health")
    found = server.ask(child, "/search", {"query": "card", "top_k": 1000})
    texts = [hit["text"] for hit in sorted(found["results"], key=lambda hit: hit["index"])]  # type: ignore[index]
    faults = [] if texts == corpus(server.version) else ["the last server serves another corpus"]
    status = _end(child, signal.SIGTERM)
    version, more = server.found()
    faults += [] if status == 0 else [f"SIGTERM ended it with {status}"]
    return faults + more + ([] if version == server.version else [f"the index is that of version {version}"])


def _change_for(server: Server, child: int, seconds: float) -> None:
    """Change the corpus again and again, and tell the server, which may not listen yet."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        _tell_of_change(server, child)
        time.sleep(CHANGE_SECONDS)


def _change_until_saving(server: Server, child: int, stale: set[str], rng: random.Random) -> None:
    """Until the index has been in the making for a random while, in one of the next saves."""
    end = time.monotonic() + PATIENCE
    for _ in range(rng.randint(1, 3)):
        before = server.partial() | stale
        while not server.partial() - before:
            if time.monotonic() > end:
                raise SystemExit(f"nothing is saved:\n{server.log.read_text(encoding='utf-8')[-2000:]}")
            _tell_of_change(server, child)
            waited = time.monotonic() + CHANGE_SECONDS
            while not server.partial() - before and time.monotonic() < waited:
                time.sleep(POLL_SECONDS)
    time.sleep(rng.uniform(0, SAVE_SECONDS))


def _tell_of_change(server: Server, child: int) -> None:
    port = server.folder / "port"
    # A process that has no handler yet would die of the signal.
    if port.is_file() and port.read_text().split()[0] == str(child):
        server.change()
        os.kill(child, signal.SIGHUP)


def _end(child: int, number: int) -> int:
    os.kill(child, number)
    return forks.wait(child)


def table(kills: Sequence[Kill], last: Sequence[str]) -> str:
    """What the kills hit, and what was wrong."""
    rows = [("kills", len(kills))]
    rows += [(f"  while {name}", count) for name, count in sorted(Counter(kill.hit for kill in kills).items())]
    rows += [
        ("  that the next start found a whole index after", sum(kill.version is not None for kill in kills)),
        ("indexes lost, half-written or another's", sum(bool(kill.faults) for kill in kills)),
        ("faults of the last server", len(last)),
    ]
    return "\n".join(f"{name:50s}{count:6d}" for name, count in rows)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--report", type=Path, help="write what was found as JSON")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        server = Server(Path(temporary))
        forks.prepare()
        forks.must(forks.run(server.prepare, server.log), server.log)
        kills, last = soak(server, options.kills, options.seed)
        print(f"\n{table(kills, last)}")
        print("".join(f"{fault}\n" for fault in last), end="")
        if options.report:
            report = {"kills": [asdict(kill) for kill in kills], "last": last}
            options.report.write_text(json.dumps(report, indent=2), encoding="utf-8")
    return 1 if last or any(kill.faults for kill in kills) else 0


if __name__ == "__main__":
    sys.exit(main())
