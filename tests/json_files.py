"""JSON files that tests change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def change(path: Path, **values: Any) -> None:
    """Set top-level keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")
