"""Draws the pictures of the catalogue of losses: the value of a loss against the similarity of one pair.

    make pictures

An anchor has one positive and one negative. The solid line moves the positive from the opposite of the anchor to the
anchor itself while the negative stays at cosine 0.5; the dashed line moves the negative while the positive stays at
0.5. Of a loss against class weights the positive is the weight of the anchor's class, and the negative that of the
one other class. Losses whose value is one of whole batches, or is set by a loss inside them, have no picture.
"""

import pathlib

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np

from dml_jax import losses

OUT = pathlib.Path(__file__).resolve().parents[1] / "assets" / "losses"
FIXED = 0.5
GRID = np.linspace(-0.99, 0.99, 100)
# Required hyper-parameters; the pair of a loss whose draw or state needs a batch is in LEFT_OUT.
HYPER = {"ranked_list": {"margin": 0.4, "Tn": 10.0}}
LEFT_OUT = {
    "cross_batch_memory": "the loss inside it",
    "partial_fc": "the loss inside it",
    "dynamic_soft_margin": "its histogram is of the triplets of a batch",
    "generic_pair": "the kernel is the user's own",
    "happier": "it reads a hierarchy",
    "histogram": "a value of the distributions of a batch",
    "intra_pair_variance": "a variance of several pairs",
    "manifold": "a value of the graph of a batch",
    "multiple": "the losses inside it",
    "n_pairs": "it needs two classes with pairs",
    "revisiting_adversarial_separation": "it compares two views",
    "revisiting_histogram": "a value of the distributions of a batch",
    "self_supervised": "the loss inside it",
    "vic_reg": "it compares two views",
}
# Losses that take no references see a batch of the anchor, its positive and a negative.
WHOLE_BATCH = {"fast_ap", "instance", "lifted_structure"}


def main() -> None:
    plt.switch_backend("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "dml_jax", "svg.fonttype": "none", "font.size": 8}
    OUT.mkdir(parents=True, exist_ok=True)
    for name in losses.available():
        if name not in LEFT_OUT:
            draw(name, *values(name))


def values(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the value of a loss at each similarity of the positive, and at each one of the negative."""
    loss = losses.get(name, **HYPER.get(name, {}))
    variables = loss.init(jax.random.key(0), 2, 3)

    def value(positive: float, negative: float) -> float:
        anchor, others = points(positive, negative)
        state, kwargs = variables, {}
        if "weights" in variables.get("params", {}):
            # Every center of a class is at the same place.
            shape = variables["params"]["weights"].shape
            weights = jnp.broadcast_to(others.reshape(2, *[1] * (len(shape) - 2), 3), shape)
            state = {**variables, "params": {**variables["params"], "weights": weights}}
            x, y = anchor, jnp.array([0])
        elif name in WHOLE_BATCH:
            x, y = jnp.concatenate([anchor, others]), jnp.array([0, 0, 1])
        else:
            x, y = anchor, jnp.array([0])
            kwargs = {"ref_embeddings": others, "ref_labels": jnp.array([0, 1])}
        mean, _ = loss.apply(state, x, y, key=jax.random.key(1), **kwargs)
        return float(mean.compute())

    return (
        np.array([value(s, FIXED) for s in GRID]),
        np.array([value(FIXED, s) for s in GRID]),
    )


def points(positive: float, negative: float) -> tuple[jax.Array, jax.Array]:
    """An anchor, and the two others at these cosines of it and otherwise at right angles."""
    others = [
        [positive, np.sqrt(1 - positive**2), 0.0],
        [negative, 0.0, np.sqrt(1 - negative**2)],
    ]
    return jnp.array([[1.0, 0.0, 0.0]]), jnp.array(others)


def draw(name: str, positive: np.ndarray, negative: np.ndarray) -> None:
    figure, axes = plt.subplots(figsize=(3.0, 2.1), layout="constrained")
    axes.plot(GRID, positive, color="#0072b2", label="of the positive")
    axes.plot(GRID, negative, color="#d55e00", linestyle="--", label="of the negative")
    axes.set(xlabel="cosine similarity with the anchor", ylabel="loss", xlim=(-1, 1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, handlelength=1.6)
    figure.savefig(OUT / f"{name}.svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
