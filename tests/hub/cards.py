"""What the Hub checks in the metadata of a model card."""

from __future__ import annotations

import re
from typing import Any

import yaml

_BLOCK = re.compile(r"\A---\s*\n(.*?)\n?---\s*(?:\n|\Z)", re.DOTALL)
_REPO_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def read_metadata(card: str) -> dict[str, Any]:
    """The YAML block at the head of a card; empty without one. Errors: yaml.YAMLError, ValueError."""
    match = _BLOCK.match(card)
    metadata = yaml.safe_load(match.group(1)) if match else None
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        raise ValueError("metadata must be a mapping")
    return metadata


def check_card(card: str) -> tuple[list[str], list[str]]:
    """Errors and warnings for a model card, in the Hub's words where they are known."""
    try:
        metadata = read_metadata(card)
    except (yaml.YAMLError, ValueError) as error:
        return [f"Invalid YAML: {error}"], []
    if not metadata:
        return [], ["empty or missing yaml metadata in repo card"]
    errors = []
    for key, where in (("base_model", "models"), ("datasets", "datasets")):
        for number, value in enumerate(_as_list(metadata.get(key))):
            if not isinstance(value, str) or not _REPO_ID.fullmatch(value):
                errors.append(
                    f'"{key}[{number}]" with value "{value}" is not valid. Use an id from https://hf.co/{where}.'
                )
    for key in ("tags", "metrics", "language"):
        errors += [
            f'"{key}" must be a string or a list of strings'
            for value in _as_list(metadata.get(key))
            if not isinstance(value, str)
        ]
    for key in ("license", "pipeline_tag", "library_name"):
        if not isinstance(metadata.get(key, ""), str):
            errors.append(f'"{key}" must be a string')
    if "model-index" in metadata:
        errors += _check_model_index(metadata["model-index"])
    return errors, []


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _check_model_index(index: Any) -> list[str]:
    """Each model has a name and results; each result a task, a data set and metrics with type and value."""
    if not isinstance(index, list):
        return ['"model-index" must be an array']
    errors = []
    for i, model in enumerate(index):
        errors += _missing(model, {"name": str, "results": list}, f"model-index[{i}]")
        for j, result in enumerate(model.get("results") or [] if isinstance(model, dict) else []):
            where = f"model-index[{i}].results[{j}]"
            errors += _missing(result, {"task": dict, "dataset": dict, "metrics": list}, where)
            if not isinstance(result, dict):
                continue
            errors += _missing(result.get("task"), {"type": str}, f"{where}.task")
            errors += _missing(result.get("dataset"), {"type": str, "name": str}, f"{where}.dataset")
            for k, metric in enumerate(result.get("metrics") or []):
                errors += _missing(metric, {"type": str, "value": object}, f"{where}.metrics[{k}]")
    return errors


def _missing(value: Any, fields: dict[str, type], where: str) -> list[str]:
    if not isinstance(value, dict):
        return [f'"{where}" must be an object']
    return [
        f'"{where}.{name}" is required and must be of type {kind.__name__}'
        for name, kind in fields.items()
        if value.get(name) is None or not isinstance(value[name], kind)
    ]
