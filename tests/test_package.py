"""The package: its import costs nothing, and every public name is there."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import flipped_kd

ROOT = Path(flipped_kd.__file__).parents[1]


def in_fresh_process(code: str) -> list[str]:
    """What `code` prints as JSON in a Python process of its own."""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


def test_importing_the_package_imports_no_heavy_library() -> None:
    loaded = in_fresh_process(
        "import json, sys; import flipped_kd; dir(flipped_kd); print(json.dumps([*sys.modules]))"
    )
    heavy = {"torch", "transformers", "datasets", "numpy", "peft", "sentence_transformers", "sklearn", "evaluate"}
    assert "flipped_kd" in loaded
    assert not heavy & set(loaded)


def test_a_data_loader_worker_imports_no_model_library() -> None:
    loaded = in_fresh_process(
        "import json, sys; import flipped_kd.training.collator; print(json.dumps([*sys.modules]))"
    )
    assert "torch" in loaded
    assert not {"sentence_transformers", "peft", "sklearn", "evaluate"} & set(loaded)


@pytest.mark.parametrize("name", flipped_kd.__all__)
def test_every_public_name_resolves(name: str) -> None:
    value = getattr(flipped_kd, name)
    assert value.__name__ == name
    assert value.__doc__
    assert name in dir(flipped_kd)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = flipped_kd.Nothing


def test_type_checkers_see_the_public_names_from_their_homes() -> None:
    tree = ast.parse(Path(flipped_kd.__file__).read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    assert len(blocks) == 1
    seen = {
        alias.asname: node.module
        for node in blocks[0].body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }
    assert seen == flipped_kd._HOME
    assert sorted(seen) == flipped_kd.__all__ == sorted(set(flipped_kd.__all__))


def test_the_version_is_that_of_the_metadata() -> None:
    lines = (ROOT / "setup.cfg").read_text(encoding="utf-8").splitlines()
    assert f"version = {flipped_kd.__version__}" in lines


def test_the_package_is_marked_as_typed() -> None:
    assert (ROOT / "flipped_kd" / "py.typed").is_file()
