"""README and docs are short and in plain English."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.documentation.pages import PAGES, ROOT, name

pytest.importorskip("textstat", reason="textstat is not installed: pip install -e '.[test]'")

from tests.documentation.prose import prose, reading_ease, sentences, words  # noqa: E402


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_reads_easily(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = sentences(text)
    if not found:
        assert page.parent.name == "api", f"{name(page)} has no prose: say what the page is for"
        return
    assert [sentence for sentence in found if words(sentence) > 35] == []
    assert reading_ease(text) > 50


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1700


def test_what_is_measured_is_the_prose() -> None:
    page = """# A heading of no interest

Text with `code that is one word`, a [link to a page](page.md#place) and 0.5 or .85 of it.

```python
never_read = "at all"
```

| a table | is not prose |
|---|---|

- an item
- another one. And a second sentence.
"""
    assert prose(page) == [
        "Text with code, a link to a page and 05 or 85 of it.",
        "an item",
        "another one. And a second sentence.",
    ]
    assert [words(sentence) for sentence in sentences(page)] == [14, 2, 2, 4]


def test_long_words_in_long_sentences_are_hard() -> None:
    hard = "Notwithstanding considerable methodological heterogeneity, representational similarity materialises " * 4
    assert reading_ease(hard) < 0 < 80 < reading_ease("The cat sat on the mat. It was a good cat.")
