"""Run the benchmarks: `python -m benchmarks [--quick]`, or one of them by name."""

from __future__ import annotations

import argparse

from . import step_cost

BENCHMARKS = {"step_cost": step_cost.main}


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
