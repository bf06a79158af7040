"""Small JSON files of settings and results, read with errors that name the file and the remedy.

Each of our files says its `format_version`: a whole number that grows where an older release would misread the file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .atomic import write_atomically

AGAIN = "save or download it again"


def write_json(path: str | os.PathLike[str], content: Any, *, ensure_ascii: bool = True) -> None:
    """Write JSON for people to read too, whole or not at all."""
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=ensure_ascii) + "\n")


def finite(value: Any) -> Any:
    """A value whose numbers JSON has: NaN and the infinities as null."""
    if isinstance(value, Mapping):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json_object(path: Path, remedy: str = AGAIN) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: of the file.
        remedy: what the user can do about a broken one, in the imperative.

    Raises:
        ValueError: the file cannot be read, is no JSON, or holds something else than an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): give an existing file.") from error
    except ValueError as error:
        raise ValueError(f"{path} is no valid JSON ({error}): {remedy}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a JSON object: {remedy}.")
    return content


def read_versioned(path: Path, supported: int, remedy: str = AGAIN) -> dict[str, Any]:
    """The JSON object in one of our files, which a release as old as this one understands.

    Args:
        path: of the file.
        supported: the newest format version that is understood.
        remedy: as for `read_json_object`.

    Raises:
        ValueError: as `read_json_object` and `check_version`.
    """
    content = read_json_object(path, remedy)
    check_version(content.get("format_version"), supported, path, remedy)
    return content


def check_version(version: object, supported: int, where: object, remedy: str = AGAIN) -> None:
    """Refuse what a newer release has written, and what names no version.

    Args:
        version: what stands under "format_version".
        supported: the newest that is understood.
        where: what it was found in, for the message.
        remedy: as for `read_json_object`.

    Raises:
        ValueError: it is no whole number from 1, or newer.
    """
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(f"{where} has format_version {version!r}, no whole number from 1: {remedy}.")
    if version > supported:
        raise ValueError(
            f"{where} has format_version {version}, this release reads up to {supported}: upgrade flipped_kd."
        )
