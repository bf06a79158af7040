"""Holds a built site to two rules: every link within it leads somewhere, and nothing is loaded from another host.

The builder looks at links between pages. This looks at what it has written: files, images and places in pages too.
"""

from __future__ import annotations

import argparse
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a <link> loads; others are there to be followed.
LOADED_LINKS = {"stylesheet", "icon", "preload", "modulepreload", "manifest"}


class Page(HTMLParser):
    """The places of a page, what it links to and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.places: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.places |= {found[name] for name in ("id", "name") if name in found}
        self.loads += [found[name] for name in ("src", "data", "poster") if found.get(name)]
        if "href" in found:
            loaded = tag == "link" and LOADED_LINKS & set(found.get("rel", "").split())
            (self.loads if loaded else self.links).append(found["href"])


def faults(site: Path) -> list[str]:
    """What is wrong, a line each.

    Raises:
        ValueError: there are no pages.
    """
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    if not pages:
        raise ValueError(f"{site} holds no pages: build the site first, by `make docs`.")
    found = []
    for path, page in pages.items():
        name = path.relative_to(site)
        found += [f"{name} loads {url} from another host" for url in page.loads if urlsplit(url).netloc]
        urls = [url for url in page.links + page.loads if not _is_there(url, path, site, pages)]
        found += [f"{name} links to {url}, which is not there" for url in dict.fromkeys(urls)]
    for path in sorted(site.rglob("*.css")):
        for url in re.findall(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')]+)", path.read_text(encoding="utf-8")):
            found.append(f"{path.relative_to(site)} loads {url} from another host")
    return found


def _is_there(url: str, path: Path, site: Path, pages: dict[Path, Page]) -> bool:
    """Whether a link leads somewhere, as far as the site itself can tell."""
    parts = urlsplit(url)
    if parts.scheme or parts.netloc:
        return True
    folder = site if parts.path.startswith("/") else path.parent
    target = (folder / unquote(parts.path).lstrip("/")).resolve() if parts.path else path
    if target.is_dir():
        target /= "index.html"
    if parts.fragment and target in pages:
        return unquote(parts.fragment) in pages[target].places
    return target.exists()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", type=Path, help="folder of the built site")
    site = parser.parse_args().site.resolve()
    found = faults(site)
    sys.exit("\n".join(found) if found else 0)


if __name__ == "__main__":
    main()
