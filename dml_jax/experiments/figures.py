"""Figures of a study, as PNG and PDF: each kind of `study.Figure`."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from dml_jax.errors import UserError
from dml_jax.experiments.groups import Group, by_values
from dml_jax.experiments.results import value
from dml_jax.experiments.statistics import correlation
from dml_jax.experiments.study import Figure
from dml_jax.experiments.tables import title

# Okabe and Ito's, which readers with any colour vision tell apart; then marks and dashes do.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKS = "os^Dv*PX<>"
SIZE = 3.4


def draw(figure: Figure, groups: Sequence[Group], folder: pathlib.Path) -> list[pathlib.Path]:
    """Draws a figure to NAME.png and NAME.pdf; returns their paths, none where no cell of it is finished.

    Args:
      figure: what it is.
      groups: of the study.
      folder: where it goes.

    Raises:
      UserError: two groups have the same place in it.
    """
    kept = [group for group in groups if group.matches(figure.where) and group.results]
    if not kept:
        return []
    panels = (
        list(dict.fromkeys(g.factors.get(figure.panels) for g in kept)) if figure.panels else [None]
    )
    canvas = Canvas(figsize=(SIZE * len(panels) + 1.2, 2.9), dpi=200, layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.subplots(1, len(panels), squeeze=False)[0]
    for number, (axis, panel) in enumerate(zip(axes, panels, strict=True)):
        inside = [g for g in kept if not figure.panels or g.factors.get(figure.panels) == panel]
        KINDS[figure.kind](figure, inside, axis)
        if panel is not None:
            axis.set_title(str(panel), fontsize=9)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
        if number and axis.get_legend() is not None and number < len(panels) - 1:
            axis.get_legend().remove()
    if figure.title:
        canvas.suptitle(figure.title, fontsize=10)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{figure.name}.{kind}" for kind in ("png", "pdf")]
    for file in files:
        canvas.savefig(file)
    return files


def _lines(figure: Figure, groups: Sequence[Group], axis: Axes) -> None:
    name = _one(figure)
    what = f"figure {figure.name!r}"
    found = (
        by_values(groups, what, figure.lines, figure.x)
        if figure.lines
        else by_values(groups, what, figure.x)
    )
    lines = list(dict.fromkeys(key[0] for key in found)) if figure.lines else [None]
    places = _places(list(dict.fromkeys(key[-1] for key in found)))
    for number, line in enumerate(lines):
        points = [
            (places[k[-1]], g.summary(name))
            for k, g in found.items()
            if not figure.lines or k[0] == line
        ]
        points = sorted((x, s) for x, s in points if s.by_seed)
        x = [x for x, _ in points]
        mean = np.array([s.mean for _, s in points])
        spread = np.nan_to_num([s.deviation for _, s in points])
        style = "--" if line in figure.dashed else "-"
        colour = COLOURS[number % len(COLOURS)]
        axis.plot(
            x,
            mean,
            style,
            color=colour,
            marker=MARKS[number % len(MARKS)],
            markersize=3.5,
            lw=1.2,
            label=str(line),
        )
        axis.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.15, lw=0)
    _name_places(axis, places, figure.log_x)
    axis.set_xlabel(figure.x, fontsize=8)
    axis.set_ylabel(title(name), fontsize=8)
    if figure.lines:
        _legend(axis)


def _places(values: Sequence[Any]) -> dict[Any, float]:
    """Returns where values lie on an axis: numbers at themselves, others one after the other."""
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return {v: float(v) for v in values}
    return {v: float(i) for i, v in enumerate(values)}


def _name_places(axis: Axes, places: dict[Any, float], log: bool) -> None:
    if log:
        axis.set_xscale("log")
    axis.set_xticks(list(places.values()), [str(v) for v in places])
    axis.minorticks_off()


def _bars(figure: Figure, groups: Sequence[Group], axis: Axes) -> None:
    name = _one(figure)
    found = by_values(groups, f"figure {figure.name!r}", figure.x)
    bars = sorted(
        ((g.summary(name), str(key[0])) for key, g in found.items()), key=lambda bar: bar[0].mean
    )
    bars = [(s, called) for s, called in bars if s.by_seed]
    axis.barh(
        range(len(bars)),
        [s.mean for s, _ in bars],
        xerr=np.nan_to_num([s.deviation for s, _ in bars]),
        color=[
            COLOURS[1] if called in map(str, figure.dashed) else COLOURS[0] for _, called in bars
        ],
        error_kw={"lw": 0.8},
    )
    axis.set_yticks(range(len(bars)), [called for _, called in bars])
    axis.set_xlabel(title(name), fontsize=8)
    means = [s.mean for s, _ in bars]
    apart = max(means) - min(means)
    # From zero, unless all bars would look alike.
    axis.set_xlim(
        left=0 if apart > 0.2 * max(map(abs, means)) or not apart else min(means) - 0.3 * apart
    )


def _scatter(figure: Figure, groups: Sequence[Group], axis: Axes) -> None:
    name = _one(figure)
    points = [(g, g.summary(figure.x), g.summary(name)) for g in groups]
    points = [(g, x, y) for g, x, y in points if x.by_seed and y.by_seed]
    for group, x, y in points:
        called = str(group.factors.get(figure.lines)) if figure.lines else group.name
        colour = COLOURS[1] if called in map(str, figure.dashed) else COLOURS[0]
        spread = {"xerr": np.nan_to_num(x.deviation), "yerr": np.nan_to_num(y.deviation)}
        axis.errorbar(x.mean, y.mean, **spread, fmt="o", color=colour, markersize=3.5, lw=0.7)
        axis.annotate(
            called, (x.mean, y.mean), fontsize=5, xytext=(2, 2), textcoords="offset points"
        )
    a, b = np.array([(x.mean, y.mean) for _, x, y in points]).reshape(-1, 2).T
    found = correlation(list(a), list(b))
    if np.isfinite(found.r):
        slope, start = np.polyfit(a, b, 1)
        ends = np.array([a.min(), a.max()])
        axis.plot(ends, slope * ends + start, color="#999999", lw=0.8, zorder=0)
        interval = "" if np.isnan(found.low) else f" ({found.low:.2f} to {found.high:.2f})"
        axis.set_title(f"r = {found.r:.2f}{interval}", fontsize=7)
    axis.set_xlabel(title(figure.x), fontsize=8)
    axis.set_ylabel(title(name), fontsize=8)


def _matrix(figure: Figure, groups: Sequence[Group], axis: Axes) -> None:
    names = (figure.y,) if isinstance(figure.y, str) else figure.y
    means = [[g.summary(name).mean for g in groups] for name in names]
    found = np.array([[correlation(a, b).r for b in means] for a in means])
    axis.imshow(found, cmap="plasma", vmin=0, vmax=1)
    called = [title(name) for name in names]
    axis.set_xticks(range(len(names)), called, rotation=45, ha="right")
    axis.set_yticks(range(len(names)), called)
    for (row, column), r in np.ndenumerate(found):
        dark = not np.isfinite(r) or r < 0.6
        text = "-" if np.isnan(r) else f"{r:.2f}"
        axis.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            fontsize=6,
            color="white" if dark else "black",
        )


def _curves(figure: Figure, groups: Sequence[Group], axis: Axes) -> None:
    name = _one(figure)
    for number, group in enumerate(groups):
        by_epoch: dict[float, list[float]] = {}
        for result in group.results:
            for row in result.epochs:
                if name in row and "epoch" in row:
                    by_epoch.setdefault(row["epoch"], []).append(row[name])
        epochs = sorted(by_epoch)
        called = str(group.factors.get(figure.lines)) if figure.lines else group.name
        style = "--" if called in map(str, figure.dashed) else "-"
        means = [float(np.mean(by_epoch[e])) for e in epochs]
        axis.plot(epochs, means, style, color=COLOURS[number % len(COLOURS)], lw=1.1, label=called)
    axis.set_xlabel("epoch", fontsize=8)
    axis.set_ylabel(title(name), fontsize=8)
    _legend(axis)


def _spectra(figure: Figure, groups: Sequence[Group], axis: Axes) -> None:
    """`y` names the values up to their number: "test/singular_value" stands for test/singular_value_1 and so on."""
    begin = _one(figure) + "_"
    for number, group in enumerate(groups):
        if not group.results:
            continue
        names = [
            n
            for n in group.results[0].final
            if n.startswith(begin) and n.removeprefix(begin).isdecimal()
        ]
        if not names:
            known = ", ".join(sorted(group.results[0].final)[:5])
            raise UserError(
                f"figure {figure.name!r}: {group.name} has no values {begin}1, {begin}2, ...; it has {known}"
            )
        names.sort(key=lambda n: int(n.removeprefix(begin)))
        means = [float(np.mean([value(r, n) for r in group.results])) for n in names]
        called = str(group.factors.get(figure.lines)) if figure.lines else group.name
        axis.plot(
            range(1, len(means) + 1),
            means,
            color=COLOURS[number % len(COLOURS)],
            lw=1.1,
            label=called,
        )
    axis.set_yscale("log")
    axis.set_xlabel("number of the singular value", fontsize=8)
    axis.set_ylabel("share of their sum", fontsize=8)
    _legend(axis)


def _one(figure: Figure) -> str:
    if not isinstance(figure.y, str):
        raise UserError(
            f"figure {figure.name!r} of kind {figure.kind!r} has y={figure.y!r}; one value is accepted"
        )
    return figure.y


def _legend(axis: Axes) -> None:
    axis.legend(
        fontsize=6, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=1.8
    )


KINDS: dict[str, Callable[[Figure, Sequence[Group], Axes], None]] = {
    "lines": _lines,
    "bars": _bars,
    "scatter": _scatter,
    "matrix": _matrix,
    "curves": _curves,
    "spectra": _spectra,
}
