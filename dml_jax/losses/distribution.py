"""Losses on distributions: histograms of similarities and margins, moments, random walks on a graph."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dml_jax import distances
from dml_jax.losses.pair import Mask, Rows, Sims, log_one_plus_sum_exp
from dml_jax.losses.ranking import Shares, soft_histogram
from dml_jax.losses.triplet import over_triplets, within
from dml_jax.selection import Triplets


def histogram_sums(
    sims: Sims, pos: Mask, neg: Mask, *, n_bins: int | None = None, delta: float | None = None
) -> tuple[dict[str, Float[Array, " r"]], tuple[()]]:
    """Soft histograms of the cosines of positive and of negative pairs, on n_bins + 1 nodes of [-1, 1].

    A pair is shared by its two nearest nodes (Ustinova and Lempitsky, NIPS 2016).
    `delta` is the width of a bin, another way to say 2 / n_bins; 100 bins where neither is given. A
    repeated pair counts once. Cosines beyond 1 by rounding count as 1.
    """
    if n_bins is None:
        n_bins = 100 if delta is None else max(round(2 / delta), 1)
    if delta is not None and abs(delta * n_bins - 2) > 1e-6:
        raise ValueError(
            f"loss 'histogram' has delta={delta} with {n_bins} bins; accepted: delta = 2 / n_bins"
        )
    return pair_histograms(sims, pos, neg, n_bins), ()


def pair_histograms(
    sims: Sims, pos: Mask, neg: Mask, n_bins: int, shares: Shares | None = None
) -> dict[str, Float[Array, " r"]]:
    """Soft histograms of the positive and of the negative pairs, and how many there are of each."""
    inside = jnp.clip(sims, -1, 1)
    sides = [(side > 0).astype(sims.dtype) for side in (pos, neg)]
    positive, negative = (
        jnp.sum(soft_histogram(inside, side, -1.0, 2 / n_bins, n_bins + 1, shares), 0)
        for side in sides
    )
    pairs = jnp.stack([jnp.sum(side) for side in sides])
    return {"positive": positive, "negative": negative, "pairs": pairs}


def histogram_value(sums: dict[str, Float[Array, " r"]]) -> Float[Array, ""]:
    """Histogram loss (Ustinova and Lempitsky, NIPS 2016) of the sums of `histogram_sums`.

    L = sum_r h-_r sum_{q <= r} h+_q

    the probability that a random negative pair is more similar than a random positive one; h+ and h- are
    the histograms over all pairs of the batch, each divided by its number of pairs. No positive or no
    negative pair: 0. Differs from PML: pairs of two samples that have no positives count, as in the paper
    (PML goes through triplets); a pair that a miner chose from both ends counts twice; duplicates do not
    raise; references are taken; histograms never list pairs.
    """
    positive, negative, pairs = sums["positive"], sums["negative"], sums["pairs"]
    scale = pairs[0] * pairs[1]
    some = scale != 0
    value = jnp.sum(negative * jnp.cumsum(positive)) / jnp.where(some, scale, 1)
    return jnp.where(some, value, 0)


def dynamic_soft_margin_sums(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    min_val: float = -2.0,
    num_bins: int = 10,
    triplets: Triplets | None = None,
) -> tuple[Float[Array, " r"], tuple[()]]:
    """The soft histogram of d_ap - d_an over all triplets, on num_bins nodes from min_val upwards.

    Nodes are 2 |min_val| / num_bins apart; a triplet is shared by its two nearest nodes, one beyond an end
    counts at that end (where PML raises). A constant: it has no derivative.
    """
    width = 2 * abs(min_val) / num_bins
    last = min_val + width * (num_bins - 1)

    def term(d_ap: Array, d_an: Array, weight: Array, rest: tuple) -> tuple[Array, Array]:
        x = jnp.clip(d_ap - d_an, min_val, last)
        return soft_histogram(x, weight, min_val, width, num_bins), jnp.sum(weight, -1)

    fixed = jax.lax.stop_gradient(sims)
    return jnp.sum(over_triplets(term, fixed, fixed, pos, neg, triplets)[0], 0), ()


def dynamic_soft_margin_state(*, num_bins: int = 10) -> dict[str, Float[Array, " r"]]:
    """The running histogram before the first step: zeros."""
    return {"histogram": jnp.zeros(num_bins)}


def dynamic_soft_margin_update(
    state: dict[str, Float[Array, " r"]], sums: Float[Array, " r"], *, momentum: float = 0.01
) -> dict[str, Float[Array, " r"]]:
    """h <- (1 - momentum) h + momentum h_batch, both of sum 1; h_batch itself at the first step.

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
    min_val: float = -2.0,
    num_bins: int = 10,
    triplets: Triplets | None = None,
    low: float = -math.inf,
    high: float = math.inf,
    sums: dict[str, Float[Array, " r"]],
) -> Rows:
    """Dynamic soft margin loss of each anchor, (mean over its triplets, how many).

    l_apn = F(x) x,    x = d_ap - d_an,    F(x) = the share of triplets at or below the bin of x

    (Zhang and Rusinkiewicz, ICCV 2019; their code takes the hardest negatives alone, and 512 nodes from -2
    to 2.) F comes from the running histogram, which is the loss's state (`momentum` is the share of the new
    batch) and holds this batch already; it is a constant of the step. Euclidean distances of unit vectors.
    Differs from PML: the histogram has no derivative, a later step works (PML's raises) and weighs the
    batch's histogram by momentum (PML's would weigh the raw counts, which drowns the past); labels are
    needed.
    """
    width = 2 * abs(min_val) / num_bins

    def term(d_ap: Array, d_an: Array, weight: Array, below: Array) -> Rows:
        x = d_ap - d_an
        bin_ = jnp.floor((jax.lax.stop_gradient(x) - min_val) / width).astype(jnp.int32)
        return within(below[jnp.clip(bin_, 0, num_bins - 1)] * x, weight, low, high)

    below = jnp.cumsum(sums["histogram"]).astype(sims.dtype)
    total, count = over_triplets(term, sims, sims, pos, neg, triplets, below)
    some = count > 0
    return jnp.where(some, total / jnp.where(some, count, 1), 0), count


def vic_reg_views(
    first: Float[Array, "b d"],
    second: Float[Array, "b d"],
    valid: Bool[Array, " b"],
    *,
    invariance_lambda: float = 25.0,
    variance_mu: float = 25.0,
    covariance_v: float = 1.0,
    eps: float = 1e-4,
) -> Float[Array, ""]:
    """VICReg loss of two views of a batch (Bardes, Ponce, LeCun, ICLR 2022).

    L = invariance_lambda mean (x - y)^2
        + variance_mu sum over views of mean_d [1 - sqrt(Var_d + eps)]+ / 2
        + covariance_v sum over views of sum_{d != e} Cov_de^2 / D

    with unbiased variances over the batch and vectors as they are. Fewer than two samples have no
    variance or covariance term (PML: NaN). Labels are not read. O(B D + D^2) memory.
    """
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


def manifold_graph(
    sims: Float[Array, "m m"],
    labels: Int[Array, " b"],
    valid: Bool[Array, " b"],
    *,
    K: int = 50,
    lambdaC: float = 1.0,
    alpha: float = 0.8,
    margin: float = 5e-4,
) -> Float[Array, ""]:
    """Manifold similarity loss of a batch and K proxies (Aziere and Todorovic, CVPR 2019).

    F = (1 - alpha) (I - alpha D^-1/2 S D^-1/2)^-1,    S = exp(2 [cos]+) off the diagonal, D its row sums

    intrinsic: mean_i log(1 + sum_k e^{v_ik}) over the proxies k with v_ik = F_ik - F_iy + margin >= 0,
    context: the same with cos(F_i, F_k) in place of F_ik;    L = intrinsic + lambdaC context

    y is the proxy of the sample's meta-class, its label modulo K; lambdaC = inf is the context term alone.
    The inverse is of the whole graph, O((B + K)^3) time and O((B + K)^2) memory, without a form by rows.
    Differs from PML: meta-classes follow the labels (PML draws one for each sample unless given), the
    inverse is not rounded to float32, lambdaC = inf is finite. PML's `l`, the dimension, is known from
    `init`.
    """
    if lambdaC < 0:
        raise ValueError(f"loss 'manifold' has lambdaC={lambdaC}; accepted: 0 or more")
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

    context = term(distances.cosine(flow[:batch], flow[batch:]))
    if math.isinf(lambdaC):
        return context
    return term(flow[:batch, batch:]) + lambdaC * context
