"""Run the benchmarks: `python -m benchmarks [--quick]`, or some of them by name.

Each row is a ratio against a peer that did the same work in the same run, in turns; the median of the rounds is shown.
Rows, rounds, machine and versions are written as JSON too, where the rows of other benchmarks stay.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
from transformers.utils import logging as transformers_logging

from . import (
    contrast_memory,
    cost_per_pair,
    inference,
    large_search,
    ranks,
    retrieval,
    searching,
    serving,
    startup,
    teacher_scale,
    teacher_scoring,
    training_step,
)
from .harness import Row, machine, save, saved, say

# What users would compare us by.
TABLE: dict[str, Callable[..., list[Row]]] = {
    "training_step": training_step.main,
    "teacher_scoring": teacher_scoring.main,
    "inference": inference.main,
    "searching": searching.main,
    "serving": serving.main,
    "large_search": large_search.main,
    "startup": startup.main,
    "cost_per_pair": cost_per_pair.main,
}
# What else was measured; run by name, each prints its own table.
OTHERS: dict[str, Callable[..., Any]] = {
    "contrast_memory": contrast_memory.main,
    "ranks": ranks.main,
    "teacher_scale": teacher_scale.main,
    "retrieval": retrieval.main,
}


def main() -> None:
    """Run the table, or those named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = [*TABLE, *OTHERS]
    shown = f"which to run, of {', '.join(names)} (the first {len(TABLE)})"
    parser.add_argument("names", nargs="*", metavar="NAME", help=shown)
    parser.add_argument("--quick", action="store_true", help="less work and fewer rounds: under 10 minutes")
    parser.add_argument("--json", type=Path, default=Path("outputs/benchmarks.json"), help="where to write the rows")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in names]:
        parser.error(f"there is no benchmark {unknown[0]!r}: choose from {', '.join(names)}")
    try:
        saved(options.json)  # what cannot be added to is known before anything is measured
    except ValueError as error:
        parser.error(str(error))
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    if not options.names:
        say(f"{'some 10 minutes' if options.quick else 'an hour and more'}; rows are written to {options.json}")
    print(", ".join(f"{name} {value}" for name, value in machine().items()), flush=True)
    results: dict[str, list[Row]] = {}
    for name in options.names or TABLE:
        print(f"== {name}", flush=True)
        start = time.perf_counter()
        if name in OTHERS:
            OTHERS[name](quick=options.quick)
            continue
        results[name] = rows = TABLE[name](quick=options.quick)
        if rows:  # none where its data are not there
            seconds = time.perf_counter() - start
            print("\n".join(map(str, rows)), f"({seconds:.0f} s)", sep="\n", flush=True)
            save(options.json, name, rows, seconds, options.quick)
    missed = [row.work.strip() for part in results.values() for row in part if row.met is False]
    skipped = [name for name, rows in results.items() if not rows]
    if any(results.values()):
        print(f"Rows: {options.json}. " + (f"Not reached: {'; '.join(missed)}." if missed else "All reached."))
    if skipped:
        measured = "Not measured" if any(results.values()) else "Nothing was measured"
        print(f"{measured}: the data of {', '.join(skipped)} are not there.")


if __name__ == "__main__":
    main()
