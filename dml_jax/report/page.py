"""One self-contained HTML page on which a reader goes from an item to its neighbours, and to theirs.

Pictures are inside the page, small and limited in all; nothing is loaded from elsewhere. `page.html` is the
template: its script draws what it finds in the page's data.
"""

import base64
import html
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image

TEMPLATE = Path(__file__).with_name("page.html")
# Pixels of a picture's longer side, and characters that all pictures of a page take together.
SIDE = 112
CHARACTERS = 7_000_000


@dataclass(frozen=True)
class Item:
    """What a page knows of an image.

    Attributes:
      name: of the image.
      kind: the name of its class; "" where that is not known.
      label: the class's number, which points of a map have too; None where it is not known.
      neighbours: (key of an item, distance), nearest first; None where they are not on the page.
      note: more to say about it.
    """

    name: str
    kind: str = ""
    label: int | None = None
    neighbours: Sequence[tuple[int, float]] | None = None
    note: str = ""


@dataclass(frozen=True)
class Gallery:
    """A heading, a sentence, and the keys of the items that are shown with their neighbours."""

    heading: str
    note: str
    queries: Sequence[int]


def thumbnail(image: np.ndarray, side: int = SIDE) -> str:
    """Makes a data URI of a picture, PNG or JPEG, whichever is shorter.

    Args:
      image: uint8 [h, w, 1, 3 or none].
      side: the most pixels that its longer side keeps.

    >>> thumbnail(np.zeros((4, 4), np.uint8))[:21]
    'data:image/png;base64'
    """
    picture = Image.fromarray(image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    found = []
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 80})):
        out = io.BytesIO()
        picture.save(out, kind, **options)
        found.append((len(out.getvalue()), kind, out.getvalue()))
    _, kind, encoded = min(found)
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"


def thumbnails(
    keys: Iterable[int], image: Callable[[int], np.ndarray | None], characters: int | None = None
) -> dict[int, str]:
    """Makes thumbnails of the first of the keys, as many as fit into so many characters.

    Args:
      keys: of items.
      image: from a key to a picture, or None where there is none.
      characters: by default `CHARACTERS`.

    >>> list(thumbnails([3, 4], lambda key: np.zeros((4, 4), np.uint8) if key == 4 else None))
    [4]
    """
    room = CHARACTERS if characters is None else characters
    found: dict[int, str] = {}
    for key in dict.fromkeys(keys):
        picture = image(key)
        if picture is None:
            continue
        uri = thumbnail(picture)
        room -= len(uri)
        if room < 0:
            break
        found[key] = uri
    return found


def write_page(
    path: str | os.PathLike[str],
    *,
    title: str,
    lead: str,
    galleries: Sequence[Gallery],
    items: Mapping[int, Item],
    pictures: Mapping[int, str],
    before: Sequence[tuple[str, str]] = (),
    after: Sequence[tuple[str, str]] = (),
    facts: Mapping[str, str] = MappingProxyType({}),
    unit: str = "distance",
) -> Path:
    """Writes the page; returns its path.

    Args:
      path: where it goes; missing folders are made.
      title: plain text.
      lead: plain text under the title.
      galleries: whose queries are among the items; the first query is shown at the start.
      items: by key; what a neighbour list names is among them.
      pictures: data URIs by key of an item.
      before: sections (heading, HTML) above the galleries.
      after: sections below them.
      facts: what the page is about, by what it is, under the title.
      unit: what the numbers of neighbours are: `distance` or `similarity`.
    """
    data = {
        "unit": unit,
        "galleries": [[g.heading, g.note, list(map(int, g.queries))] for g in galleries],
        "items": {
            int(key): {
                "name": item.name,
                "kind": item.kind,
                "label": item.label,
                "note": item.note,
                "near": None
                if item.neighbours is None
                else [[int(k), round(float(v), 4)] for k, v in item.neighbours],
            }
            for key, item in items.items()
        },
        "pictures": {int(key): uri for key, uri in pictures.items()},
    }
    # Inside a script element only "<" can end or open anything.
    encoded = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    parts = {
        "title": html.escape(title),
        "lead": html.escape(lead),
        "facts": _facts(facts),
        "before": _sections(before),
        "after": _sections(after),
        "data": encoded,
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    # In one pass: what is put in may hold anything.
    pieces = text.split("{{")
    filled = [pieces[0]]
    for piece in pieces[1:]:
        name, _, rest = piece.partition("}}")
        filled += [parts[name], rest]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A file name that is not UTF-8 has characters that a page cannot hold.
    path.write_text("".join(filled), encoding="utf-8", errors="backslashreplace")
    return path


def _facts(facts: Mapping[str, str]) -> str:
    if not facts:
        return ""
    pairs = (
        f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in facts.items()
    )
    return f'<dl class="facts">{"".join(pairs)}</dl>'


def _sections(sections: Sequence[tuple[str, str]]) -> str:
    return "".join(
        f"<section><h2>{html.escape(heading)}</h2>{body}</section>" for heading, body in sections
    )


def figure(chart: str, caption: str) -> str:
    """Puts a chart above its caption, both HTML."""
    return f"<figure>{chart}<figcaption>{caption}</figcaption></figure>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """Makes an HTML table of plain text; the first column names the rows.

    Args:
      head: the names of the columns.
      rows: the cells of each row.
      caption: above the table.

    >>> "<td>&lt;2&gt;</td>" in table(["name", "value"], [["a", "<2>"]])
    True
    """
    cells = "".join(f'<th scope="col">{html.escape(c)}</th>' for c in head)
    lines = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in rest)
        + "</tr>"
        for name, *rest in rows
    )
    about = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f'<div class="wide"><table>{about}<thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table></div>'
