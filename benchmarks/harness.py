"""What the benchmarks share: taking turns, medians of ratios, memory, and what is printed and kept."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from flipped_kd.utils.devices import cpu_cores
from flipped_kd.utils.json_files import read_json_object, write_json

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("FLIPPED_KD_SHARED", ROOT.parent / "shared"))
STAND_IN = SHARED / "models" / "student-minilm-causal"
# Another causal language model, a folder or a GGUF file (`make bench STUDENT=FILE ARGS=training_step`).
STUDENT = Path(os.environ.get("FLIPPED_KD_STUDENT") or STAND_IN)
TEACHER = SHARED / "models" / "teacher-banking77"
BANKING = SHARED / "data" / "banking77"
FAQ = SHARED / "data" / "banking77_faq"
SAMPLE_SECONDS = 0.005
# What Linux tells of this process.
STATUS = Path("/proc/self/status")
PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "sentence-transformers", "flipped_kd")


@dataclass
class Row:
    """One line of the table.

    Attributes:
        work: what was done.
        ours: what this package did, and how fast: "41.2 pairs/s".
        peer: the same of whom it is held against.
        ratio: ours to the peer's, in the sense that `reach` speaks of.
        reach: what is to be reached: ">= 1.2", "<= 1.1", or "" where the number only explains another.
        rounds: the ratio in each round, or the ones there are.
    """

    work: str
    ours: str
    peer: str
    ratio: float
    reach: str = ""
    rounds: list[float] = field(default_factory=list)

    @property
    def met(self) -> bool | None:
        """Whether the ratio reaches what it should; None where nothing is to be reached."""
        if not self.reach:
            return None
        sign, bound = self.reach.split()
        return self.ratio >= float(bound) if sign == ">=" else self.ratio <= float(bound)

    def __str__(self) -> str:
        verdict = {True: f"reach {self.reach}", False: f"MISSES {self.reach}", None: ""}[self.met]
        return f"{self.work:60s} {self.ratio:7.2f}  {verdict:16s} {self.ours}; {self.peer}"


def take_turns(systems: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each system's function returns, round by round, so that a drifting machine speed meets all alike.

    A first round warms up and is not counted.
    """
    found: dict[str, list[float]] = {name: [] for name in systems}
    for turn in range(rounds + 1):
        # Whoever comes after a heavy one finds a warm or a throttled core: the order changes.
        names = list(systems)
        shift = turn % len(names)
        say(f"round {turn} of {rounds}" if turn else f"warming up {', '.join(systems)}")
        for name in names[shift:] + names[:shift]:
            value = systems[name]()
            if turn:
                found[name].append(value)
    return found


def say(text: str) -> None:
    """A line of progress, with the time of day; what is found goes to standard output."""
    print(f"  {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def ratios(numerator: list[float], denominator: list[float]) -> tuple[float, list[float]]:
    """The median of the rounds' ratios, and all of them."""
    each = [a / b for a, b in zip(numerator, denominator, strict=True)]
    return statistics.median(each), each


def missing(*needed: Path) -> bool:
    """Say so and return True where the benchmark data are not there."""
    absent = [path for path in needed if not path.exists()]
    if absent:
        print(f"skipped: no {absent[0]}; data/ and models/ are looked for in {SHARED}, or in FLIPPED_KD_SHARED")
    return bool(absent)


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of the benchmark data."""
    with path.open("rb") as file:
        return [json.loads(line) for line in file]


def check_memory() -> None:
    """Raise RuntimeError where memory cannot be measured; asked before what takes long."""
    for name in ("RssAnon", "RssFile", "VmHWM"):
        _status(name)


def anonymous_bytes() -> int:
    """RssAnon of this process: resident memory that is no page of a file."""
    return _status("RssAnon")


def peak_anonymous() -> float:
    """Most MiB of anonymous memory this process has had; pages of files (code, data, weights on disk) apart."""
    return (_status("VmHWM") - _status("RssFile")) / 2**20


@contextmanager
def growth() -> Iterator[dict[str, int]]:
    """Growth of this process's RssAnon in bytes while the block runs: its `peak`, sampled, and what is `kept`."""
    result: dict[str, int] = {}
    ended = threading.Event()
    before = peak = anonymous_bytes()

    def sample() -> None:
        nonlocal peak
        while not ended.wait(SAMPLE_SECONDS):
            peak = max(peak, anonymous_bytes())

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield result
    finally:
        ended.set()
        sampler.join()
    after = anonymous_bytes()
    result.update(peak=max(peak, after) - before, kept=after - before)


def elsewhere(module: str, *arguments: Any) -> Any:
    """The JSON that `python -m benchmarks.<module> arguments` prints last, run in a process of its own."""
    say(" ".join([module, *map(str, arguments)]))
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def machine() -> dict[str, Any]:
    """Processor, threads and the versions that matter."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    found: dict[str, Any] = {"processor": model, "cores": cpu_cores(), "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found | {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def saved(path: Path) -> dict[str, Any]:
    """What `save` has kept in a file, by benchmark; nothing where there is none.

    Raises:
        ValueError: something else is there.
    """
    if not path.is_file():
        return {}
    remedy = "remove it, or give another file by --json"
    found = read_json_object(path, remedy).get("benchmarks")
    if not isinstance(found, dict):
        raise ValueError(f"{path} does not hold its rows under 'benchmarks', by name: {remedy}.")
    return found


def save(path: Path, name: str, rows: list[Row], seconds: float, quick: bool) -> None:
    """Write a benchmark's rows as JSON; those of the others that are there stay, each with its own machine."""
    entry = {
        "quick": quick,
        "machine": machine(),
        "seconds": seconds,
        "rows": [asdict(row) | {"met": row.met} for row in rows],
    }
    write_json(path, {"benchmarks": saved(path) | {name: entry}})


def _status(name: str) -> int:
    for line in STATUS.read_text(encoding="ascii").splitlines() if STATUS.is_file() else ():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"this kernel does not tell {name} in {STATUS}: run on Linux 4.5 or later")
