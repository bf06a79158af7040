"""The documentation: each public name on one page, every page in the menu, and the check of the built site."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

import flipped_kd

ROOT = Path(flipped_kd.__file__).parents[1]
spec = importlib.util.spec_from_file_location("check_site", ROOT / "docs" / "check_site.py")
assert spec and spec.loader
check_site = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_site)


def test_each_public_name_has_one_place_in_the_api_pages() -> None:
    pages = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs" / "api").glob("*.md"))}
    placed = [name for text in pages.values() for name in re.findall(r"^::: flipped_kd\.(\w+)$", text, re.MULTILINE)]
    assert sorted(placed) == flipped_kd.__all__
    table = pages[ROOT / "docs" / "api" / "README.md"]
    for page, names in re.findall(r"^\| \[.*\]\((\w+\.md)\) \| (.*) \|$", table, re.MULTILINE):
        assert re.findall(r"`(\w+)`", names) == re.findall(r"^::: \w+\.(\w+)$", pages[ROOT / "docs/api" / page], re.M)
    assert sorted(name for name in re.findall(r"`(\w+)`", table) if name in flipped_kd.__all__) == flipped_kd.__all__


def test_every_page_is_in_the_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("nav:")[1]
    pages = [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if page not in menu] == []


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (
            '<a href="b.html#there">b</a> <img src="/a.png"> <a href="https://x.org">x</a> <a href="#me">x</a>',
            "",
        ),
        ('<a href="c.html">c</a>', "a.html links to c.html, which is not there"),
        ('<a href="b.html#nowhere">b</a>', "a.html links to b.html#nowhere, which is not there"),
        ('<img src="b.png">', "a.html links to b.png, which is not there"),
        ('<script src="https://host/x.js"></script>', "a.html loads https://host/x.js from another host"),
        ('<link rel="stylesheet" href="//host/x.css">', "a.html loads //host/x.css from another host"),
    ],
)
def test_a_built_site_is_held_to_its_rules(tmp_path: Path, body: str, fault: str) -> None:
    (tmp_path / "a.html").write_text(f'<p id="me">{body}</p>', encoding="utf-8")
    (tmp_path / "b.html").write_text('<h2 id="there">b</h2>', encoding="utf-8")
    (tmp_path / "a.png").touch()
    assert check_site.faults(tmp_path) == [fault] * bool(fault)


def test_style_sheets_load_nothing_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "a.html").touch()
    (tmp_path / "a.css").write_text("@font-face { src: url('https://host/font.woff2') } p { color: red }")
    assert check_site.faults(tmp_path) == ["a.css loads https://host/font.woff2 from another host"]


def test_a_folder_without_pages_is_no_site(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="make docs"):
        check_site.faults(tmp_path)
