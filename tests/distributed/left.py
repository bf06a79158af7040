"""What the ranks of a test have left behind, a file of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

RANKS = (0, 1)


def facts(folder: Path, name: str) -> list[dict[str, Any]]:
    """What each rank has written down."""
    return [json.loads((folder / f"{name}_{rank}.json").read_text("utf-8")) for rank in RANKS]


def tensors(folder: Path, name: str) -> list[dict[str, Tensor]]:
    """Each rank's weights or gradients."""
    return [load_file(folder / f"{name}_{rank}.safetensors") for rank in RANKS]
