"""ROADMAP and HAPPIER: average precision with an upper bound of the step function, of classes and of a hierarchy."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dml_jax.bound import Bound
from dml_jax.losses.average_precision import with_own
from dml_jax.losses.base import (
    DistanceSpec,
    Loss,
    MinerSpec,
    ReducerSpec,
    RegularizerSpec,
    RelationSpec,
    build_parts,
)
from dml_jax.losses.forms import on_pairs
from dml_jax.losses.kernels import Mask, Pairs, Rows, Sims
from dml_jax.pairwise import Block
from dml_jax.parameters import (
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    checked,
)
from dml_jax.relations import Relation
from dml_jax.selection import pick, sum_over_positives


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
