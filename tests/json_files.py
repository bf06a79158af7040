"""JSON files that tests read and change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def report_of(folder: Path) -> dict[str, Any]:
    """report.json of a folder."""
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def change(path: Path, **values: Any) -> None:
    """Set top-level keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")
