"""Docstrings: examples run and give what they say; arguments, results and errors are those of the code."""

from __future__ import annotations

import ast
import doctest
import logging
import textwrap
from importlib import import_module
from pathlib import Path
from typing import Any

import griffe
import pytest

import flipped_kd
from tests.adapters import make_adapter, make_base

ROOT = Path(flipped_kd.__file__).parents[1]
PACKAGE = ROOT / "flipped_kd"
WITH_EXAMPLES = [path for path in sorted(PACKAGE.rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8")]
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
CODE = griffe.load("flipped_kd", search_paths=[ROOT])
# Most of their methods and settings are those of the classes they extend, and described there.
OF_TRANSFORMERS = {"FlippedDistillationConfig", "FlippedDistillationTrainer"}


@pytest.fixture(scope="session")
def given(tokenizer: Any, teacher_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What examples use without making it: folders of adapters, student and teacher, a tokenizer, a place to write."""
    folder = tmp_path_factory.mktemp("examples")
    base = make_base(folder / "base", "qwen2", tokenizer, tied=True)
    adapter, other = (make_adapter(folder / f"adapter-{seed}", base, tokenizer, seed=seed) for seed in (1, 2))
    return {
        **{"adapter": adapter, "other_adapter": other, "student": base, "teacher_folder": teacher_dir},
        **{"tokenizer": tokenizer, "folder": folder},
    }


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(path: Path, given: dict[str, Any], request: pytest.FixtureRequest) -> None:
    if path.parent.name == "publishing":
        request.getfixturevalue("online")  # at the loopback Hub
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    results = doctest.testmod(import_module(name), extraglobs=given, optionflags=FLAGS)
    assert results.attempted > 0 and results.failed == 0


def test_every_public_name_has_an_example() -> None:
    """In a section "Examples:", which the API pages show as code; `test_examples_run` runs it."""
    code = griffe.DocstringSectionKind.examples
    without = {
        name
        for name in flipped_kd.__all__
        if code not in [kind for kind, _ in sections(public(name)).get("examples", [])]
    }
    assert without == set()


@pytest.mark.parametrize("name", sorted(set(flipped_kd.__all__) - OF_TRANSFORMERS))
def test_docstrings_of_public_names_say_what_the_code_says(name: str, caplog: pytest.LogCaptureFixture) -> None:
    value = public(name)
    with caplog.at_level(logging.WARNING, "griffe"):
        found = faults(value) if isinstance(value, griffe.Function) else of_class(value)
    assert found == [] and caplog.messages == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ('def f(a: int) -> None:\n    """Do.\n\n    Args:\n        a: number.\n    """', []),
        ('def f(a: int, b: int) -> None:\n    """Do.\n\n    Args:\n        a: number.\n    """', ["f: arguments"]),
        ('def f(a: int) -> int:\n    """Do.\n\n    Args:\n        a: number.\n    """', ["f: no Returns"]),
        ('def f() -> None:\n    """Do."""\n    raise ValueError("no")', ["f: raises ValueError"]),
        ("def f() -> None:\n    pass", ["f: no docstring"]),
    ],
)
def test_a_fault_is_found(code: str, found: list[str]) -> None:
    with griffe.temporary_visited_module(code) as module:
        assert faults(module["f"]) == found


def public(name: str) -> Any:
    return CODE[name].final_target


def of_class(value: griffe.Class) -> list[str]:
    """Faults of a class and of its public methods, those that it inherits from classes of the package too."""
    found = []
    for name, member in value.all_members.items():
        method = member.final_target if isinstance(member, griffe.Alias) else member
        if isinstance(method, griffe.Function) and not name.startswith("_"):
            found += faults(method)
    if "__init__" in value.members:
        found += arguments_fault(value)
    return found


def faults(function: griffe.Function) -> list[str]:
    """What the docstring lacks or has too much; short ones of functions without arguments need no sections."""
    if function.docstring is None:
        return [f"{function.name}: no docstring"]
    kinds = sections(function)
    found = arguments_fault(function)
    returned = str(function.returns)
    maker = "classmethod" in function.labels and function.parent is not None and returned == function.parent.name
    if len(arguments(function)) and returned != "None" and not maker and not kinds.keys() & {"returns", "yields"}:
        found.append(f"{function.name}: no Returns")
    tree = ast.parse(textwrap.dedent("\n".join(function.lines)))
    raised = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    errors = {ast.unparse(error.func) for error in raised if isinstance(error, ast.Call)} - {"AssertionError"}
    unsaid = errors - {str(error.annotation) for error in kinds.get("raises", [])}
    return found + [f"{function.name}: raises {error}" for error in sorted(unsaid)]


def arguments_fault(value: griffe.Function | griffe.Class) -> list[str]:
    named = [each.name.lstrip("*") for each in sections(value).get("parameters", [])]
    return [] if named == arguments(value) else [f"{value.name}: arguments"]


def sections(value: griffe.Function | griffe.Class) -> dict[str, Any]:
    assert value.docstring
    return {part.kind.value: part.value for part in value.docstring.parse("google")}


def arguments(value: griffe.Function | griffe.Class) -> list[str]:
    return [each.name for each in value.parameters if each.name not in ("self", "cls")]
