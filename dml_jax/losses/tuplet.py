"""Tuplet margin loss and the intra-pair variance loss that its paper adds to it."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dml_jax.losses.pair import Mask, Pairs, Sims, log_sum_exp

Total = tuple[Float[Array, ""], Float[Array, ""]]


def tuplet_margin_rows(
    sims: Sims, pos: Mask, neg: Mask, *, margin: float = 5.73, scale: float = 64.0
) -> Pairs:
    """Tuplet margin loss of each positive pair (Yu and Tao, ICCV 2019).

    l_ap = log( 1 + sum_n e^{scale (cos theta_an - cos(theta_ap - margin))} )

    Cosine similarity, `margin` in degrees; the mean is over the positive pairs. A repeated negative pair
    counts as often; a pair whose anchor has no negatives has value 0. Differs from PML at duplicates
    (theta_ap = 0), where PML's arccos gives NaN: cos(theta - m) = cos theta cos m + sin theta sin m, with
    the derivative of sin theta taken as 0 where sin^2 theta is under the rounding error.
    """
    m = math.radians(margin)
    sin2 = 1 - sims * sims
    apart = sin2 > jnp.finfo(sims.dtype).eps
    sine = jnp.where(apart, jnp.sqrt(jnp.where(apart, sin2, 1)), 0)
    log_negatives = log_sum_exp(scale * sims, neg)
    some = log_negatives != -jnp.inf
    target = scale * (sims * math.cos(m) + sine * math.sin(m))
    gap = jnp.where(some, log_negatives, 0)[:, None] - target
    return jnp.where(some[:, None], jax.nn.softplus(gap), 0), pos


def intra_pair_sums(sims: Sims, pos: Mask, neg: Mask) -> tuple[tuple[Total, Total], tuple[()]]:
    """First phase of `intra_pair_variance_rows`: (sum, count) of the positive and negative pairs."""

    def total(weights: Mask) -> Total:
        weights = weights.astype(sims.dtype)
        return jnp.sum(sims * weights), jnp.sum(weights)

    return (total(pos), total(neg)), ()


def intra_pair_variance_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    sums: tuple[Total, Total],
    pos_eps: float = 0.01,
    neg_eps: float = 0.01,
    similarity: bool = True,
) -> dict[str, Pairs]:
    """Intra-pair variance loss of each pair (Yu and Tao, ICCV 2019).

    positive: [(1 - pos_eps) m_p - s_ap]+^2    negative: [s_an - (1 + neg_eps) m_n]+^2

    m_p and m_n are the means of all positive and of all negative pairs in play; the gradient flows
    through them. The terms are averaged apart, each over its pairs. With distances (`similarity=False`)
    the two forms change places, as in PML. A repeated pair counts as often.
    """
    near, far = (total / jnp.maximum(count, 1) for total, count in sums)

    def below(mean: Array, eps: float) -> Sims:
        return jax.nn.relu((1 - eps) * mean - sims) ** 2

    def above(mean: Array, eps: float) -> Sims:
        return jax.nn.relu(sims - (1 + eps) * mean) ** 2

    positive, negative = (below, above) if similarity else (above, below)
    return {"positive": (positive(near, pos_eps), pos), "negative": (negative(far, neg_eps), neg)}
