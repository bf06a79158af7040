"""Kill training runs at random moments, resume each until it is done, and compare it with one that ran through.

`python -m tests.soak.kills --kills 50` prints a line for each kill and a table at the end; it exits with 1 if any run
ended with another weight or another line of log. Half of the kills fall anywhere in a run, half while it saves.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from flipped_kd.training.checkpoint_files import STAGING_FOLDER, complete_checkpoints, missing_from
from tests.soak import forks, stages, tiny_run

SAVE_SECONDS = 0.03  # about what one save takes
POLL_SECONDS = 0.0005


@dataclass
class Kill:
    """One kill.

    Attributes:
        run: number of the run it hit.
        seconds: after the process had started.
        hit: what the process was doing.
        left: whether a checkpoint was left incomplete.
        resumes: what the next process goes on from, as far as its name was given.
    """

    run: int
    seconds: float
    hit: str
    left: bool
    resumes: str


def soak(folder: Path, kills: int, seed: int = 0) -> tuple[list[Kill], list[list[str]]]:
    """Kill runs until there were so many kills; (the kills, the differences of each run that was killed)."""
    rng = random.Random(seed)
    whole = folder / "whole"
    started = time.monotonic()
    forks.must(forks.run(lambda: tiny_run.train(folder, whole), folder / "whole.log"), folder / "whole.log")
    length = time.monotonic() - started
    done: list[Kill] = []
    outcomes: list[list[str]] = []
    while len(done) < kills:
        run = len(outcomes)
        out, log = folder / f"run-{run}", folder / f"run-{run}.log"

        def job(out: Path = out) -> None:
            tiny_run.train(folder, out)

        before = len(done)
        ended = False
        while not ended and len(done) < kills:
            stale = _identity(out)
            child = forks.start(job, log)
            began = time.monotonic()
            if rng.random() < 0.5:
                time.sleep(rng.uniform(0, length))
            else:
                _wait_for_a_save(child, out, stale, rng)
            # A child that has ended stays a zombie until it is waited for, so its number is still its own.
            os.kill(child, signal.SIGKILL)
            seconds = time.monotonic() - began
            ended = forks.wait(child) != -signal.SIGKILL
            if not ended:
                done.append(_told(run, seconds, out, stale))
                print(_line(len(done), kills, done[-1]), flush=True)
        if not ended:
            forks.must(forks.run(job, log), log)
        if len(done) > before:
            outcomes.append(tiny_run.differences(out, whole))
            print(f"run {run} done: {'; '.join(outcomes[-1]) or 'equal bit for bit'}", flush=True)
    return done, outcomes


def _identity(out: Path) -> tuple[int, int] | None:
    """Tells one staging folder from another."""
    try:
        found = (out / STAGING_FOLDER).stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_ctime_ns


def _wait_for_a_save(child: int, out: Path, stale: tuple[int, int] | None, rng: random.Random) -> None:
    """Until the process has been saving for a random while, in one of its next saves; or has ended."""
    for _ in range(rng.randint(1, 3)):
        time.sleep(rng.uniform(0, SAVE_SECONDS))
        while (found := _identity(out)) in (None, stale):
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return
            time.sleep(POLL_SECONDS)
        stale = found
    time.sleep(rng.uniform(0, SAVE_SECONDS))


def _told(run: int, seconds: float, out: Path, stale: tuple[int, int] | None) -> Kill:
    saving = list((out / STAGING_FOLDER).glob("checkpoint-*")) if _identity(out) != stale else []
    hit = f"saving {saving[0].name}" if saving else "training"
    newest = next(iter(complete_checkpoints(out)), None)
    left = any(missing_from(path) for path in saving)
    return Kill(run, seconds, hit, left, newest.name if newest else "step 0")


def _line(number: int, kills: int, kill: Kill) -> str:
    left = ", left incomplete" if kill.left else ", whole but for its name" if "saving" in kill.hit else ""
    return f"kill {number}/{kills}: run {kill.run}, {kill.seconds:.2f} s, {kill.hit}{left}; newest: {kill.resumes}"


def table(kills: Sequence[Kill], outcomes: Sequence[Sequence[str]]) -> str:
    """What the kills hit, and how many runs were equal."""
    hits = Counter(kill.hit.split(" checkpoint-")[0] for kill in kills)
    rows = [("kills", len(kills)), *((f"  while {name}", count) for name, count in sorted(hits.items()))]
    rows += [
        ("  that left an incomplete checkpoint", sum(kill.left for kill in kills)),
        ("  before the first checkpoint", sum(kill.resumes == "step 0" for kill in kills)),
        ("runs killed and resumed", len(outcomes)),
        ("  equal bit for bit", sum(not outcome for outcome in outcomes)),
    ]
    return "\n".join(f"{name:40s}{count:6d}" for name, count in rows)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, help="where the runs are kept; by default a temporary folder")
    parser.add_argument("--stages", action="store_true", help="kill at each stage of saving, too")
    parser.add_argument("--report", type=Path, help="write what was found as JSON")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        forks.prepare()
        # In a child as all training: torch must not have run in the process that forks.
        forks.must(forks.run(lambda: tiny_run.prepare(folder), folder / "prepare.log"), folder / "prepare.log")
        kills, outcomes = soak(folder, options.kills, options.seed)
        walked = stages.walk(folder, folder / "whole") if options.stages else []
        print(f"\n{table(kills, outcomes)}")
        for fact in walked:
            print(f"killed with {fact['stage']}: {'; '.join(fact['differences']) or 'equal bit for bit'}")
        if options.report:
            report = {"kills": [asdict(kill) for kill in kills], "outcomes": outcomes, "stages": walked}
            options.report.write_text(json.dumps(report, indent=2), encoding="utf-8")
    return 1 if any(outcomes) or any(fact["differences"] for fact in walked) else 0


if __name__ == "__main__":
    sys.exit(main())
