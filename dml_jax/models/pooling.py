"""From what a backbone makes of an image to one vector of features."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

Pooling = Literal["token", "average", "token_average", "max", "double", "gem"]


class Parts(NamedTuple):
    """What a backbone makes of images.

    Attributes:
      parts: the features of the parts of an image, `[B, n, D]`: the patches of a transformer, or the places of a
        convolutional network's last map.
      token: those of the whole image, `[B, F]`: the class token, or what the authors pool by attention; None where
        the backbone has no such thing.
    """

    parts: Float[Array, "b n d"]
    token: Float[Array, "b f"] | None = None


def average(x: Parts) -> Float[Array, "b d"]:
    """The mean of the parts, (1 / n) sum_i x_i."""
    return x.parts.mean(1, dtype=jnp.float32)


def maximum(x: Parts) -> Float[Array, "b d"]:
    """The largest value of each feature, max_i x_i."""
    return x.parts.max(1).astype(jnp.float32)


def token(x: Parts) -> Float[Array, "b f"]:
    """The features of the whole image."""
    return jnp.asarray(x.token, jnp.float32)


class GeM(nnx.Module):
    """The generalised mean, ((1 / n) sum_i max(x_i, least)^p)^(1/p), with p = 3 at first and learned.

    It is the average at p = 1 and the maximum in the limit (Radenovic et al., TPAMI 2018, eq. 3). Features below 1e-6
    are raised to it, as a power of a negative number has no value.
    """

    LEAST = 1e-6

    def __init__(self) -> None:
        self.p = nnx.Param(jnp.float32(3.0))

    def __call__(self, x: Parts) -> Float[Array, "b d"]:
        p = self.p[...]
        powers = jnp.maximum(x.parts.astype(jnp.float32), self.LEAST) ** p
        return powers.mean(1) ** (1 / p)


# What each pooling without parameters is, and whether it reads the token, the parts.
POOLINGS: dict[str, tuple[Callable[[Parts], Array], bool, bool]] = {
    "token": (token, True, False),
    "average": (average, False, True),
    "token_average": (lambda x: jnp.concatenate([token(x), average(x)], 1), True, True),
    "max": (maximum, False, True),
    "double": (lambda x: average(x) + maximum(x), False, True),
}
