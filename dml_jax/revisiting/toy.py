"""The toy problem of rho-regularisation (Roth et al., ICML 2020): `dml toy --workdir=DIR`.

Four classes are pieces of the diagonal of a square, four test classes pieces of a vertical and of a horizontal line;
a small network puts them on a circle. The claim is that a network that is trained with rho-regularisation, where some
negatives are replaced by samples of the anchor's own class, uses both dimensions more evenly.

`--seeds=N` trains N networks by each rule; the picture shows the first.
"""

import argparse
import itertools
import math
import pathlib
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dml_jax import command_line, csv_files, distances, evaluation, losses, miners, report, streams
from dml_jax.bound import Bound
from dml_jax.console import log
from dml_jax.pairwise import Block
from dml_jax.parameters import Fraction, PositiveInt, check
from dml_jax.report.curves import COLOURS
from dml_jax.selection import Selection

Point = tuple[float, float]
POINTS_PER_LINE = 15  # drawn from the 100 evenly spaced ones that a line has
TRAIN = [((x, x), (x + 0.2, x + 0.2)) for x in (0.1, 0.35, 0.6, 0.85)]
TEST = [
    ((0.2, 0.2), (0.2, 0.4)),
    ((0.2, 0.55), (0.2, 0.85)),
    ((0.4, 0.2), (0.6, 0.2)),
    ((0.7, 0.2), (0.9, 0.2)),
]
WIDTHS = (2, 30, 30, 2)
BATCH, STEPS, RATE = 24, 200, 0.03


class LabelledPoints(NamedTuple):
    """Points of the plane with their classes.

    Attributes:
      coordinates: (x, y) of each point.
      labels: the class of each point.
    """

    coordinates: Float[np.ndarray, "n 2"]
    labels: Int[np.ndarray, " n"]


def switch_negatives(block: Block, *, p_switch: float) -> Selection:
    """Chooses the negatives of all triplets, each replaced by the triplet's positive with probability p_switch.

    The pair of a positive is not kept, as in the figure's code; in the miner `rho_distance`, which draws one triplet
    for each anchor, it is. It lists all triplets, so that it is for small batches.

    Args:
      block: the anchors with their pairs and their random keys.
      p_switch: the probability, from 0 to 1.
    """
    pos, neg = block.related.pos, block.related.neg
    triplets = (pos > 0)[:, :, None] & (neg > 0)[:, None, :]

    def flip_coins(key: Key[Array, ""]) -> Bool[Array, "n n"]:
        return jax.random.bernoulli(key, p_switch, triplets.shape[1:])

    assert block.keys is not None  # the miner draws
    coins = jax.vmap(flip_coins)(block.keys)
    kept = jnp.sum(triplets & ~coins, 1) + jnp.sum(triplets & coins, 2)
    return Selection(jnp.zeros(pos.shape), kept.astype(jnp.float32))


def rules(p_switch: float) -> dict[str, losses.Loss]:
    """Makes the losses that the networks are trained with, by the rows' names in the table.

    Args:
      p_switch: of the row "regularised".
    """

    def switching(p: float) -> miners.Miner:
        select = Bound(switch_negatives, p_switch=p)
        return miners.Miner("switch_negatives", select, distances.lp(), triplets=False, draws=True)

    chosen = {
        "base": miners.triplet_margin(margin=math.inf),
        "regularised": switching(p_switch),
        "regularised, p_switch = 0": switching(0.0),
        "distance": miners.distance(),
        "rho_distance": miners.rho_distance(p_switch=0.2),
        "rho_distance, p_switch = 0.4": miners.rho_distance(p_switch=0.4),
    }
    loss = partial(losses.contrastive, pos_margin=0.0, neg_margin=0.1, reducer="mean")
    return {name: loss(miner=miner) for name, miner in chosen.items()}


def points(lines: Sequence[tuple[Point, Point]], seed: int) -> LabelledPoints:
    """Draws some of the evenly spaced points of each line, without replacement.

    Args:
      lines: the two ends of each line; a line is a class.
      seed: of the draw.

    Example:
      >>> points(TRAIN, 0).labels.tolist() == [0] * 15 + [1] * 15 + [2] * 15 + [3] * 15
      True
    """
    rng = streams.generator("toy_points", seed, epoch=len(lines))
    drawn = [
        np.linspace(a, b, 100)[rng.choice(100, POINTS_PER_LINE, replace=False)] for a, b in lines
    ]
    return LabelledPoints(np.concatenate(drawn), np.repeat(np.arange(len(lines)), POINTS_PER_LINE))


def init(key: Array) -> list[dict[str, Array]]:
    """Draws the layers of a network, with weights and biases uniform in +-1 / sqrt(inputs).

    Args:
      key: of the draw.
    """
    layers = []
    for i, (inputs, outputs) in enumerate(itertools.pairwise(WIDTHS)):
        draw = partial(
            jax.random.uniform, minval=-(inputs**-0.5), maxval=inputs**-0.5, dtype=jnp.float32
        )
        weights, biases = jax.random.split(jax.random.fold_in(key, i))
        layers.append({"w": draw(weights, (inputs, outputs)), "b": draw(biases, (outputs,))})
    return layers


def embed(
    layers: list[dict[str, Array]], coordinates: Float[ArrayLike, "n 2"]
) -> Float[Array, "n 2"]:
    """Maps points of the plane to the unit circle.

    Args:
      layers: the network.
      coordinates: of the points.
    """
    x = jnp.asarray(coordinates, jnp.float32)
    for i, layer in enumerate(layers):
        x = x @ layer["w"] + layer["b"][None, :]
        x = jax.nn.relu(x) if i < len(layers) - 1 else x
    return distances.normalize(x)


@partial(jax.jit, static_argnums=0)
def fit(
    loss: losses.Loss,
    key: Array,
    coordinates: Float[ArrayLike, "n 2"],
    labels: Int[ArrayLike, " n"],
) -> list[dict[str, Array]]:
    """Trains a network by 200 steps of Adam on batches of 24 points, drawn without replacement.

    Args:
      loss: the loss with its miner.
      key: of initial weights, batches and mining.
      coordinates: of the training points.
      labels: of the training points.

    Returns:
      The layers of the network.
    """
    coordinates, labels = jnp.asarray(coordinates, jnp.float32), jnp.asarray(labels)
    optimizer = optax.adam(RATE)
    params = init(jax.random.fold_in(key, 0))

    def step(state: tuple[Any, Any], key: Array) -> tuple[tuple[Any, Any], None]:
        params, moments = state
        drawing, mining = jax.random.split(key)
        batch = jax.random.choice(drawing, labels.shape[0], (BATCH,), replace=False)

        def value(params: Any) -> Array:
            embeddings = embed(params, coordinates[batch])
            return loss.apply({}, embeddings, labels[batch], key=mining)[0].compute()

        updates, moments = optimizer.update(jax.grad(value)(params), moments)
        return (optax.apply_updates(params, updates), moments), None

    keys = jax.random.split(jax.random.fold_in(key, 1), STEPS)
    return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]


def spectrum(embedded: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, " 2"]:
    """Returns the singular values over their sum, the larger first.

    Args:
      embedded: the embeddings.

    Example:
      >>> spectrum(np.array([[3.0, 0.0], [0.0, 1.0]]))
      array([0.75, 0.25])
    """
    values = np.linalg.svd(np.asarray(embedded, np.float64), compute_uv=False)
    values /= values.sum()
    return values


def toy(
    seeds: int, p_switch: float, workdir: pathlib.Path
) -> dict[str, Float[np.ndarray, "seeds 2"]]:
    """Trains by every rule, prints the table, draws the figure, and returns the spectra by rule.

    Args:
      seeds: networks by each rule.
      p_switch: of the rule "regularised".
      workdir: the folder of the results.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    spectra_by_seed: dict[str, list[np.ndarray]] = {}
    recalls: dict[str, list[float]] = {}
    shown: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for seed in range(seeds):
        train, test = points(TRAIN, seed), points(TEST, seed)
        for name, loss in rules(p_switch).items():
            layers = fit(loss, jax.random.key(seed), train.coordinates, train.labels)
            embedded, unseen = (np.asarray(embed(layers, x.coordinates)) for x in (train, test))
            spectra_by_seed.setdefault(name, []).append(spectrum(embedded))
            score = evaluation.evaluate_embeddings(unseen, test.labels, metrics=["recall_at_1"])
            recalls.setdefault(name, []).append(score["recall_at_1"])
            if seed == 0:
                shown[name] = (embedded, unseen)
    spectra = {name: np.stack(rows) for name, rows in spectra_by_seed.items()}
    _report(spectra, recalls, workdir / "spectra.csv")
    panels = {name: shown[name] for name in ("base", "regularised")}
    first = {name: spectra[name][0] for name in panels}
    draw(points(TRAIN, 0), points(TEST, 0), panels, first, workdir / "toy.png")
    log(f"written: {workdir / 'toy.png'}, {workdir / 'spectra.csv'}")
    return spectra


def _report(
    spectra: Mapping[str, np.ndarray], recalls: Mapping[str, list[float]], path: pathlib.Path
) -> None:
    """Prints the table of means over the seeds, and writes the values of each seed to a CSV file."""
    table = {}
    for name, rows in spectra.items():
        control = "distance" if name.startswith("rho") else "base"
        flatter = (rows[:, 1] > spectra[control][:, 1]).mean()
        table[name] = {
            "1st": rows[:, 0].mean(),
            "2nd": rows[:, 1].mean(),
            "2nd, least": rows[:, 1].min(),
            "2nd, most": rows[:, 1].max(),
            "flatter": math.nan if name in ("base", "distance") else flatter,
            "recall_at_1": float(np.mean(recalls[name])),
        }
    log(
        f"Singular values over their sum, means of {len(rows)} seeds; in what share of them the spectrum\n"
        "is flatter than that of 'base' ('distance' for 'rho_distance'); recall on the test classes"
    )
    log(report.format_table(table, list(table["base"])))
    by_seed = (
        {"rule": name, "seed": seed, "first": a, "second": b, "recall_at_1": recalls[name][seed]}
        for name, rows in spectra.items()
        for seed, (a, b) in enumerate(rows)
    )
    csv_files.write_rows(path, ("rule", "seed", "first", "second", "recall_at_1"), by_seed)


def draw(
    train: LabelledPoints,
    test: LabelledPoints,
    embedded: Mapping[str, tuple[np.ndarray, np.ndarray]],
    spectra: Mapping[str, np.ndarray],
    path: pathlib.Path,
) -> None:
    """Draws four panels: the data, the embeddings of two networks, their spectra.

    Args:
      train: the training points.
      test: the points of the test classes.
      embedded: the embeddings of both by the name of a rule.
      spectra: the spectra by the name of a rule.
      path: of the picture.
    """
    figure = Figure(figsize=(10.0, 2.7), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    data, *circles, bars = figure.subplots(1, 2 + len(embedded))
    _scatter(data, train, train.coordinates, "train")
    _scatter(data, test, test.coordinates, "test")
    data.set_title("data", fontsize=9)
    handles = data.get_legend_handles_labels()
    angle = np.linspace(0, 2 * np.pi, 200)
    for panel, (name, (on_train, on_test)) in zip(circles, embedded.items(), strict=True):
        panel.plot(np.cos(angle), np.sin(angle), "--", color="0.7", linewidth=0.7)
        _scatter(panel, train, on_train, "train")
        _scatter(panel, test, on_test, "test")
        panel.set_aspect("equal")
        panel.set_title(f"{name} embedding", fontsize=9)
    for i, (name, values) in enumerate(spectra.items()):
        bars.bar(np.arange(2) + 2.4 * i, values, width=0.9, color=COLOURS[i], alpha=0.6, label=name)
    bars.set_xticks([0, 1, 2.4, 3.4], ["1", "2", "1", "2"])
    bars.set_title("singular values", fontsize=9)
    bars.legend(fontsize=7, frameon=False)
    for panel in (data, *circles, bars):
        panel.tick_params(labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    figure.legend(*handles, loc="outside lower center", ncols=8, fontsize=7, frameon=False)
    figure.savefig(path, format="png")


def _scatter(
    panel: Any, points: LabelledPoints, coordinates: Float[np.ndarray, "n 2"], split: str
) -> None:
    """Draws the points of each class: circles in shades of blue for training, marks of their own for tests."""
    for label in np.unique(points.labels):
        style = (
            dict(marker="o", color=(0.15 * label, 0.3 + 0.15 * label, 0.75 + 0.06 * label))
            if split == "train"
            else dict(marker="xx^^"[label], color=COLOURS[(1, 6, 4, 3)[label]])
        )
        x, y = coordinates[points.labels == label].T
        panel.scatter(x, y, s=14, linewidths=0.9, label=f"{split} {label + 1}", **style)


def add_options(parser: command_line.Parser) -> None:
    """Adds the options of this command.

    Args:
      parser: of the command.
    """
    parser.add_workdir("the folder of the results")
    parser.add_argument("--seeds", type=int, default=10, help="networks by each rule (10)")
    parser.add_argument(
        "--p_switch", type=float, default=0.001, help="of the rule 'regularised' (0.001)"
    )


def main(options: argparse.Namespace) -> None:
    """Runs the command.

    Args:
      options: those of the command line.

    Raises:
      UserError: an option out of range.
    """
    check("--seeds", PositiveInt, options.seeds)
    check("--p_switch", Fraction, options.p_switch)
    toy(options.seeds, options.p_switch, pathlib.Path(options.workdir))


if __name__ == "__main__":
    command_line.run(sys.modules[__name__])
