"""Losses on the ranking of all references by an anchor, one value a row; never an `[a, n, n]` array.

Where a loss compares every positive with every reference it streams over the positives of a row
(`selection.sum_over_positives`): O(positives x n) time and O(n) memory a row. Kernels of average
precision count the anchor as its own first positive where the references are the batch (`own` is its
similarity to itself), as PML and the authors of these losses do.
"""

import math
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dml_jax import distances
from dml_jax.bound import Bound
from dml_jax.distances import Distance
from dml_jax.errors import UserError
from dml_jax.linear import linear_call
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
from dml_jax.losses.kernels import Mask, Pairs, Rows, Sims, log_one_plus_sum_exp
from dml_jax.pairwise import Block
from dml_jax.parameters import (
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    checked,
)
from dml_jax.relations import Relation
from dml_jax.selection import pick, rows_at, sum_over_positives


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


def recall_at_k_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    k: tuple[int, ...],
    temperature: float,
    k_temperature: float | tuple[float, ...],
) -> Rows:
    """Returns the recall@k surrogate loss of each anchor; see `recall_at_k`."""
    pos, neg = pos > 0, neg > 0
    sizes = jnp.asarray(k, sims.dtype)
    softness = jnp.broadcast_to(jnp.asarray(k_temperature, sims.dtype), sizes.shape)

    def term(one: Array, sims: Array, rest: Any) -> tuple[Array, Array]:
        others, sizes, softness = rest
        ahead = jax.nn.sigmoid((sims - pick(one, sims)[:, None]) / temperature)
        rank = 1 + jnp.sum(jnp.where(others & ~one, ahead, 0), -1, keepdims=True)
        hits = jax.nn.sigmoid((sizes[None, :] - rank) / softness[None, :])
        return hits, jnp.ones_like(rank[:, 0])

    total, count = sum_over_positives(term, sims, (pos | neg, sizes, softness), pos)
    most = jnp.clip(count[:, None], 1, sizes[None, :])
    value = jnp.mean(1 - jnp.minimum(total, sizes[None, :]) / most, -1)
    return jnp.where(count > 0, value, 0), count > 0


@checked("loss")
def recall_at_k(
    k: tuple[PositiveInt, ...] = (1, 2, 4, 8, 16),
    temperature: PositiveFloat = 0.01,
    k_temperature: PositiveFloat | tuple[PositiveFloat, ...] = 1.0,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the recall@k surrogate loss of each anchor (Patel, Tolias, Matas, CVPR 2022).

    l = mean_k 1 - min(C_k, k) / min(|P|, k),    C_k = sum_{i in P} sigmoid((k - r_i) / k_temperature)
                                                 r_i = 1 + sum_{j != i} sigmoid((s_j - s_i) / temperature)

    The anchor is neither ranked nor a positive of itself. The two minima are those of the authors' code: recall@k
    cannot exceed 1. That code differs in two things: it
    ranks the anchor, too, ahead of all others, so that the nearest positive has rank 2; and its
    k_temperature is k itself, `k_temperature=(1, 2, 4, 8, 16)` here. An anchor without positives is left out.

    Args:
      k: the recalls that are averaged; the default of the authors' code.
      temperature: of the ranks, above 0; the paper's default.
      k_temperature: of the hits, above 0: one for all k, or one for each; the paper's default.
      miner: weighs the anchors by how often it chose them and narrows no pairs (`dml_jax.miners`); None: alike.
      distance: "cosine" alone (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: no k at all, or another number of temperatures than of k.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(recall_at_k(k=(1, 2))(x, [0, 1, 0, 1])), 3)
      0.711
    """
    several = k_temperature if isinstance(k_temperature, tuple) else (1.0,) * len(k)
    if not k or len(several) != len(k):
        raise UserError(
            f"loss 'recall_at_k' has k={k} and k_temperature={k_temperature}; accepted: one k or more, and one "
            "temperature for all or one for each"
        )
    parts = build_parts(
        "recall_at_k",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        only_distances=("cosine",),
    )
    kernel = from_rows(recall_at_k_rows, k=k, temperature=temperature, k_temperature=k_temperature)
    return on_pairs("recall_at_k", parts, kernel, weighs_samples=True)


def step_from_above(gap: Sims, tau: float, rho: float, delta: float) -> Sims:
    """Returns an upper bound of the step function of ROADMAP and HAPPIER, with a slope where negatives are ahead.

    H(t) = sigmoid(t / tau)                               for t <= 0
           1/2 + sigmoid(t / tau)                         for 0 < t <= delta
           1/2 + sigmoid(delta / tau) + rho (t - delta)   above
    """
    soft = jax.nn.sigmoid(jnp.minimum(gap, delta) / tau) + jnp.where(gap > 0, 0.5, 0)
    return soft + rho * jax.nn.relu(gap - delta)


def roadmap_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    lambda_: float,
    tau: float,
    rho: float,
    delta: float,
    pos_margin: float,
    neg_margin: float,
    own: Float[Array, " a"] | None = None,
) -> dict[str, Rows | Pairs]:
    """Returns the three terms of ROADMAP; see `roadmap`."""
    calibration = {
        "positive": (
            lambda_ * (pos_margin - sims),
            jnp.where(sims < pos_margin, pos, jnp.zeros_like(pos)),
        ),
        "negative": (
            lambda_ * (sims - neg_margin),
            jnp.where(sims > neg_margin, neg, jnp.zeros_like(neg)),
        ),
    }
    sims, pos, neg = with_own(sims, pos, neg, own)

    def term(one: Array, sims: Array, rest: Any) -> Rows:
        pos, neg = rest
        gap = sims - pick(one, sims)[:, None]
        step = jnp.where(neg, step_from_above(gap, tau, rho, delta), 0)
        positive = 1 + jnp.sum(pos & ~one & (gap >= 0), -1)
        value = positive / (positive + jnp.sum(step, -1))
        return value, jnp.ones_like(value)

    total, count = sum_over_positives(term, sims, (pos, neg), pos)
    some = count > 0
    ap = jnp.where(some, 1 - total / jnp.where(some, count, 1), 0)
    return {"ap": ((1 - lambda_) * ap, some)} | calibration


def _roadmap(
    block: Block,
    *,
    lambda_: float,
    tau: float,
    rho: float,
    delta: float,
    pos_margin: float,
    neg_margin: float,
) -> Any:
    pos, neg = block.selection.pairs()
    return roadmap_rows(
        block.sims,
        pos,
        neg,
        lambda_=lambda_,
        tau=tau,
        rho=rho,
        delta=delta,
        pos_margin=pos_margin,
        neg_margin=neg_margin,
        own=block.self_sims,
    )


@checked("loss")
def roadmap(
    lambda_: Fraction = 0.5,
    tau: PositiveFloat = 0.01,
    rho: NonNegativeFloat = 100.0,
    delta: NonNegativeFloat = 0.05,
    pos_margin: float = 0.9,
    neg_margin: float = 0.6,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the ROADMAP loss: (1 - lambda) L_SupAP + lambda L_calibr (Ramzi et al., NeurIPS 2021, section 3).

    ap:       1 - 1/|P| sum_{i in P} r+_i / (r+_i + sum_{n in N} H-(s_n - s_i)),
              r+_i = 1 + #{j in P, j != i: s_j >= s_i},    H- = `step_from_above`
    positive: [pos_margin - s_ap]+ and negative: [s_an - neg_margin]+, each averaged over the pairs that
              violate their margin, as in the authors' code.

    H- is above the step function, so that the ap term is above the loss of average precision; r+ has no
    derivative. P holds the anchor itself where the references are the batch; an anchor with no positive
    at all is left out of the ap term. The defaults are the authors' code's,
    which adds the two terms (twice this loss); it uses 1.44 for 1/2 + sigmoid(delta / tau) = 1.493, which
    leaves a step at delta, and for iNaturalist leaves out the 1/2.

    Args:
      lambda_: the weight of the calibration terms, 0 to 1; the authors' default.
      tau: the temperature of H-, above 0; the authors' default.
      rho: the slope of H- above delta; the authors' default.
      delta: where the slope begins; the authors' default.
      pos_margin: positives nearer than this have no calibration loss; the authors' default.
      neg_margin: negatives farther than this have none; the authors' default.
      miner: weighs the anchors by how often it chose them and narrows no pairs (`dml_jax.miners`); None: alike.
      distance: "cosine" alone (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: another distance than "cosine".

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(roadmap()(x, [0, 1, 0, 1])), 3)
      0.795
    """
    parts = build_parts(
        "roadmap",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        only_distances=("cosine",),
    )
    kernel = Bound(
        _roadmap,
        lambda_=lambda_,
        tau=tau,
        rho=rho,
        delta=delta,
        pos_margin=pos_margin,
        neg_margin=neg_margin,
    )
    return on_pairs("roadmap", parts, kernel, weighs_samples=True)


def happier_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    alpha: float,
    tau: float,
    rho: float,
    delta: float,
    levels: tuple[Int[Array, "a n"], int],
    own: Float[Array, " a"] | None = None,
) -> Rows:
    """Returns the hierarchical average precision loss of each anchor; see `happier`.

    `levels` are l, how many of the L levels of the hierarchy each reference shares with the anchor, and L.
    """
    level, top = levels
    real = (pos > 0) | (neg > 0)
    if own is not None:
        sims = jnp.concatenate([own[:, None], sims], -1)
        level = jnp.pad(level, ((0, 0), (1, 0)), constant_values=top)
        real = jnp.pad(real, ((0, 0), (1, 0)), constant_values=True)
    relevance = jnp.zeros_like(sims)
    for shared in range(1, top + 1):  # a few levels
        of_level = real & (level == shared)
        count = jnp.maximum(jnp.sum(of_level, -1, keepdims=True), 1).astype(sims.dtype)
        relevance = jnp.where(of_level, (shared / top) ** alpha / count, relevance)

    def term(one: Array, sims: Array, rest: Any) -> Rows:
        level, relevance, real = rest
        gap = sims - pick(one, sims)[:, None]
        less = level < pick(one, level)[:, None]
        ahead = real & ~one & (gap >= 0)
        rank = 1 + jnp.sum(ahead & ~less, -1)
        rank += jnp.sum(jnp.where(real & less, step_from_above(gap, tau, rho, delta), 0), -1)
        gain = pick(one, relevance)
        shared = jnp.minimum(relevance, gain[:, None])
        return (gain + jnp.sum(jnp.where(ahead, shared, 0), -1)) / rank, gain

    total, weight = sum_over_positives(term, sims, (level, relevance, real), relevance > 0)
    some = weight > 0
    return jnp.where(some, 1 - total / jnp.where(some, weight, 1), 0), some


def _happier(
    block: Block, *, relation: Relation, alpha: float, tau: float, rho: float, delta: float
) -> Rows:
    pos, neg = block.selection.pairs()
    levels = relation.shared_levels(block.anchor_labels, block.ref_labels)
    how: dict[str, Any] = dict(alpha=alpha, tau=tau, rho=rho, delta=delta)
    return happier_rows(block.sims, pos, neg, levels=levels, own=block.self_sims, **how)


@checked("loss")
def happier(
    alpha: NonNegativeFloat = 1.0,
    tau: PositiveFloat = 0.01,
    rho: NonNegativeFloat = 100.0,
    delta: NonNegativeFloat = 0.05,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the hierarchical average precision loss of each anchor (HAPPIER: Ramzi et al., ECCV 2022, section 3).

    l = 1 - 1/(sum_{k in P} rel_k) sum_{k in P} h_k / (r>=_k + sum_{j: l_j < l_k} H-(s_j - s_k))

    h_k   = rel_k + sum_{j in P, j != k, s_j >= s_k} min(rel_j, rel_k)     the H-rank
    r>=_k = 1 + #{j != k: l_j >= l_k, s_j >= s_k},    H- = `step_from_above`
    rel_k = (l_k / L)^alpha / #{j: l_j = l_k}

    l are how many of the L levels of the hierarchy each reference shares with the anchor;
    P are those that share one or more, and the anchor itself (l = L) where the references are the batch.
    An anchor with an empty P is left out; where all share all levels the value is 0. With one level this is
    the ap term of roadmap. The relation's own `level` does not matter.

    h and r>= have no derivative, as in the authors' code with the settings of all its published commands
    (it can smooth the H-rank, too); that code has another constant in H- (see roadmap). The method's total is
    (1 - lambda) L + lambda L_clust, lambda = 0.1 by default: L_clust is normalized_softmax on the finest
    level, so that the loss "multiple" makes it, with weights 0.9 and 0.1 and relation "hierarchy" for both.

    Args:
      alpha: the exponent of the relevance, from 0 on (0: every level counts alike); the paper's default.
      tau: the temperature of H-, above 0; the authors' default.
      rho: the slope of H- above delta; the authors' default.
      delta: where the slope begins; the authors' default.
      miner: weighs the anchors by how often it chose them and narrows no pairs (`dml_jax.miners`); None: alike.
      distance: "cosine" alone (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a relation without classes.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(happier()(x, [0, 1, 0, 1])), 3)
      0.49
    """
    parts = build_parts(
        "happier",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        with_classes=True,
        only_distances=("cosine",),
    )
    kernel = Bound(_happier, relation=parts.relation, alpha=alpha, tau=tau, rho=rho, delta=delta)
    return on_pairs("happier", parts, kernel, weighs_samples=True)


def ranked_list_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    margin: float,
    Tn: float,
    imbalance: float,
    alpha: float | None,
    Tp: float,
    own: Float[Array, " a"] | None = None,
) -> Rows:
    """Returns the ranked list loss of each anchor, of distances; see `ranked_list`."""
    alpha = 1 + margin / 2 if alpha is None else alpha
    pos, neg = pos > 0, neg > 0
    size = jnp.sum(pos | neg, -1) + (own is not None)

    def side(excess: Array, keep: Array, temperature: float) -> Array:
        """sum w x / (sum w + e) with w = exp(temperature x), both divided by the largest w."""
        scaled = jnp.where(keep, temperature * excess, 0)
        top = jax.lax.stop_gradient(jnp.max(scaled, -1, initial=0))
        weight = jnp.where(keep, jnp.exp(scaled - top[:, None]), 0)
        total = jnp.sum(weight, -1) + 1e-5 * jnp.maximum(size, 1) * jnp.exp(-top)
        return jnp.sum(weight * jnp.where(keep, excess, 0), -1) / total

    far, near = sims - (alpha - margin), alpha - sims
    # Asked this way round, NaN stays in play.
    value = (1 - imbalance) * side(far, pos & ~((far <= 0) | (sims <= 0)), Tp)
    value += imbalance * side(near, neg & ~(near <= 0), Tn)
    return value, jnp.ones_like(value)


def _ranked_list(
    block: Block,
    *,
    margin: float,
    Tn: float,
    imbalance: float,
    alpha: float | None,
    Tp: float,
) -> Any:
    pos, neg = block.selection.pairs()
    return ranked_list_rows(
        block.sims,
        pos,
        neg,
        margin=margin,
        Tn=Tn,
        imbalance=imbalance,
        alpha=alpha,
        Tp=Tp,
        own=block.self_sims,
    )


@checked("loss")
def ranked_list(
    margin: float,
    Tn: float,
    imbalance: Fraction = 0.5,
    alpha: float | None = None,
    Tp: float = 0.0,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the ranked list loss of each anchor (Wang et al., CVPR 2019), of distances.

    l = (1 - imbalance) sum_p w_p (d_ap - b) / (sum_p w_p + e)      over d_ap > b = alpha - margin,
        + imbalance     sum_n w_n (alpha - d_an) / (sum_n w_n + e)  over d_an < alpha

    w_p = exp(Tp (d_ap - b)), w_n = exp(Tn (alpha - d_an)), both differentiated as in PML;
    e = 1e-5 B is PML's, with B all references and the anchor. A side without
    such pairs is 0; every anchor weighs 1. Differs from PML: negatives at distance 0 count (PML leaves
    them out), no temperature overflows, miners (a repeated pair counts once) and references are taken.

    Args:
      margin: between the two boundaries; required, as in PML (the paper: 0.4).
      Tn: the temperature of the negatives' weights; required, as in PML (the paper: 10).
      imbalance: the share of the negatives, 0 to 1; PML's default.
      alpha: the boundary of the negatives; None, PML's default: 1 + margin / 2.
      Tp: the temperature of the positives' weights; PML's default.
      miner: narrows the pairs in play (`dml_jax.miners`): a name, a dict with a name, or the object; None: all pairs.
      distance: by default "lp", Euclidean between normalised vectors, as in PML; or "snr" (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a similarity as its distance, an imbalance that is no fraction.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(ranked_list(margin=0.4, Tn=10)(x, [0, 1, 0, 1])), 3)
      0.586
    """
    parts = build_parts(
        "ranked_list",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        default_distance="lp",
        only_distances=("lp", "snr"),
    )
    kernel = Bound(_ranked_list, margin=margin, Tn=Tn, imbalance=imbalance, alpha=alpha, Tp=Tp)
    return on_pairs("ranked_list", parts, kernel)


def angular_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    alpha: float,
    units: tuple[Float[Array, "a d"], Float[Array, "n d"]],
    low: float,
    high: float,
) -> Rows:
    """Returns (mean over its positives, how many) of each anchor; see `angular`.

    `units` are the anchors and the references as the similarity multiplies them; means are over the values above `low`
    and below `high`.
    """
    del sims
    slope = math.tan(math.radians(alpha)) ** 2

    def term(one: Array, operands: Any, neg: Array) -> Rows:
        anchors, refs = operands
        near = rows_at(one, refs)
        # One product of the sums, in place of two that are added up.
        both = distances.inner_products(4 * slope * (anchors + near), refs)
        apart = 2 * (1 + slope) * jnp.sum(anchors * near, -1)
        loss = log_one_plus_sum_exp(both - apart[:, None], neg)
        counted = ~((loss <= low) | (loss >= high))  # NaN is counted, so that it shows
        return jnp.where(counted, loss, 0), counted.astype(loss.dtype)

    total, count = sum_over_positives(term, units, neg > 0, pos)
    some = count > 0
    return jnp.where(some, total / jnp.where(some, count, 1), 0), count


def _angular(block: Block, *, alpha: float, distance: Distance, low: float, high: float) -> Rows:
    units = distance.normalized_vectors(block.anchors), distance.normalized_vectors(block.refs)
    pos, _ = block.selection.pairs()
    # All negatives stay in play, whatever a miner chose.
    how: dict[str, Any] = dict(alpha=alpha, units=units, low=low, high=high)
    return angular_rows(block.sims, pos, block.related.neg, **how)


@checked("loss")
def angular(
    alpha: float = 40.0,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the angular loss of each positive pair (Wang et al., ICCV 2017).

    l_ap = log(1 + sum_n exp(4 t^2 (x_a + x_p).x_n - 2 (1 + t^2) x_a.x_p)),    t = tan(alpha)

    of normalised vectors. A pair whose
    anchor has no negatives has value 0 and counts; a pair that a miner returned k times counts k times, and
    all negatives stay in play, as in PML. Differs from PML: negatives are normalised, too (PML
    leaves them as they are, so that the loss grows with the size of the embeddings); equal for normalised input.

    Args:
      alpha: in degrees; PML's default (the paper: 36 to 55).
      miner: narrows the pairs in play (`dml_jax.miners`): a name, a dict with a name, or the object; None: all pairs.
      distance: "cosine" alone (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: another distance than "cosine".

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(angular()(x, [0, 1, 0, 1])), 3)
      3.995
    """
    parts = build_parts(
        "angular",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        only_distances=("cosine",),
    )
    kernel = Bound(
        _angular,
        alpha=alpha,
        distance=parts.distance,
        low=parts.reducer.low,
        high=parts.reducer.high,
    )
    return on_pairs("angular", parts, kernel)
