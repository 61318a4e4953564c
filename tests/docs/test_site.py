"""The site of docs/ builds without a warning and contains all files that it needs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.site import ROOT, build_site

#: The attributes that make a browser load something by itself, by tag. A link that a reader follows is none of them.
_LOADS = {
    "script": ("src",),
    "link": ("href",),
    "img": ("src", "srcset"),
    "source": ("src", "srcset"),
    "image": ("href", "xlink:href"),
    "use": ("href", "xlink:href"),
    "iframe": ("src",),
    "embed": ("src",),
    "object": ("data",),
    "video": ("src", "poster"),
    "audio": ("src",),
    "form": ("action",),
}
_CSS_LOAD = re.compile(r"""@import\s+["']?([^"');]+)|url\(\s*["']?([^"')]+)""")
DOCS = sorted((ROOT / "docs").rglob("*.md"))


class _Page(HTMLParser):
    """What one page loads, where it links to, and its text outside code."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: set[str] = set()
        self.styles: list[str] = []
        self._is_style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "a":
            self.links.add(values.get("href", ""))
        # The browser does not load a canonical address or another language of the page.
        if values.get("rel") not in ("canonical", "alternate", "prev", "next"):
            self.loaded += [values[name] for name in _LOADS.get(tag, ()) if name in values]
        self.styles.append(values.get("style", ""))
        self._is_style = tag == "style"

    def handle_data(self, data: str) -> None:
        if self._is_style:
            self.styles.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._is_style = False


def css_loads(text: str) -> Iterator[str]:
    for imported, url in _CSS_LOAD.findall(text):
        yield imported or url


def is_elsewhere(address: str) -> bool:
    return bool(urlsplit(address.strip()).netloc)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_site(tmp_path_factory.mktemp("docs"))


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, _Page]:
    return {str(path.relative_to(site)): _Page(path.read_text()) for path in site.rglob("*.html")}


def test_what_loads_from_another_host_is_recognised() -> None:
    page = _Page(
        '<link rel="stylesheet" href="https://a.example/a.css"><script src="//b.example/b.js"></script>'
        '<img srcset="https://c.example/c.png 2x"><p style="background: url(https://d.example/d.png)">'
        '<style>@import "https://e.example/e.css";</style><a href="https://f.example">f</a><img src="g.svg">'
    )
    found = [*page.loaded, *(one for style in page.styles for one in css_loads(style))]
    assert [urlsplit(one.strip()).netloc for one in found if is_elsewhere(one)] == [
        f"{letter}.example" for letter in "abcde"
    ]
    assert page.links == {"https://f.example"} and "g.svg" in page.loaded


def test_no_page_loads_anything_from_another_host(pages: dict[str, _Page]) -> None:
    for name, page in pages.items():
        loaded = [*page.loaded, *(one for style in page.styles for one in css_loads(style))]
        assert loaded and [one for one in loaded if is_elsewhere(one)] == [], name


def test_no_style_or_drawing_loads_anything_from_another_host(site: Path) -> None:
    files = [*site.rglob("*.css"), *site.rglob("*.svg")]
    assert {path.suffix for path in files} == {".css", ".svg"}
    for path in files:
        assert [one for one in css_loads(path.read_text()) if is_elsewhere(one)] == [], path.name


def test_every_page_of_the_docs_is_in_the_navigation(pages: dict[str, _Page]) -> None:
    built = {str(path.relative_to(ROOT / "docs").with_suffix(".html")) for path in DOCS}
    assert built | {"404.html"} == set(pages)
    assert built - {"index.html"} <= pages["index.html"].links


def test_every_fence_became_a_block_of_code(site: Path, pages: dict[str, _Page]) -> None:
    for name in pages:
        assert "```" not in (site / name).read_text(), f"{name}: the site cannot read a fence"


def test_a_guide_links_to_every_page_for_users_and_operators() -> None:
    guides = [ROOT / "docs" / f"{name}.md" for name in ("frontend", "mobile", "platform", "on-call")]
    linked = {link for path in guides for link in re.findall(r"\]\(([a-z-]+\.md)", path.read_text())}
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\n  - Use:\n")[2].partition("\n  - Understand:")[0]
    pages = set(re.findall(r": ([a-z-]+\.md)$", navigation, re.MULTILINE))
    assert len(pages) > 15 and pages - linked == set()
