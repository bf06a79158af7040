"""Settings in YAML: a value keeps how it is written until the type of its field is known.

YAML 1.1 reads `on` as a truth value, `010` as 8 and `1e-6` as text; what a setting means, only its field can say.
"""

from __future__ import annotations

import re
import typing
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError

# As in YAML 1.2; 1.1 asks for a dot and for a sign of the exponent.
EXPONENT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")


@dataclass(frozen=True)
class Bare:
    """What stands in a file without quotes and is no mere text to YAML.

    Attributes:
        written: in the file.
        value: a bool, int or float.
    """

    written: str
    value: bool | int | float


def read_yaml(path: Path) -> Any:
    """The content of a file, each truth value and number as `Bare`; `plain` and `typed` say what they are.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not valid YAML.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error


def plain(value: Any) -> Any:
    """A value and all in it as Python has them: truth values and numbers as such."""
    if isinstance(value, Bare):
        return value.value
    if isinstance(value, list):
        return [plain(part) for part in value]
    return {name: plain(part) for name, part in value.items()} if isinstance(value, dict) else value


def written(value: Any) -> str:
    """A single value as it stands in the file."""
    return value.written if isinstance(value, Bare) else str(value)


def typed(value: Any, kind: Any) -> Any:
    """A value as a field of the type `kind` takes it: text stays as it is written, all else is `plain`.

    A list in the place of text stands for its comma-separated form.
    """
    kinds = typing.get_args(kind) if typing.get_origin(kind) is not list else ()
    allowed = {typing.get_origin(part) or part: part for part in (kinds or (kind,))}
    if isinstance(value, Bare):
        own = {bool: (bool,), int: (int, float), float: (float,)}[type(value.value)]
        if str not in allowed or any(part in allowed for part in own):
            return value.value
        choices = any(isinstance(part, type) and issubclass(part, Enum) for part in allowed)
        # Of fixed choices such as save_strategy one is "no", however that is written.
        return ("yes" if value.value else "no") if choices and isinstance(value.value, bool) else value.written
    if isinstance(value, list) and list in allowed:
        (part,) = typing.get_args(allowed[list]) or (Any,)
        return [typed(entry, part) for entry in value]
    if isinstance(value, list) and str in allowed:
        return ",".join(written(part) for part in value)
    return plain(value)


class _Loader(yaml.SafeLoader):
    """Reads truth values and numbers as `Bare`; of a key that stands twice YAML would take the last without a word."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        """As in SafeLoader. Raises ComposerError: a key stands twice."""
        node: Any = super().compose_mapping_node(anchor)
        found: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in found:
                raise ComposerError(None, None, f"{key.value!r} stands here for the second time", key.start_mark)
            found.add(str(key.value))
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """As in SafeLoader; a key that is no whole number is a name, as it is written."""
        found = super().construct_mapping(node, deep)
        return {_key(key): value for key, value in found.items()}


def _key(key: Any) -> Any:
    if not isinstance(key, Bare):
        return key
    return key.value if type(key.value) is int else key.written


def _bare(kind: str) -> Any:
    construct = getattr(yaml.SafeLoader, f"construct_yaml_{kind}")
    return lambda loader, node: Bare(node.value, construct(loader, node))


def _text(_loader: Any, node: Any) -> str:
    return str(node.value)


for _kind in ("bool", "int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _bare(_kind))
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _text)
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+.0123456789"))
