"""The house: packages in an order, each importing only from packages of a lower line (docs/architecture.md)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import flipped_kd

ROOT = Path(flipped_kd.__file__).parent
# From low to high. A package imports only packages of a lower line, never a sibling of its own.
LINES = [
    ["utils"],
    ["data", "prompts", "losses", "evaluation"],
    ["students"],
    ["inference"],
    ["teachers", "publishing"],
    ["training"],
    ["experiments", "serving"],
    ["cli"],
]
LINE_OF = {package: number for number, line in enumerate(LINES) for package in line}
# These two find modules by names that are put together: public names, and the verbs of the command.
FINDERS = {"__init__.py", "cli/main.py"}
LONG = 300


def sources() -> list[str]:
    """Every file of a package, relative to `flipped_kd`; the files at its top are no package's."""
    return sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("*/**/*.py"))


def read(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text(encoding="utf-8"))


def absolute(name: str, module: str | None, level: int) -> str:
    """The full name of what a file imports: `level` dots and a module."""
    if not level:
        return module or ""
    package = ["flipped_kd", *Path(name).parent.parts]
    return ".".join([*package[: len(package) - level + 1], *([module] if module else [])])


def imported(name: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, full name) of every import of a file, wherever it stands: lazy, for type checkers alone, or by string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(name, node.module, node.level)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rsplit(".", 1)[-1] in {
            "import_module",
            "__import__",
        }:
            given = node.args[0]
            assert isinstance(given, ast.Constant) or name in FINDERS, f"{name}:{node.lineno}: which module is this?"
            if isinstance(given, ast.Constant):
                dots = len(given.value) - len(given.value.lstrip("."))
                yield node.lineno, absolute(name, given.value[dots:], dots)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("flipped_kd."):
            if set(node.value) <= set("abcdefghijklmnopqrstuvwxyz_."):
                yield node.lineno, node.value


def package_of(full_name: str) -> str | None:
    """The package that a full name is in; a public name's is that of its home. None outside `flipped_kd`."""
    parts = full_name.split(".")
    if parts[0] != "flipped_kd":
        return None
    if len(parts) == 1:
        return "flipped_kd"
    return flipped_kd._HOME.get(parts[1], parts[1]).split(".")[0]


def wrong_edges(name: str, tree: ast.Module) -> list[str]:
    """What a file must not import."""
    own = name.split("/")[0]
    found = []
    for line, target in imported(name, tree):
        package = package_of(target)
        if package is None or package == own:
            continue
        if package not in LINE_OF:
            found.append(f"{name}:{line} imports {target}, which is in no package")
        elif LINE_OF[package] >= LINE_OF[own]:
            found.append(f"{name}:{line} imports {target}: {own} stands below {package} or beside it")
    return found


def test_every_package_has_its_line() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages == set(LINE_OF)


@pytest.mark.parametrize("name", sources())
def test_imports_go_down(name: str) -> None:
    assert not wrong_edges(name, read(name))


@pytest.mark.parametrize(
    "code",
    [
        "from ..training.config import FlippedDistillationConfig",
        "def late():\n    from ..training import config",
        "if TYPE_CHECKING:\n    from ..cli import main",
        "from ..prompts.pair_prompt import PairPrompt",
        "import flipped_kd.training.trainer",
        "from flipped_kd import FlippedMatcher",
        "from .. import FlippedMatcher",
        "from flipped_kd import __version__",
        "import importlib\nimportlib.import_module('flipped_kd.training.trainer')",
        "from importlib import import_module\nimport_module('..training.trainer', __package__)",
        "NAMES = {'trainer': 'flipped_kd.training.trainer'}",
    ],
)
def test_a_wrong_import_is_seen(code: str) -> None:
    assert len(wrong_edges("losses/flipped.py", ast.parse(code))) >= 1


@pytest.mark.parametrize(
    "code", ["from ..utils.angles import wide", "from .base import Compared", "import flipped_kd.utils.checks"]
)
def test_a_right_import_is_not(code: str) -> None:
    assert not wrong_edges("losses/flipped.py", ast.parse(code))


def test_the_verbs_are_modules_of_the_command() -> None:
    from flipped_kd.cli.main import VERBS

    for module in VERBS.values():
        assert (ROOT / "cli" / f"{module.replace('.', '/')}.py").is_file()


def test_nothing_else_stands_at_the_top() -> None:
    assert {path.name for path in ROOT.iterdir() if path.is_file()} == {"__init__.py", "__main__.py", "py.typed"}


def test_packages_themselves_import_nothing() -> None:
    for path in ROOT.glob("*/**/__init__.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree) and len(tree.body) == 1, path


@pytest.mark.parametrize("name", sources())
def test_a_long_file_says_why(name: str) -> None:
    lines = (ROOT / name).read_text(encoding="utf-8").count("\n")
    said = ast.get_docstring(read(name)) or ""
    assert lines <= LONG or "One file, though long: " in said


DOCUMENT = (ROOT.parent / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_map_shows_the_order() -> None:
    rows = re.findall(r"^\| (\d) \| `(\w+)` \|", DOCUMENT, re.MULTILINE)
    assert {package: int(line) - 1 for line, package in rows} == LINE_OF


def test_the_map_names_files_and_names_that_exist() -> None:
    for name in set(re.findall(r"`((?:\w+/)+\w+\.py)`", DOCUMENT)):
        assert (ROOT / name).is_file() or (ROOT.parent / name).is_file(), name
    named = re.findall(r"`(\w+/\w+\.py)` \(`(\w+)`\)", DOCUMENT)
    assert len(named) >= 4
    for name, value in named:
        assert hasattr(import_module(f"flipped_kd.{name[:-3].replace('/', '.')}"), value), (name, value)
