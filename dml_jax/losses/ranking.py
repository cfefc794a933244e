"""Losses on the ranking of all references by an anchor, one value a row; never an `[a, n, n]` array.

Where a loss compares every positive with every reference it streams over the positives of a row
(`selection.sum_over_positives`): O(positives x n) time and O(n) memory a row. Kernels of average
precision count the anchor as its own first positive where the references are the batch (`own` is its
similarity to itself), as PML and the authors of these losses do.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dml_jax import distances, names
from dml_jax.losses.pair import Mask, Pairs, Rows, Sims, log_one_plus_sum_exp
from dml_jax.selection import pick, rows_at, sum_over_positives


def with_own(
    sims: Sims, pos: Mask, neg: Mask, own: Float[Array, " a"] | None
) -> tuple[Sims, Bool[Array, "a n"], Bool[Array, "a n"]]:
    """The row with the anchor itself before it, as a positive; as it was where `own` is None."""
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


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def soft_histogram(
    values: Sims,
    weights: Mask,
    low: float,
    width: float,
    count: int,
    shares: Shares | None = None,
) -> Float[Array, "a r"]:
    """sum_j w_j [1 - |v_j - node_r| / width]+ of each row, for `count` nodes from `low`, `width` apart.

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


def _histogram_fwd(values, weights, low, width, count, shares):
    return soft_histogram(values, weights, low, width, count, shares), (values, weights)


def _histogram_bwd(low, width, count, shares, saved, cotangent):
    values, weights = saved
    place = (values - low) / width
    left = jnp.clip(jnp.floor(place), 0, count - 2).astype(jnp.int32)
    lower, upper = (jnp.asarray([part], values.dtype) for part in shares or ((1.0,), (1.0,)))
    step = (upper * cotangent[:, 1:] - lower * cotangent[:, :-1]) / width
    inside = (place >= 0) & (place <= count - 1)
    return jnp.where(inside, weights * jnp.take_along_axis(step, left, -1), 0), None


soft_histogram.defvjp(_histogram_fwd, _histogram_bwd)


def fast_ap_rows(
    sims: Sims, pos: Mask, neg: Mask, *, num_bins: int = 10, farthest: float = 4.0
) -> Rows:
    """FastAP loss of each anchor (Cakir et al., CVPR 2019).

    l = 1 - 1/|P| sum_b h+_b H+_b / H_b

    h and h+ are soft histograms of the distances to all references and to the positives, on num_bins + 1
    nodes from 0 to `farthest` (4 for squared Euclidean distances of unit vectors), H and H+ their
    cumulative sums. An anchor without positives is left out; one without negatives has value 0. A miner
    makes samples weigh and does not narrow the ranking. Differs from PML: references are taken.
    """
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


def smooth_ap_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    temperature: float = 0.01,
    own: Float[Array, " a"] | None = None,
) -> Rows:
    """Smooth-AP loss of each anchor (Brown et al., ECCV 2020).

    l = 1 - 1/|P| sum_{i in P} R+_i / R_i,    R_i  = 1 + sum_{j != i}         sigmoid((s_j - s_i) / T)
                                              R+_i = 1 + sum_{j in P, j != i} sigmoid((s_j - s_i) / T)

    P holds the anchor itself where the references are the batch. Without negatives the value is 0; an
    anchor with no positive at all (among other references) is left out. A miner makes samples weigh.
    Differs from PML: any sizes and order of classes (PML groups rows wrongly unless there are as many
    classes as samples in each, and rounds to float32), references are taken, and no [B, B, B] array.
    """
    sims, pos, neg = with_own(sims, pos, neg, own)

    def term(one: Array, sims: Array, rest: tuple) -> Rows:
        pos, neg = rest
        ahead = jax.nn.sigmoid((sims - pick(one, sims)[:, None]) / temperature)
        positive = 1 + jnp.sum(jnp.where(pos & ~one, ahead, 0), -1)
        value = positive / (positive + jnp.sum(jnp.where(neg, ahead, 0), -1))
        return value, jnp.ones_like(value)

    total, count = sum_over_positives(term, sims, (pos, neg), pos)
    some = count > 0
    return jnp.where(some, 1 - total / jnp.where(some, count, 1), 0), some


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
    b: float = 2.0,
    alpha: float = 1.0,
    anneal: float = 0.01,
    variant: str = "O",
    own: Float[Array, " a"] | None = None,
) -> Rows:
    """Penalising-negatives-before-positives loss of each anchor (Li et al., AAAI 2022).

    l = 1/|P| sum_{i in P} f(r_i),    r_i = sum_{n in N} sigmoid((s_n - s_i) / anneal)

    f(r) by variant: "O" r; "Ds" log(1 + r); "Iu" (1 + r) log(1 + r); "Ib" (b r - log(1 + b r)) / b^2;
    "Dq" 1 - (1 + r)^-alpha. P holds the anchor itself where the references are the batch. Without
    negatives the value is 0; an anchor without another positive is left out. Equals the authors' code, which
    takes classes of one size alone. Differs from PML: miners (a repeated pair counts once) and references
    are taken, and no [B, B, B] array.
    """
    penalty = names.resolve("variant of loss 'pnp':", PNP_PENALTIES, variant)
    some = jnp.any(pos > 0, -1)
    sims, pos, neg = with_own(sims, pos, neg, own)

    def term(one: Array, sims: Array, neg: Array) -> Rows:
        ahead = jax.nn.sigmoid((sims - pick(one, sims)[:, None]) / anneal)
        value = penalty(jnp.sum(jnp.where(neg, ahead, 0), -1), b, alpha)
        return value, jnp.ones_like(value)

    total, count = sum_over_positives(term, sims, neg, pos)
    return jnp.where(some, total / jnp.where(some, count, 1), 0), some


def recall_at_k_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    k: tuple[int, ...] = (1, 2, 4, 8, 16),
    temperature: float = 0.01,
    k_temperature: float | tuple[float, ...] = 1.0,
) -> Rows:
    """Recall@k surrogate loss of each anchor (Patel, Tolias, Matas, CVPR 2022).

    l = mean_k 1 - min(C_k, k) / min(|P|, k),    C_k = sum_{i in P} sigmoid((k - r_i) / k_temperature)
                                                 r_i = 1 + sum_{j != i} sigmoid((s_j - s_i) / temperature)

    `k` are the recalls that are averaged; `k_temperature` is for all of them or one for each. The anchor
    is neither ranked nor a positive of itself. The two minima are those of the authors' code: recall@k
    cannot exceed 1. The temperatures are the paper's, `k` the code's. That code differs in two things: it
    ranks the anchor, too, ahead of all others, so that the nearest positive has rank 2; and its
    k_temperature is k itself, `k_temperature=(1, 2, 4, 8, 16)` here. An anchor without positives is left out.
    """
    pos, neg = pos > 0, neg > 0
    sizes = jnp.asarray(k, sims.dtype)
    softness = jnp.broadcast_to(jnp.asarray(k_temperature, sims.dtype), sizes.shape)

    def term(one: Array, sims: Array, rest: tuple) -> tuple[Array, Array]:
        others, sizes, softness = rest
        ahead = jax.nn.sigmoid((sims - pick(one, sims)[:, None]) / temperature)
        rank = 1 + jnp.sum(jnp.where(others & ~one, ahead, 0), -1, keepdims=True)
        hits = jax.nn.sigmoid((sizes[None, :] - rank) / softness[None, :])
        return hits, jnp.ones_like(rank[:, 0])

    total, count = sum_over_positives(term, sims, (pos | neg, sizes, softness), pos)
    most = jnp.clip(count[:, None], 1, sizes[None, :])
    value = jnp.mean(1 - jnp.minimum(total, sizes[None, :]) / most, -1)
    return jnp.where(count > 0, value, 0), count > 0


def step_from_above(gap: Sims, tau: float, rho: float, delta: float) -> Sims:
    """An upper bound of the step function of ROADMAP and HAPPIER, with a slope where negatives are ahead.

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
    lambda_: float = 0.5,
    tau: float = 0.01,
    rho: float = 100.0,
    delta: float = 0.05,
    pos_margin: float = 0.9,
    neg_margin: float = 0.6,
    own: Float[Array, " a"] | None = None,
) -> dict[str, Rows | Pairs]:
    """ROADMAP loss: (1 - lambda) L_SupAP + lambda L_calibr (Ramzi et al., NeurIPS 2021, section 3).

    ap:       1 - 1/|P| sum_{i in P} r+_i / (r+_i + sum_{n in N} H-(s_n - s_i)),
              r+_i = 1 + #{j in P, j != i: s_j >= s_i},    H- = `step_from_above`
    positive: [pos_margin - s_ap]+ and negative: [s_an - neg_margin]+, each averaged over the pairs that
              violate their margin, as in the authors' code.

    H- is above the step function, so that the ap term is above the loss of average precision; r+ has no
    derivative. P holds the anchor itself where the references are the batch; an anchor with no positive
    at all is left out of the ap term. A miner makes samples weigh. The defaults are the authors' code's,
    which adds the two terms (twice this loss); it uses 1.44 for 1/2 + sigmoid(delta / tau) = 1.493, which
    leaves a step at delta, and for iNaturalist leaves out the 1/2.
    """
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

    def term(one: Array, sims: Array, rest: tuple) -> Rows:
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


def happier_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    alpha: float = 1.0,
    tau: float = 0.01,
    rho: float = 100.0,
    delta: float = 0.05,
    levels: tuple[Int[Array, "a n"], int],
    own: Float[Array, " a"] | None = None,
) -> Rows:
    """Hierarchical average precision loss of each anchor (HAPPIER: Ramzi et al., ECCV 2022, section 3).

    l = 1 - 1/(sum_{k in P} rel_k) sum_{k in P} h_k / (r>=_k + sum_{j: l_j < l_k} H-(s_j - s_k))

    h_k   = rel_k + sum_{j in P, j != k, s_j >= s_k} min(rel_j, rel_k)     the H-rank
    r>=_k = 1 + #{j != k: l_j >= l_k, s_j >= s_k},    H- = `step_from_above`
    rel_k = (l_k / L)^alpha / #{j: l_j = l_k}

    `levels` are l, how many of the L levels of the hierarchy each reference shares with the anchor, and L;
    P are those that share one or more, and the anchor itself (l = L) where the references are the batch.
    An anchor with an empty P is left out; where all share all levels the value is 0. With one level this is
    the ap term of roadmap. The relation's own `level` does not matter; a miner makes samples weigh.

    h and r>= have no derivative, as in the authors' code with the settings of all its published commands
    (it can smooth the H-rank, too); that code has another constant in H- (see roadmap). The method's total is
    (1 - lambda) L + lambda L_clust, lambda = 0.1 by default: L_clust is normalized_softmax on the finest
    level, so that the loss "multiple" makes it, with weights 0.9 and 0.1 and relation "hierarchy" for both.
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

    def term(one: Array, sims: Array, rest: tuple) -> Rows:
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


def ranked_list_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    margin: float,
    Tn: float,
    imbalance: float = 0.5,
    alpha: float | None = None,
    Tp: float = 0.0,
    own: Float[Array, " a"] | None = None,
) -> Rows:
    """Ranked list loss of each anchor (Wang et al., CVPR 2019); `sims` are distances.

    l = (1 - imbalance) sum_p w_p (d_ap - b) / (sum_p w_p + e)      over d_ap > b = alpha - margin,
        + imbalance     sum_n w_n (alpha - d_an) / (sum_n w_n + e)  over d_an < alpha

    w_p = exp(Tp (d_ap - b)), w_n = exp(Tn (alpha - d_an)), both differentiated as in PML; alpha is
    1 + margin / 2 where None; e = 1e-5 B is PML's, with B all references and the anchor. A side without
    such pairs is 0; every anchor weighs 1. Differs from PML: negatives at distance 0 count (PML leaves
    them out), no temperature overflows, miners (a repeated pair counts once) and references are taken.
    """
    if not 0 <= imbalance <= 1:
        raise ValueError(f"loss 'ranked_list' has imbalance={imbalance}; accepted: 0 to 1")
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


def angular_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    alpha: float = 40.0,
    unmined=None,
    units: tuple[Float[Array, "a d"], Float[Array, "n d"]],
    low: float = -math.inf,
    high: float = math.inf,
) -> Rows:
    """Angular loss of each anchor: (mean over its positives, how many) (Wang et al., ICCV 2017).

    l_ap = log(1 + sum_n exp(4 t^2 (x_a + x_p).x_n - 2 (1 + t^2) x_a.x_p)),    t = tan(alpha)

    `alpha` is in degrees; all vectors are normalised (`units`, whose products the `sims` are). A pair whose
    anchor has no negatives has value 0 and counts; a pair that a miner returned k times counts k times, and
    all negatives stay in play (`unmined`), as in PML. Differs from PML: negatives are normalised, too (PML
    leaves them as they are, so that the loss grows with the size of the embeddings); equal for normalised input.
    """
    del sims
    slope = math.tan(math.radians(alpha)) ** 2
    if unmined is not None:
        neg = unmined[1]

    def term(one: Array, operands: tuple, neg: Array) -> Rows:
        anchors, refs = operands
        near = rows_at(one, refs)
        # One product of the sums, in place of two that are added up.
        both = distances.dot_product(4 * slope * (anchors + near), refs, normalize_embeddings=False)
        apart = 2 * (1 + slope) * jnp.sum(anchors * near, -1)
        loss = log_one_plus_sum_exp(both - apart[:, None], neg)
        counted = ~((loss <= low) | (loss >= high))  # NaN is counted, so that it shows
        return jnp.where(counted, loss, 0), counted.astype(loss.dtype)

    total, count = sum_over_positives(term, units, neg > 0, pos)
    some = count > 0
    return jnp.where(some, total / jnp.where(some, count, 1), 0), count
