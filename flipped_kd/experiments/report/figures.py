"""Pictures of the report page, one panel each: in the page SVG in its colours, light or dark; beside it PNG files."""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import escape

from ...evaluation.plots import BLACK, DOTS_PER_INCH, GREY, GRID, WHITE, new_figure
from ...utils.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.6, 3.3  # inches; about the width of a phone at 72 points an inch, so that 9 points can be read
# What stands for ink and paper becomes the page's.
THEME = {BLACK: "currentColor", GREY: "var(--soft)", GRID: "var(--line)", WHITE: "var(--page)"}


@dataclass(frozen=True)
class Drawing:
    """A figure, the name of its file and what it shows in words."""

    name: str
    figure: Figure
    words: str


@dataclass(frozen=True)
class Picture:
    """A drawing as SVG to stand in an HTML page, and what it shows in words."""

    svg: str
    words: str


def new_panel(title: str, xlabel: str, ylabel: str, height: float = HEIGHT) -> tuple[Figure, Axes]:
    """An empty panel with a grid.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure = new_figure(WIDTH, height)
    panel = figure.subplots()
    panel.set_title(plain(title), fontsize=10)
    panel.set_xlabel(plain(xlabel), fontsize=9)
    panel.set_ylabel(plain(ylabel), fontsize=9)
    panel.tick_params(labelsize=8)
    panel.grid(color=GRID, linewidth=0.8)
    panel.set_axisbelow(True)
    return figure, panel


def plain(text: str) -> str:
    """Text that matplotlib shows as it is: names may hold what it takes for a formula."""
    return text.replace("$", r"\$")


def file_name(text: str) -> str:
    """Text as part of a file's name."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in text)


def picture(drawing: Drawing) -> Picture:
    """The drawing as SVG without ids or styles that could meet those of others in the page."""
    import matplotlib

    buffer = io.StringIO()
    about = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "flipped_kd"}):
        drawing.figure.savefig(buffer, format="svg", transparent=True, metadata=about)
    drawing.figure.set_layout_engine("none")  # places are found now, and stay for the PNG
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # Its style is for any element, so it would be for the whole page; the page has the same for its plots.
    svg = re.sub(r"<style\b.*?</style>|<metadata\b.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    prefix = "p" + hashlib.sha256(drawing.name.encode()).hexdigest()[:8] + "-"
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'(?:xlink:)?href="#', f'href="#{prefix}', svg).replace("url(#", f"url(#{prefix}")
    for color, of_page in THEME.items():
        svg = svg.replace(color.lower(), of_page)
    label = f'<svg role="img" aria-label="{escape(drawing.words)}" '
    return Picture(svg.replace("<svg ", label, 1), drawing.words)


def write_png(drawing: Drawing, folder: Path) -> Path:
    """Write the drawing into `folder` as a PNG on white, whole or not at all."""
    path = folder / f"{drawing.name}.png"
    with replacing(path) as partial:
        drawing.figure.savefig(partial, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return path
