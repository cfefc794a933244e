"""A picture of what was retrieved: queries, their nearest neighbours, right and wrong."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dml_jax.errors import UserError
from dml_jax.report import fonts

QUERY, RIGHT, WRONG = "#444444", "#14753a", "#b3201f"
# Inches: a picture's square and the margin in it, the room for its caption and for the heading, the
# space between query and neighbours and at the sides.
SIDE, MARGIN, CAPTION, HEAD, GAP, EDGE = 0.96, 0.07, 0.17, 0.28, 0.14, 0.04
LETTERS = 16
# Before a caption, where they cover nothing; DejaVu Sans, which matplotlib brings, has both.
TICK, CROSS = "\u2713", "\u2717"


def retrieval_gallery(
    image: Callable[[int], np.ndarray | None],
    labels: Int[np.ndarray, " n"],
    neighbour_ids: Int[np.ndarray, "q k"],
    path: str | os.PathLike[str],
    *,
    query_ids: Int[np.ndarray, " q"] | None = None,
    queries: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    rows: int = 8,
    columns: int = 8,
    seed: int = 0,
) -> Path:
    """Draws rows of a query and its nearest neighbours to a PNG; returns its path.

    A neighbour of the query's class has a solid green frame and a tick before its caption, another a dashed red frame
    and a cross, so that right and wrong are told apart without colour too. Under each picture stands its class, or the
    class's number where no font has the letters.

    Args:
      image: `image(i)`, uint8 [height, width, 1, 3 or none], for a position i in `labels`; None draws a grey square.
      labels: the class of each item.
      neighbour_ids: positions in `labels`, nearest first, one row for each query.
      path: where the picture goes; missing folders are made.
      query_ids: the position in `labels` of each query; 0, 1, ... by default.
      queries: which rows of `neighbour_ids` to show, in this order; by default `rows` of them drawn
        at random.
      class_names: by label; the label itself by default.
      rows: how many queries are drawn, at most.
      columns: how many neighbours are shown, at most.
      seed: of the draw.

    Raises:
      UserError: neighbours that are not [q, k] positions in `labels`, query_ids of another length, queries that do not
        exist, no query at all.

    >>> import tempfile
    >>> grey = lambda i: np.full((8, 8), 60 * i, np.uint8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = retrieval_gallery(grey, np.array([0, 0, 1]), np.array([[1, 2]]), f"{folder}/gallery.png")
    ...     path.stat().st_size > 0
    True
    """
    labels, found = np.asarray(labels), np.asarray(neighbour_ids)
    if found.ndim != 2 or 0 in found.shape or found.dtype.kind not in "iu":
        raise UserError(
            f"neighbour_ids have shape {found.shape} and type {found.dtype}; "
            "accepted: integers [queries, neighbours]"
        )
    origin = np.arange(len(found)) if query_ids is None else np.asarray(query_ids)
    if origin.shape != found.shape[:1]:
        raise UserError(f"query_ids have shape {origin.shape}; accepted: ({len(found)},)")
    for name, ids in (("query_ids", origin), ("neighbour_ids", found)):
        if ids.min() < 0 or ids.max() >= len(labels):
            raise UserError(
                f"{name} run from {ids.min()} to {ids.max()}; accepted: 0 to {len(labels) - 1}"
            )
    if queries is None:
        shown = np.random.default_rng(seed).permutation(len(found))[:rows]
    else:
        shown = np.asarray(queries, dtype=np.int64)[:rows]
        if any(not 0 <= i < len(found) for i in shown):
            raise UserError(f"queries={list(queries)}; accepted: 0 to {len(found) - 1}")
    if not len(shown) or columns < 1:
        raise UserError(f"{len(shown)} queries by {columns} columns: there is nothing to draw")
    found = found[:, :columns]

    width = SIDE * (found.shape[1] + 1) + GAP
    height = (SIDE + CAPTION) * len(shown) + HEAD
    figure = Figure(figsize=(width + 2 * EDGE, height), dpi=200)
    FigureCanvasAgg(figure)
    page = figure.add_axes((0, 0, 1, 1), xlim=(-EDGE, width + EDGE), ylim=(0, height))
    page.set_axis_off()
    head: dict[str, Any] = {"fontsize": 8, "color": "#444444", "va": "center", "ha": "center"}
    page.text(SIDE / 2, height - HEAD / 2, "query", **head)
    page.text(
        SIDE + GAP + SIDE * found.shape[1] / 2,
        height - HEAD / 2,
        "nearest neighbours, nearest first",
        **head,
    )
    for row, i in enumerate(shown):
        bottom = height - HEAD - (row + 1) * (SIDE + CAPTION) + CAPTION
        for column, item in enumerate((origin[i], *found[i])):
            left = column * SIDE + GAP * (column > 0)
            right = None if column == 0 else bool(labels[item] == labels[origin[i]])
            _draw_image(page, image(int(item)), left, bottom, right)
            label = labels[item]
            caption = str(label if class_names is None else class_names[label])
            # A name that no font has would be boxes.
            caption = _shortened(caption if fonts.drawable(caption) else f"class {label}")
            page.text(
                left + SIDE / 2,
                bottom - 0.02,
                caption if right is None else f"{TICK if right else CROSS} {caption}",
                fontsize=6.5,
                fontfamily=fonts.families(),
                color="black" if right is None else RIGHT if right else WRONG,
                ha="center",
                va="top",
                parse_math=False,
            )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path


def _draw_image(
    page: Axes, pixels: np.ndarray | None, left: float, bottom: float, right: bool | None
) -> None:
    """One picture, fitted into its square, framed and marked as right, wrong or query (None)."""
    if pixels is None:  # a picture that is not there
        pixels = np.full((8, 8), 235, np.uint8)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    tall, wide = pixels.shape[:2]
    room = SIDE - 2 * MARGIN
    x, y = (room * side / max(tall, wide) / 2 for side in (wide, tall))
    middle = left + SIDE / 2, bottom + SIDE / 2
    box = (middle[0] - x, middle[0] + x, middle[1] - y, middle[1] + y)
    page.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=box, aspect="auto", zorder=1)
    colour = QUERY if right is None else RIGHT if right else WRONG
    frame = Rectangle(
        (box[0], box[2]),
        2 * x,
        2 * y,
        fill=False,
        edgecolor=colour,
        linewidth=1.0 if right is None else 2.2,
        linestyle=(0, (3, 1.2)) if right is False else "solid",
        zorder=2,
    )
    page.add_patch(frame)


def _shortened(caption: str) -> str:
    """Without its middle where it is too long: names of classes often differ at the end."""
    if len(caption) <= LETTERS:
        return caption
    return caption[: LETTERS // 2 - 1].rstrip() + "\u2026" + caption[-LETTERS // 2 :].lstrip()
