"""Draws the method as docs/method.svg: `python docs/draw_method.py`.

A picture of its own light background, so that it reads on light and dark pages. It is as wide as a column of text and
its letters are large: a phone shows it at half its size.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from xml.sax.saxutils import escape

FILE = Path(__file__).with_name("method.svg")
WIDTH, HEIGHT = 680, 720

INK, GREY, PAPER, LINE = "#1b1f24", "#57606a", "#ffffff", "#8c959f"
# Of the teacher, the student's frozen weights, A and B, and the losses: fill and border.
TEACHER, FROZEN, TRAINED, LOSS = (
    ("#ddf4ff", "#0969da"),
    ("#f0f2f5", "#8c959f"),
    ("#dafbe1", "#1a7f37"),
    ("#fff1e5", "#bc4c00"),
)

TITLE = "A small encoder teaches a large language model"
DESCRIPTION = (
    "Two texts are read by the teacher, a small encoder, and by the student, a large language model with LoRA. LoRA's "
    "A is read as an encoder and gives the similarity of the two texts; B as a decoder, which helps to answer yes or "
    "no. L_dist pulls the similarity to the teacher's, L_MCL parts matches from other pairs, and L_sup teaches the "
    "answer by the label."
)


def text(x: float, y: float, content: str, size: int = 24, weight: int = 400, fill: str = INK) -> str:
    """A line of text around x."""
    style = f'font-size="{size}" font-weight="{weight}" fill="{fill}" text-anchor="middle"'
    return f'<text x="{x:g}" y="{y:g}" {style}>{escape(content)}</text>'


def box(x: float, y: float, width: float, height: float, colours: tuple[str, str], radius: int = 12) -> str:
    """A rounded box, by its upper left corner."""
    fill, border = colours
    place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius}"'
    return f'<rect {place} fill="{fill}" stroke="{border}" stroke-width="2"/>'


def arrow(*points: tuple[float, float], both_ends: bool = False, colour: str = GREY) -> str:
    """Straight lines through the points, with a head at the last one."""
    path = " ".join(f"{x:g},{y:g}" for x, y in points)
    name = "loss" if colour == LOSS[1] else "flow"
    start = f' marker-start="url(#{name})"' if both_ends else ""
    return (
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="3"{start} marker-end="url(#{name})"/>'
    )


def head(name: str, colour: str) -> str:
    """The head of arrows of a colour."""
    size = 'viewBox="0 0 10 10" refX="8" refY="5" markerWidth="5" markerHeight="5" orient="auto-start-reverse"'
    return f'<marker id="{name}" {size}><path d="M0 0 L10 5 L0 10 z" fill="{colour}"/></marker>'


def shapes() -> Iterable[str]:
    """All that is drawn, in order."""
    yield f'<rect width="{WIDTH}" height="{HEIGHT}" rx="16" fill="{PAPER}"/>'
    # What comes in.
    yield box(20, 20, 640, 104, (PAPER, LINE))
    yield text(340, 58, "“Where is my refund?”")
    yield text(340, 84, "and", 20, fill=GREY)
    yield text(340, 112, "“My money has not come back”")
    yield arrow((120, 124), (120, 170))
    yield arrow((445, 124), (445, 170))
    # The teacher.
    yield box(20, 174, 200, 204, TEACHER)
    yield text(120, 214, "Teacher", 26, 700)
    yield text(120, 242, "does not learn", 20, fill=GREY)
    for number, line in enumerate(("a small encoder", "that knows", "the field")):
        yield text(120, 290 + 30 * number, line, 22)
    # The student.
    yield box(250, 174, 410, 204, FROZEN)
    yield text(455, 214, "Student: LLM with LoRA", 26, 700)
    yield text(455, 242, "only A and B learn", 20, fill=GREY)
    yield box(270, 260, 172, 98, TRAINED)
    yield text(356, 304, "A", 40, 700)
    yield text(356, 340, "as encoder", 22)
    yield box(468, 260, 172, 98, TRAINED)
    yield text(554, 304, "B", 40, 700)
    yield text(554, 340, "as decoder", 22)
    yield arrow((443, 309), (466, 309))
    # What comes out.
    for x, y in ((120, 378), (356, 358), (554, 358)):
        yield arrow((x, y), (x, 420))
    for x, width, name, line, colours in (
        (20, 200, "similarity", "of the two", TEACHER),
        (270, 172, "similarity", "of the two", TRAINED),
        (468, 172, "answer", "yes or no", TRAINED),
    ):
        yield box(x, 424, width, 84, (PAPER, colours[1]))
        yield text(x + width / 2, 460, name, 24, 700)
        yield text(x + width / 2, 490, line, 20, fill=GREY)
    # The losses.
    yield arrow((224, 466), (266, 466), both_ends=True, colour=LOSS[1])
    for x, y in ((245, 476), (356, 512), (554, 512)):
        yield arrow((x, 562), (x, y), colour=LOSS[1])
    for x, width, name, lines in (
        (20, 242, "L_dist", ("as similar as", "the teacher says")),
        (272, 182, "L_MCL", ("matches near,", "others far")),
        (464, 196, "L_sup", ("answer as", "the label says")),
    ):
        yield box(x, 566, width, 134, LOSS)
        yield text(x + width / 2, 606, name, 26, 700)
        for number, line in enumerate(lines):
            yield text(x + width / 2, 644 + 30 * number, line, 22)


def drawing() -> str:
    """The picture as SVG."""
    font = "font-family=\"system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif\""
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="title desc" {font}>',
        f'<title id="title">{escape(TITLE)}</title>',
        f'<desc id="desc">{escape(DESCRIPTION)}</desc>',
        f"<defs>{head('flow', GREY)}{head('loss', LOSS[1])}</defs>",
        *shapes(),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    FILE.write_text(drawing(), encoding="utf-8")
    sys.stdout.write(f"{FILE}\n")
