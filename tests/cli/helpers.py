"""A tiny adapter and files of pairs for the tests of `flipped-kd`, and how to run the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from flipped_kd.evaluation.match_score import KINDS, LogOdds, MatchScore
from tests.adapters import make_adapter
from tests.conftest import make_pairs

ROOT = Path(__file__).parents[2]
# Thresholds that part the pairs otherwise than the natural one.
ODDS = {
    "answer": LogOdds(1.0, 0.0, 0.0, threshold=1.0),
    "similarity": LogOdds(0.0, 3.0, -1.0, threshold=1.5),
    "both": LogOdds(0.5, 2.0, 0.25, threshold=1.1),
}


def adapter_with_scores(folder: Path, base: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A random adapter with a match score."""
    make_adapter(folder, base, tokenizer, score=False)
    MatchScore({kind: ODDS[kind] for kind in KINDS}, "both").save_pretrained(folder)
    return folder


def pair_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Labelled pairs, each with a column of its own."""
    return [dict(row) | {"number": number} for number, row in enumerate(make_pairs(count, seed))]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """As JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path | str) -> list[dict[str, Any]]:
    """Of a file, or of the text itself."""
    text = path.read_text(encoding="utf-8") if isinstance(path, Path) else path
    return [json.loads(line) for line in text.splitlines()]


def environment(**more: str) -> dict[str, str]:
    """Offline, on the CPU."""
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **quiet, **more}


def start(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    """`flipped-kd` in a process of its own."""
    command = [sys.executable, "-m", "flipped_kd", *map(str, arguments)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment()} | options
    return subprocess.Popen(command, cwd=ROOT, **options)
