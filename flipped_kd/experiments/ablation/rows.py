"""The rows of an ablation: JSON Lines, one for each finished run, read so that a killed writer does no harm."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)
Row = dict[str, Any]


def read_rows(path: Path, checked: Callable[[Row], Row] | None = None) -> list[Row]:
    """Finished rows; a last line that a killed process left unfinished is ignored, a file that is not there is empty.

    `checked` takes what a line says and returns the row, by default one of `run.run_plan`; what the line lacks is a
    KeyError, TypeError or ValueError. ValueError: another line is no row.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append((checked or _run_row)(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines) and not line.endswith("\n"):
                logger.warning("%s: the last line is unfinished and is left out", path)
                break
            raise ValueError(f"{path}, line {number} is no row of an ablation ({error!r}): repair it.") from error
    return rows


def _run_row(row: Row) -> Row:
    return row | {name: row[name] for name in ("set", "name", "resolved")} | {"seed": int(row["seed"])}


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row as one line and wait until it is on the disk; an unfinished last line is cut off first.

    A whole row whose line has no end, as some editors leave it, is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(0)
        whole, end, last = file.read().rpartition(b"\n")
        if last and not _is_json(last):
            file.truncate(len(whole + end))
        elif last:
            file.write(b"\n")
        file.write(json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
