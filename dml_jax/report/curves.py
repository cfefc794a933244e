"""Training curves as a figure for a paper."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dml_jax.csv_files import read_rows
from dml_jax.errors import UserError
from dml_jax.evaluation.metrics import table as known
from dml_jax.report.tables import without_repeats

# Okabe and Ito's colours, told apart by colour-blind readers, each with a mark of its own.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKS = ("o", "s", "^", "D", "v", "P", "X")
SPLITS = {"val": "validation", "test": "test"}
# The smoothed loss is the mean over this share of the steps.
WINDOW = 0.03


def training_curves(
    rows: Iterable[Mapping[str, object]] | str | os.PathLike[str], path: str | os.PathLike[str]
) -> Path:
    """Draws the loss by step and the validation metrics by epoch to a PNG; returns its path.

    Args:
      rows: dicts, or a CSV file of them. `step` and `loss` make the left panel (thin: each step;
        thick: a running mean); `epoch` with columns `val/NAME` or `test/NAME` make the right one. A
        row may hold one or both; empty cells are passed over. Without metrics there is one panel.
      path: where the picture goes; missing folders are made.

    Raises:
      UserError: no row has a step and a loss.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = training_curves([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}], f"{folder}/curves.png")
    ...     path.name
    'curves.png'
    """
    if isinstance(rows, str | os.PathLike):
        origin = str(rows)
        table: list[Mapping[str, object]] = list(read_rows(rows))
    else:
        origin, table = "the rows given", list(rows)
    losses = _series(table, "step", "loss")
    if not len(losses):
        raise UserError(f"{origin}: no row has both 'step' and 'loss'; nothing to draw")
    columns = dict.fromkeys(
        name for row in table for name in row if str(name).partition("/")[0] in SPLITS
    )
    curves = {name: _series(table, "epoch", name) for name in columns}
    curves = {name: points for name, points in curves.items() if len(points)}
    last = {name: points[-1, 1] for name, points in curves.items()}
    curves = {name: curves[name] for name in without_repeats(list(curves), {"": last})}

    figure = Figure(figsize=(7.0 if curves else 3.6, 2.7), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2 if curves else 1, squeeze=False)[0]
    _draw_loss(panels[0], losses)
    if curves:
        _draw_metrics(panels[1], curves)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", linewidth=0.4, alpha=0.5)
        panel.tick_params(labelsize=8)
        panel.set_axisbelow(True)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path


def _draw_loss(panel: Axes, losses: np.ndarray) -> None:
    steps, values = losses.T
    window = max(1, round(len(values) * WINDOW))
    if window > 1:
        panel.plot(steps, values, color=COLOURS[0], linewidth=0.5, alpha=0.35)
    panel.plot(
        steps,
        _running_mean(values, window),
        color=COLOURS[0],
        linewidth=1.6,
        marker="o" if len(steps) == 1 else None,
    )
    if len(values) > 50:
        # One early spike would flatten everything after it.
        low, high = values.min(), np.quantile(values, 0.995)
        panel.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low) or None)
    if len(steps) == 1:
        panel.set_xlim(steps[0] - 1, steps[0] + 1)
    panel.set_xlabel("step", fontsize=9)
    panel.set_ylabel("training loss", fontsize=9)
    panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _draw_metrics(panel: Axes, curves: Mapping[str, np.ndarray]) -> None:
    splits = list(dict.fromkeys(name.partition("/")[0] for name in curves))
    for i, (name, points) in enumerate(curves.items()):
        split, _, metric = name.partition("/")
        panel.plot(
            *points.T,
            color=COLOURS[i % len(COLOURS)],
            marker=MARKS[i % len(MARKS)],
            markersize=3.5,
            linewidth=1.3,
            label=_title(metric) + (f", {split}" if len(splits) > 1 else ""),
        )
    panel.set_xlabel("epoch", fontsize=9)
    panel.set_ylabel(" and ".join(SPLITS[s] for s in splits), fontsize=9)
    epochs = sorted({x for points in curves.values() for x in points[:, 0]})
    if len(epochs) == 1:
        # Around a single point the axis would go by thousandths of an epoch.
        panel.set_xlim(epochs[0] - 1, epochs[0] + 1)
        values = np.concatenate([points[:, 1] for points in curves.values()])
        if values.min() >= 0 and values.max() <= 1:  # shares
            panel.set_ylim(-0.02, 1.02)
    panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    panel.margins(y=0.08)
    # Beside the panel: inside, it would lie on one of the curves.
    panel.legend(
        fontsize=7.5, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=1.6
    )


def _series(table: Sequence[Mapping[str, object]], x: str, y: str) -> np.ndarray:
    """The rows that hold both, as an array [n, 2] in the order of x."""
    points = [(row.get(x), row.get(y)) for row in table]
    pairs = [(float(str(a)), float(str(b))) for a, b in points if _given(a) and _given(b)]
    return np.array(sorted(pairs, key=lambda pair: pair[0])).reshape(-1, 2)


def _given(value: object) -> bool:
    if value is None or value == "":
        return False
    return math.isfinite(float(str(value)))


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean over up to `window` values around each; fewer at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    first = np.maximum(0, at - (window - 1) // 2)
    last = np.minimum(len(values), at + window // 2 + 1)
    return (sums[last] - sums[first]) / (last - first)


def _title(name: str) -> str:
    try:
        return known.get(name).title
    except UserError:
        return name.replace("_", " ")
