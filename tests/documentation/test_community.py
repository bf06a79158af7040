"""What hosts, package indexes and citation tools read: issue templates, metadata, CITATION.cff; and the figure."""

from __future__ import annotations

import importlib.util
import re
from configparser import ConfigParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from flipped_kd.utils.version import __version__
from tests.documentation.pages import ROOT

TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
FIGURE = ROOT / "docs" / "method.svg"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def setup() -> ConfigParser:
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def test_all_places_name_one_version(setup: ConfigParser) -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased" and __version__ in headings
    assert setup["metadata"]["version"] == str(citation["version"]) == __version__


def test_the_citation_has_what_its_format_asks_for() -> None:
    """As CFF 1.2.0 has it."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert all(isinstance(citation[key], str) and citation[key] for key in ("message", "title", "license"))
    paper = citation["preferred-citation"]
    assert paper["type"] == "conference-paper" and paper["title"] and isinstance(paper["year"], int)
    for author in (*citation["authors"], *paper["authors"]):
        assert author.keys() <= {"name", "family-names", "given-names"} and author


def test_the_notebook_and_the_metadata_name_one_repository(setup: ConfigParser) -> None:
    urls = dict(line.split(" = ") for line in setup["metadata"]["project_urls"].split("\n")[1:])
    assert all(url.startswith("https://") for url in urls.values())
    notebook = (ROOT / "docs" / "quickstart.ipynb").read_text(encoding="utf-8")
    named = re.findall(r'REPOSITORY = \\"(.*?)\\"', notebook)
    assert named == [urls.get("Source", "")]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_issue_templates_are_forms(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.stem == "config":
        assert form == {"blank_issues_enabled": True}
        return
    assert form["name"] and form["description"]
    asked = [part for part in form["body"] if part["type"] != "markdown"]
    assert asked and all(part["attributes"]["label"] for part in asked)
    assert len({part["id"] for part in asked}) == len(asked)
    assert any(part.get("validations", {}).get("required") for part in asked)


def test_the_kinds_of_issue_are_there() -> None:
    assert {"bug", "feature", "question", "config"} == {path.stem for path in TEMPLATES}


def test_the_figure_is_what_its_script_draws() -> None:
    spec = importlib.util.spec_from_file_location("draw_method", ROOT / "docs" / "draw_method.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert FIGURE.read_text(encoding="utf-8") == script.drawing()


def test_the_figure_reads_on_a_phone_and_on_any_page() -> None:
    """390 pixels wide with margins of 16, on a background of its own."""
    picture = ElementTree.parse(FIGURE).getroot()
    width, height = (float(picture.attrib[name]) for name in ("width", "height"))
    sizes = [float(text.attrib["font-size"]) for text in picture.iter(f"{SVG}text")]
    assert sizes and min(sizes) * (390 - 2 * 16) / width > 10
    background = next(picture.iter(f"{SVG}rect"))
    assert (background.attrib["width"], background.attrib["height"]) == (f"{width:g}", f"{height:g}")
    assert background.attrib["fill"] == "#ffffff"
    for page in ("README.md", "docs/how_it_works.md"):
        assert "method.svg" in (ROOT / page).read_text(encoding="utf-8")
