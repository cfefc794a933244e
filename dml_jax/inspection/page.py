"""The page of an inspection: numbers, images per class, a contact sheet, and images with copies in other splits."""

import html
import pathlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dml_jax.data.base import DecodeError, Source
from dml_jax.inspection.duplicates import Pair, across
from dml_jax.report import charts
from dml_jax.report import page as pages

# Images of the contact sheet of a split, and images with copies, that are shown.
SHEET, LEAKS = 60, 200


def write(
    path: pathlib.Path, sources: Mapping[str, Source], pairs: Sequence[Pair], lines: Sequence[str]
) -> pathlib.Path:
    """Writes the page; returns its path.

    Args:
      path: where it goes.
      sources: the splits.
      pairs: copies and near copies.
      lines: what the command prints.
    """
    keys: dict[tuple[str, int], int] = {}
    copies: defaultdict[tuple[str, int], list[Pair]] = defaultdict(list)
    for pair in across(list(pairs))[: 10 * LEAKS]:
        copies[pair.one].append(pair)
        copies[pair.other].append(pair)
    # What is evaluated comes first: there a copy flatters a result.
    order = ("test", "val", "gallery", "distractors", "train")
    leaked = sorted(
        copies, key=lambda place: (order.index(place[0]) if place[0] in order else 9, place[1])
    )
    seen: set[tuple[str, int]] = set()
    queries: list[tuple[str, int]] = []
    for place in leaked:
        if place not in seen and len(queries) < LEAKS:
            queries.append(place)
            seen |= {place, *(_other(pair, place) for pair in copies[place])}
    sheets = {split: _sheet(source) for split, source in sources.items()}
    shown = [*queries, *(_other(p, q) for q in queries for p in copies[q])]
    shown += [(split, i) for split, rows in sheets.items() for i in rows]
    for place in shown:
        keys.setdefault(place, len(keys))
    items = {key: _item(sources, place, copies[place], keys) for place, key in keys.items()}
    galleries = []
    if queries:
        note = "Images with copies and near copies in other splits; the number is of the bits, of 64, that differ."
        galleries.append(pages.Gallery("In two splits", note, [keys[q] for q in queries]))
    galleries += [
        pages.Gallery(
            split,
            f"{len(rows)} of {len(sources[split]):,} images, drawn at random.",
            [keys[split, i] for i in rows],
        )
        for split, rows in sheets.items()
        if rows
    ]
    places = {key: place for place, key in keys.items()}
    text = "<br>".join(html.escape(line) for line in lines)
    return pages.write_page(
        path,
        title="Inspection of data",
        lead="What was found, before anything is trained.",
        galleries=galleries,
        items=items,
        pictures=pages.thumbnails(keys.values(), lambda key: _image(sources, places[key])),
        before=[("Findings", f"<p>{text}</p>"), *_histograms(sources)],
    )


def _sheet_note(shown: int, images: int) -> str:
    return f"{shown} of {images:,} images, drawn at random."


def _other(pair: Pair, place: tuple[str, int]) -> tuple[str, int]:
    return pair.other if pair.one == place else pair.one


def _sheet(source: Source) -> list[int]:
    rng = np.random.default_rng(0)
    return sorted(rng.permutation(len(source))[:SHEET].tolist())


def _item(
    sources: Mapping[str, Source],
    place: tuple[str, int],
    pairs: Sequence[Pair],
    keys: Mapping[tuple[str, int], int],
) -> pages.Item:
    split, index = place
    source = sources[split]
    label = int(source.labels[index])
    near = [(keys[_other(p, place)], p.bits) for p in pairs if _other(p, place) in keys]
    return pages.Item(
        name=source.name(index),
        kind=f"{split}: {source.class_names[label]}" if label >= 0 else split,
        neighbours=near,
    )


def _image(sources: Mapping[str, Source], place: tuple[str, int]) -> np.ndarray | None:
    try:
        return sources[place[0]][place[1]]["image"]
    except DecodeError:
        return None


def _histograms(sources: Mapping[str, Source]) -> list[tuple[str, str]]:
    found: list[tuple[str, Any]] = []
    for split, source in sources.items():
        counts = np.bincount(source.labels[source.labels >= 0])
        if not len(counts):
            continue
        edges = np.unique(np.linspace(counts.min(), counts.max() + 1, 21).round())
        heights, _ = np.histogram(counts, edges)
        title = f"Images per class of {split}"
        chart = charts.histogram(
            edges, [(split, heights)], title=title, across="images", up="classes"
        )
        found.append((title, pages.figure(chart, f"{len(counts):,} classes")))
    return found
