"""The page in headless Chromium: asked by keyboard, read by a screen reader, on a phone and a desk, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from scipy.special import expit

from flipped_kd import FlippedMatcher
from flipped_kd.serving.corpus import CorpusSource
from tests.serving.chromium import NAMES, Page, chromium, find_chromium
from tests.serving.conftest import CORPUS
from tests.serving.running import Running, running

PROGRAM = find_chromium()
pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason=f"no browser: install Debian's chromium, or have one of {', '.join(NAMES)} on the PATH"
)
PHONE, DESK = (390, 844), (1280, 900)
SCREENS = [(*size, scheme) for size in (PHONE, DESK) for scheme in ("light", "dark")]
FOCUS = "document.activeElement.id || document.activeElement.textContent"
# Contrast of the text of an element with what lies behind it, as WCAG computes it.
CONTRAST = """(element => {
  const parts = color => color.match(/[\\d.]+/g).map(Number);
  const light = color => parts(color).slice(0, 3).map(c => c / 255)
    .map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, n) => sum + c * [.2126, .7152, .0722][n], 0);
  let behind = element;
  while ((parts(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0) behind = behind.parentElement;
  const pair = [light(getComputedStyle(element).color), light(getComputedStyle(behind).backgroundColor)].sort();
  return (Math.max(...pair) + .05) / (Math.min(...pair) + .05);
})"""


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    assert PROGRAM is not None
    with chromium(PROGRAM) as page:
        yield page


def tab_to(page: Page, name: str) -> None:
    """By the Tab key alone; what has the focus shows it."""
    for _ in range(20):
        page.press("Tab")
        if page.run(FOCUS) == name:
            break
    assert page.run(FOCUS) == name
    assert page.run("getComputedStyle(document.activeElement).outlineWidth") == "3px"


@pytest.mark.parametrize(("width", "height", "scheme"), SCREENS)
def test_a_question_is_asked_and_two_texts_are_compared_by_keyboard(
    page: Page, server: Running, matcher: FlippedMatcher, width: int, height: int, scheme: str
) -> None:
    page.show(f"{server.url}/", width, height, scheme)
    page.wait_for("!document.getElementById('ask').hidden")
    tab_to(page, "query")
    page.type("where is my card")
    page.press("Enter")
    page.wait_for("document.querySelectorAll('#hits li').length === 5")
    (expected,) = matcher.search("where is my card", CORPUS, top_k=5, rerank=5)
    assert page.run("[...document.querySelectorAll('#hits .text')].map(p => p.textContent)") == [
        CORPUS[hit["corpus_id"]] for hit in expected
    ]
    assert page.run("document.querySelectorAll('#hits b').length") == 0  # a text is a text
    first = CORPUS[expected[0]["corpus_id"]]
    answer, similarity = matcher.scores(("where is my card", first))
    shown = page.run("document.querySelector('#hits li').innerText")
    for number in (expected[0]["score"], float(expit(answer)), float(similarity)):
        assert f"{number:.3f}".replace("-", "−") in shown
    assert ("no match" in shown) != bool(matcher.matches(("where is my card", first)))
    matches = sum(matcher.matches([("where is my card", CORPUS[hit["corpus_id"]]) for hit in expected]))
    status = page.run("document.getElementById('ask-status').textContent")
    assert status.startswith(f"5 texts, best first, {matches} match.")
    tab_to(page, "first")
    page.type("my card")
    tab_to(page, "second")
    page.type("the refund")
    tab_to(page, "Compare")
    page.press(" ")
    page.wait_for("document.querySelector('#comparison .said') !== null")
    said = page.run("document.getElementById('compare-status').textContent")
    assert f"probability {float(matcher.predict(('my card', 'the refund'))):.3f}" in said
    # Nothing is wider than the screen, nothing too pale, and the browser had no complaints.
    assert page.run("document.documentElement.scrollWidth") <= width
    pale = page.run(
        f"[...document.querySelectorAll('h1,h2,p,label,button,dt,dd,a,input,textarea,select')]"
        f".filter(e => e.offsetParent && {CONTRAST}(e) < 4.5).map(e => e.outerHTML)"
    )
    assert pale == [] and page.complaints == []
    back = page.run("getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(255, 255, 255)") == (scheme == "light")


def test_a_screen_reader_is_told_what_everything_is(page: Page, server: Running) -> None:
    page.show(f"{server.url}/", *DESK, "light")
    page.wait_for("!document.getElementById('ask').hidden")
    spoken = page.spoken()
    for entry in (
        ("heading", "Ask the corpus"),
        ("textbox", "Question"),
        ("combobox", "Results"),
        ("button", "Find the nearest"),
        ("textbox", "First text"),
        ("textbox", "Second text"),
        ("button", "Compare"),
        ("region", "Compare two texts"),
        ("main", ""),
    ):
        assert entry in spoken, entry
    named = ("textbox", "combobox", "button", "link", "heading")
    assert all(name for role, name in spoken if role in named)
    live = "[...document.querySelectorAll('[aria-live=polite][role=status]')].map(e => e.id)"
    assert page.run(live) == ["ask-status", "compare-status"] and page.run("document.documentElement.lang") == "en"


def test_errors_are_said_and_a_token_is_asked_for(page: Page, load: Any, corpus_file: Any) -> None:
    with running(load, CorpusSource(str(corpus_file)), token="a-token-of-tests") as guarded:
        page.show(f"{guarded.url}/", *PHONE, "light")
        page.wait_for("!document.getElementById('enter').hidden && document.activeElement.id === 'token'")
        page.complaints.clear()  # of the 401
        page.type("a-token-of-tests")
        page.press("Enter")
        page.wait_for("!document.getElementById('ask').hidden && document.activeElement.id === 'query'")
        page.type("  ")
        page.press("Enter")
        page.wait_for("document.getElementById('ask-status').textContent.includes('give a text')")
        assert page.run("document.getElementById('ask-status').className") == "status wrong"
        page.type("cash")
        page.press("Enter")
        page.wait_for("document.querySelectorAll('#hits li').length === 5")
        assert page.run("Object.keys(localStorage).length + Object.keys(sessionStorage).length") == 0
        assert "a-token-of-tests" not in page.run("document.documentElement.outerHTML")


def test_the_routes_fit_a_phone(page: Page, server: Running) -> None:
    page.complaints.clear()
    for size in (PHONE, DESK):
        page.show(f"{server.url}/docs", *size, "dark")
        assert page.run("document.documentElement.scrollWidth") <= size[0]
        assert page.run("document.querySelectorAll('section').length") == 12
    assert page.complaints == []
