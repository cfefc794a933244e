"""Losses on pairs: row kernels and their factories.

A row kernel is `(sims [a, n], pos [a, n], neg [a, n], *, ...) -> (values, weights)`.

`sims` holds what the loss's distance gives for a block of anchors and all references: similarities, or
distances where the docstring says so. `pos` and `neg` mark the pairs in play (self-pairs are gone);
they may be weights: a pair that a miner returned k times weighs k. Values and weights are by row `[a]`
or by pair `[a, n]`; a loss of several terms returns a dict of such tuples, and their means add up.
"""

import math

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
    Variables,
    build_parts,
)
from dml_jax.losses.forms import from_rows, on_pairs
from dml_jax.losses.kernels import Mask, Pairs, Rows, Sims, log_one_plus_sum_exp, log_sum_exp
from dml_jax.pairwise import Block
from dml_jax.parameters import PositiveFloat, checked


def contrastive_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    pos_margin: float,
    neg_margin: float,
    similarity: bool,
) -> dict[str, Pairs]:
    """Returns the two hinges of each pair; see `contrastive`."""
    sign = -1.0 if similarity else 1.0
    return {
        "positive": (jax.nn.relu(sign * (sims - pos_margin)), pos),
        "negative": (jax.nn.relu(sign * (neg_margin - sims)), neg),
    }


@checked("loss")
def contrastive(
    pos_margin: float = 0.0,
    neg_margin: float = 1.0,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the contrastive loss of each pair (Hadsell, Chopra, LeCun, CVPR 2006, without the squares).

    positive: [d_ap - pos_margin]+    negative: [neg_margin - d_an]+        (distances)
    positive: [pos_margin - s_ap]+    negative: [s_an - neg_margin]+        (similarities)

    The two terms are averaged apart, over the pairs that violate their margin (avg_non_zero). No pair
    of a kind: that term is 0. Differs from PML in nothing but this: a batch of one positive
    and one negative pair has its loss (PML returns 0).

    Args:
      pos_margin: positives nearer than this have no loss; PML's default (for a similarity say 1).
      neg_margin: negatives farther than this have no loss; PML's default (for a similarity say 0).
      miner: narrows the pairs in play (`dml_jax.miners`): a name, a dict with a name, or the object; None: all pairs.
      distance: by default "lp", Euclidean between normalised vectors, as in PML (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "avg_non_zero", as in PML.
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a part that the loss is not defined for.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(contrastive()(x, [0, 1, 0, 1])), 3)
      1.694
    """
    parts = build_parts(
        "contrastive",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        default_distance="lp",
        default_reducer="avg_non_zero",
    )
    how = dict(pos_margin=pos_margin, neg_margin=neg_margin, similarity=parts.distance.similarity)
    return on_pairs("contrastive", parts, from_rows(contrastive_rows, **how))


@checked("loss")
def signal_to_noise_ratio_contrastive(
    pos_margin: float = 0.0,
    neg_margin: float = 1.0,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the contrastive loss on the noise-to-signal ratio (Yuan et al., CVPR 2019, without the regularizer).

    positive: [r_ap - pos_margin]+    negative: [neg_margin - r_an]+,    r_ij = Var(x_i - x_j) / Var(x_i)

    Everything else is as in `contrastive`. The paper's penalty is the regularizer "zero_mean". Same as PML.

    Args:
      pos_margin: positives nearer than this have no loss; PML's default.
      neg_margin: negatives farther than this have no loss; PML's default.
      miner: narrows the pairs in play (`dml_jax.miners`): a name, a dict with a name, or the object; None: all pairs.
      distance: "snr" alone, of normalised vectors, as in PML (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "avg_non_zero", as in PML.
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: another distance than "snr".

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(signal_to_noise_ratio_contrastive()(x, [0, 1, 0, 1])), 3)
      19.033
    """
    parts = build_parts(
        "signal_to_noise_ratio_contrastive",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        default_distance="snr",
        only_distances=("snr",),
        default_reducer="avg_non_zero",
    )
    how = dict(pos_margin=pos_margin, neg_margin=neg_margin, similarity=False)
    name = "signal_to_noise_ratio_contrastive"
    return on_pairs(name, parts, from_rows(contrastive_rows, **how))


def threshold_consistent_margin_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    lambda_plus: float,
    lambda_minus: float,
    margin_plus: float,
    margin_minus: float,
) -> dict[str, Pairs]:
    """Returns what each pair is beyond its margin; see `threshold_consistent_margin`."""
    return {
        "positive": (
            lambda_plus * (margin_plus - sims),
            jnp.where(sims > margin_plus, jnp.zeros_like(pos), pos),
        ),
        "negative": (
            lambda_minus * (sims - margin_minus),
            jnp.where(sims < margin_minus, jnp.zeros_like(neg), neg),
        ),
    }


@checked("loss")
def threshold_consistent_margin(
    lambda_plus: float = 1.0,
    lambda_minus: float = 1.0,
    margin_plus: float = 0.9,
    margin_minus: float = 0.5,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the threshold-consistent margin loss of each pair (Zhang et al., ICLR 2024, arXiv 2307.04047).

    positive: lambda_plus (margin_plus - s) over the pairs with s <= margin_plus
    negative: lambda_minus (s - margin_minus) over the pairs with s >= margin_minus

    Each term is averaged over its pairs beyond the margin, 0 if there are none. The
    paper adds it to a base loss. Differs from PML: references other than the batch are used (PML
    accepts and ignores them).

    Args:
      lambda_plus: the weight of the positive term; PML's default.
      lambda_minus: the weight of the negative term; PML's default.
      margin_plus: positives nearer than this have no loss; the paper's and PML's default.
      margin_minus: negatives farther than this have no loss; the paper's and PML's default.
      miner: narrows the pairs in play (`dml_jax.miners`): a name, a dict with a name, or the object; None: all pairs.
      distance: "cosine" alone (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: another distance than "cosine".

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(threshold_consistent_margin()(x, [0, 1, 0, 1])), 3)
      1.133
    """
    parts = build_parts(
        "threshold_consistent_margin",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        only_distances=("cosine",),
    )
    rows = from_rows(
        threshold_consistent_margin_rows,
        lambda_plus=lambda_plus,
        lambda_minus=lambda_minus,
        margin_plus=margin_plus,
        margin_minus=margin_minus,
    )
    return on_pairs("threshold_consistent_margin", parts, rows)


def multi_similarity_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    alpha: float,
    beta: float,
    base: float,
    similarity: bool,
) -> Rows:
    """Returns the multi-similarity loss of each anchor; see `multi_similarity`."""
    nearer = sims - base if similarity else base - sims
    positive = log_one_plus_sum_exp(-alpha * nearer, pos > 0) / alpha
    negative = log_one_plus_sum_exp(beta * nearer, neg > 0) / beta
    value = positive + negative
    return value, jnp.ones_like(value)


@checked("loss")
def multi_similarity(
    alpha: PositiveFloat = 2.0,
    beta: PositiveFloat = 50.0,
    base: float = 0.5,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the multi-similarity loss of each anchor (Wang et al., CVPR 2019, eq. 15).

    l = log(1 + sum_p e^{-alpha (s_ap - base)}) / alpha + log(1 + sum_n e^{beta (s_an - base)}) / beta

    A side without pairs is 0. The weight is 1 for every anchor, as in PML and in the paper (the ICML
    2020 system averages over the anchors that kept pairs). A repeated pair counts once. With distances
    both exponents change sign.

    Args:
      alpha: of the positives' exponents, above 0; the paper's and PML's default.
      beta: of the negatives' exponents, above 0; the paper's and PML's default.
      base: where both exponents are 0; PML's default (the paper: 1).
      miner: narrows the pairs in play (`dml_jax.miners`): a name, a dict with a name, or the object; None: all pairs.
      distance: by default "cosine", as in PML (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a hyper-parameter out of range.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(multi_similarity()(x, [0, 1, 0, 1])), 3)
      0.957
    """
    parts = build_parts(
        "multi_similarity",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
    )
    how = dict(alpha=alpha, beta=beta, base=base, similarity=parts.distance.similarity)
    return on_pairs("multi_similarity", parts, from_rows(multi_similarity_rows, **how))


def nt_xent_rows(
    sims: Sims, pos: Mask, neg: Mask, *, temperature: float, similarity: bool
) -> Pairs:
    """Returns the cross entropy of each positive pair; see `nt_xent`."""
    scaled = (sims if similarity else -sims) / temperature
    log_negatives = log_sum_exp(scaled, neg)
    some = log_negatives != -jnp.inf
    gap = jnp.where(some, log_negatives, 0)[:, None] - scaled
    return jnp.where(some[:, None], jax.nn.softplus(gap), 0), pos


@checked("loss")
def nt_xent(
    temperature: PositiveFloat = 0.07,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the normalised temperature-scaled cross entropy of each positive pair (InfoNCE; Chen et al., 2020).

    l_ap = -log( e^{s_ap/T} / (e^{s_ap/T} + sum_n e^{s_an/T}) ) = softplus( LSE_n(s_an/T) - s_ap/T )

    The mean is over the positive pairs; other positives are not in the denominator. A pair whose anchor
    has no negatives has value 0. Distances are negated. Differs from PML: PML adds
    the smallest float inside the log, which caps the loss near 87 (float32) with a gradient of exactly 0
    for the hardest pairs; this form does not saturate.

    Args:
      temperature: T, above 0; PML's default.
      miner: narrows the pairs in play (`dml_jax.miners`): a name, a dict with a name, or the object; None: all pairs.
      distance: by default "cosine", as in PML (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a temperature of 0 or less.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(nt_xent(temperature=0.5)(x, [0, 1, 0, 1])), 3)
      2.03
    """
    parts = build_parts(
        "nt_xent",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
    )
    how = dict(temperature=temperature, similarity=parts.distance.similarity)
    return on_pairs("nt_xent", parts, from_rows(nt_xent_rows, **how))


def sup_con_rows(sims: Sims, pos: Mask, neg: Mask, *, temperature: float, similarity: bool) -> Rows:
    """Returns the supervised contrastive loss of each anchor; see `sup_con`."""
    positive = pos > 0
    scaled = (sims if similarity else -sims) / temperature
    log_all = log_sum_exp(scaled, positive | (neg > 0))
    count = jnp.sum(positive, -1).astype(sims.dtype)
    some = count > 0
    gap = jnp.where(some, log_all, 0)[:, None] - scaled
    value = jnp.sum(jnp.where(positive, gap, 0), -1) / jnp.where(some, count, 1)
    return value, jnp.ones_like(value)


@checked("loss")
def sup_con(
    temperature: PositiveFloat = 0.1,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the supervised contrastive loss of each anchor (Khosla et al., NeurIPS 2020, eq. 2, L_out).

    l = -1/|P| sum_{p in P} log( e^{s_ap/T} / sum_{j in P and N} e^{s_aj/T} )

    An anchor without positives has value 0; the mean is over the anchors with a value above 0. Where no
    negative is in play in the whole batch the loss is 0, as in PML. A repeated pair counts once.
    Distances are negated.

    Args:
      temperature: T, above 0; the paper's and PML's default.
      miner: narrows the pairs in play (`dml_jax.miners`): a name, a dict with a name, or the object; None: all pairs.
      distance: by default "cosine", as in PML (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "avg_non_zero", as in PML.
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a temperature of 0 or less.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(sup_con(temperature=0.5)(x, [0, 1, 0, 1])), 3)
      2.03
    """
    parts = build_parts(
        "sup_con",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        default_reducer="avg_non_zero",
    )
    how = dict(temperature=temperature, similarity=parts.distance.similarity)
    return on_pairs("sup_con", parts, from_rows(sup_con_rows, **how), needs_negatives=True)


def circle_rows(sims: Sims, pos: Mask, neg: Mask, *, m: float, gamma: float) -> Rows:
    """Returns the circle loss of each anchor; see `circle`."""
    fixed = jax.lax.stop_gradient(sims)
    positive = log_sum_exp(-gamma * jax.nn.relu(1 + m - fixed) * (sims - (1 - m)), pos > 0)
    negative = log_sum_exp(gamma * jax.nn.relu(fixed + m) * (sims - m), neg > 0)
    total = positive + negative
    both = total != -jnp.inf
    value = jnp.where(both, jax.nn.softplus(jnp.where(both, total, 0)), 0)
    return value, jnp.ones_like(value)


@checked("loss")
def circle(
    m: float = 0.4,
    gamma: PositiveFloat = 80.0,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the circle loss of each anchor (Sun et al., CVPR 2020).

    l = log( 1 + sum_n e^{gamma [s_an + m]+ (s_an - m)} sum_p e^{-gamma [1 + m - s_ap]+ (s_ap - 1 + m)} )

    The brackets are weights without a gradient. An anchor that lacks a positive or a
    negative has value 0; the mean is over the anchors with a value above 0. A repeated pair counts once.
    Same as PML.

    Args:
      m: the relaxation; the paper's (for faces 0.25) and PML's default.
      gamma: the scale, above 0; PML's default.
      miner: narrows the pairs in play (`dml_jax.miners`): a name, a dict with a name, or the object; None: all pairs.
      distance: "cosine" alone (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "avg_non_zero", as in PML.
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: another distance than "cosine".

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(circle(gamma=8)(x, [0, 1, 0, 1])), 3)
      10.621
    """
    parts = build_parts(
        "circle",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        default_reducer="avg_non_zero",
        only_distances=("cosine",),
    )
    return on_pairs("circle", parts, from_rows(circle_rows, m=m, gamma=gamma))


def sigmoid_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    scale: float | Float[Array, " a"],
    bias: float | Float[Array, " a"],
) -> Rows:
    """Returns the sigmoid loss of each anchor; see `sigmoid`."""
    logits = jnp.reshape(scale, (-1, 1)) * sims + jnp.reshape(bias, (-1, 1))
    value = jnp.sum(jax.nn.softplus(-logits) * pos + jax.nn.softplus(logits) * neg, -1)
    return value, jnp.ones_like(value)


def _sigmoid(block: Block) -> Rows:
    pos, neg = block.selection.pairs()
    args = block.anchor_args
    return sigmoid_rows(block.sims, pos, neg, scale=args["scale"], bias=args["bias"])


def _sigmoid_params(
    key: Array, num_classes: int, dim: int, *, scale: float, bias: float
) -> Variables:
    del key, num_classes, dim
    learned = {"log_scale": jnp.full((), math.log(scale)), "bias": jnp.full((), float(bias))}
    return {"params": learned}


def _sigmoid_args(params: Variables, labels: Array) -> dict[str, Array]:
    rows = labels.shape[:1]
    return {
        "scale": jnp.broadcast_to(jnp.exp(params["log_scale"]), rows),
        "bias": jnp.broadcast_to(params["bias"], rows),
    }


@checked("loss")
def sigmoid(
    scale: PositiveFloat = 10.0,
    bias: float = -10.0,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the sigmoid loss of each anchor (SigLIP; Zhai et al., ICCV 2023, algorithm 1), positives by label.

    l_a = sum_p softplus(-(scale s_ap + bias)) + sum_n softplus(scale s_an + bias)

    averaged over the anchors; those without pairs count as 0. `scale` and `bias` are learned
    (`params["log_scale"]`, `params["bias"]`). The paper's positives are the pairs
    (i, i) of two sets: give one as references with labels 0..B-1. PML has no such loss.

    Args:
      scale: what the learned scale starts from, above 0; the paper's default.
      bias: what the learned bias starts from; the paper's default.
      miner: narrows the pairs in play (`dml_jax.miners`): a name, a dict with a name, or the object; None: all pairs.
      distance: "cosine", the default, or "dot_product" (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a distance that is no similarity.

    Example:
      >>> loss = sigmoid()
      >>> variables = loss.init(jax.random.key(0), num_classes=2, dim=2)
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(loss.apply(variables, x, [0, 1, 0, 1])[0].compute()), 3)
      10.136
    """
    parts = build_parts(
        "sigmoid",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        only_distances=("cosine", "dot_product"),
    )
    return on_pairs(
        "sigmoid",
        parts,
        Bound(_sigmoid),
        init_variables=Bound(_sigmoid_params, scale=scale, bias=bias),
        anchor_args=_sigmoid_args,
    )
