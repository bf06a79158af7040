"""What it costs to import the package and to ask the command for help."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from .harness import ROOT, Row

COMMANDS = {
    "import flipped_kd": [sys.executable, "-c", "import flipped_kd"],
    "flipped-kd --help": [sys.executable, "-m", "flipped_kd", "--help"],
}
BARE = [sys.executable, "-c", "pass"]
# What the interpreter has loaded when help has been printed.
LOADED = (
    "import runpy, sys\ntry:\n    runpy.run_module('flipped_kd', run_name='__main__')\nexcept SystemExit:\n    pass\n"
)
LOADED += "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'numpy')))"


def main(quick: bool = False) -> list[Row]:
    """Median seconds, and whether help loads torch."""
    rounds = 5 if quick else 15
    seconds: dict[str, list[float]] = {name: [] for name in (*COMMANDS, "bare")}
    for turn in range(rounds + 1):
        for name, command in (*COMMANDS.items(), ("bare", BARE)):
            start = time.perf_counter()
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            if turn:  # the first one reads files into the page cache
                seconds[name].append(time.perf_counter() - start)
    heavy = subprocess.run([sys.executable, "-c", LOADED, "--help"], cwd=ROOT, stdout=subprocess.DEVNULL).returncode
    bare = f"python -c pass {statistics.median(seconds['bare']):.3f} s"
    rows = []
    for name in COMMANDS:
        median = statistics.median(seconds[name])
        rows.append(Row(f"{name}: seconds", f"{median:.3f} s", bare, median, "<= 0.3", seconds[name]))
    rows.append(Row("flipped-kd --help loads torch, transformers or numpy", str(bool(heavy)), "", heavy, "<= 0"))
    return rows
