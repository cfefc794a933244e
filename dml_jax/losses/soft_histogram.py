"""Soft histograms: each value is shared by its two nearest nodes."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dml_jax.linear import linear_call
from dml_jax.losses.kernels import Mask, Sims

# What a bin gives to its lower and to its upper node, for every bin.
Shares = tuple[tuple[float, ...], tuple[float, ...]]


@partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4, 5))
def soft_histogram(
    values: Sims,
    weights: Mask,
    low: float,
    width: float,
    count: int,
    shares: Shares | None = None,
) -> Float[Array, "a r"]:
    """Returns sum_j w_j [1 - |v_j - node_r| / width]+ of each row, for `count` nodes from `low`, `width` apart.

    A value is shared by its two nearest nodes. One pass over the values for each node, which adds in a
    fixed order (a scatter on a GPU does not) and holds no `[a, n, r]` array; the derivative with respect
    to the values is a lookup. Weights are constants. `shares` are factors on what the values of each of the
    count - 1 bins give to the bin's two nodes (None: 1).
    """
    nodes = low + width * jnp.arange(count, dtype=values.dtype)
    # The shares of each node, of the bins above and below it; the ends have no bin on one side.
    lower, upper = ((1.0,) * (count - 1),) * 2 if shares is None else shares
    factors = jnp.asarray([(*lower, 1.0), (1.0, *upper)], values.dtype)

    def at(node: Array, above: Array, below: Array) -> Array:
        share = jnp.where(values < node, below, above) if shares else 1
        return jnp.sum(weights * share * jax.nn.relu(1 - jnp.abs(values - node) / width), -1)

    return jax.lax.map(lambda x: at(*x), (nodes, *factors)).T


@soft_histogram.defjvp
def _soft_histogram_jvp(
    low: float, width: float, count: int, shares: Any, primals: Any, tangents: Any
) -> tuple[Array, Array]:
    how: dict[str, Any] = dict(low=low, width=width, count=count, shares=shares)
    forward, backward = partial(_histogram_slopes, **how), partial(_histogram_lookup, **how)
    slope = linear_call(forward, backward, primals, tangents[0])
    return soft_histogram(*primals, low, width, count, shares), slope


def _bins(
    values: Array, low: float, width: float, count: int, shares: Any
) -> tuple[Array, Array, Array, Array]:
    """(the bin of each value, whether it is inside, what a bin gives to its lower and upper node)."""
    place = (values - low) / width
    left = jnp.clip(jnp.floor(place), 0, count - 2).astype(jnp.int32)
    lower, upper = (jnp.asarray(part, values.dtype) for part in shares or ((1.0,), (1.0,)))
    sides = [jnp.broadcast_to(part, (count - 1,)) for part in (lower, upper)]
    return left, (place >= 0) & (place <= count - 1), sides[0], sides[1]


def _histogram_slopes(
    primals: Any, values_dot: Array, *, low: float, width: float, count: int, shares: Any
) -> Array:
    values, weights = primals
    left, inside, lower, upper = _bins(values, low, width, count, shares)
    slope = jnp.where(inside, weights * values_dot / width, 0)

    def at(node: Array) -> Array:
        factor = jnp.where(left == node - 1, upper[left], 0) - jnp.where(
            left == node, lower[left], 0
        )
        return jnp.sum(slope * factor, -1)

    return jax.lax.map(at, jnp.arange(count)).T


def _histogram_lookup(
    primals: Any, cotangent: Array, *, low: float, width: float, count: int, shares: Any
) -> Array:
    values, weights = primals
    left, inside, lower, upper = _bins(values, low, width, count, shares)
    step = (upper[None] * cotangent[:, 1:] - lower[None] * cotangent[:, :-1]) / width
    return jnp.where(inside, weights * jnp.take_along_axis(step, left, -1), 0)
