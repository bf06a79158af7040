"""Training of a teacher in a plain process of its own, whatever launched the caller.

A Trainer in one of several launched processes would wait for the others, and one in the caller's process would change
its accelerate state.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Set by launchers for their ranks.
LAUNCHER_PREFIXES = ("ACCELERATE_", "FSDP_", "DEEPSPEED_", "TORCHELASTIC_", "GROUP_", "ROLE_", "MASTER_")
LAUNCHER_NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


def run_alone(script: str, request: Mapping[str, Any], work: str, **variables: str) -> None:
    """Run a script of this folder, which takes its `requested()`.

    Args:
        script: its file.
        request: JSON values.
        work: what it does, in words.
        **variables: of its environment.

    Raises:
        RuntimeError: it failed.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in LAUNCHER_NAMES and not name.startswith(LAUNCHER_PREFIXES)
    }
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "request.json"
        file.write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, script, str(file)]
        status = subprocess.run(command, env=kept | variables, stdout=subprocess.DEVNULL).returncode
    if status != 0:
        raise RuntimeError(f"{work} ended with status {status}; its messages stand above.")


def requested() -> dict[str, Any]:
    """What `run_alone` asks of this script."""
    request: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    return request
