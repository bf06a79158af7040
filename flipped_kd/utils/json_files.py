"""Small JSON files of settings and results, read with errors that name the file and the remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_json_object(path: Path, remedy: str = "write or download it again") -> dict[str, Any]:
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
