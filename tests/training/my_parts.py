"""One of every part that a configuration names, as a user's own module has them; copied beside the configuration."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx  # noqa: TID251  (a model of one's own)
from PIL import ImageOps

from dml_jax import data, evaluation, losses, miners, models, samplers
from dml_jax.bound import Bound
from dml_jax.evaluation import metrics
from dml_jax.parameters import NonNegativeFloat, PositiveFloat, PositiveInt
from dml_jax.selection import Selection


@losses.pair_loss(distance="cosine")
def gap(sims, pos, neg, *, lower: float = 0.8, upper: float = 0.3):
    return {
        "positive": (jax.nn.relu(lower - sims) ** 2, pos),
        "negative": (jax.nn.relu(sims - upper) ** 2, neg),
    }


@miners.custom(triplets=False)
def nearer_than(sims, pos, neg, *, radius: PositiveFloat = 1.0):
    return Selection(pos, jnp.where(sims < radius, neg, jnp.zeros_like(neg)))


@samplers.custom
def in_turn(inputs, *, stride: PositiveInt = 1):
    places = stride * np.arange(inputs.steps * inputs.batch_size) % inputs.images
    return places.reshape(inputs.steps, inputs.batch_size)


class Perceptron(nnx.Module):
    features, channels = 6, 1

    def __init__(self, *, image_size, dtype, rngs):
        self.layer = nnx.Linear(image_size**2, self.features, dtype=dtype, rngs=rngs)

    def __call__(self, images, *, train, key):
        return jax.nn.relu(self.layer(images.reshape(len(images), -1)))


def perceptron(*, image_size=8, **options):
    return models.Model("perceptron", Perceptron, image_size, **options)


def stripes(split, *, size: int = 8, images: int = 8):
    widths = {"train": (1, 2, 3, 4), "val": (5, 6), "test": (7, 8)}[split]
    labels = np.repeat(np.arange(len(widths)), images)
    rng = np.random.default_rng(widths[0])
    columns = np.arange(size) + rng.integers(0, 16, (len(labels), 1))
    pixels = (255 * (columns // np.array(widths)[labels][:, None] % 2)).astype(np.uint8)
    pixels = np.repeat(pixels[:, None, :, None], size, axis=1)
    names = [f"{widths[k]} wide, {i}" for i, k in enumerate(labels)]
    return data.Images(labels, tuple(map(str, widths)), names, data.ArrayReader(pixels))


def _inverted(image, rng, *, p):
    return ImageOps.invert(image) if rng.random() < p else image


def invert(p: NonNegativeFloat = 0.5):
    return Bound(_inverted, p=p)


@metrics.of_ranks
def mean_precision(hits, relevant, *, depth: PositiveInt = 2):
    found = np.asarray(evaluation.precision_at_k(hits, relevant, k=1))
    return (found + np.asarray(evaluation.precision_at_k(hits, relevant, k=depth))) / 2


def plain(scale: float = 1.0):
    return optax.scale(scale)


def halving(every: int = 1):
    return lambda step, length: 0.5 ** (step // every)
