"""What row kernels are made of: types, and sums of exponentials that may have nothing to sum."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

Sims = Float[Array, "a n"]
Mask = Shaped[Array, "a n"]
Rows = tuple[Float[Array, " a"], Shaped[Array, " a"]]
Pairs = tuple[Float[Array, "a n"], Shaped[Array, "a n"]]


def log_sum_exp(x: Sims, weights: Mask) -> Float[Array, " a"]:
    """Returns log sum_j w_j exp(x_j) of each row; -inf, with a zero gradient, where all weights are 0."""
    keep = weights > 0
    some = jnp.any(keep, -1)
    x = jnp.where(keep, x, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.where(some, jnp.max(x, -1), 0))
    # exp of a masked entry is taken at 0, so that no 0 * inf arises in the derivative.
    parts = jnp.where(keep, jnp.exp(jnp.where(keep, x - top[:, None], 0)) * weights, 0)
    total = jnp.where(some, jnp.sum(parts, -1), 1)
    return jnp.where(some, top + jnp.log(total), -jnp.inf)


def log_one_plus_sum_exp(x: Sims, weights: Mask) -> Float[Array, " a"]:
    """Returns log(1 + sum_j w_j exp(x_j)) of each row; 0, with a zero gradient, where all weights are 0."""
    total = log_sum_exp(x, weights)
    some = total != -jnp.inf
    return jnp.where(some, jax.nn.softplus(jnp.where(some, total, 0)), 0)
