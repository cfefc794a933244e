"""Lifted structure losses: log-sum-exps over the negatives of one anchor, or of a whole pair."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dml_jax.losses.pair import Mask, Pairs, Rows, Sims, log_sum_exp

NOTHING = -1e30  # the log-sum-exp of no negatives: as good as -inf, and its derivatives are 0


def lifted_structure_columns(
    sims: Sims, pos: Mask, neg: Mask, *, neg_margin: float = 1.0, similarity: bool = False
) -> tuple[tuple[()], Float[Array, " a"]]:
    """First phase of `lifted_structure_rows`: LSE_n(neg_margin - d_an) of every anchor."""
    del pos
    sign = -1.0 if similarity else 1.0
    return (), jnp.maximum(log_sum_exp(sign * (neg_margin - sims), neg), NOTHING)


def lifted_structure_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    columns: Float[Array, " n"],
    neg_margin: float = 1.0,
    pos_margin: float = 0.0,
    similarity: bool = False,
) -> Pairs:
    """Lifted structure loss of each positive pair (Oh Song et al., CVPR 2016).

    l_ap = [ log( sum_{n in N(a)} e^{neg_margin - d_an} + sum_{n in N(p)} e^{neg_margin - d_pn} )
             + d_ap - pos_margin ]+^2 / 2

    Averaged over the positive pairs. `columns` holds the log-sum-exp of each reference's own negatives,
    so the references are the batch (PML, given others, compares their indices with the batch's). With
    similarities both margins change sign. A repeated negative pair counts as often. A pair without any
    negatives has value 0, the log of an empty sum being -inf (PML: [d_ap - pos_margin]+^2 / 2).
    """
    sign = -1.0 if similarity else 1.0
    _, own = lifted_structure_columns(sims, pos, neg, neg_margin=neg_margin, similarity=similarity)
    reach = jnp.logaddexp(own[:, None], columns[None, :]) + sign * (sims - pos_margin)
    return jax.nn.relu(reach) ** 2 / 2, pos


def generalized_lifted_structure_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    neg_margin: float = 1.0,
    pos_margin: float = 0.0,
    similarity: bool = False,
) -> Rows:
    """Generalised lifted structure loss of each anchor (Hermans et al., 2017, arXiv 1703.07737, p. 4).

    l = [ LSE_p(d_ap - pos_margin) + LSE_n(neg_margin - d_an) ]+

    A log-sum-exp over no pairs is 0, and every anchor counts in the mean, as in PML. A repeated pair
    counts once. With similarities both margins change sign.
    """
    sign = -1.0 if similarity else 1.0
    positive = log_sum_exp(sign * (sims - pos_margin), pos > 0)
    negative = log_sum_exp(sign * (neg_margin - sims), neg > 0)
    value = jax.nn.relu(sum(jnp.where(side != -jnp.inf, side, 0) for side in (positive, negative)))
    return value, jnp.ones_like(value)
