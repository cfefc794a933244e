"""The report of an evaluation: galleries, a map, distances, spectrum and classes, as files and as one page."""

import html
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dml_jax import streams
from dml_jax.csv_files import write_rows
from dml_jax.errors import UserError
from dml_jax.evaluation.search.neighbours import neighbours
from dml_jax.report import charts
from dml_jax.report import page as pages
from dml_jax.report.distances import distances_section
from dml_jax.report.galleries import retrieval_gallery
from dml_jax.report.maps import check_map, embedding_map
from dml_jax.report.summary import (
    ClassScores,
    class_scores,
    query_scores,
)
from dml_jax.report.tables import cell, is_of_pairs, title, without_repeats

# Of a larger set, so many are drawn: queries that are scored, points of the map, anchors of distances.
SCORED, POINTS, ANCHORS = 10_000, 2_000, 1_000
# Neighbours of a query, queries of a gallery, and items whose neighbours a page shows.
NEIGHBOURS, QUERIES, LISTED = 9, 8, 1_000
# Classes in a table of the page.
CLASSES = 12
# What stands for the class of a distractor.
NO_CLASS = "(distractor)"


@dataclass(frozen=True)
class ReportData:
    """What a report is about; positions 0..n-1 name its items.

    Attributes:
      embeddings: as evaluated.
      labels: as evaluated.
      image: a picture by position, or None for one that there is none of; None: there are no pictures at all.
      name: position -> the image's name.
      class_names: by label.
      distance: as in `neighbours`.
      backend: as in `neighbours`.
      queries: positions of what is searched for, ascending; all by default.
      gallery: positions of what is searched, ascending; all by default. An item that is not a query has a label too, or
        -1 for none: it is relevant to nothing.
    """

    embeddings: Float[np.ndarray, "n d"]
    labels: Int[np.ndarray, " n"]
    image: Callable[[int], np.ndarray | None] | None
    name: Callable[[int], str]
    class_names: Sequence[str]
    distance: str = "euclidean"
    backend: str = "jax"
    queries: Int[np.ndarray, " q"] | None = None
    gallery: Int[np.ndarray, " g"] | None = None

    @property
    def searched(self) -> Int[np.ndarray, " g"]:
        """Positions of what is searched."""
        return np.arange(len(self.labels)) if self.gallery is None else self.gallery

    @property
    def labelled(self) -> Int[np.ndarray, " m"]:
        """Positions of what has a label."""
        return np.flatnonzero(self.labels >= 0)

    def class_of(self, i: int) -> str:
        """The name of an item's class."""
        label = self.labels[i]
        return self.class_names[label] if label >= 0 else NO_CLASS

    def nearest(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(distances, positions) of the nearest others of those items."""
        return neighbours(
            self.embeddings[rows],
            self.embeddings[self.searched],
            min(NEIGHBOURS, len(self.searched) - 1),
            query_ids=rows,
            gallery_ids=self.searched,
            distance=self.distance,
            backend=self.backend,
        )


@dataclass(frozen=True)
class Retrieved:
    """The neighbours of the items that were scored.

    Attributes:
      rows: [q] positions, ascending.
      distances: [q, k], of their neighbours.
      found: [q, k], the positions of these.
      scores: [q], `query_scores`.
      classes: means by class.
      galleries: rows of the arrays above by heading: best, random and worst queries.
    """

    rows: np.ndarray
    distances: np.ndarray
    found: np.ndarray
    scores: np.ndarray
    classes: ClassScores
    galleries: dict[str, np.ndarray]


def write_report(
    data: ReportData,
    rows: Mapping[str, Mapping[str, Any]],
    folder: str | os.PathLike[str],
    *,
    heading: str,
    facts: Mapping[str, str] = MappingProxyType({}),
    about: str = "",
    map: str = "pca",
    seed: int = 0,
    steps: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
) -> list[Path]:
    """Writes `best.png`, `random.png`, `worst.png`, `classes.csv` and `report.html`; returns their paths.

    Without pictures there are no galleries. The ROC is drawn where a metric of verification (`eer`, `auc`, `tar@far=x`,
    ...) is among the metrics; else no pairs are counted for it.

    Args:
      data: the set.
      rows: its metrics, by what was evaluated.
      folder: where the files go; it is made where it is missing.
      heading: what the page is headed by.
      facts: what was evaluated, by what it is: the run, the loss, the date.
      about: how the metrics were computed, where it is not each item against all others.
      map: `pca` or `tsne`.
      seed: of every draw.
      steps: as from `after_training`.

    Raises:
      UserError: fewer than two items, an unknown map or one that needs what is not installed.
    """
    count = len(data.searched)
    if count < 2:
        raise UserError(f"a report of {count} image has no neighbours; accepted: two or more")
    folder = Path(folder)
    rng = streams.generator("evaluation", seed)
    check_map(map)
    drawn = _drawn(rng, data.labelled, POINTS)
    retrieved = _retrieve(data, rng)
    # The queries of the galleries, too, whatever was drawn.
    shown = [retrieved.rows[queries] for queries in retrieved.galleries.values()]
    points = np.intersect1d(np.concatenate([drawn, *shown]), data.labelled)
    places = embedding_map(map, data.embeddings[points], seed=seed)
    files = []
    for kind, queries in retrieved.galleries.items():
        if len(queries) and data.image is not None:
            files.append(
                retrieval_gallery(
                    data.image,
                    data.labels,
                    retrieved.found,
                    folder / f"{kind}.png",
                    query_ids=retrieved.rows,
                    queries=queries.tolist(),
                    # The last one is what label -1 finds.
                    class_names=(*data.class_names, NO_CLASS),
                    columns=8,
                )
            )
    files.append(_write_classes(data, retrieved.classes, folder / "classes.csv"))
    before = [("Metrics", _metrics(rows, about))]
    verified = any(is_of_pairs(metric) for row in rows.values() for metric in row)
    after = [
        ("Map", _map(data, map, points, places, retrieved)),
        (
            "Distances, ROC and spectrum" if verified else "Distances and spectrum",
            distances_section(
                data.embeddings[data.labelled],
                data.labels[data.labelled],
                np.searchsorted(data.labelled, _drawn(rng, data.labelled, ANCHORS)),
                data.distance,
                verified=verified,
            ),
        ),
        ("Classes", _classes(data, retrieved.classes)),
    ]
    if steps:
        after.append(("After training", _steps(steps)))
    path = folder / "report.html"
    files.append(_write_page(data, retrieved, heading, facts, before, after, path))
    return files


def _drawn(rng: np.random.Generator, rows: np.ndarray, most: int) -> np.ndarray:
    return rows[np.sort(rng.permutation(len(rows))[:most])]


def _retrieve(data: ReportData, rng: np.random.Generator) -> Retrieved:
    queries = np.arange(len(data.labels)) if data.queries is None else data.queries
    rows = _drawn(rng, queries, SCORED)
    far, found = data.nearest(rows)
    hits = data.labels[found] == data.labels[rows, None]
    sizes = np.bincount(data.labels[data.searched] + 1, minlength=data.labels.max() + 2)[1:]
    scores = query_scores(hits, sizes[data.labels[rows]] - np.isin(rows, data.searched))
    classes = class_scores(data.labels[rows], hits[:, 0], scores)
    scored = np.flatnonzero(~np.isnan(scores))
    # Of equal scores, what was nearest: the surest of the best, and of the worst.
    best = scored[np.lexsort((far[scored, 0], -scores[scored]))]
    worst = scored[np.lexsort((far[scored, 0], scores[scored]))]
    any_ = rng.permutation(scored if len(scored) else len(rows))[:QUERIES]
    galleries = {
        "best": _of_different_classes(best, data.labels[rows]),
        "random": any_,
        "worst": _of_different_classes(worst, data.labels[rows]),
    }
    return Retrieved(rows, far, found, scores, classes, galleries)


def _of_different_classes(queries: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The first queries, at most one of a class."""
    _, first = np.unique(labels[queries], return_index=True)
    return queries[np.sort(first)[:QUERIES]]


def _write_classes(data: ReportData, found: ClassScores, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = ("label", "class", "queries", "recall_at_1", "average_precision")
    rows = (
        dict(zip(columns, (label, data.class_names[label], *values), strict=True))
        for label, *values in zip(*found, strict=True)
    )
    write_rows(path, columns, rows)
    return path


def _metrics(rows: Mapping[str, Mapping[str, Any]], about: str) -> str:
    known = without_repeats(
        list(dict.fromkeys(metric for row in rows.values() for metric in row)), rows
    )
    body = [[title(metric), *(cell(row.get(metric)) for row in rows.values())] for metric in known]
    note = ""
    if about:
        note = (
            f"<p class='note'>{html.escape(about)}. What follows on this page is by class, the nearest of all that is "
            "searched.</p>"
        )
    return note + pages.table(["metric", *rows], body)


def _steps(rows: Mapping[str, Mapping[str, float]]) -> str:
    known = list(next(iter(rows.values())))[1:]
    body = [[name, *(cell(row[metric]) for metric in known)] for name, row in rows.items()]
    about = (
        "<p class='note'>Cosine distance, each step alone. What is fitted (whitening, the scales of int8) is fitted "
        "without labels, to what its row says; augmentation and re-ranking use the set with the query in it.</p>"
    )
    return about + pages.table(["stored per image", *map(title, known)], body)


COLOURS = """<fieldset class="colours"><legend>Colours</legend>
<label><input type="radio" name="colours" value="look" checked> of the item looked at</label>
<label><input type="radio" name="colours" value="class"> by class</label>
<label><input type="radio" name="colours" value="right"> right or wrong</label></fieldset>"""


def _map(
    data: ReportData, method: str, points: np.ndarray, places: np.ndarray, retrieved: Retrieved
) -> str:
    count = len(data.labelled)
    nearest = dict(
        zip(retrieved.rows.tolist(), data.labels[retrieved.found[:, 0]].tolist(), strict=True)
    )
    dots = (
        charts.Dot(
            item=i,
            kind=int(data.labels[i]),
            name=f"{data.class_of(i)}: {data.name(i)}",
            right=nearest[i] == data.labels[i] if i in nearest else None,
        )
        for i in points.tolist()
    )
    across, up, what = {
        "pca": ("first axis", "second axis", "PCA, the two axes of largest variance"),
        "tsne": ("", "", "t-SNE, in which only neighbourhoods mean anything"),
    }[method]
    chart = charts.scatter(
        places, dots, title=f"Map of {len(points)} embeddings by {what}", across=across, up=up
    )
    shown = (
        f"All {count} images"
        if len(points) == count
        else f"{len(points)} of {count} images, drawn at random, with all queries of the galleries"
    )
    return COLOURS + pages.figure(
        f'{chart}<p class="said" aria-live="polite">No dot is chosen.</p>',
        f"{shown}, by {what}. Of the item looked at, orange is itself, ringed its neighbours, green its class. By "
        "class, each class has a colour, and some share one. Right or wrong says whether the nearest neighbour is of "
        "the image's class: filled where it is, an open ring where it is not, grey where it is not known. A click, a "
        "tap or Enter on a dot leads to its neighbours where they are on the page.",
    )


def _classes(data: ReportData, found: ClassScores) -> str:
    if not len(found.labels):
        return "<p>No class has two images: nothing can be retrieved.</p>"
    edges = np.linspace(0, 1, 21)
    counts, _ = np.histogram(found.recall, edges)
    chart = charts.histogram(
        edges,
        [("classes", counts)],
        title="Histogram of the recall at 1 of classes",
        across="recall at 1 of a class",
        up="classes",
    )
    order = np.lexsort((found.labels, found.precision, found.recall))
    names = [data.class_names[label] for label in found.labels]

    def lines(rows: np.ndarray) -> list[list[str]]:
        return [
            [
                names[i],
                str(found.queries[i]),
                f"{found.recall[i]:.3f}",
                f"{found.precision[i]:.3f}",
            ]
            for i in rows
        ]

    head = ["class", "queries", "recall at 1", "average precision"]
    figure = pages.figure(
        chart, f"{len(names)} classes; all of them are in classes.csv beside this page."
    )
    tables = [pages.table(head, lines(order[:CLASSES]), "The weakest classes")]
    if len(order) > CLASSES:
        strongest = order[::-1][: min(CLASSES, len(order) - CLASSES)]
        tables.append(pages.table(head, lines(strongest), "The strongest classes"))
    return f'{figure}<div class="pair">{"".join(tables)}</div>'


def _write_page(
    data: ReportData,
    retrieved: Retrieved,
    heading: str,
    facts: Mapping[str, str],
    before: Sequence[tuple[str, str]],
    after: Sequence[tuple[str, str]],
    path: Path,
) -> Path:
    scored = dict(zip(retrieved.rows.tolist(), range(len(retrieved.rows)), strict=True))
    shown = {kind: retrieved.rows[queries] for kind, queries in retrieved.galleries.items()}
    start = [int(i) for queries in shown.values() for i in queries]
    listed = _walk(data, retrieved, scored, start)
    reached = [*listed, *(i for near in listed.values() for i, _ in near)]
    pictures = pages.thumbnails(reached, data.image or (lambda i: None))
    items = {}
    for i in dict.fromkeys(reached):
        note = ""
        if i in scored and not np.isnan(retrieved.scores[scored[i]]):
            note = f"average precision {retrieved.scores[scored[i]]:.3f}"
        # A distractor is of no class, not even that of other distractors; and not of an unknown one.
        label = int(data.labels[i]) if data.labels[i] >= 0 else -1 - i
        items[i] = pages.Item(data.name(i), data.class_of(i), label, listed.get(i), note)
    total = len(data.labels)
    depth = retrieved.found.shape[1]
    queries = len(retrieved.rows)
    whole = total if data.queries is None else len(data.queries)
    of = "every one was a query" if queries == whole else f"{queries} queries drawn at random"
    score = f"Average precision over the first R neighbours, at most {depth}, where R others have the class; {of}."
    galleries = [
        pages.Gallery(name, note, shown[kind])
        for kind, name, note in (
            (
                "worst",
                "Worst queries",
                f"{score} The lowest, one of a class; nearest mistakes first.",
            ),
            ("random", "Random queries", "Drawn at random among those with something to find."),
            ("best", "Best queries", "The highest average precision, one of a class."),
        )
        if len(shown[kind])
    ]
    apart = ""
    if data.queries is not None and not np.array_equal(data.queries, data.searched):
        apart = f"{whole} queries, {len(data.searched)} images searched, "
    lead = (
        f"{total} images of {len(np.unique(data.labels[data.labelled]))} classes, {apart}"
        f"{data.embeddings.shape[1]}-d embeddings, {data.distance} distance. On this page: {len(pictures)} pictures, "
        f"and the neighbours of {len(listed)} images. Click a picture to see its neighbours; a tick and a solid frame "
        "mark the query's class, a cross and a dashed frame another one."
    )
    return pages.write_page(
        path,
        title=heading,
        facts=facts,
        lead=lead,
        galleries=galleries,
        items=items,
        pictures=pictures,
        before=before,
        after=after,
    )


def _walk(
    data: ReportData, retrieved: Retrieved, scored: Mapping[int, int], start: Sequence[int]
) -> dict[int, list[tuple[int, float]]]:
    """The neighbours of the items of `start`, of these neighbours, and so on, until LISTED items have theirs."""
    listed: dict[int, list[tuple[int, float]]] = {}
    frontier = list(dict.fromkeys(start))
    while frontier:
        known = [i for i in frontier if i in scored]
        places = [scored[i] for i in known]
        far, found = retrieved.distances[places], retrieved.found[places]
        others = [i for i in frontier if i not in scored]
        if others:
            more = data.nearest(np.array(others))
            far, found = np.concatenate([far, more[0]]), np.concatenate([found, more[1]])
        near = {
            i: list(zip(ids.tolist(), away.tolist(), strict=True))
            for i, ids, away in zip([*known, *others], found, far, strict=True)
        }
        listed |= {i: near[i] for i in frontier}
        reached = dict.fromkeys(j for i in frontier for j, _ in near[i] if j not in listed)
        frontier = list(reached)[: LISTED - len(listed)]
    return listed
