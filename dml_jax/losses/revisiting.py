"""Losses as the ICML 2020 system computes them, where that is another function than PML's.

Roth et al., "Revisiting Training Strategies and Generalization Performance in Deep Metric Learning", ICML 2020, and its
code. Each kernel is one of the library's with what differs; hyper-parameters default to that system's. Where its
code does something else than its authors' paper says, the default is what the paper says, and `parity=True` is what
the code computes (and the published numbers may rest on). Its networks normalise their output for all losses but
n_pair, angular and generalized_lifted_structure.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dml_jax import distances
from dml_jax.losses.classification import (
    Cosines,
    Target,
    arc_face_logits,
    cos_face_logits,
    proxy_nca_logits,
    soft_triple_logits,
)
from dml_jax.losses.distribution import pair_histograms
from dml_jax.losses.lifted import generalized_lifted_structure_rows
from dml_jax.losses.margin import Terms, margin_rows
from dml_jax.losses.pair import (
    Mask,
    Pairs,
    Rows,
    Sims,
    log_one_plus_sum_exp,
    multi_similarity_rows,
    nt_xent_rows,
)
from dml_jax.losses.ranking import angular_rows
from dml_jax.losses.triplet import sum_triplets, triplet_margin_rows
from dml_jax.miners.batch import multi_similarity
from dml_jax.selection import (
    Listed,
    Triplets,
    draw,
    pairs_of_triplets,
    pick,
    sum_over_positives,
)


def revisiting_margin_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    margin: float = 0.2,
    nu: float = 0.0,
    beta: float | Float[Array, " a"] = 1.2,
    learn_beta: bool = True,
    parity: bool = False,
    triplets: Triplets | None = None,
    low: float = -math.inf,
    high: float = math.inf,
) -> Terms:
    """Margin loss of each anchor as in the ICML 2020 system: (mean over its triplets, their number, its divisor).

    l_apn = [D_ap - beta_y + margin]+ + [beta_y - D_an + margin]+,    D = sqrt(d^2 + 1e-8)

    summed over the triplets and divided by how many of their hinges are above 0 (Wu et al., ICCV 2017), 0 where none
    is. `parity=True` divides by how many *triplets* have a hinge above 0, which is what the code does (it adds two
    boolean tensors), up to half as many. beta is learned for each class (there: learning rate 5e-4, no weight decay);
    nu adds nu sum beta_y over all triplets, not divided (the code raises NameError for it). Euclidean distances.
    """
    d = jnp.sqrt(sims * sims + 1e-8)
    how: dict[str, Any] = dict(margin=margin, nu=nu, beta=beta, triplets=triplets)
    terms = margin_rows(d, pos, neg, learn_beta=learn_beta, low=low, high=high, **how)
    if parity:
        value, count, _ = terms["margin"]
        active = margin_rows(d, pos, neg, low=0.0, **how)["margin"][1]
        terms["margin"] = (value, count, active)
    return terms


def revisiting_multi_similarity_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    alpha: float = 2.0,
    beta: float = 40.0,
    base: float = 0.5,
    epsilon: float = 0.1,
    similarity: bool = True,
) -> Rows:
    """Multi-similarity loss of each anchor with its mining inside, averaged over the anchors that kept pairs.

    l = log(1 + sum_p e^{-alpha (s_ap - base)}) / alpha + log(1 + sum_n e^{beta (s_an - base)}) / beta

    over the positives with s_ap - epsilon < max_n s_an and the negatives with s_an + epsilon > min_p s_ap (Wang et
    al., CVPR 2019, eqs. 7, 8, 15). `multi_similarity` with the miner of that name is the same up to the mean, which
    it takes over all anchors. An anchor that kept nothing is left out (the code raises where it has no positive, and
    where none is kept at all; here 0).
    """
    kept = multi_similarity(sims, pos, neg, epsilon=epsilon, similarity=similarity)
    how: dict[str, Any] = dict(alpha=alpha, beta=beta, base=base, similarity=similarity)
    value, _ = multi_similarity_rows(sims, kept.pos, kept.neg, **how)
    return value, jnp.any(kept.pos > 0, -1) & jnp.any(kept.neg > 0, -1)


def revisiting_proxy_nca_logits(
    sims: Cosines, target: Target, *, softmax_scale: float = 9.0, similarity: bool = False
) -> Cosines:
    """Proxy-NCA without the own class in the denominator: logits -softmax_scale d^2(x, w_c).

    l = softmax_scale d^2(x, w_y) + log sum_{c != y} e^{-softmax_scale d^2(x, w_c)}

    (Movshovitz-Attias et al., ICCV 2017, eq. 4), which may be negative; proxy_nca is softplus of it. Squared
    distances of unit vectors; 9 is the code's factor 3 on both. Proxies start from N(0, 1) / 8 (there: learning rate
    5e-4, no weight decay). A single class: the first term alone. Same as the code.
    """
    return proxy_nca_logits(sims, target, softmax_scale=softmax_scale, similarity=similarity)


def revisiting_n_pair_rows(
    sims: Sims, pos: Mask, neg: Mask, *, temperature: float = 1.0, similarity: bool = True
) -> Pairs:
    """N-pair loss of each anchor against all negatives, with a penalty on norms.

    L = mean_a log(1 + sum_n e^{(s_an - s_ap) / temperature}) + 0.005 mean_i ||x_i||

    The dot product of vectors as they are. p is one positive of each anchor, drawn uniformly by `apply`'s key and the
    anchor's position, and the mean is over the anchors that have one; with a miner its pairs are taken instead. The
    penalty is the default regularizer, "lp". n_pairs has one anchor a class and other negatives (Sohn, NIPS 2016).
    Same as the code, which overflows where this does not; for BN-Inception the code divides embeddings by 4:
    `temperature=16` and a quarter of the penalty.
    """
    return nt_xent_rows(sims, pos, neg, temperature=temperature, similarity=similarity)


def revisiting_angular_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    alpha: float = 45.0,
    angular_weight: float = 2.0,
    clip: float = 50.0,
    vectors: tuple[Array, Array],
) -> dict[str, Rows]:
    """Angular loss with its n-pair term and a penalty on norms.

    n_pair:  log(1 + sum_n e^{clip(x_a.x_n - x_a.x_p, -clip, clip)}), of vectors as they are
    angular: angular_weight log(1 + sum_n e^{4 t^2 (u_a + u_p).u_n - 2 (1 + t^2) u_a.u_p}), u = x / ||x||, t = tan alpha

    added up, with 0.005 mean_i ||x_i|| (the default regularizer, "lp"); `alpha` in degrees (Wang et al., ICCV
    2017). The positives p are chosen as in revisiting_n_pair. Beyond `clip` a negative has no gradient in the
    first term, as in the code. The code fails on batches whose classes are not of equal size; otherwise the same.
    """
    anchors, refs = (distances.normalize(v.astype(sims.dtype)) for v in vectors)
    value, count = angular_rows(sims, pos, neg, alpha=alpha, units=(anchors, refs))

    def pair(one: Array, sims: Array, neg: Array) -> tuple[Array, Array]:
        gap = jnp.clip(sims - pick(one, sims)[:, None], -clip, clip)
        loss = log_one_plus_sum_exp(gap, neg)
        return loss, jnp.ones_like(loss)

    total, _ = sum_over_positives(pair, sims, neg > 0, pos)
    return {
        "n_pair": (total / jnp.where(count > 0, count, 1), count),
        "angular": (angular_weight * value, count),
    }


def revisiting_generalized_lifted_structure_rows(
    sims: Sims, pos: Mask, neg: Mask, *, neg_margin: float = 1.0
) -> Rows:
    """Generalised lifted structure loss, averaged over the anchors that have a positive, with a penalty on norms.

    l = [ LSE_p(D_ap) + LSE_n(neg_margin - D_an) ]+,    D = ||x - x' + 1e-6||
    L = mean l + 0.005 mean_i ||x_i||

    of vectors as they are (Hermans et al., 2017, p. 4). The penalty is the default regularizer, "lp"; an anchor without
    negatives has value 0. Differs from the code, which with a recent torch reduces another axis of the distances than
    was meant, and from generalized_lifted_structure in the mean over all anchors, the 1e-6 and the penalty.
    """
    value, _ = generalized_lifted_structure_rows(sims, pos, neg, neg_margin=neg_margin)
    return jnp.where(jnp.any(neg > 0, -1), value, 0), jnp.any(pos > 0, -1)


def revisiting_snr_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    margin: float = 0.2,
    reg_lambda: float = 0.005,
    triplets: Triplets | None = None,
    vectors: tuple[Array, Array],
    low: float = 0.0,
    high: float = math.inf,
) -> dict[str, Rows]:
    """Signal-to-noise triplet loss of each anchor, with a penalty on the sum of its coordinates.

    triplets: [r_ap - r_an + margin]+, r_ij = Var(x_i - x_j) / Var(x_i), averaged over those above 0
    mean:     reg_lambda |sum_d x_ad|, averaged over all triplets

    (Yuan et al., CVPR 2019), of vectors as they are. The code sets reg_lambda to 0 with its miners distance and
    random_distance. No triplet above 0: that term is 0 (the code: NaN). Otherwise the same.
    """
    value, count = triplet_margin_rows(
        sims, pos, neg, margin=margin, triplets=triplets, low=low, high=high
    )
    every = jnp.sum(pairs_of_triplets(pos, neg, triplets, sims.dtype)[0], -1)
    penalty = reg_lambda * jnp.abs(jnp.sum(vectors[0], -1))
    return {"triplets": (value, count), "mean": (penalty.astype(sims.dtype), every)}


def revisiting_histogram_sums(
    sims: Sims, pos: Mask, neg: Mask, *, nbins: int = 65, parity: bool = False
) -> tuple[dict[str, Float[Array, " r"]], tuple[()]]:
    """The sums of the histogram loss, on `nbins` nodes of [-1, 1]: `histogram` with n_bins = nbins - 1.

    `parity=True`: as the code, which finds a pair's nodes by comparing floats for equality. Where nbins - 1 is no
    power of 2 (the published 11 on Online Products) pairs of some bins then give nothing to one of their two nodes.
    """
    if nbins < 2:
        raise ValueError(f"loss 'revisiting_histogram' has nbins={nbins}; accepted: 2 or more")
    shares = None
    if parity:
        width = 2 / (nbins - 1)
        nodes, found = np.linspace(-1, 1, nbins), np.arange(nbins - 1) * width - 1
        lower, upper = found == nodes[:-1], found == nodes[1:] - width
        shares = (tuple(lower.astype(float).tolist()), tuple(upper.astype(float).tolist()))
    return pair_histograms(sims, pos, neg, nbins - 1, shares), ()


def revisiting_arc_face_logits(
    cosines: Cosines,
    target: Target,
    *,
    margin: float = math.degrees(0.5),
    scale: float = 16.0,
    parity: bool = False,
) -> Cosines:
    """ArcFace with the ICML 2020 system's margin, 0.5 radians (given in degrees), and scale.

    `parity=True` clips all cosines to [1e-10, 1 - 1e-10] first, as the code does: a class at an obtuse angle has no
    gradient. The code of 2020, before a correction in 2021, had no effect of the margin: `parity=True, margin=0`. Class
    weights start uniform in +-1/sqrt(dim) (there: learning rate 5e-4, no weight decay).
    """
    if parity:
        cosines = jnp.clip(cosines, 1e-10, 1 - 1e-10)
    return arc_face_logits(cosines, target, margin=margin, scale=scale)


def revisiting_soft_triple_logits(
    sims: Float[Array, "a kc"],
    target: Target,
    *,
    centers_per_class: int = 2,
    la: float = 8.0,
    gamma: float = 0.1,
    margin: float = 0.01,
    log_sums: Float[Array, "a k"] | None = None,
) -> Cosines:
    """SoftTriple with the ICML 2020 system's hyper-parameters and `reg_weight` (0.2) times the penalty on centers.

    The default is soft_triple (Qian et al., ICCV 2019) with the regularizer sparse_centers, on unit centers. `parity=
    True` is what the code computes: every coordinate is normalised over the centers of all classes instead of every
    center over its coordinates, and the weights of the centers are a softmax over *classes* of gamma s (`log_sums`
    holds its log-sum-exps) instead of one over a class's centers of s / gamma. The code's constructor fails on a
    flag of another name. Centers start uniform in +-1/sqrt(number of centers).
    """
    if log_sums is None:
        how: dict[str, Any] = dict(la=la, gamma=gamma, margin=margin)
        return soft_triple_logits(sims, target, centers_per_class=centers_per_class, **how)
    sims = sims.reshape(len(sims), centers_per_class, -1)
    near = jnp.sum(jnp.exp(gamma * sims - log_sums[:, :, None]) * sims, axis=1)
    return cos_face_logits(near, target, margin=margin, scale=la)


def revisiting_quadruplet_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    alpha1: float = 0.2,
    alpha2: float = 0.2,
    triplets: Triplets | None = None,
    unmined: tuple[Mask, Mask],
    partner: Callable[[Array, Array], Array],
    vectors: tuple[Array, Array],
    ref_labels: Int[Array, " n"],
    keys: Array,
    sums: Int[Array, " n"] | None = None,
    low: float = -math.inf,
    high: float = math.inf,
) -> dict[str, Rows]:
    """Quadruplet loss of each anchor (Chen et al., CVPR 2017, eq. 6, with one fourth sample a triplet).

    triplets:    [d_ap - d_an + alpha1]+
    quadruplets: [d_ap - d_nq + alpha2]+,    q a sample of a class other than a's and n's

    each averaged over all triplets, the second over those for which there is such a class. q is drawn uniformly by
    `apply`'s key and the anchor's position: two for each anchor, which its triplets share. Differs from the code,
    whose q may be of any class, the anchor's included; `parity=True` (`QuadrupletLoss`) is its function, and `sums`
    are then how often each sample was drawn.
    """
    first = triplet_margin_rows(
        sims, pos, neg, margin=alpha1, triplets=triplets, low=low, high=high
    )
    if sums is not None and isinstance(triplets, Listed):
        far = partner(triplets.negative == jnp.arange(len(ref_labels))[None, :], vectors[1])
        near = jnp.take_along_axis(sims, triplets.positive, axis=-1)
        share = sums.astype(sims.dtype) / jnp.maximum(jnp.sum(sums), 1)
        second = jnp.sum(share[None, :] * jax.nn.relu(near - far + alpha2), -1)
        return {"triplets": first, "quadruplets": (second, triplets.weight[:, 0])}
    fourth, exists = fourth_distances(unmined[1] > 0, partner, vectors[1], ref_labels, keys)
    neg = jnp.where(exists, neg, jnp.zeros_like(neg))
    if isinstance(triplets, Listed):
        there = jnp.take_along_axis(exists, triplets.negative, axis=-1)
        triplets = replace(triplets, weight=triplets.weight * there)
    hinge = lambda d_ap, d_nq: jax.nn.relu(d_ap - d_nq + alpha2)
    total, count = sum_triplets(hinge, sims, fourth, pos, neg, triplets, low=low, high=high)
    second = jnp.where(count > 0, total / jnp.where(count > 0, count, 1), 0)
    return {"triplets": first, "quadruplets": (second, count)}


def fourth_distances(
    others: Bool[Array, "a n"],
    partner: Callable[[Array, Array], Array],
    refs: Float[Array, "n d"],
    labels: Int[Array, " n"],
    keys: Array,
) -> tuple[Sims, Bool[Array, "a n"]]:
    """The distance of each reference n to the q of (a, n), and whether there is one.

    One of the anchor's negatives is q for all n that are not of its class, and one of other classes than that
    for the rest: for every n a uniform draw.
    """
    halves = jax.vmap(jax.random.split)(keys)
    columns = jnp.arange(len(labels))[None, :]
    first = draw(halves[:, 0], others)
    same = labels[first] == labels[None, :]
    rest = others & ~same
    second = draw(halves[:, 1], rest)
    exists = jnp.where(same, jnp.any(rest, -1, keepdims=True), jnp.any(others, -1, keepdims=True))
    far = jnp.where(same, partner(second == columns, refs), partner(first == columns, refs))
    return far, exists


def revisiting_adversarial_separation_views(
    source: Float[Array, "b d"],
    target: Float[Array, "b d"],
    valid: Bool[Array, " b"],
    *,
    weight: float = 1500.0,
    learned: dict[str, dict[str, Array]],
) -> Float[Array, ""]:
    """Adversarial separation of two embeddings of the same images (Milbich et al., DiVA, ECCV 2020).

    L = -weight mean_i mean_d ( u(R(t_i))_d u(g(R(s_i)))_d )^2,    u(x) = x / ||x||,    g a two-layer perceptron (ReLU)

    R is the identity with its gradient reversed: g, which is `params` of the loss, learns to predict the target from
    the source, and the embeddings learn to make that impossible. The batch is the source and `ref_embeddings` the
    target; the other direction is another such loss with the two exchanged. `proj_dim` is g's width. The defaults are
    DiVA's (with a learning rate of 1e-5); the ICML 2020 code holds this function, but not the flags that it reads.
    """

    def reverse(x: Array) -> Array:
        return 2 * jax.lax.stop_gradient(x) - x

    def layer(x: Array, name: str) -> Array:
        kernel, bias = (learned[name][part].astype(x.dtype) for part in ("kernel", "bias"))
        return jnp.matmul(x, kernel, precision="highest") + bias[None, :]

    source, target = (distances.normalize(reverse(x)) for x in (source, target))
    predicted = distances.normalize(layer(jax.nn.relu(layer(source, "hidden")), "output"))
    agreement = jnp.mean(jnp.square(target * predicted), -1)
    total = jnp.sum(jnp.where(valid, agreement, 0))
    return -weight * total / jnp.maximum(jnp.sum(valid), 1).astype(total.dtype)
