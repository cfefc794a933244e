"""Margin loss: hinges on both sides of a boundary between near and far."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dml_jax.losses.pair import Mask, Sims
from dml_jax.losses.triplet import sum_triplets
from dml_jax.selection import Triplets, pairs_of_triplets

Terms = dict[str, tuple[Float[Array, " a"], Float[Array, " a"], Float[Array, " a"]]]


def margin_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    margin: float = 0.2,
    nu: float = 0.0,
    beta: float | Float[Array, " a"] = 1.2,
    learn_beta: bool = False,
    similarity: bool = False,
    triplets: Triplets | None = None,
    low: float = -math.inf,
    high: float = math.inf,
) -> Terms:
    """Margin loss of each anchor: (mean over its triplets, their number, its active pairs).

    l_apn = [d_ap - beta_a + margin]+ + [beta_a - d_an + margin]+      (Wu et al., ICCV 2017)

    summed over the triplets and divided (reducer divisor) by how many of their two hinges are above 0,
    pairs counted once for each triplet that holds them. The hinges part, so that row sums give it without
    listing a triplet: N sum_p [.]+ + P sum_n [.]+. With similarities the signs of both differences change.
    Where beta is learned, nu beta_a is a second term: a plain mean for one beta, for one of each class
    divided as the first term, as in PML. Reducers that look at the values (low, high) see l_apn: rows
    are then streamed over their positives.
    """
    sign = -1.0 if similarity else 1.0
    beta = jnp.broadcast_to(jnp.asarray(beta, sims.dtype), sims.shape[:1])
    beyond = sign * (sims - beta[:, None])
    near, far = jax.nn.relu(beyond + margin), jax.nn.relu(margin - beyond)
    positive, negative = pairs_of_triplets(pos, neg, triplets, sims.dtype)
    count = jnp.sum(positive, -1)
    active = jnp.sum(jnp.where(near > 0, positive, 0) + jnp.where(far > 0, negative, 0), -1)
    if low == -math.inf and high == math.inf:
        total, counted = jnp.sum(near * positive + far * negative, -1), count
    else:
        total, counted = sum_triplets(jnp.add, near, far, pos, neg, triplets, low=low, high=high)
    terms = {"margin": (total / jnp.where(counted > 0, counted, 1), counted, active)}
    if learn_beta and nu:
        terms["beta"] = (nu * beta, count, active)
    return terms
