"""Losses of the average precision of an anchor's ranking of all references; never an `[a, n, n]` array.

Where a loss compares every positive with every reference it streams over the positives of a row
(`selection.sum_over_positives`): O(positives x n) time and O(n) memory a row. Kernels count the anchor as its own
first positive where the references are the batch (`own` is its similarity to itself), as PML and the authors of these
losses do.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

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
from dml_jax.losses.forms import from_rows, on_pairs
from dml_jax.losses.kernels import Mask, Rows, Sims
from dml_jax.losses.soft_histogram import soft_histogram
from dml_jax.pairwise import Block
from dml_jax.parameters import (
    PositiveFloat,
    PositiveInt,
    checked,
)
from dml_jax.selection import pick, sum_over_positives


def with_own(
    sims: Sims, pos: Mask, neg: Mask, own: Float[Array, " a"] | None
) -> tuple[Sims, Bool[Array, "a n"], Bool[Array, "a n"]]:
    """Returns the row with the anchor itself before it, as a positive; as it was where `own` is None."""
    pos, neg = pos > 0, neg > 0
    if own is None:
        return sims, pos, neg
    before = jnp.ones((sims.shape[0], 1), bool)
    return (
        jnp.concatenate([own[:, None], sims], -1),
        jnp.concatenate([before, pos], -1),
        jnp.concatenate([~before, neg], -1),
    )


def fast_ap_rows(sims: Sims, pos: Mask, neg: Mask, *, num_bins: int, farthest: float) -> Rows:
    """Returns the FastAP loss of each anchor; see `fast_ap`. Nodes go from 0 to `farthest`."""
    positive, negative = (
        soft_histogram(sims, (x > 0).astype(sims.dtype), 0.0, farthest / num_bins, num_bins + 1)
        for x in (pos, neg)
    )
    upto, total = jnp.cumsum(positive, -1), jnp.cumsum(positive + negative, -1)
    share = jnp.where(total > 0, upto / jnp.where(total > 0, total, 1), 0)
    count = jnp.sum(pos > 0, -1).astype(sims.dtype)
    some = count > 0
    value = 1 - jnp.sum(positive * share, -1) / jnp.where(some, count, 1)
    return jnp.where(some, value, 0), some


@checked("loss")
def fast_ap(
    num_bins: PositiveInt = 10,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the FastAP loss of each anchor (Cakir et al., CVPR 2019).

    l = 1 - 1/|P| sum_b h+_b H+_b / H_b

    h and h+ are soft histograms of the distances to all references and to the positives, on num_bins + 1
    nodes from 0 to the largest distance (4 for squared Euclidean distances of unit vectors), H and H+ their
    cumulative sums. An anchor without positives is left out; one without negatives has value 0. Differs from PML:
    references are taken.

    Args:
      num_bins: of the histograms; PML's default.
      miner: weighs the anchors by how often it chose them and narrows no pairs (`dml_jax.miners`); None: alike.
      distance: by default {"name": "lp", "power": 2}, squared Euclidean between normalised vectors, as in PML; "lp"
        alone (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a distance that is not "lp" of normalised vectors.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(fast_ap()(x, [0, 1, 0, 1])), 3)
      0.583
    """
    parts = build_parts(
        "fast_ap",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        default_distance={"name": "lp", "power": 2},
        only_distances=("lp",),
        unit_vectors=True,
    )
    kernel = from_rows(fast_ap_rows, num_bins=num_bins, farthest=parts.distance.farthest)
    return on_pairs("fast_ap", parts, kernel, weighs_samples=True)


def smooth_ap_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    temperature: float,
    own: Float[Array, " a"] | None = None,
) -> Rows:
    """Returns the Smooth-AP loss of each anchor; see `smooth_ap`."""
    sims, pos, neg = with_own(sims, pos, neg, own)

    def term(one: Array, sims: Array, rest: Any) -> Rows:
        pos, neg = rest
        ahead = jax.nn.sigmoid((sims - pick(one, sims)[:, None]) / temperature)
        positive = 1 + jnp.sum(jnp.where(pos & ~one, ahead, 0), -1)
        value = positive / (positive + jnp.sum(jnp.where(neg, ahead, 0), -1))
        return value, jnp.ones_like(value)

    total, count = sum_over_positives(term, sims, (pos, neg), pos)
    some = count > 0
    return jnp.where(some, 1 - total / jnp.where(some, count, 1), 0), some


def _smooth_ap(
    block: Block,
    *,
    temperature: float,
) -> Any:
    pos, neg = block.selection.pairs()
    return smooth_ap_rows(
        block.sims,
        pos,
        neg,
        temperature=temperature,
        own=block.self_sims,
    )


@checked("loss")
def smooth_ap(
    temperature: PositiveFloat = 0.01,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the Smooth-AP loss of each anchor (Brown et al., ECCV 2020).

    l = 1 - 1/|P| sum_{i in P} R+_i / R_i,    R_i  = 1 + sum_{j != i}         sigmoid((s_j - s_i) / T)
                                              R+_i = 1 + sum_{j in P, j != i} sigmoid((s_j - s_i) / T)

    P holds the anchor itself where the references are the batch. Without negatives the value is 0; an
    anchor with no positive at all (among other references) is left out.
    Differs from PML: any sizes and order of classes (PML groups rows wrongly unless there are as many
    classes as samples in each, and rounds to float32), references are taken, and no [B, B, B] array.

    Args:
      temperature: T, above 0; the paper's and PML's default.
      miner: weighs the anchors by how often it chose them and narrows no pairs (`dml_jax.miners`); None: alike.
      distance: "cosine" alone (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: another distance than "cosine".

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(smooth_ap()(x, [0, 1, 0, 1])), 3)
      0.208
    """
    parts = build_parts(
        "smooth_ap",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        only_distances=("cosine",),
    )
    kernel = Bound(_smooth_ap, temperature=temperature)
    return on_pairs("smooth_ap", parts, kernel, weighs_samples=True)


# Of r, the soft number of negatives ahead of a positive: the penalties of PNP.
PNP_PENALTIES = {
    "O": lambda r, b, alpha: r,
    "Ds": lambda r, b, alpha: jnp.log1p(r),
    "Iu": lambda r, b, alpha: (1 + r) * jnp.log1p(r),
    "Ib": lambda r, b, alpha: (b * r - jnp.log1p(b * r)) / b**2,
    "Dq": lambda r, b, alpha: 1 - (1 + r) ** -alpha,
}


def pnp_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    b: float,
    alpha: float,
    anneal: float,
    variant: str,
    own: Float[Array, " a"] | None = None,
) -> Rows:
    """Returns the PNP loss of each anchor; see `pnp`."""
    penalty = PNP_PENALTIES[variant]
    some = jnp.any(pos > 0, -1)
    sims, pos, neg = with_own(sims, pos, neg, own)

    def term(one: Array, sims: Array, neg: Array) -> Rows:
        ahead = jax.nn.sigmoid((sims - pick(one, sims)[:, None]) / anneal)
        value = penalty(jnp.sum(jnp.where(neg, ahead, 0), -1), b, alpha)
        return value, jnp.ones_like(value)

    total, count = sum_over_positives(term, sims, neg, pos)
    return jnp.where(some, total / jnp.where(some, count, 1), 0), some


def _pnp(
    block: Block,
    *,
    b: float,
    alpha: float,
    anneal: float,
    variant: str,
) -> Any:
    pos, neg = block.selection.pairs()
    return pnp_rows(
        block.sims,
        pos,
        neg,
        b=b,
        alpha=alpha,
        anneal=anneal,
        variant=variant,
        own=block.self_sims,
    )


@checked("loss")
def pnp(
    b: PositiveFloat = 2.0,
    alpha: PositiveFloat = 1.0,
    anneal: PositiveFloat = 0.01,
    variant: Literal["O", "Ds", "Iu", "Ib", "Dq"] = "O",
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the loss that penalises negatives before positives, of each anchor (Li et al., AAAI 2022).

    l = 1/|P| sum_{i in P} f(r_i),    r_i = sum_{n in N} sigmoid((s_n - s_i) / anneal)

    f(r) by variant: "O" r; "Ds" log(1 + r); "Iu" (1 + r) log(1 + r); "Ib" (b r - log(1 + b r)) / b^2;
    "Dq" 1 - (1 + r)^-alpha. P holds the anchor itself where the references are the batch. Without
    negatives the value is 0; an anchor without another positive is left out. Equals the authors' code, which
    takes classes of one size alone. Differs from PML: miners (a repeated pair counts once) and references
    are taken, and no [B, B, B] array.

    Args:
      b: of variant "Ib", above 0; PML's default.
      alpha: of variant "Dq", above 0; PML's default.
      anneal: the temperature, above 0; PML's default.
      variant: "O", "Ds", "Iu", "Ib" or "Dq"; PML's default (the paper recommends "Dq").
      miner: narrows the pairs in play (`dml_jax.miners`): a name, a dict with a name, or the object; None: all pairs.
      distance: "cosine" alone (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: another distance than "cosine".

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(pnp()(x, [0, 1, 0, 1])), 3)
      0.75
    """
    parts = build_parts(
        "pnp",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        only_distances=("cosine",),
    )
    kernel = Bound(_pnp, b=b, alpha=alpha, anneal=anneal, variant=variant)
    return on_pairs("pnp", parts, kernel)
