"""Start two ranks again and again beside busy loops, and tell of each start whether it ended, hung or failed.

`python -m tests.soak.ranks --starts 50` prints a line for each start and exits with 1 if one did not end well. Of one
that hangs, the stacks of all its processes stand in the log beside its folder. Two ranks over gloo have hung in CI now
and then: processor time that others take is what CI has more of.

The ranks are forked from a Python that has imported everything (tests/warm_python.py), so that a start costs seconds,
and end as every script does: the interpreter gives back what it holds. With `--torchrun` they are fresh interpreters
under torchrun's agent, which costs ten times as much. What the forked ones lack is the import, the agent (its store is
there, held by this process) and the last look of Python's garbage collector at what an import has made.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.distributed.launching import HangError, Ranks, finish, start, torchrun
from tests.distributed.leaving import NORMALLY
from tests.soak import tiny_run

SPIN = "while True: pass"


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """Inside, so many processes do nothing but take processor time."""
    running = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(loops)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def prepare(folder: Path) -> None:
    """Write what the ranks' scripts read: student, teacher, pairs and held_out, as tests/distributed gives them."""
    made = folder / "made"
    tiny_run.prepare(made)
    for name, place in (("student", "student"), ("teacher", "teacher/model"), ("pairs", "pairs")):
        (folder / name).symlink_to(made / place)
    (folder / "held_out").symlink_to(made / "held_out")


def run_once(folder: Path, number: int, module: str, timeout: float, by_torchrun: bool) -> str:
    """How the start of that number went: "ended", "hung" or "failed"."""
    inputs = folder / f"start-{number}"
    inputs.mkdir()
    for name in ("student", "teacher", "pairs", "held_out"):
        (inputs / name).symlink_to(folder / name)
    try:
        if by_torchrun:
            told = finish(start(torchrun(2), module, inputs, **{NORMALLY: "1"}), timeout)
        else:
            told = Ranks(module, inputs, **{NORMALLY: "1"}).finish(timeout)
        outcome = "ended"
    except HangError as error:
        told, outcome = str(error), "hung"
    except AssertionError as error:
        told, outcome = str(error), "failed"
    (folder / f"start-{number}.log").write_text(told, encoding="utf-8")
    return outcome


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.ranks", description=__doc__)
    parser.add_argument("--starts", type=int, default=50, help="how often the ranks are started (50)")
    parser.add_argument("--busy", type=int, default=2, help="busy loops beside them (2)")
    parser.add_argument("--module", default="tests.soak.short_run", help="what each rank runs")
    parser.add_argument("--timeout", type=float, default=300, help="seconds after which a start counts as hung (300)")
    parser.add_argument("--torchrun", action="store_true", help="fresh interpreters under torchrun's agent")
    parser.add_argument("--folder", type=Path, help="where inputs and logs are kept; by default nowhere")
    options = parser.parse_args(argv)
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        prepare(folder)
        with busy(options.busy):
            for number in range(1, options.starts + 1):
                begun = time.monotonic()
                outcome = run_once(folder, number, options.module, options.timeout, options.torchrun)
                outcomes[outcome] += 1
                print(f"start {number:3d}: {outcome} after {time.monotonic() - begun:.1f} s", flush=True)
                if outcome != "ended":
                    print((folder / f"start-{number}.log").read_text(encoding="utf-8")[-6000:], flush=True)
    print(", ".join(f"{outcomes[name]} {name}" for name in ("ended", "hung", "failed")))
    return 0 if outcomes["ended"] == options.starts else 1


if __name__ == "__main__":
    sys.exit(main())
