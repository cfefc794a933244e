"""Lifted structure losses: log-sum-exps over the negatives of one anchor, or of a whole pair."""

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
from dml_jax.losses.kernels import Mask, Pairs, Rows, Sims, log_sum_exp
from dml_jax.pairwise import Block
from dml_jax.parameters import checked

NOTHING = -1e30  # the log-sum-exp of no negatives: as good as -inf, and its derivatives are 0


def lifted_structure_prepass(
    sims: Sims, pos: Mask, neg: Mask, *, neg_margin: float, similarity: bool
) -> tuple[tuple[()], Float[Array, " a"]]:
    """Returns LSE_n(neg_margin - d_an) of every anchor: the prepass of `lifted_structure_rows`."""
    del pos
    sign = -1.0 if similarity else 1.0
    return (), jnp.maximum(log_sum_exp(sign * (neg_margin - sims), neg), NOTHING)


def lifted_structure_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    ref_values: Float[Array, " n"],
    neg_margin: float,
    pos_margin: float,
    similarity: bool,
) -> Pairs:
    """Returns the lifted structure loss of each positive pair; see `lifted_structure`.

    `ref_values` holds the log-sum-exp of each reference's own negatives.
    """
    sign = -1.0 if similarity else 1.0
    _, own = lifted_structure_prepass(sims, pos, neg, neg_margin=neg_margin, similarity=similarity)
    reach = jnp.logaddexp(own[:, None], ref_values[None, :]) + sign * (sims - pos_margin)
    return jax.nn.relu(reach) ** 2 / 2, pos


def _lifted_structure(
    block: Block, *, neg_margin: float, pos_margin: float, similarity: bool
) -> Pairs:
    pos, neg = block.selection.pairs()
    return lifted_structure_rows(
        block.sims,
        pos,
        neg,
        ref_values=block.ref_values,
        neg_margin=neg_margin,
        pos_margin=pos_margin,
        similarity=similarity,
    )


@checked("loss")
def lifted_structure(
    neg_margin: float = 1.0,
    pos_margin: float = 0.0,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the lifted structure loss of each positive pair (Oh Song et al., CVPR 2016).

    l_ap = [ log( sum_{n in N(a)} e^{neg_margin - d_an} + sum_{n in N(p)} e^{neg_margin - d_pn} )
             + d_ap - pos_margin ]+^2 / 2

    Averaged over the positive pairs. The references are the batch (PML, given others, compares their indices with the
    batch's). With similarities both margins change sign. A repeated negative pair counts as often. A pair without any
    negatives has value 0, the log of an empty sum being -inf (PML: [d_ap - pos_margin]+^2 / 2).

    Args:
      neg_margin: in the exponents of the negatives; PML's default.
      pos_margin: is taken from the distance of the positive; PML's default.
      miner: narrows the pairs in play (`dml_jax.miners`): a name, a dict with a name, or the object; None: all pairs.
      distance: by default "lp", Euclidean between normalised vectors, as in PML (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a hyper-parameter of another type.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(lifted_structure()(x, [0, 1, 0, 1])), 3)
      4.228
    """
    parts = build_parts(
        "lifted_structure",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        default_distance="lp",
    )
    similarity = parts.distance.similarity
    how = dict(neg_margin=neg_margin, similarity=similarity)
    return on_pairs(
        "lifted_structure",
        parts,
        Bound(_lifted_structure, pos_margin=pos_margin, **how),
        prepare=prepass(lifted_structure_prepass, **how),
        takes_references=False,
    )


def generalized_lifted_structure_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    neg_margin: float,
    pos_margin: float,
    similarity: bool,
) -> Rows:
    """Returns the generalised lifted structure loss of each anchor; see `generalized_lifted_structure`."""
    sign = -1.0 if similarity else 1.0
    positive = log_sum_exp(sign * (sims - pos_margin), pos > 0)
    negative = log_sum_exp(sign * (neg_margin - sims), neg > 0)
    value = jax.nn.relu(sum(jnp.where(side != -jnp.inf, side, 0) for side in (positive, negative)))
    return value, jnp.ones_like(value)


@checked("loss")
def generalized_lifted_structure(
    neg_margin: float = 1.0,
    pos_margin: float = 0.0,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the generalised lifted structure loss of each anchor (Hermans et al., 2017, arXiv 1703.07737, p. 4).

    l = [ LSE_p(d_ap - pos_margin) + LSE_n(neg_margin - d_an) ]+

    A log-sum-exp over no pairs is 0, and every anchor counts in the mean, as in PML. A repeated pair
    counts once. With similarities both margins change sign.

    Args:
      neg_margin: in the exponents of the negatives; PML's default.
      pos_margin: in the exponents of the positives; PML's default.
      miner: narrows the pairs in play (`dml_jax.miners`): a name, a dict with a name, or the object; None: all pairs.
      distance: by default "lp", Euclidean between normalised vectors, as in PML (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a hyper-parameter of another type.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(generalized_lifted_structure()(x, [0, 1, 0, 1])), 3)
      2.204
    """
    parts = build_parts(
        "generalized_lifted_structure",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        default_distance="lp",
    )
    how = dict(neg_margin=neg_margin, pos_margin=pos_margin)
    rows = from_rows(generalized_lifted_structure_rows, similarity=parts.distance.similarity, **how)
    return on_pairs("generalized_lifted_structure", parts, rows)
