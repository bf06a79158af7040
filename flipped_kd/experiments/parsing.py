"""Reads dataclasses of settings from a recipe's defaults, a YAML file and command-line flags."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from .yaml_settings import plain, read_yaml, typed

# Of every command that trains, for data and models of the user's own.
TRAIN_DEFAULTS: Mapping[str, Any] = {"save_strategy": "epoch", "save_total_limit": 1}


def parse_settings(
    classes: Sequence[Any], argv: Sequence[str], defaults: Mapping[str, Any] | None = None, prog: str | None = None
) -> tuple[Any, ...]:
    """Read dataclasses from recipe defaults, a YAML file (`--config FILE`) and flags; later sources win.

    Values of the first two go through the same type check as flags. A YAML list for a string field stands for its
    comma-separated form ([3, 4] for "3,4"), and a bare word is text there (`text_a_column: on`), whatever YAML takes
    it for.

    Args:
        classes: dataclasses to fill.
        argv: flags without the program's name.
        defaults: a recipe's own defaults by field name.
        prog: the program's name in --help.

    Returns:
        One instance of each class, in order.

    Raises:
        ValueError: an unknown key or flag, naming it and the nearest known ones; a file that is absent, no YAML or no
            mapping; a value of the wrong kind; a token; or anything the classes themselves refuse.
        SystemExit: a value of the wrong type (argparse's own message, which names the flag), or --help.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path)
    found, flags = finder.parse_known_args(list(argv))
    types = {name: hint for cls in classes for name, hint in field_types(cls).items()}
    values = _as_flags(defaults or {}, types, "the recipe's defaults")
    if found.config is not None:
        values |= _as_flags(_read_yaml(found.config), types, str(found.config))
    # No abbreviations: a mistyped flag must not pass for another one.
    parser = HfArgumentParser(list(classes), prog=prog, allow_abbrev=False)
    parser.add_argument("--config", type=Path, help="YAML file of settings; flags override it.")
    parser.set_defaults(**values)
    *parsed, unknown = parser.parse_args_into_dataclasses(
        args=flags, look_for_args_file=False, return_remaining_strings=True
    )
    if unknown:
        name = unknown[0].lstrip("-").partition("=")[0].replace("-", "_")
        raise ValueError(f"unknown argument {unknown[0]!r}{_suggestion(name, types, '--')}")
    if any(getattr(settings, "hub_token", None) for settings in parsed):
        raise ValueError(
            "hub_token is no setting here, since others could read it in the list of processes or the file: log in "
            "by `hf auth login`, or set the variable HF_TOKEN."
        )
    return tuple(parsed[: len(classes)])


def field_types(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields by name."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _read_yaml(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise ValueError(f"--config {path}: no such file.")
    values = read_yaml(path)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold 'key: value' lines, not a {type(plain(values)).__name__}.")
    return values


def _as_flags(values: Mapping[str, Any], types: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values as flags would give them: argparse checks the type of strings alone."""
    flags: dict[str, Any] = {}
    for name, value in values.items():
        if name not in types:
            raise ValueError(f"{where}: unknown key {name!r}{_suggestion(str(name), types, '')}")
        allowed = [typing.get_origin(kind) or kind for kind in typing.get_args(types[name]) or (types[name],)]
        allowed.append(typing.get_origin(types[name]) or types[name])
        value = typed(value, types[name])
        if value is None and type(None) not in allowed:
            raise ValueError(f"{where}: {name} has no value: give one, or leave the line out.")
        if isinstance(value, bool) and bool not in allowed:
            value = "yes" if value else "no"
        if isinstance(value, list | dict) and type(value) not in allowed:
            raise ValueError(f"{where}: {name}={value!r} is a {type(value).__name__}: give a single value.")
        flags[name] = value if value is None or isinstance(value, list | dict) else str(value)
    return flags


def _suggestion(name: str, known: Collection[str], mark: str) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=3)
    return (
        f"; did you mean {' or '.join(mark + key for key in near)}?" if near else ": see --help for those there are."
    )
