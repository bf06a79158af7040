"""Folders of the mini models: whole or absent, and reused where they were made from the same things.

A finished folder is marked by `mini_model.json`, written last.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

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
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        measured = write(partial)
        content = json.dumps({"built_from": wanted, **measured}, indent=2)
        (partial / MARKER).write_text(content + "\n", encoding="utf-8")
        partial.chmod(0o755)  # mkdtemp makes it readable to the owner alone
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder
