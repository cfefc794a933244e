"""Losses on distributions: histograms of similarities and margins, moments, random walks on a graph."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dml_jax import distances
from dml_jax.bound import Bound
from dml_jax.errors import UserError
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
from dml_jax.losses.forms import GraphLoss, SumsLoss, ViewsLoss, from_rows, on_pairs
from dml_jax.losses.kernels import Mask, Rows, Sims, log_one_plus_sum_exp
from dml_jax.losses.soft_histogram import Shares, soft_histogram
from dml_jax.losses.triplet import TripletsPerAnchor, drawn, over_triplets, within
from dml_jax.pairwise import Block, WholeBatch
from dml_jax.parameters import (
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    checked,
)
from dml_jax.relations import SAME_LABEL
from dml_jax.selection import Triplets


def histogram_sums(
    sims: Sims, pos: Mask, neg: Mask, *, n_bins: int
) -> tuple[dict[str, Float[Array, " r"]], tuple[()]]:
    """Returns soft histograms of the cosines of positive and of negative pairs, on n_bins + 1 nodes of [-1, 1].

    A pair is shared by its two nearest nodes. A repeated pair counts once. Cosines beyond 1 by rounding count as 1.
    """
    return pair_histograms(sims, pos, neg, n_bins), ()


def pair_histograms(
    sims: Sims, pos: Mask, neg: Mask, n_bins: int, shares: Shares | None = None
) -> dict[str, Float[Array, " r"]]:
    """Returns soft histograms of the positive and of the negative pairs, and how many there are of each."""
    inside = jnp.clip(sims, -1, 1)
    sides = [(side > 0).astype(sims.dtype) for side in (pos, neg)]
    positive, negative = (
        jnp.sum(soft_histogram(inside, side, -1.0, 2 / n_bins, n_bins + 1, shares), 0)
        for side in sides
    )
    pairs = jnp.stack([jnp.sum(side) for side in sides])
    return {"positive": positive, "negative": negative, "pairs": pairs}


def histogram_value(sums: dict[str, Float[Array, " r"]]) -> Float[Array, ""]:
    """Returns sum_r h-_r sum_{q <= r} h+_q of the sums of `histogram_sums`; see `histogram`."""
    positive, negative, pairs = sums["positive"], sums["negative"], sums["pairs"]
    scale = pairs[0] * pairs[1]
    some = scale != 0
    value = jnp.sum(negative * jnp.cumsum(positive)) / jnp.where(some, scale, 1)
    return jnp.where(some, value, 0)


@checked("loss")
def histogram(
    n_bins: PositiveInt | None = None,
    delta: PositiveFloat | None = None,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the histogram loss (Ustinova and Lempitsky, NIPS 2016).

    L = sum_r h-_r sum_{q <= r} h+_q

    the probability that a random negative pair is more similar than a random positive one; h+ and h- are
    the soft histograms over all pairs of the batch on n_bins + 1 nodes of [-1, 1], each divided by its number of pairs;
    a pair is shared by its two nearest nodes. No positive or no
    negative pair: 0. Differs from PML: pairs of two samples that have no positives count, as in the paper
    (PML goes through triplets); a pair that a miner chose from both ends counts twice; duplicates do not
    raise; references are taken; histograms never list pairs.

    Args:
      n_bins: of the histograms; 100, PML's default, where neither is given.
      delta: the width of a bin, another way to say 2 / n_bins.
      miner: narrows the pairs in play (`dml_jax.miners`): a name, a dict with a name, or the object; None: all pairs.
      distance: "cosine" alone (`dml_jax.distances`).
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a delta that is not 2 / n_bins.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(histogram(n_bins=10)(x, [0, 1, 0, 1])), 3)
      0.75
    """
    if n_bins is None:
        n_bins = 100 if delta is None else max(round(2 / delta), 1)
    if delta is not None and abs(delta * n_bins - 2) > 1e-6:
        raise UserError(
            f"loss 'histogram' has delta={delta} with {n_bins} bins; accepted: delta = 2 / n_bins"
        )
    parts = build_parts(
        "histogram",
        miner=miner,
        distance=distance,
        regularizer=regularizer,
        relation=relation,
        only_distances=("cosine",),
    )
    return SumsLoss(
        name="histogram",
        sums=from_rows(histogram_sums, n_bins=n_bins),
        kernel=histogram_value,
        distance=parts.distance,
        miner=parts.miner,
        regularizers=parts.regularizers,
        relation=parts.relation,
    )


def dynamic_soft_margin_sums(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    min_val: float,
    num_bins: int,
    triplets: Triplets | None = None,
) -> tuple[Float[Array, " r"], tuple[()]]:
    """Returns the soft histogram of d_ap - d_an over all triplets, on num_bins nodes from min_val upwards.

    Nodes are 2 |min_val| / num_bins apart; a triplet is shared by its two nearest nodes, one beyond an end
    counts at that end (where PML raises). It is a constant: it has no derivative.
    """
    width = 2 * abs(min_val) / num_bins
    last = min_val + width * (num_bins - 1)

    def term(d_ap: Array, d_an: Array, weight: Array, rest: tuple[()]) -> tuple[Array, Array]:
        x = jnp.clip(d_ap - d_an, min_val, last)
        return soft_histogram(x, weight, min_val, width, num_bins), jnp.sum(weight, -1)

    fixed = jax.lax.stop_gradient(sims)
    return jnp.sum(over_triplets(term, fixed, fixed, pos, neg, triplets)[0], 0), ()


def dynamic_soft_margin_state(*, num_bins: int) -> dict[str, Float[Array, " r"]]:
    """Returns the running histogram before the first step: zeros."""
    return {"histogram": jnp.zeros(num_bins)}


def dynamic_soft_margin_update(
    state: dict[str, Float[Array, " r"]], sums: Float[Array, " r"], *, momentum: float
) -> dict[str, Float[Array, " r"]]:
    """Returns h <- (1 - momentum) h + momentum h_batch, both of sum 1; h_batch itself at the first step.

    Without a triplet in the batch the histogram stays as it is.
    """
    old, total = state["histogram"], jnp.sum(sums)
    share = jnp.where(jnp.sum(old) > 0, momentum, 1.0)
    new = (1 - share) * old + share * sums / jnp.where(total > 0, total, 1)
    return {"histogram": jnp.where(total > 0, new, old).astype(old.dtype)}


def dynamic_soft_margin_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    min_val: float,
    num_bins: int,
    triplets: Triplets | None = None,
    low: float,
    high: float,
    sums: dict[str, Float[Array, " r"]],
) -> Rows:
    """Returns (mean over its triplets, how many) of each anchor; see `dynamic_soft_margin`."""
    width = 2 * abs(min_val) / num_bins

    def term(d_ap: Array, d_an: Array, weight: Array, below: Array) -> Rows:
        x = d_ap - d_an
        bin_ = jnp.floor((jax.lax.stop_gradient(x) - min_val) / width).astype(jnp.int32)
        return within(below[jnp.clip(bin_, 0, num_bins - 1)] * x, weight, low, high)

    below = jnp.cumsum(sums["histogram"]).astype(sims.dtype)
    total, count = over_triplets(term, sims, sims, pos, neg, triplets, below)
    some = count > 0
    return jnp.where(some, total / jnp.where(some, count, 1), 0), count


def _init_histogram(key: Array, num_classes: int, dim: int, *, num_bins: int) -> Variables:
    del key, num_classes, dim
    return {"state": dynamic_soft_margin_state(num_bins=num_bins)}


def _prepare_histogram(whole_batch: WholeBatch, *, min_val: float, num_bins: int) -> Any:
    return whole_batch.map_blocks(Bound(_triplet_sums, min_val=min_val, num_bins=num_bins))


def _triplet_sums(block: Block, *, min_val: float, num_bins: int) -> Any:
    chosen = block.selection
    how: dict[str, Any] = dict(min_val=min_val, num_bins=num_bins, triplets=chosen.triplets)
    return dynamic_soft_margin_sums(block.sims, chosen.pos, chosen.neg, **how)


def _dynamic_soft_margin(
    block: Block, *, min_val: float, num_bins: int, low: float, high: float
) -> Rows:
    chosen = block.selection
    return dynamic_soft_margin_rows(
        block.sims,
        chosen.pos,
        chosen.neg,
        min_val=min_val,
        num_bins=num_bins,
        triplets=chosen.triplets,
        low=low,
        high=high,
        sums=block.prepass_sums,
    )


@checked("loss")
def dynamic_soft_margin(
    min_val: float = -2.0,
    num_bins: PositiveInt = 10,
    momentum: Fraction = 0.01,
    triplets_per_anchor: TripletsPerAnchor = "all",
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the dynamic soft margin loss of each anchor.

    l_apn = F(x) x,    x = d_ap - d_an,    F(x) = the share of triplets at or below the bin of x

    (Zhang and Rusinkiewicz, ICCV 2019; their code takes the hardest negatives alone, and 512 nodes from -2
    to 2.) F comes from the running histogram, which is the loss's state and holds this batch already; it is a constant
    of the step. Differs from PML: the histogram has no derivative, a later step works (PML's raises) and weighs the
    batch's histogram by momentum (PML's would weigh the raw counts, which drowns the past); labels are
    needed.

    Args:
      min_val: the first node of the histogram, below 0: nodes are 2 |min_val| / num_bins apart; PML's default.
      num_bins: the number of nodes; PML's default.
      momentum: the share of the new batch in the running histogram, 0 to 1; PML's default.
      triplets_per_anchor: "all", or how many to draw for each anchor where there is no miner.
      miner: narrows the triplets (`dml_jax.miners`): a name, a dict with a name, or the object; None: all triplets.
      distance: "lp" alone, of normalised vectors (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a distance that is not "lp" of normalised vectors, a min_val of 0.

    Example:
      >>> loss = dynamic_soft_margin()
      >>> variables = loss.init(jax.random.key(0), num_classes=2, dim=2)
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> mean, state = loss.apply(variables, x, [0, 1, 0, 1])
      >>> round(float(mean.compute()), 3)
      0.211
    """
    if min_val == 0:
        raise UserError("loss 'dynamic_soft_margin' has min_val=0; accepted: a number other than 0")
    parts = build_parts(
        "dynamic_soft_margin",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        default_distance="lp",
        only_distances=("lp",),
        unit_vectors=True,
    )
    bins = dict(min_val=min_val, num_bins=num_bins)
    return on_pairs(
        "dynamic_soft_margin",
        parts,
        Bound(_dynamic_soft_margin, low=parts.reducer.low, high=parts.reducer.high, **bins),
        init_variables=Bound(_init_histogram, num_bins=num_bins),
        prepare=Bound(_prepare_histogram, **bins),
        update=Bound(dynamic_soft_margin_update, momentum=momentum),
        **drawn("dynamic_soft_margin", triplets_per_anchor),
    )


def vic_reg_views(
    first: Float[Array, "b d"],
    second: Float[Array, "b d"],
    valid: Bool[Array, " b"],
    *,
    invariance_lambda: float,
    variance_mu: float,
    covariance_v: float,
    eps: float,
) -> Float[Array, ""]:
    """Returns the VICReg loss of two views of a batch; see `vic_reg`."""
    real = valid[:, None]
    count = jnp.sum(valid)
    size = first.shape[1]

    def moments(x: Array) -> tuple[Array, Array]:
        x = jnp.where(real, x, 0)
        x = jnp.where(real, x - jnp.sum(x, 0, keepdims=True) / jnp.maximum(count, 1), 0)
        covariance = jnp.matmul(x.T, x, precision="highest") / jnp.maximum(count - 1, 1)
        deviation = jnp.sqrt(jnp.diagonal(covariance) + eps)
        rest = jnp.where(jnp.eye(size, dtype=bool), 0, covariance)
        return jnp.mean(jax.nn.relu(1 - deviation)) / 2, jnp.sum(rest * rest) / size

    difference = jnp.where(real, first - second, 0)
    invariance = jnp.sum(difference * difference) / (size * jnp.maximum(count, 1))
    variance, covariance = map(sum, zip(moments(first), moments(second), strict=True))
    spread = variance_mu * variance + covariance_v * covariance
    return invariance_lambda * invariance + jnp.where(count > 1, spread, 0)


def _vic_reg(first: Array, second: Array, valid: Array, params: Any, **hyper: float) -> Array:
    del params
    return vic_reg_views(first, second, valid, **hyper)


@checked("loss")
def vic_reg(
    invariance_lambda: NonNegativeFloat = 25.0,
    variance_mu: NonNegativeFloat = 25.0,
    covariance_v: NonNegativeFloat = 1.0,
    eps: PositiveFloat = 1e-4,
    *,
    regularizer: RegularizerSpec = None,
) -> Loss:
    """Makes the VICReg loss of two views of a batch (Bardes, Ponce, LeCun, ICLR 2022).

    L = invariance_lambda mean (x - y)^2
        + variance_mu sum over views of mean_d [1 - sqrt(Var_d + eps)]+ / 2
        + covariance_v sum over views of sum_{d != e} Cov_de^2 / D

    with unbiased variances over the batch and vectors as they are. The second view comes as `ref_embeddings`. Fewer
    than two samples have no variance or covariance term (PML: NaN). Labels are not read. O(B D + D^2) memory.

    Args:
      invariance_lambda: the weight of the first term; the paper's and PML's default.
      variance_mu: the weight of the second term; the paper's and PML's default.
      covariance_v: the weight of the third term; the paper's and PML's default.
      eps: is added to the variances, above 0; the paper's and PML's default.
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.

    Raises:
      UserError: a weight below 0; at the call, no second view of the same shape.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(vic_reg()(x, None, ref_embeddings=x[:, ::-1])), 3)
      35.47
    """
    kernel = Bound(
        _vic_reg,
        invariance_lambda=invariance_lambda,
        variance_mu=variance_mu,
        covariance_v=covariance_v,
        eps=eps,
    )
    regularizers = build_parts("vic_reg", regularizer=regularizer).regularizers
    return ViewsLoss(name="vic_reg", relation=SAME_LABEL, kernel=kernel, regularizers=regularizers)


def manifold_graph(
    sims: Float[Array, "m m"],
    labels: Int[Array, " b"],
    valid: Bool[Array, " b"],
    *,
    K: int,
    lambdaC: float,
    alpha: float,
    margin: float,
) -> Float[Array, ""]:
    """Returns the manifold similarity loss of a batch and K proxies; see `manifold`."""
    batch, nodes = labels.shape[0], sims.shape[0]
    unit = jnp.eye(nodes, dtype=bool)
    real = jnp.concatenate([valid, jnp.ones(nodes - batch, bool)])
    edges = real[:, None] & real[None, :] & ~unit
    weights = jnp.where(edges, jnp.exp(2 * jax.nn.relu(sims)), 0)
    degree = jnp.sum(weights, -1)
    some = degree != 0
    scale = jnp.where(some, jnp.where(some, degree, 1) ** -0.5, 0)
    walk = scale[:, None] * weights * scale[None, :]
    with jax.default_matmul_precision("highest"):
        flow = (1 - alpha) * jnp.linalg.inv(unit.astype(sims.dtype) - alpha * walk)
    own = (labels % K)[:, None] == jnp.arange(K)[None, :]

    def term(scores: Array) -> Array:
        gap = scores - jnp.sum(jnp.where(own, scores, 0), -1, keepdims=True) + margin
        rows = log_one_plus_sum_exp(gap, ~(gap < 0) & ~own)  # NaN stays in play
        return jnp.sum(jnp.where(valid, rows, 0)) / jnp.maximum(jnp.sum(valid), 1)

    context = term(distances.cosine_matrix(flow[:batch], flow[batch:]))
    if math.isinf(lambdaC):
        return context
    return term(flow[:batch, batch:]) + lambdaC * context


@checked("loss")
def manifold(
    K: PositiveInt = 50,
    lambdaC: NonNegativeFloat = 1.0,
    alpha: Fraction = 0.8,
    margin: float = 5e-4,
    *,
    distance: DistanceSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the manifold similarity loss of a batch and K proxies (Aziere and Todorovic, CVPR 2019).

    F = (1 - alpha) (I - alpha D^-1/2 S D^-1/2)^-1,    S = exp(2 [cos]+) off the diagonal, D its row sums

    intrinsic: mean_i log(1 + sum_k e^{v_ik}) over the proxies k with v_ik = F_ik - F_iy + margin >= 0,
    context: the same with cos(F_i, F_k) in place of F_ik;    L = intrinsic + lambdaC context

    y is the proxy of the sample's meta-class, its label modulo K; lambdaC = inf is the context term alone. Proxies are
    `params["weights"]` `[K, dim]`, drawn from N(0, 1).
    The inverse is of the whole graph, O((B + K)^3) time and O((B + K)^2) memory, without a form by rows.
    Differs from PML: meta-classes follow the labels (PML draws one for each sample unless given), the
    inverse is not rounded to float32, lambdaC = inf is finite. PML's `l`, the dimension, is known from
    `init`.

    Args:
      K: the number of proxies; PML's default.
      lambdaC: the weight of the context term, 0 or more, inf for that term alone; PML's default.
      alpha: how far the walk goes, 0 to 1; PML's default.
      margin: PML's default.
      distance: "cosine" alone (`dml_jax.distances`).
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: gives the classes (`dml_jax.relations`); by default the labels are.

    Raises:
      UserError: a hyper-parameter out of range.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> mean, _ = manifold(K=2).apply({"params": {"weights": jnp.eye(2)}}, x, [0, 1, 0, 1])
      >>> round(float(mean.compute()), 3)
      0.733
    """
    parts = build_parts(
        "manifold",
        distance=distance,
        regularizer=regularizer,
        relation=relation,
        only_distances=("cosine",),
        with_classes=True,
        centers=1,
    )
    return GraphLoss(
        name="manifold",
        relation=parts.relation,
        kernel=Bound(manifold_graph, K=K, lambdaC=lambdaC, alpha=alpha, margin=margin),
        num_proxies=K,
        distance=parts.distance,
        regularizers=parts.regularizers,
    )
