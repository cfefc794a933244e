"""What losses against class weights share: how the weights begin, and a margin on the sample's own class."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dml_jax import distances

Cosines = Float[Array, "a c"]
Target = Bool[Array, "a c"]


def with_own(
    change: Callable[[Float[Array, "a 1"]], Float[Array, "a 1"]], cosines: Cosines, target: Target
) -> Cosines:
    """Returns the cosines with that of each sample's class changed; `change` sees one a sample, not all classes."""
    own = jnp.sum(jnp.where(target, cosines, 0), axis=1, keepdims=True)
    return jnp.where(target, change(own), cosines)


def normal_weights(key: Array, num_classes: int, dim: int) -> Float[Array, "c d"]:
    """Draws class weights from N(0, 1), as PML initialises them."""
    return jax.random.normal(key, (num_classes, dim))


def small_weights(key: Array, num_classes: int, dim: int) -> Float[Array, "c d"]:
    """Draws class weights from N(0, 1/64), as the authors of Proxy-NCA++ and the ICML 2020 code do.

    Only their directions matter to the loss; its gradient is eight times that of N(0, 1), so that they turn
    faster under SGD.
    """
    return jax.random.normal(key, (num_classes, dim)) / 8


def fan_in_weights(key: Array, num_classes: int, dim: int) -> Float[Array, "c d"]:
    """Draws class weights uniformly from +-1/sqrt(dim), as the ICML 2020 code initialises them."""
    return jax.random.uniform(key, (num_classes, dim), minval=-1, maxval=1) / math.sqrt(dim)


def fan_in_centers(key: Array, rows: int, dim: int) -> Float[Array, "c d"]:
    """Draws centers uniformly from +-1/sqrt(number of all centers), as PML and the paper's code do."""
    return jax.random.uniform(key, (rows, dim), minval=-1, maxval=1) / math.sqrt(rows)


def unit_weights(key: Array, num_classes: int, dim: int) -> Float[Array, "c d"]:
    """Draws unit vectors in directions drawn uniformly from a cube, as PML initialises P2SGrad."""
    return distances.normalize(jax.random.uniform(key, (num_classes, dim), minval=-1, maxval=1))
