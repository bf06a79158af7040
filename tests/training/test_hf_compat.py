"""What is private in transformers and accelerate, and used in training: all of it has a row, and is as it was."""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer

from flipped_kd.training import hf_compat
from flipped_kd.training.hf_compat import ATTRIBUTES, CALLED, OVERRIDDEN, VERSIONS, Hook

FOLDER = Path(hf_compat.__file__).parent
UPSTREAM = ("transformers.", "accelerate.", "peft.")
MOST_OVERRIDDEN = 6


def content(node: Any) -> Any:
    """A syntax tree as lists, alike in every version of Python: fields that hold nothing are left out."""
    if isinstance(node, ast.AST):
        fields = [(name, content(value)) for name, value in ast.iter_fields(node) if value not in (None, [])]
        return [type(node).__name__, *fields]
    return [content(part) for part in node] if isinstance(node, list) else repr(node)


def described(function: Callable[..., Any]) -> tuple[str, str]:
    """Signature and digest of a function, as `Hook` has them."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(node, ast.FunctionDef)
    if ast.get_docstring(node) is not None:
        del node.body[0]
    digest = hashlib.sha256(repr(content(node)).encode()).hexdigest()[:16]
    return ast.unparse(node.args), digest


def difference(hook: Hook, owner: type = Trainer) -> str | None:
    """What has changed about a hook, and what to do; None where nothing has."""
    function = getattr(owner, hook.name, None)
    if function is None:
        return f"{owner.__name__}.{hook.name} is gone. It is needed because: {hook.reason}"
    signature, digest = described(function)
    if (signature, digest) == (hook.signature, hook.digest):
        return None
    what = "its code has" if signature == hook.signature else f"its arguments, now ({signature}), have"
    installed = ", ".join(f"{name} {version(name)} (was {old})" for name, old in VERSIONS.items())
    return (
        f"{owner.__name__}.{hook.name}: {what} changed in {installed}. It is needed because: {hook.reason} Read what "
        "is new there, see to what flipped_kd/training makes of it, run tests/training and tests/invariants, and give "
        f"its row in hf_compat.py signature and digest {digest}."
    )


@pytest.mark.parametrize("hook", OVERRIDDEN + CALLED, ids=lambda hook: hook.name)
def test_a_hook_is_as_it_was(hook: Hook) -> None:
    changed = difference(hook)
    assert changed is None, changed


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_an_attribute_is_still_there(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    source = inspect.getsource(import_module(module))
    assert re.search(rf"\b{attribute}\b", source), f"{name} is gone: {ATTRIBUTES[name]}"


def test_the_versions_are_those_that_are_tested() -> None:
    pins = (FOLDER.parents[1] / "constraints.txt").read_text(encoding="utf-8")
    assert {name: re.search(rf"^{name}==(.+)$", pins, re.MULTILINE)[1] for name in VERSIONS} == VERSIONS  # type: ignore[index]


class Upstream:
    """Stands for Trainer."""

    def _hook(self, one: int) -> int:
        """Add."""
        return one + 1


class SameUpstream:
    def _hook(self, one: int) -> int:
        # another layout
        return (
            one + 1
        )  # fmt: skip


class OtherCode:
    def _hook(self, one: int) -> int:
        return one + 2


class OtherArguments:
    def _hook(self, one: int, two: int = 0) -> int:
        return one + 1


def test_a_change_is_named() -> None:
    row = Hook("_hook", *described(Upstream._hook), "no event.")
    assert difference(row, Upstream) is None and difference(row, SameUpstream) is None
    for owner, said in (
        (OtherCode, r"OtherCode\._hook: its code has changed in transformers .*no event\..*digest \w{16}"),
        (OtherArguments, r"_hook: its arguments, now \(self, one: int, two: int=0\), have changed"),
        (object, r"object\._hook is gone.*no event\."),
    ):
        assert re.search(said, str(difference(row, owner)))
    assert "its code has" in str(difference(replace(row, digest="0"), Upstream))


# ---- That nothing is used without a row ---------------------------------------------------------------------------


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def modules() -> Iterator[Any]:
    for path in sorted(FOLDER.glob("[!_]*.py")):
        yield import_module(f"flipped_kd.training.{path.stem}")


def overridden(owner: type) -> set[str]:
    """Private names of a class that it has from a library, and gives another meaning."""
    theirs = [base for base in owner.__mro__ if base.__module__.startswith(UPSTREAM)]
    return {name for name in vars(owner) if is_private(name) and any(name in vars(base) for base in theirs)}


def test_every_private_override_has_a_row() -> None:
    found = {
        name
        for module in modules()
        for owner in vars(module).values()
        if inspect.isclass(owner) and owner.__module__ == module.__name__
        for name in overridden(owner)
    }
    rows = {hook.name for hook in OVERRIDDEN}
    assert found == rows, f"without a row, or a row of nothing: {found ^ rows}"
    assert len(rows) <= MOST_OVERRIDDEN, "look for a public way first: an event, or a public method"


def test_an_override_is_seen() -> None:
    class Late(Trainer):
        _unknown = 1

        def _get_learning_rate(self) -> None:
            """Of Trainer."""

    assert overridden(Late) == {"_get_learning_rate"}


def used_of_others(trees: list[ast.Module]) -> set[str]:
    """Private attributes that code reads, calls or sets, and that it has not made."""
    nodes = [node for tree in trees for node in ast.walk(tree)]
    made = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    attributes = [node for node in nodes if isinstance(node, ast.Attribute) and is_private(node.attr)]
    # What an object sets on itself, and does not say to be another's.
    made |= {
        node.attr
        for node in attributes
        if isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name) and node.value.id == "self"
    }
    made |= {
        target.id
        for node in nodes
        if isinstance(node, ast.ClassDef)
        for line in node.body
        if isinstance(line, ast.Assign | ast.AnnAssign)
        for target in (line.targets if isinstance(line, ast.Assign) else [line.target])
        if isinstance(target, ast.Name)
    }
    return {node.attr for node in attributes} - made


def test_everything_private_that_is_used_has_a_row() -> None:
    files = [path for path in sorted(FOLDER.glob("*.py")) if path.name != "hf_compat.py"]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    texts = {node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    rows = {hook.name for hook in CALLED} | {name.rpartition(".")[2] for name in ATTRIBUTES}
    # Of named tuples it is public.
    found = used_of_others(trees) - {"_replace"}
    # By name, in a string.
    assert found <= rows and rows - found <= texts, f"without a row, or a row of nothing: {found ^ rows}"


@pytest.mark.parametrize(
    "code", ["accelerator._models.clear()", "self._prepare_inputs(1)", "model._mark = 1", "super()._save()"]
)
def test_a_use_is_seen(code: str) -> None:
    assert len(used_of_others([ast.parse(code)])) == 1
    assert used_of_others([ast.parse("class A:\n    _n = 1\n    def _f(self):\n        self._m = self._n")]) == set()
