"""Tuplet margin loss and the intra-pair variance loss that its paper adds to it."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dml_jax.bound import Bound
from dml_jax.losses.base import (
    DistanceSpec,
    Loss,
    MinerSpec,
    ReducerSpec,
    RegularizerSpec,
    RelationSpec,
    build_parts,
)
from dml_jax.losses.forms import from_rows, on_pairs, prepass
from dml_jax.losses.kernels import Mask, Pairs, Sims, log_sum_exp
from dml_jax.pairwise import Block
from dml_jax.parameters import PositiveFloat, checked

Total = tuple[Float[Array, ""], Float[Array, ""]]


def tuplet_margin_rows(sims: Sims, pos: Mask, neg: Mask, *, margin: float, scale: float) -> Pairs:
    """Returns the tuplet margin loss of each positive pair; see `tuplet_margin`."""
    m = math.radians(margin)
    sin2 = 1 - sims * sims
    apart = sin2 > jnp.finfo(sims.dtype).eps
    sine = jnp.where(apart, jnp.sqrt(jnp.where(apart, sin2, 1)), 0)
    log_negatives = log_sum_exp(scale * sims, neg)
    some = log_negatives != -jnp.inf
    target = scale * (sims * math.cos(m) + sine * math.sin(m))
    gap = jnp.where(some, log_negatives, 0)[:, None] - target
    return jnp.where(some[:, None], jax.nn.softplus(gap), 0), pos


@checked("loss")
def tuplet_margin(
    margin: float = 5.73,
    scale: PositiveFloat = 64.0,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the tuplet margin loss of each positive pair (Yu and Tao, ICCV 2019).

    l_ap = log( 1 + sum_n e^{scale (cos theta_an - cos(theta_ap - margin))} )

    The mean is over the positive pairs. A repeated negative pair
    counts as often; a pair whose anchor has no negatives has value 0. Differs from PML at duplicates
    (theta_ap = 0), where PML's arccos gives NaN: cos(theta - m) = cos theta cos m + sin theta sin m, with
    the derivative of sin theta taken as 0 where sin^2 theta is under the rounding error.

    Args:
      margin: in degrees; the paper's (0.1 radians) and PML's default.
      scale: above 0; the paper's and PML's default.
      miner: narrows the pairs in play (`dml_jax.miners`): a name, a dict with a name, or the object; None: all pairs.
      distance: "cosine" alone (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: another distance than "cosine".

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(tuplet_margin(scale=4)(x, [0, 1, 0, 1])), 3)
      3.038
    """
    parts = build_parts(
        "tuplet_margin",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        only_distances=("cosine",),
    )
    rows = from_rows(tuplet_margin_rows, margin=margin, scale=scale)
    return on_pairs("tuplet_margin", parts, rows)


def intra_pair_sums(sims: Sims, pos: Mask, neg: Mask) -> tuple[tuple[Total, Total], tuple[()]]:
    """Returns (sum, count) of the positive and of the negative pairs: the prepass of `intra_pair_variance_rows`."""

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
    pos_eps: float,
    neg_eps: float,
    similarity: bool,
) -> dict[str, Pairs]:
    """Returns the intra-pair variance loss of each pair; see `intra_pair_variance`.

    `sums` are those of `intra_pair_sums` over the whole batch.
    """
    near, far = (total / jnp.maximum(count, 1) for total, count in sums)

    def below(mean: Array, eps: float) -> Sims:
        return jax.nn.relu((1 - eps) * mean - sims) ** 2

    def above(mean: Array, eps: float) -> Sims:
        return jax.nn.relu(sims - (1 + eps) * mean) ** 2

    positive, negative = (below, above) if similarity else (above, below)
    return {"positive": (positive(near, pos_eps), pos), "negative": (negative(far, neg_eps), neg)}


def _intra_pair_variance(
    block: Block, *, pos_eps: float, neg_eps: float, similarity: bool
) -> dict[str, Pairs]:
    pos, neg = block.selection.pairs()
    how: dict[str, Any] = dict(pos_eps=pos_eps, neg_eps=neg_eps, similarity=similarity)
    return intra_pair_variance_rows(block.sims, pos, neg, sums=block.prepass_sums, **how)


@checked("loss")
def intra_pair_variance(
    pos_eps: float = 0.01,
    neg_eps: float = 0.01,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the intra-pair variance loss of each pair (Yu and Tao, ICCV 2019).

    positive: [(1 - pos_eps) m_p - s_ap]+^2    negative: [s_an - (1 + neg_eps) m_n]+^2

    m_p and m_n are the means of all positive and of all negative pairs in play; the gradient flows
    through them. The terms are averaged apart, each over its pairs. With distances
    the two forms change places, as in PML. A repeated pair counts as often.

    Args:
      pos_eps: how far below the mean a positive may be without loss; the paper's and PML's default.
      neg_eps: how far above the mean a negative may be without loss; the paper's and PML's default.
      miner: narrows the pairs in play (`dml_jax.miners`): a name, a dict with a name, or the object; None: all pairs.
      distance: by default "cosine", as in PML (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a hyper-parameter of another type.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(intra_pair_variance()(x, [0, 1, 0, 1])), 3)
      0.088
    """
    parts = build_parts(
        "intra_pair_variance",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
    )
    similarity = parts.distance.similarity
    how: dict[str, Any] = dict(pos_eps=pos_eps, neg_eps=neg_eps, similarity=similarity)
    kernel = Bound(_intra_pair_variance, **how)
    return on_pairs("intra_pair_variance", parts, kernel, prepare=prepass(intra_pair_sums))
