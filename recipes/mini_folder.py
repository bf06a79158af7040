"""Folders of the mini models: whole or absent, and reused where they were made from the same things.

A finished folder is marked by `mini_model.json`, written last.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from flipped_kd.utils.atomic import whole_or_absent
from flipped_kd.utils.json_files import write_json

MARKER = "mini_model.json"


def build_folder(
    folder: Path, description: dict[str, object], data: Sequence[object], write: Callable[[Path], dict[str, float]]
) -> Path:
    """Reuse `folder` if its marker names the same description and data, else build beside it and rename."""
    digest = hashlib.sha256(json.dumps(data, ensure_ascii=False).encode("utf-8")).hexdigest()
    wanted = {**description, "data_sha256": digest}
    marker = folder / MARKER
    if marker.is_file():
        found = json.loads(marker.read_text(encoding="utf-8"))
        if found["built_from"] == wanted:
            return folder
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"{folder} exists and is no mini model (no {MARKER} in it); name another folder or remove it."
        )
    with whole_or_absent(folder) as partial:
        measured = write(partial)
        write_json(partial / MARKER, {"built_from": wanted, **measured})
    return folder
