"""Where a result comes from, told without telling about the machine: names of models and data, command, versions."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from platform import python_version
from typing import Any

import torch

from .redaction import redact

HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
# A snapshot in the Hub's cache folder, as transformers names a model that was loaded from there by its path.
CACHED_SNAPSHOT = re.compile(r"models--([\w.-]+?)--([\w.-]+)[\\/]snapshots[\\/]([0-9a-f]{7,40})")
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "datasets", "sentence-transformers")
_SEPARATORS = re.compile(r"[\\/]+")
_ABSOLUTE_IN_TEXT = re.compile(r"(?<![\w.:/\\-])(?:~|[A-Za-z]:)?(?:[\\/][^\s\\/\"'`|:,;()<>]+){2,}[\\/]?")


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form organisation/name of the Hub and is no local file or folder."""
    return bool(HUB_ID.fullmatch(name)) and not Path(name).exists()


def shown_name(name: str | None) -> str | None:
    """A Hub name as it is, a local path by its last part: no path of a machine reaches a report or a card."""
    if name is None or not _is_local(name):
        return name
    path = Path(name).expanduser()
    return path.resolve().name if path.exists() else _SEPARATORS.split(name.rstrip("\\/"))[-1]


def _is_local(name: str) -> bool:
    looks_local = name.startswith(("/", "~", ".")) or "\\" in name or name.count("/") > 1
    try:
        return looks_local or Path(name).exists()
    except OSError:  # too long to be a path
        return False


def without_paths(value: Any) -> Any:
    """JSON values with every absolute path in them, alone or inside a text, cut to its last part."""
    if isinstance(value, Mapping):
        return {key: without_paths(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(part) for part in value]
    if not isinstance(value, str):
        return value
    if "/" in value and " " not in value:
        value = shown_name(value)
    if value.startswith(("/", "~")) or re.match(r"[A-Za-z]:[\\/]", value):
        return _SEPARATORS.split(value.rstrip("\\/"))[-1]
    return _ABSOLUTE_IN_TEXT.sub(lambda found: _SEPARATORS.split(found[0].rstrip("\\/"))[-1], value)


def shown_command(argv: Sequence[str]) -> str:
    """The command that `argv` stands for, paths by their last part and without any access token.

    Args:
        argv: script and flags, as in sys.argv.
    """
    script = Path(argv[0])
    shown = [f"recipes/{script.name}" if script.parent.name == "recipes" else script.name]
    if script.suffix == ".py":
        launched = "ACCELERATE_MIXED_PRECISION" in os.environ  # set by `accelerate launch` alone
        shown = (["accelerate", "launch"] if launched else ["python"]) + shown
    secret = False
    for argument in argv[1:]:
        flag, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
        if flag:
            secret = "token" in flag
        if secret:
            continue
        shown.append(redact(f"{flag}{equals}{shown_name(value) if value else ''}"))
    return shlex.join(shown)


def library_versions() -> dict[str, str]:
    """Versions of Python, this package and the libraries that decide a result, by name."""
    return {name: metadata.version(name) for name in ("flipped_kd", *LIBRARIES)} | {"python": python_version()}


def commit_of(folder: Path) -> str | None:
    """Commit of the git clone that holds `folder`, with "+" where tracked files differ from it; None outside one."""
    git = ["git", "-C", str(folder)]
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 30}
    try:
        # An installed package may lie in a clone of something else, which ignores it.
        if not subprocess.run([*git, "ls-files", "."], **options).stdout.strip():
            return None
        found = subprocess.run([*git, "describe", "--always", "--abbrev=10", "--exclude=*", "--dirty=+"], **options)
    except (OSError, subprocess.TimeoutExpired):  # no git here
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None


def device_name(use_cpu: bool = False) -> str:
    """What the models run on: the name of the GPU, or "CPU"."""
    if use_cpu or not torch.accelerator.is_available():
        return "CPU"
    return torch.cuda.get_device_name() if torch.cuda.is_available() else str(torch.accelerator.current_accelerator())
