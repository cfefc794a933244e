"""Losses on pairs: row kernels `(sims [a, n], pos [a, n], neg [a, n], *, ...) -> (values, weights)`.

`sims` holds what the loss's distance gives for a block of anchors and all references: similarities, or
distances where the docstring says so. `pos` and `neg` mark the pairs in play (self-pairs are gone);
they may be weights: a pair that a miner returned k times weighs k. Values and weights are by row `[a]`
or by pair `[a, n]`; a loss of several terms returns a dict of such tuples, and their means add up.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

Sims = Float[Array, "a n"]
Mask = Shaped[Array, "a n"]
Rows = tuple[Float[Array, " a"], Float[Array, " a"]]
Pairs = tuple[Float[Array, "a n"], Shaped[Array, "a n"]]


def log_sum_exp(x: Sims, weights: Mask) -> Float[Array, " a"]:
    """log sum_j w_j exp(x_j) of each row; -inf, with a zero gradient, where all weights are 0."""
    keep = weights > 0
    some = jnp.any(keep, -1)
    x = jnp.where(keep, x, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.where(some, jnp.max(x, -1), 0))
    # exp of a masked entry is taken at 0, so that no 0 * inf arises in the derivative.
    parts = jnp.where(keep, jnp.exp(jnp.where(keep, x - top[:, None], 0)) * weights, 0)
    total = jnp.where(some, jnp.sum(parts, -1), 1)
    return jnp.where(some, top + jnp.log(total), -jnp.inf)


def log_one_plus_sum_exp(x: Sims, weights: Mask) -> Float[Array, " a"]:
    """log(1 + sum_j w_j exp(x_j)) of each row; 0, with a zero gradient, where all weights are 0."""
    total = log_sum_exp(x, weights)
    some = total != -jnp.inf
    return jnp.where(some, jax.nn.softplus(jnp.where(some, total, 0)), 0)


def contrastive_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    pos_margin: float = 0.0,
    neg_margin: float = 1.0,
    similarity: bool = False,
) -> dict[str, Pairs]:
    """Contrastive loss of each pair (Hadsell, Chopra, LeCun, CVPR 2006, without the squares).

    positive: [d_ap - pos_margin]+    negative: [neg_margin - d_an]+        (distances)
    positive: [pos_margin - s_ap]+    negative: [s_an - neg_margin]+        (`similarity=True`)

    The two terms are averaged apart, over the pairs that violate their margin (avg_non_zero). No pair
    of a kind: that term is 0. On the distance snr this is signal_to_noise_ratio_contrastive (Yuan et al.,
    CVPR 2019, without the regularizer). Differs from PML in nothing but this: a batch of one positive
    and one negative pair has its loss (PML returns 0).
    """
    sign = -1.0 if similarity else 1.0
    return {
        "positive": (jax.nn.relu(sign * (sims - pos_margin)), pos),
        "negative": (jax.nn.relu(sign * (neg_margin - sims)), neg),
    }


def threshold_consistent_margin_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    lambda_plus: float = 1.0,
    lambda_minus: float = 1.0,
    margin_plus: float = 0.9,
    margin_minus: float = 0.5,
) -> dict[str, Pairs]:
    """Threshold-consistent margin loss of each pair (Zhang et al., ICLR 2024, arXiv 2307.04047).

    positive: lambda_plus (margin_plus - s) over the pairs with s <= margin_plus
    negative: lambda_minus (s - margin_minus) over the pairs with s >= margin_minus

    Cosine similarity. Each term is averaged over its pairs beyond the margin, 0 if there are none. The
    paper adds it to a base loss. Differs from PML: references other than the batch are used (PML
    accepts and ignores them).
    """
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


def multi_similarity_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    similarity: bool = True,
) -> Rows:
    """Multi-similarity loss of each anchor (Wang et al., CVPR 2019, eq. 15).

    l = log(1 + sum_p e^{-alpha (s_ap - base)}) / alpha + log(1 + sum_n e^{beta (s_an - base)}) / beta

    A side without pairs is 0. The weight is 1 for every anchor, as in PML and in the paper (the ICML
    2020 system averages over the anchors that kept pairs). A repeated pair counts once. With distances
    (`similarity=False`) both exponents change sign.
    """
    nearer = sims - base if similarity else base - sims
    positive = log_one_plus_sum_exp(-alpha * nearer, pos > 0) / alpha
    negative = log_one_plus_sum_exp(beta * nearer, neg > 0) / beta
    value = positive + negative
    return value, jnp.ones_like(value)


def nt_xent_rows(
    sims: Sims, pos: Mask, neg: Mask, *, temperature: float = 0.07, similarity: bool = True
) -> Pairs:
    """Normalised temperature-scaled cross entropy of each positive pair (InfoNCE; Chen et al., 2020).

    l_ap = -log( e^{s_ap/T} / (e^{s_ap/T} + sum_n e^{s_an/T}) ) = softplus( LSE_n(s_an/T) - s_ap/T )

    The mean is over the positive pairs; other positives are not in the denominator. A pair whose anchor
    has no negatives has value 0. Distances (`similarity=False`) are negated. Differs from PML: PML adds
    the smallest float inside the log, which caps the loss near 87 (float32) with a gradient of exactly 0
    for the hardest pairs; this form does not saturate.
    """
    scaled = (sims if similarity else -sims) / temperature
    log_negatives = log_sum_exp(scaled, neg)
    some = log_negatives != -jnp.inf
    gap = jnp.where(some, log_negatives, 0)[:, None] - scaled
    return jnp.where(some[:, None], jax.nn.softplus(gap), 0), pos


def sup_con_rows(
    sims: Sims, pos: Mask, neg: Mask, *, temperature: float = 0.1, similarity: bool = True
) -> Rows:
    """Supervised contrastive loss of each anchor (Khosla et al., NeurIPS 2020, eq. 2, L_out).

    l = -1/|P| sum_{p in P} log( e^{s_ap/T} / sum_{j in P and N} e^{s_aj/T} )

    An anchor without positives has value 0; the mean is over the anchors with a value above 0. Where no
    negative is in play in the whole batch the loss is 0, as in PML. A repeated pair counts once.
    Distances (`similarity=False`) are negated.
    """
    positive = pos > 0
    scaled = (sims if similarity else -sims) / temperature
    log_all = log_sum_exp(scaled, positive | (neg > 0))
    count = jnp.sum(positive, -1).astype(sims.dtype)
    some = count > 0
    gap = jnp.where(some, log_all, 0)[:, None] - scaled
    value = jnp.sum(jnp.where(positive, gap, 0), -1) / jnp.where(some, count, 1)
    return value, jnp.ones_like(value)


def circle_rows(sims: Sims, pos: Mask, neg: Mask, *, m: float = 0.4, gamma: float = 80.0) -> Rows:
    """Circle loss of each anchor (Sun et al., CVPR 2020).

    l = log( 1 + sum_n e^{gamma [s_an + m]+ (s_an - m)} sum_p e^{-gamma [1 + m - s_ap]+ (s_ap - 1 + m)} )

    Cosine similarity; the brackets are weights without a gradient. An anchor that lacks a positive or a
    negative has value 0; the mean is over the anchors with a value above 0. A repeated pair counts once.
    Same as PML.
    """
    fixed = jax.lax.stop_gradient(sims)
    positive = log_sum_exp(-gamma * jax.nn.relu(1 + m - fixed) * (sims - (1 - m)), pos > 0)
    negative = log_sum_exp(gamma * jax.nn.relu(fixed + m) * (sims - m), neg > 0)
    total = positive + negative
    both = total != -jnp.inf
    value = jnp.where(both, jax.nn.softplus(jnp.where(both, total, 0)), 0)
    return value, jnp.ones_like(value)


def sigmoid_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    scale: float | Float[Array, " a"] = 10.0,
    bias: float | Float[Array, " a"] = -10.0,
) -> Rows:
    """Sigmoid loss of each anchor (SigLIP; Zhai et al., ICCV 2023, algorithm 1), positives by label.

    l_a = sum_p softplus(-(scale s_ap + bias)) + sum_n softplus(scale s_an + bias)

    averaged over the anchors; those without pairs count as 0. `scale` and `bias` are learned by the loss,
    from these values on (`params["log_scale"]`, `params["bias"]`). The paper's positives are the pairs
    (i, i) of two sets: give one as references with labels 0..B-1. PML has no such loss.
    """
    logits = jnp.reshape(scale, (-1, 1)) * sims + jnp.reshape(bias, (-1, 1))
    value = jnp.sum(jax.nn.softplus(-logits) * pos + jax.nn.softplus(logits) * neg, -1)
    return value, jnp.ones_like(value)
