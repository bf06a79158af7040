"""Run the benchmarks: `python -m benchmarks [--quick]`, or one of them by name."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from . import inference, retrieval, step_cost

BENCHMARKS: dict[str, Callable[..., Any]] = {
    "step_cost": step_cost.main,
    "inference": inference.main,
    "retrieval": retrieval.main,
}


def main() -> None:
    """Run all benchmarks, or those named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *BENCHMARKS], help="which to run (default: all)")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    options = parser.parse_args()
    for name in options.names or BENCHMARKS:
        print(f"== {name}")
        BENCHMARKS[name](quick=options.quick)


if __name__ == "__main__":
    main()
