"""Small charts as SVG inside a page: their colours are the page's (classes of its style sheet), light or dark."""

import html
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 520, 280
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 46
# The line above a chart that says which series is which, and the room of a name in it.
LEGEND, NAME = 24, 225


def histogram(
    edges: np.ndarray,
    series: Sequence[tuple[str, np.ndarray]],
    *,
    title: str,
    across: str,
    up: str,
) -> str:
    """Draws outlines of one or two histograms over the same bins; the second one's is dashed.

    Args:
      edges: of the bins.
      series: (name, height of each bin); names are shown where there are two.
      title: what a reader who cannot see the chart is told.
      across: the name of the horizontal axis.
      up: the name of the vertical axis.

    Returns: an SVG element.

    >>> histogram(np.array([0, 1, 2]), [("a", np.array([3, 1]))], title="t", across="x", up="y")[:18]
    '<svg class="chart"'
    """
    top = max((float(np.max(heights)) for _, heights in series), default=0.0) or 1.0
    legend = [name for name, _ in series] if len(series) > 1 else []
    frame = _Frame(float(edges[0]), float(edges[-1]), 0.0, top, above=LEGEND * bool(legend))
    body = []
    for number, (_, heights) in enumerate(series):
        points = [(edges[0], 0.0)]
        for i, height in enumerate(heights):
            points += [(edges[i], float(height)), (edges[i + 1], float(height))]
        points.append((edges[-1], 0.0))
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
        body.append(f'<polygon class="area s{number}" points="{path}"/>')
    return frame.drawn(body, legend, title, across, up)


def line(values: np.ndarray, *, title: str, across: str, up: str) -> str:
    """Draws values by their number from 1 on, joined by a line, on an axis from 0 up.

    Args:
      values: [n].
      title: what a reader who cannot see the chart is told.
      across: the name of the horizontal axis.
      up: the name of the vertical axis.

    >>> line(np.array([3.0, 1.0]), title="t", across="x", up="y").count("<polyline")
    1
    """
    values = np.asarray(values, np.float64)
    frame = _Frame(1.0, float(max(2, len(values))), 0.0, float(values.max()) or 1.0)
    path = " ".join(f"{frame.x(i + 1):.1f},{frame.y(v):.1f}" for i, v in enumerate(values))
    return frame.drawn([f'<polyline class="line s0" points="{path}"/>'], [], title, across, up)


def rates(x: np.ndarray, y: np.ndarray, *, title: str, across: str, up: str) -> str:
    """Draws shares y over shares x, both ascending, by lines; x on a logarithmic axis, which 0 is left of.

    Args:
      x: shares from 0 to 1.
      y: shares from 0 to 1.
      title: what a reader who cannot see the chart is told.
      across: the name of the horizontal axis.
      up: the name of the vertical axis.

    >>> rates(np.array([0.0, 0.1, 1.0]), np.array([0.2, 0.5, 1.0]), title="t", across="x", up="y").count("<polyline")
    1
    """
    positive, zero = np.flatnonzero(x > 0), np.flatnonzero(x == 0)[-1:]
    left = np.floor(np.log10(x[positive[0]]) - 1e-9)
    frame = _Frame(float(left), 0.0, 0.0, 1.0)
    # What is reached at 0 is where the line begins.
    places = np.concatenate([np.full(len(zero), left), np.log10(x[positive])])
    points = zip(places, y[np.concatenate([zero, positive])], strict=True)
    path = " ".join(f"{frame.x(a):.1f},{frame.y(b):.1f}" for a, b in points)
    drawn = [f'<polyline class="line s0" points="{path}"/>']
    return frame.drawn(drawn, [], title, across, up, powers=True)


class Dot(NamedTuple):
    """What a point of a scatter chart is.

    Attributes:
      item: the item that it stands for, by which the page's script finds it.
      kind: the number of its class.
      name: what it is called.
      right: whether its nearest neighbour is of its class; None where that is not known.
    """

    item: int
    kind: int
    name: str
    right: bool | None = None


def scatter(points: np.ndarray, dots: Iterable[Dot], *, title: str, across: str, up: str) -> str:
    """Draws a dot for each row, in equal scale on both axes; the page's script lets a reader go from dot to dot.

    Args:
      points: [n, 2].
      dots: what each of them is.
      title: what a reader who cannot see the chart is told.
      across: the name of the horizontal axis.
      up: the name of the vertical axis.

    >>> scatter(np.eye(2), [Dot(0, 5, "a"), Dot(1, 6, "b")], title="t", across="x", up="y").count("<circle")
    2
    """
    low, high = points.min(axis=0), points.max(axis=0)
    middle, half = (low + high) / 2, max(float((high - low).max()), 1e-12) * 0.52
    height = WIDTH - LEFT - RIGHT + TOP + BOTTOM
    frame = _Frame(middle[0] - half, middle[0] + half, middle[1] - half, middle[1] + half, height)
    label = html.escape(f"{title}: dots, which the arrow keys lead through")
    body = [f'<g class="dots" role="listbox" tabindex="0" aria-label="{label}">']
    for (x, y), dot in zip(points, dots, strict=True):
        right = "" if dot.right is None else f' data-right="{int(dot.right)}"'
        body.append(
            f'<circle r="3" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" id="dot-{dot.item}" role="option" '
            f'aria-selected="false" data-item="{dot.item}" data-class="{dot.kind}"{right}>'
            f"<title>{html.escape(dot.name)}</title></circle>"
        )
    body.append("</g>")
    return frame.drawn(body, [], title, across, up, role="group")


class _Frame:
    """The axes of a chart, from values to places in it."""

    def __init__(
        self,
        left: float,
        right: float,
        low: float,
        high: float,
        height: int = HEIGHT,
        above: int = 0,
    ) -> None:
        self.left, self.right, self.low, self.high = left, right, low, high
        self.height, self.top = height + above, TOP + above

    def x(self, value: float) -> float:
        return LEFT + (value - self.left) / (self.right - self.left) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.height - BOTTOM - share * (self.height - BOTTOM - self.top)

    def drawn(
        self,
        body: Sequence[str],
        legend: Sequence[str],
        title: str,
        across: str,
        up: str,
        powers: bool = False,
        role: str = "img",
    ) -> str:
        """The SVG element: grid, what is drawn, axes, names. With `powers`, x is the power of ten that is written."""
        parts = [
            f'<svg class="chart" viewBox="0 0 {WIDTH} {self.height}" role="{role}" aria-label="{html.escape(title)}">'
        ]
        for value in _ticks(self.low, self.high):
            y = self.y(value)
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
            parts.append(f'<text class="up" x="{LEFT - 7}" y="{y + 4:.1f}">{value:.6g}</text>')
        ticks = _ticks(self.left, self.right)
        for value in [tick for tick in ticks if tick == round(tick)] if powers else ticks:
            x, y = self.x(value), self.height - BOTTOM
            name = 10.0**value if powers else value
            parts.append(f'<path class="axis" d="M{x:.1f} {y}v4"/>')
            parts.append(f'<text class="across" x="{x:.1f}" y="{y + 17}">{name:.6g}</text>')
        parts.append(f'<path class="axis" d="M{LEFT} {self.height - BOTTOM}H{WIDTH - RIGHT}"/>')
        parts += body
        for number, name in enumerate(legend):
            x = LEFT + NAME * number
            parts.append(f'<rect class="area s{number}" x="{x}" y="4" width="24" height="12"/>')
            parts.append(f'<text class="legend" x="{x + 31}" y="14">{html.escape(name)}</text>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(
            f'<text class="name" x="{middle}" y="{self.height - 8}">{html.escape(across)}</text>'
        )
        middle = (self.top + self.height - BOTTOM) / 2
        parts.append(
            f'<text class="name" transform="translate(13 {middle}) rotate(-90)">{html.escape(up)}</text></svg>'
        )
        return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    found = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    room = (high - low) * 1e-9
    return [float(v) for v in found if low - room <= v <= high + room]
