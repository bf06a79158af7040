"""Where a command writes: the rule that all of them keep."""

from __future__ import annotations

import os
from pathlib import Path

from ..data.tables import STANDARD
from ..utils.atomic import is_passage, place_of
from .arguments import UsageError


def refuse_inputs(output: str, *inputs: str | None) -> None:
    """Refuse an output that is one of the inputs, or a file of an input folder, whatever name it is given by.

    Raises:
        UsageError: it is one.
    """
    target = Path(output)
    if output == STANDARD or not target.exists() or is_passage(target):
        return
    for name in inputs:
        if name is None or name == STANDARD:
            continue
        source = Path(name).expanduser()
        if source.is_file() and source.samefile(target):
            raise UsageError(f"--output {output} is the input: write to another file")
        if source.is_dir() and Path(target.resolve()).is_relative_to(source.resolve()):
            raise UsageError(f"--output {output} is a file of the input {name}: write to another file")


def check_report_file(output: str, *inputs: str | None, overwrite: bool) -> None:
    """Refuse a place for a report, before any work: no file, an input, or there already.

    Raises:
        UsageError: it is one of these.
    """
    if output == STANDARD:
        return
    place = place_of(output)
    if place.is_dir() or not place.absolute().parent.is_dir():
        raise UsageError(f"--output {output} is a folder, or in one that does not exist: name a file")
    if not is_passage(place) and not os.access(place.absolute().parent, os.W_OK):
        raise UsageError(f"{place.absolute().parent} cannot be written into: name another file by --output")
    refuse_inputs(output, *inputs)
    if not overwrite:
        refuse_existing(place)


def refuse_existing(file: Path) -> None:
    """Raises UsageError if a file is there; what goes into a device or a pipe replaces nothing."""
    if file.is_file():
        raise UsageError(f"{file} exists: give another file, or --overwrite to replace it")
