"""Checks the built site: every link leads somewhere, and no page loads anything from a network.

python docs/tools/check.py site
"""

import html.parser
import pathlib
import re
import sys
from urllib.parse import unquote, urlsplit

# What a browser fetches by itself; the address of an <a> is only followed when it is clicked.
LOADED = {
    "audio": "src", "embed": "src", "iframe": "src", "image": "href", "img": "src", "input": "src",
    "link": "href", "object": "data", "script": "src", "source": "src", "track": "src",
    "video": "src", "use": "href",
}  # fmt: skip
CSS_URL = re.compile(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)")


class Page(html.parser.HTMLParser):
    """What one page links to, loads, and can be linked at."""

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {key: value or "" for key, value in attrs}
        self.anchors |= {named[key] for key in ("id", "name") if key in named}
        if tag == "a" and "href" in named:
            self.links.append(named["href"])
        # A page's own address elsewhere is told, not loaded.
        if tag in LOADED and named.get("rel") not in ("canonical", "prev", "next"):
            self.loads += [named[key] for key in (LOADED[tag], "poster") if key in named]
            self.loads += [part.split()[0] for part in named.get("srcset", "").split(",") if part]
        self.loads += [a or b for a, b in CSS_URL.findall(named.get("style", ""))]


def faults(site: pathlib.Path) -> list[str]:
    """Returns a line for each thing that is wrong."""
    site = site.resolve()
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    found = []
    if not pages:
        found.append(f"{site}: there is no page")
    for path, page in pages.items():
        where = path.relative_to(site)
        for url in page.loads:
            found += [f"{where}: {why}" for why in not_loadable(site, path, url)]
        for url in page.links:
            found += [f"{where}: {why}" for why in not_linkable(site, pages, path, url)]
    for path in sorted(site.rglob("*.css")):
        for groups in CSS_URL.findall(path.read_text(encoding="utf-8")):
            found += [
                f"{path.relative_to(site)}: {why}"
                for why in not_loadable(site, path, groups[0] or groups[1])
            ]
    return found


def target(site: pathlib.Path, path: pathlib.Path, url: str) -> pathlib.Path:
    """Returns the file that an address on a page leads to."""
    # The page for what is not found is served at any depth, so that its addresses begin at the root.
    base = site if path.name == "404.html" else path.parent
    found = (base / unquote(url.lstrip("/") if base == site else url)).resolve()
    return found / "index.html" if found.is_dir() else found


def not_loadable(site: pathlib.Path, path: pathlib.Path, url: str) -> list[str]:
    parts = urlsplit(url)
    if parts.scheme == "data" or not (parts.path or parts.netloc):
        return []
    if parts.scheme or parts.netloc:
        return [f"loads {url}, which needs a network"]
    if not target(site, path, parts.path).exists():
        return [f"loads {url}, which is not there"]
    return []


def not_linkable(
    site: pathlib.Path, pages: dict[pathlib.Path, Page], path: pathlib.Path, url: str
) -> list[str]:
    parts = urlsplit(url)
    if parts.scheme or parts.netloc:
        return [] if parts.scheme in ("http", "https", "mailto") else [f"links to {url}"]
    found = target(site, path, parts.path) if parts.path else path
    if not found.exists():
        return [f"links to {url}, which is not there"]
    page = pages.get(found)
    fragment = unquote(parts.fragment)
    if page is not None and fragment and fragment not in page.anchors:
        return [f"links to {url}, where there is no such anchor"]
    return []


if __name__ == "__main__":
    lines = faults(pathlib.Path(sys.argv[1]))
    if lines:
        print(*lines, sep="\n")
    sys.exit(1 if lines else 0)
