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
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dml_jax import classwise, distances, reducers, regularizers
from dml_jax.bound import Bound
from dml_jax.distances import Distance
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
from dml_jax.losses.classification import (
    Cosines,
    Target,
    arc_face_logits,
    cos_face_logits,
    fan_in_centers,
    fan_in_weights,
    normalized_softmax_logits,
    proxy_nca_logits,
    small_weights,
    soft_triple_logits,
)
from dml_jax.losses.distribution import histogram_value, pair_histograms
from dml_jax.losses.forms import (
    SumsLoss,
    ViewsLoss,
    against_classes,
    from_logits,
    from_rows,
    on_pairs,
    partner_sims,
)
from dml_jax.losses.kernels import Mask, Pairs, Rows, Sims, log_one_plus_sum_exp
from dml_jax.losses.lifted import generalized_lifted_structure_rows
from dml_jax.losses.margins import Terms, margin_args, margin_beta, margin_rows, reduce_beta
from dml_jax.losses.pair import multi_similarity_rows, nt_xent_rows
from dml_jax.losses.ranking import angular_rows
from dml_jax.losses.triplet import TripletsPerAnchor, drawn, sum_triplets, triplet_margin_rows
from dml_jax.miners.pairs import select_multi_similarity
from dml_jax.pairwise import Block, WholeBatch
from dml_jax.parameters import (
    Interval,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    checked,
)
from dml_jax.regularizers import Regularizer
from dml_jax.relations import SAME_LABEL
from dml_jax.selection import (
    Listed,
    Selection,
    Triplets,
    draw,
    draw_positive,
    pairs_of_triplets,
    pick,
    sum_over_positives,
)

RAW_DOT = {"name": "dot_product", "normalize_embeddings": False}
RAW_SNR = {"name": "snr", "normalize_embeddings": False}
RAW_LP = {"name": "lp", "eps": 1e-6, "normalize_embeddings": False}
NORM_PENALTY = {"name": "lp", "weight": 0.005}
NodeCount = Annotated[int, Interval(2, closed_low=True)]


def revisiting_margin_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    margin: float,
    nu: float,
    beta: float | Float[Array, " a"],
    learn_beta: bool,
    parity: bool,
    triplets: Triplets | None = None,
    low: float = -math.inf,
    high: float = math.inf,
) -> Terms:
    """Returns (mean over its triplets, their number, its divisor) of each anchor; see `revisiting_margin`."""
    d = jnp.sqrt(sims * sims + 1e-8)
    how: dict[str, Any] = dict(margin=margin, nu=nu, beta=beta, triplets=triplets, similarity=False)
    terms = margin_rows(d, pos, neg, learn_beta=learn_beta, low=low, high=high, **how)
    if parity:
        value, count, _ = terms["margin"]
        active = margin_rows(d, pos, neg, learn_beta=False, low=0.0, high=math.inf, **how)[
            "margin"
        ][1]
        terms["margin"] = (value, count, active)
    return terms


def _margin(block: Block, *, beta: float, **hyper: Any) -> Terms:
    chosen = block.selection
    learned = block.anchor_args.get("beta", beta)
    how = dict(beta=learned, triplets=chosen.triplets) | hyper
    return revisiting_margin_rows(block.sims, chosen.pos, chosen.neg, **how)


@checked("loss")
def revisiting_margin(
    margin: float = 0.2,
    nu: float = 0.0,
    beta: float = 1.2,
    learn_beta: bool = True,
    parity: bool = False,
    per_class: bool = True,
    triplets_per_anchor: TripletsPerAnchor = "all",
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the margin loss of each anchor as in the ICML 2020 system.

    l_apn = [D_ap - beta_y + margin]+ + [beta_y - D_an + margin]+,    D = sqrt(d^2 + 1e-8)

    summed over the triplets and divided by how many of their hinges are above 0 (Wu et al., ICCV 2017), 0 where none
    is. `parity=True` divides by how many *triplets* have a hinge above 0, which is what the code does (it adds two
    boolean tensors), up to half as many. beta, `params["beta"]`, is learned for each class (there: learning rate 5e-4,
    no weight decay); nu adds nu sum beta_y over all triplets, not divided (the code raises NameError for it).

    Args:
      margin: half the width of the band around beta; the code's default.
      nu: the weight of the learned beta in the loss; the code's default.
      beta: what the learned boundary starts from; the code's default.
      learn_beta: False keeps beta as it is.
      parity: True divides as the code does.
      per_class: True learns a beta for each class, as the code does; False one for all.
      triplets_per_anchor: "all", or how many to draw for each anchor where there is no miner.
      miner: narrows the triplets (`dml_jax.miners`): a name, a dict with a name, or the object; None: all triplets.
      distance: "lp" alone, Euclidean between normalised vectors by default (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "divisor".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a relation without classes for a beta of each.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(revisiting_margin(learn_beta=False)(x, [0, 1, 0, 1])), 3)
      0.528
    """
    each = learn_beta and per_class
    parts = build_parts(
        "revisiting_margin",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        default_distance="lp",
        default_reducer="divisor",
        only_distances=("lp",),
        with_classes=each,
    )
    if learn_beta and nu:
        parts = parts._replace(reducer=reduce_beta(parts.reducer, reducers.sum_()))
    kernel = Bound(
        _margin,
        margin=margin,
        nu=nu,
        beta=beta,
        learn_beta=learn_beta,
        parity=parity,
        low=parts.reducer.low,
        high=parts.reducer.high,
    )
    more = drawn("revisiting_margin", triplets_per_anchor)
    if learn_beta:
        more |= dict(
            init_variables=Bound(margin_beta, beta=beta, per_class=per_class),
            anchor_args=Bound(margin_args, per_class=per_class),
            reads_classes=each,
        )
    if each:
        more["label_values"] = "numbers of classes"
    return on_pairs("revisiting_margin", parts, kernel, **more)


def revisiting_multi_similarity_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    alpha: float,
    beta: float,
    base: float,
    epsilon: float,
    similarity: bool,
) -> Rows:
    """Returns the multi-similarity loss of each anchor with its mining inside; see `revisiting_multi_similarity`."""
    kept = select_multi_similarity(sims, pos, neg, epsilon=epsilon, similarity=similarity)
    how: dict[str, Any] = dict(alpha=alpha, beta=beta, base=base, similarity=similarity)
    value, _ = multi_similarity_rows(sims, kept.pos, kept.neg, **how)
    return value, jnp.any(kept.pos > 0, -1) & jnp.any(kept.neg > 0, -1)


@checked("loss")
def revisiting_multi_similarity(
    alpha: PositiveFloat = 2.0,
    beta: PositiveFloat = 40.0,
    base: float = 0.5,
    epsilon: float = 0.1,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the multi-similarity loss of each anchor with its mining inside, averaged over the anchors that kept pairs.

    l = log(1 + sum_p e^{-alpha (s_ap - base)}) / alpha + log(1 + sum_n e^{beta (s_an - base)}) / beta

    over the positives with s_ap - epsilon < max_n s_an and the negatives with s_an + epsilon > min_p s_ap (Wang et
    al., CVPR 2019, eqs. 7, 8, 15). `multi_similarity` with the miner of that name is the same up to the mean, which
    it takes over all anchors. An anchor that kept nothing is left out (the code raises where it has no positive, and
    where none is kept at all; here 0).

    Args:
      alpha: of the positives' exponents, above 0; the code's default.
      beta: of the negatives' exponents, above 0; the code's default.
      base: where both exponents are 0; the code's default.
      epsilon: how much easier a kept pair may be than the hardest of the other kind; the code's default.
      miner: narrows the pairs in play (`dml_jax.miners`): a name, a dict with a name, or the object; None: all pairs.
      distance: by default "cosine" (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a hyper-parameter out of range.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(revisiting_multi_similarity()(x, [0, 1, 0, 1])), 3)
      0.957
    """
    parts = build_parts(
        "revisiting_multi_similarity",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
    )
    how = dict(alpha=alpha, beta=beta, base=base, epsilon=epsilon)
    rows = from_rows(revisiting_multi_similarity_rows, similarity=parts.distance.similarity, **how)
    return on_pairs("revisiting_multi_similarity", parts, rows)


def revisiting_proxy_nca_logits(
    sims: Cosines, target: Target, *, softmax_scale: float, similarity: bool
) -> Cosines:
    """Returns the logits -softmax_scale d^2(x, w_c); see `revisiting_proxy_nca`."""
    return proxy_nca_logits(sims, target, softmax_scale=softmax_scale, similarity=similarity)


@checked("loss")
def revisiting_proxy_nca(
    softmax_scale: PositiveFloat = 9.0,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes Proxy-NCA without the own class in the denominator: logits -softmax_scale d^2(x, w_c).

    l = softmax_scale d^2(x, w_y) + log sum_{c != y} e^{-softmax_scale d^2(x, w_c)}

    (Movshovitz-Attias et al., ICCV 2017, eq. 4), which may be negative; proxy_nca is softplus of it. Proxies,
    `params["weights"]`, start from N(0, 1) / 8 (there: learning rate
    5e-4, no weight decay). A single class: the first term alone. Same as the code.

    Args:
      softmax_scale: above 0; 9 is the code's factor 3 on both vectors.
      miner: weighs the samples by how often it chose them (`dml_jax.miners`); None: alike.
      distance: by default {"name": "lp", "power": 2}, squared Euclidean between normalised vectors
        (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a hyper-parameter out of range.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> variables = {"params": {"weights": jnp.eye(2)}}
      >>> mean, _ = revisiting_proxy_nca().apply(variables, x, [0, 0, 1, 1])
      >>> round(float(mean.compute()), 3)
      -16.2
    """
    parts = build_parts(
        "revisiting_proxy_nca",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        default_distance={"name": "lp", "power": 2},
        with_classes=True,
        centers=1,
    )
    how = dict(softmax_scale=softmax_scale, similarity=parts.distance.similarity)
    return against_classes(
        "revisiting_proxy_nca",
        parts,
        from_logits(revisiting_proxy_nca_logits, **how),
        over_classes=classwise.other_classes,
        init_weights=small_weights,
        weigh_partners=False,
    )


def _draw_positive(block: Block, keys: Array | None, *, name: str) -> Selection:
    """Draws one positive of each anchor, for a loss without a miner."""
    if keys is None:
        raise UserError(f"loss {name!r} draws a positive at random and needs a key")
    return draw_positive(block.related.pos, block.related.neg, keys)


def revisiting_n_pair_rows(
    sims: Sims, pos: Mask, neg: Mask, *, temperature: float, similarity: bool
) -> Pairs:
    """Returns the cross entropy of each drawn pair; see `revisiting_n_pair`."""
    return nt_xent_rows(sims, pos, neg, temperature=temperature, similarity=similarity)


@checked("loss")
def revisiting_n_pair(
    temperature: PositiveFloat = 1.0,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the N-pair loss of each anchor against all negatives, with a penalty on norms.

    L = mean_a log(1 + sum_n e^{(s_an - s_ap) / temperature}) + 0.005 mean_i ||x_i||

    The dot product of vectors as they are. p is one positive of each anchor, drawn uniformly by `apply`'s key and the
    anchor's position, and the mean is over the anchors that have one; with a miner its pairs are taken instead. n_pairs
    has one anchor a class and other negatives (Sohn, NIPS 2016).
    Same as the code, which overflows where this does not; for BN-Inception the code divides embeddings by 4:
    `temperature=16` and a quarter of the penalty.

    Args:
      temperature: above 0; the code's default.
      miner: narrows the pairs in play (`dml_jax.miners`): a name, a dict with a name, or the object; None: all pairs.
      distance: by default "dot_product" of vectors as they are (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); by default {"name": "lp", "weight": 0.005},
        the penalty on norms; (): none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a hyper-parameter out of range.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(revisiting_n_pair()(x, [0, 1, 0, 1], key=jax.random.key(0))), 3)
      1.479
    """
    parts = build_parts(
        "revisiting_n_pair",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        default_distance=RAW_DOT,
        default_regularizer=NORM_PENALTY,
    )
    how = dict(temperature=temperature, similarity=parts.distance.similarity)
    rows = from_rows(revisiting_n_pair_rows, **how)
    name = "revisiting_n_pair"
    return on_pairs(name, parts, rows, draw=Bound(_draw_positive, name=name))


def revisiting_angular_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    alpha: float,
    angular_weight: float,
    clip: float,
    vectors: tuple[Array, Array],
) -> dict[str, Rows]:
    """Returns both terms of each anchor; see `revisiting_angular`. `vectors` are the anchors and the references."""
    anchors, refs = (distances.normalize(v.astype(sims.dtype)) for v in vectors)
    value, count = angular_rows(
        sims, pos, neg, alpha=alpha, units=(anchors, refs), low=-math.inf, high=math.inf
    )

    def pair(one: Array, sims: Array, neg: Array) -> tuple[Array, Array]:
        gap = jnp.clip(sims - pick(one, sims)[:, None], -clip, clip)
        loss = log_one_plus_sum_exp(gap, neg)
        return loss, jnp.ones_like(loss)

    total, _ = sum_over_positives(pair, sims, neg > 0, pos)
    return {
        "n_pair": (total / jnp.where(count > 0, count, 1), count),
        "angular": (angular_weight * value, count),
    }


def _angular(block: Block, **hyper: Any) -> dict[str, Rows]:
    pos, neg = block.selection.pairs()
    vectors = block.anchors, block.refs
    return revisiting_angular_rows(block.sims, pos, neg, vectors=vectors, **hyper)


@checked("loss")
def revisiting_angular(
    alpha: float = 45.0,
    angular_weight: float = 2.0,
    clip: PositiveFloat = 50.0,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the angular loss with its n-pair term and a penalty on norms.

    n_pair:  log(1 + sum_n e^{clip(x_a.x_n - x_a.x_p, -clip, clip)}), of vectors as they are
    angular: angular_weight log(1 + sum_n e^{4 t^2 (u_a + u_p).u_n - 2 (1 + t^2) u_a.u_p}), u = x / ||x||, t = tan alpha

    added up, with 0.005 mean_i ||x_i|| (Wang et al., ICCV
    2017). The positives p are chosen as in revisiting_n_pair. Beyond `clip` a negative has no gradient in the
    first term, as in the code. The code fails on batches whose classes are not of equal size; otherwise the same.

    Args:
      alpha: in degrees; the code's default.
      angular_weight: of the second term; the code's default.
      clip: of the exponents of the first term, above 0; the code's default.
      miner: narrows the pairs in play (`dml_jax.miners`): a name, a dict with a name, or the object; None: all pairs.
      distance: "dot_product" alone, by default of vectors as they are (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); by default {"name": "lp", "weight": 0.005},
        the penalty on norms; (): none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a hyper-parameter out of range.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(revisiting_angular()(x, [0, 1, 0, 1], key=jax.random.key(0))), 3)
      12.702
    """
    parts = build_parts(
        "revisiting_angular",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        default_distance=RAW_DOT,
        only_distances=("dot_product",),
        default_regularizer=NORM_PENALTY,
    )
    kernel = Bound(_angular, alpha=alpha, angular_weight=angular_weight, clip=clip)
    name = "revisiting_angular"
    return on_pairs(name, parts, kernel, draw=Bound(_draw_positive, name=name))


def revisiting_generalized_lifted_structure_rows(
    sims: Sims, pos: Mask, neg: Mask, *, neg_margin: float
) -> Rows:
    """Returns the generalised lifted structure loss of each anchor that has a positive."""
    value, _ = generalized_lifted_structure_rows(
        sims, pos, neg, neg_margin=neg_margin, pos_margin=0.0, similarity=False
    )
    return jnp.where(jnp.any(neg > 0, -1), value, 0), jnp.any(pos > 0, -1)


@checked("loss")
def revisiting_generalized_lifted_structure(
    neg_margin: float = 1.0,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the generalised lifted structure loss of the anchors that have a positive, with a penalty on norms.

    l = [ LSE_p(D_ap) + LSE_n(neg_margin - D_an) ]+,    D = ||x - x' + 1e-6||
    L = mean l + 0.005 mean_i ||x_i||

    of vectors as they are (Hermans et al., 2017, p. 4). An anchor without
    negatives has value 0. Differs from the code, which with a recent torch reduces another axis of the distances than
    was meant, and from generalized_lifted_structure in the mean over all anchors, the 1e-6 and the penalty.

    Args:
      neg_margin: in the exponents of the negatives; the code's default.
      miner: narrows the pairs in play (`dml_jax.miners`): a name, a dict with a name, or the object; None: all pairs.
      distance: "lp" alone, by default of vectors as they are with eps=1e-6 (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); by default {"name": "lp", "weight": 0.005},
        the penalty on norms; (): none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a hyper-parameter out of range.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(revisiting_generalized_lifted_structure()(x, [0, 1, 0, 1])), 3)
      2.209
    """
    parts = build_parts(
        "revisiting_generalized_lifted_structure",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        default_distance=RAW_LP,
        only_distances=("lp",),
        default_regularizer=NORM_PENALTY,
    )
    rows = from_rows(revisiting_generalized_lifted_structure_rows, neg_margin=neg_margin)
    return on_pairs("revisiting_generalized_lifted_structure", parts, rows)


def revisiting_snr_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    margin: float,
    reg_lambda: float,
    triplets: Triplets | None = None,
    vectors: tuple[Array, Array],
    low: float,
    high: float,
) -> dict[str, Rows]:
    """Returns both terms of each anchor; see `revisiting_snr`. `vectors` are the anchors and the references."""
    value, count = triplet_margin_rows(
        sims,
        pos,
        neg,
        margin=margin,
        swap=False,
        smooth_loss=False,
        similarity=False,
        triplets=triplets,
        low=low,
        high=high,
    )
    every = jnp.sum(pairs_of_triplets(pos, neg, triplets, sims.dtype)[0], -1)
    penalty = reg_lambda * jnp.abs(jnp.sum(vectors[0], -1))
    return {"triplets": (value, count), "mean": (penalty.astype(sims.dtype), every)}


def _snr(block: Block, **hyper: Any) -> dict[str, Rows]:
    chosen, vectors = block.selection, (block.anchors, block.refs)
    how = dict(triplets=chosen.triplets, vectors=vectors) | hyper
    return revisiting_snr_rows(block.sims, chosen.pos, chosen.neg, **how)


@checked("loss")
def revisiting_snr(
    margin: float = 0.2,
    reg_lambda: NonNegativeFloat = 0.005,
    triplets_per_anchor: TripletsPerAnchor = "all",
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the signal-to-noise triplet loss of each anchor, with a penalty on the sum of its coordinates.

    triplets: [r_ap - r_an + margin]+, r_ij = Var(x_i - x_j) / Var(x_i), averaged over those above 0
    mean:     reg_lambda |sum_d x_ad|, averaged over all triplets

    (Yuan et al., CVPR 2019), of vectors as they are. The code sets reg_lambda to 0 with its miners distance and
    random_distance. No triplet above 0: that term is 0 (the code: NaN). Otherwise the same.

    Args:
      margin: what a negative is to be farther than a positive; the code's default.
      reg_lambda: the weight of the penalty, 0 or more; the code's default.
      triplets_per_anchor: "all", or how many to draw for each anchor where there is no miner.
      miner: narrows the triplets (`dml_jax.miners`): a name, a dict with a name, or the object; None: all triplets.
      distance: "snr" alone, by default of vectors as they are (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "avg_non_zero", and "mean" for the
        penalty.
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a hyper-parameter out of range.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(revisiting_snr()(x, [0, 1, 0, 1])), 3)
      14.702
    """
    parts = build_parts(
        "revisiting_snr",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        default_distance=RAW_SNR,
        default_reducer={"name": "multiple", "default": "avg_non_zero", "mean": "mean"},
        only_distances=("snr",),
    )
    bounds = dict(low=parts.reducer.low, high=parts.reducer.high)
    kernel = Bound(_snr, margin=margin, reg_lambda=reg_lambda, **bounds)
    return on_pairs("revisiting_snr", parts, kernel, **drawn("revisiting_snr", triplets_per_anchor))


def revisiting_histogram_sums(
    sims: Sims, pos: Mask, neg: Mask, *, nbins: int, parity: bool
) -> tuple[dict[str, Float[Array, " r"]], tuple[()]]:
    """Returns the sums of the histogram loss on `nbins` nodes of [-1, 1]; see `revisiting_histogram`."""
    shares = None
    if parity:
        width = 2 / (nbins - 1)
        nodes, found = np.linspace(-1, 1, nbins), np.arange(nbins - 1) * width - 1
        lower, upper = found == nodes[:-1], found == nodes[1:] - width
        shares = (tuple(lower.astype(float).tolist()), tuple(upper.astype(float).tolist()))
    return pair_histograms(sims, pos, neg, nbins - 1, shares), ()


@checked("loss")
def revisiting_histogram(
    nbins: NodeCount = 65,
    parity: bool = False,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the histogram loss on `nbins` nodes of [-1, 1]: `histogram` with n_bins = nbins - 1.

    `parity=True`: as the code, which finds a pair's nodes by comparing floats for equality. Where nbins - 1 is no
    power of 2 (the published 11 on Online Products) pairs of some bins then give nothing to one of their two nodes.

    Args:
      nbins: the number of nodes, 2 or more; the code's default.
      parity: True finds nodes as the code does.
      miner: narrows the pairs in play (`dml_jax.miners`): a name, a dict with a name, or the object; None: all pairs.
      distance: "cosine" alone (`dml_jax.distances`).
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: fewer than two nodes.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(revisiting_histogram(nbins=11)(x, [0, 1, 0, 1])), 3)
      0.75
    """
    parts = build_parts(
        "revisiting_histogram",
        miner=miner,
        distance=distance,
        regularizer=regularizer,
        relation=relation,
        only_distances=("cosine",),
    )
    return SumsLoss(
        name="revisiting_histogram",
        sums=from_rows(revisiting_histogram_sums, nbins=nbins, parity=parity),
        kernel=histogram_value,
        distance=parts.distance,
        miner=parts.miner,
        regularizers=parts.regularizers,
        relation=parts.relation,
    )


def revisiting_arc_face_logits(
    cosines: Cosines,
    target: Target,
    *,
    margin: float,
    scale: float,
    parity: bool,
) -> Cosines:
    """Returns the logits of ArcFace, with `parity` of clipped cosines; see `revisiting_arc_face`."""
    if parity:
        cosines = jnp.clip(cosines, 1e-10, 1 - 1e-10)
    return arc_face_logits(cosines, target, margin=margin, scale=scale)


@checked("loss")
def revisiting_arc_face(
    margin: float = math.degrees(0.5),
    scale: PositiveFloat = 16.0,
    parity: bool = False,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes ArcFace with the ICML 2020 system's margin, 0.5 radians (given in degrees), and scale.

    `parity=True` clips all cosines to [1e-10, 1 - 1e-10] first, as the code does: a class at an obtuse angle has no
    gradient. The code of 2020, before a correction in 2021, had no effect of the margin: `parity=True, margin=0`. Class
    weights, `params["weights"]`, start uniform in +-1/sqrt(dim) (there: learning rate 5e-4, no weight decay).

    Args:
      margin: in degrees; the code's default.
      scale: above 0; the code's default.
      parity: True clips cosines as the code does.
      miner: weighs the samples by how often it chose them (`dml_jax.miners`); None: alike.
      distance: "cosine" alone (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a hyper-parameter out of range.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> variables = {"params": {"weights": jnp.eye(2)}}
      >>> mean, _ = revisiting_arc_face(scale=4).apply(variables, x, [0, 0, 1, 1])
      >>> round(float(mean.compute()), 3)
      0.302
    """
    parts = build_parts(
        "revisiting_arc_face",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        only_distances=("cosine",),
        with_classes=True,
        centers=1,
    )
    kernel = from_logits(revisiting_arc_face_logits, margin=margin, scale=scale, parity=parity)
    return against_classes("revisiting_arc_face", parts, kernel, init_weights=fan_in_weights)


@checked("loss")
def revisiting_softmax(
    temperature: PositiveFloat = 0.05,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the softmax of x.w_c / temperature with unit class weights and embeddings as they are.

    The normalised softmax of the ICML 2020 system (Zhai and Wu, BMVC 2019), which normalises the class weights; its
    networks normalise the embeddings. Class weights, `params["weights"]`, start uniform in +-1/sqrt(dim).

    Args:
      temperature: above 0; the code's default.
      miner: weighs the samples by how often it chose them (`dml_jax.miners`); None: alike.
      distance: by default "dot_product" of vectors as they are; or "cosine" (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a hyper-parameter out of range.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> variables = {"params": {"weights": jnp.eye(2)}}
      >>> mean, _ = revisiting_softmax(temperature=0.5).apply(variables, x, [0, 0, 1, 1])
      >>> round(float(mean.compute()), 3)
      0.206
    """
    parts = build_parts(
        "revisiting_softmax",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        default_distance=RAW_DOT,
        only_distances=("cosine", "dot_product"),
        with_classes=True,
        centers=1,
    )
    how = dict(temperature=temperature, similarity=parts.distance.similarity)
    return against_classes(
        "revisiting_softmax",
        parts,
        from_logits(normalized_softmax_logits, **how),
        unit_weights=True,
        init_weights=fan_in_weights,
    )


def revisiting_soft_triple_logits(
    sims: Float[Array, "a kc"],
    target: Target,
    *,
    centers_per_class: int,
    la: float,
    gamma: float,
    margin: float,
    log_sums: Float[Array, "a k"],
) -> Cosines:
    """Returns the logits of SoftTriple as the code weighs centers; see `revisiting_soft_triple`.

    `log_sums` are the log-sum-exps of gamma s over all classes, for each center.
    """
    sims = sims.reshape(len(sims), centers_per_class, -1)
    near = jnp.sum(jnp.exp(gamma * sims - log_sums[:, :, None]) * sims, axis=1)
    return cos_face_logits(near, target, margin=margin, scale=la)


def unit_coordinates(centers: Float[Array, "c k d"]) -> Float[Array, "c k d"]:
    """Returns every coordinate divided by its norm over all centers."""
    columns = centers.reshape(-1, centers.shape[-1]).T
    return distances.normalize(columns).T.reshape(centers.shape)


def center_distances(centers: Float[Array, "c k d"]) -> Float[Array, ""]:
    """Returns sum_c sum_{k<l} sqrt(2.00001 - 2 w_ck.w_cl) / (c k (k - 1)), for any vectors.

    It is 0 with a single center a class.
    """
    classes, count = centers.shape[:2]
    gram = jnp.einsum("ckd,cld->ckl", centers, centers, precision="highest")
    pairs = jnp.triu(jnp.ones((count, count), bool), 1)[None] & (gram < 1.000005)
    gaps = jnp.where(pairs, jnp.sqrt(jnp.where(pairs, 2.00001 - 2 * gram, 1)), 0)
    return jnp.sum(gaps) / max(classes * count * (count - 1), 1)


def _parity_values(
    embeddings: Array,
    weights: Array,
    labels: Array,
    *,
    la: float,
    gamma: float,
    margin: float,
    block: int | None = None,
) -> Float[Array, " b"]:
    """Returns the values of SoftTriple as the code computes them."""
    weights = unit_coordinates(weights)
    count = weights.shape[1]

    def sims(unit: Array, weights: Array) -> Float[Array, "b kc"]:
        rows = weights.swapaxes(0, 1).reshape(-1, weights.shape[-1])
        return distances.inner_products(unit, rows)

    def scaled(unit: Array, weights: Array, target: Array) -> Float[Array, "b k c"]:
        del target
        return gamma * sims(unit, weights).reshape(len(unit), count, -1)

    def logits(samples: tuple[Array, Array], weights: Array, target: Array) -> Array:
        unit, log_sums = samples
        how: dict[str, Any] = dict(centers_per_class=count, la=la, gamma=gamma, margin=margin)
        return revisiting_soft_triple_logits(sims(unit, weights), target, log_sums=log_sums, **how)

    unit = distances.normalize(embeddings)
    log_sums = classwise.log_sum_exp(scaled, unit, weights, labels, block=block)
    return classwise.cross_entropy(logits, (unit, log_sums), weights, labels, block=block)


def _parity_penalty(
    centers: Float[Array, "c k d"], valid: Any = None, *, block: int | None = None
) -> Float[Array, ""]:
    del valid, block
    return center_distances(unit_coordinates(centers))


@checked("loss")
def revisiting_soft_triple(
    centers_per_class: PositiveInt = 2,
    la: PositiveFloat = 8.0,
    gamma: PositiveFloat = 0.1,
    margin: float = 0.01,
    reg_weight: NonNegativeFloat = 0.2,
    parity: bool = False,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes SoftTriple with the ICML 2020 system's hyper-parameters and its penalty on centers.

    The default is soft_triple (Qian et al., ICCV 2019) with `reg_weight` times the regularizer sparse_centers, on unit
    centers. `parity=True` is what the code computes: every coordinate is normalised over the centers of all classes
    instead of every center over its coordinates, in the loss and in the penalty, and the weights of the centers are a
    softmax over *classes* of gamma s instead of one over a class's centers of s / gamma. The code's constructor fails
    on a flag of another name. Centers, `params["weights"]`, start uniform in +-1/sqrt(number of centers).

    Args:
      centers_per_class: how many centers a class has; the code's default.
      la: the scale, above 0; the code's default.
      gamma: the temperature among centers, above 0; the code's default.
      margin: the code's default.
      reg_weight: the weight of the penalty on centers, 0 or more; the code's default.
      parity: True computes what the code does.
      miner: weighs the samples by how often it chose them (`dml_jax.miners`); None: alike.
      distance: "cosine" alone (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a hyper-parameter out of range.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> variables = {"params": {"weights": jnp.eye(4, 2).reshape(2, 2, 2)}}
      >>> mean, _ = revisiting_soft_triple().apply(variables, x, [0, 0, 1, 1])
      >>> round(float(mean.compute()), 3)
      3.712
    """
    parts = build_parts(
        "revisiting_soft_triple",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        only_distances=("cosine",),
        with_classes=True,
        centers=centers_per_class,
    )
    scales = dict(la=la, gamma=gamma, margin=margin)
    if parity:
        penalty = Regularizer("center_distances", _parity_penalty, "weights", reg_weight, True)
    else:
        penalty = regularizers.sparse_centers(weight=reg_weight)
    parts = parts._replace(regularizers=(penalty, *parts.regularizers))
    rows = from_logits(soft_triple_logits, centers_per_class=centers_per_class, **scales)
    loss = against_classes(
        "revisiting_soft_triple",
        parts,
        rows,
        init_weights=fan_in_centers,
        centers=centers_per_class,
    )
    return replace(loss, values=Bound(_parity_values, **scales)) if parity else loss


def revisiting_quadruplet_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    alpha1: float,
    alpha2: float,
    triplets: Triplets | None = None,
    unmined: Mask,
    partner: Callable[[Array, Array], Array],
    refs: Float[Array, "n d"],
    ref_labels: Int[Array, " n"],
    keys: Array,
    sums: Int[Array, " n"] | None = None,
    low: float,
    high: float,
) -> dict[str, Rows]:
    """Returns the hinges of triplets and of quadruplets of each anchor; see `revisiting_quadruplet`.

    `unmined` are the negatives before mining, `partner(one, refs)` the distances of one reference of each row to all,
    `keys` the anchors' own, and `sums` with `parity` how often each sample was drawn.
    """
    first = triplet_margin_rows(
        sims,
        pos,
        neg,
        margin=alpha1,
        swap=False,
        smooth_loss=False,
        similarity=False,
        triplets=triplets,
        low=low,
        high=high,
    )
    if sums is not None and isinstance(triplets, Listed):
        far = partner(triplets.negative == jnp.arange(len(ref_labels))[None, :], refs)
        near = jnp.take_along_axis(sims, triplets.positive, axis=-1)
        share = sums.astype(sims.dtype) / jnp.maximum(jnp.sum(sums), 1)
        second = jnp.sum(share[None, :] * jax.nn.relu(near - far + alpha2), -1)
        return {"triplets": first, "quadruplets": (second, triplets.weight[:, 0])}
    fourth, exists = fourth_distances(unmined > 0, partner, refs, ref_labels, keys)
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
    """Returns the distance of each reference n to the q of (a, n), and whether there is one.

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


def _quadruplet(block: Block, *, distance: Distance, **hyper: Any) -> dict[str, Rows]:
    if block.keys is None:
        raise UserError(
            "loss 'revisiting_quadruplet' draws fourth samples at random and needs a key"
        )
    chosen = block.selection
    return revisiting_quadruplet_rows(
        block.sims,
        chosen.pos,
        chosen.neg,
        triplets=chosen.triplets,
        unmined=block.related.neg,
        partner=Bound(partner_sims, distance=distance),
        refs=block.refs,
        ref_labels=block.ref_labels,
        keys=block.keys,
        sums=block.prepass_sums,
        **hyper,
    )


def _count_fourths(whole_batch: WholeBatch) -> tuple[Array, None]:
    """Returns how often each sample is drawn by the triplets of the whole batch, with `parity`."""
    name = "revisiting_quadruplet"
    if whole_batch.key is None:
        raise UserError(f"loss {name!r} draws fourth samples at random and needs a key")
    if not whole_batch.refs_include_batch:
        raise UserError(
            f"loss {name!r} with parity=True draws from the batch; accepted: no ref_embeddings"
        )

    def listed(block: Block) -> tuple[tuple[()], tuple[Array, Array]]:
        chosen = block.selection.triplets
        if not isinstance(chosen, Listed) or chosen.negative.shape[1] != 1:
            raise UserError(
                f"loss {name!r} with parity=True needs a miner that lists one triplet of each "
                "anchor, 'batch_hard' say"
            )
        return (), (chosen.negative[:, 0], chosen.weight[:, 0] > 0)

    _, found = whole_batch.map_blocks(listed)

    def fourths(block: Block) -> tuple[Array, tuple[()]]:
        negatives, there = block.prepass_sums
        rows = block.anchor_ids
        allowed = there[None, :] & (negatives[rows][:, None] != negatives[None, :])
        allowed &= (there[rows] & block.anchor_valid)[:, None]
        assert block.keys is not None  # the loss asks for a key
        one = draw(block.keys, allowed) == jnp.arange(len(negatives))[None, :]
        return jnp.sum(one & allowed, 0), ()

    return whole_batch.map_blocks(fourths, found)[0], None


@checked("loss")
def revisiting_quadruplet(
    alpha1: float = 0.2,
    alpha2: float = 0.2,
    parity: bool = False,
    triplets_per_anchor: TripletsPerAnchor = "all",
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the quadruplet loss of each anchor (Chen et al., CVPR 2017, eq. 6, with one fourth sample a triplet).

    triplets:    [d_ap - d_an + alpha1]+
    quadruplets: [d_ap - d_nq + alpha2]+,    q a sample of a class other than a's and n's

    each averaged over all triplets, the second over those for which there is such a class. q is drawn uniformly by
    `apply`'s key and the anchor's position: two for each anchor, which its triplets share. Differs from the code,
    whose q may be of any class, the anchor's included. With `parity` it is the code's function: of the T triplets a
    miner lists, one an anchor, triplet u draws q_u among the
    anchors whose own negative is another sample than its negative, whatever their class, and every triplet is
    compared with every draw: mean_t mean_u [d_ap - d_(n_t, q_u) + alpha2]+. (The code takes ranks in the list of
    triplets for positions in the batch, and fails unless every sample is an anchor.)

    Args:
      alpha1: the margin of the triplets; the code's default.
      alpha2: the margin of the quadruplets; the code's default.
      parity: True draws fourths as the code does; it needs a miner that lists one triplet of each anchor.
      triplets_per_anchor: "all", or how many to draw for each anchor where there is no miner.
      miner: narrows the triplets (`dml_jax.miners`): a name, a dict with a name, or the object; None: all triplets.
      distance: "lp" alone, Euclidean between normalised vectors by default (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a relation without classes; at the call, no key.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(revisiting_quadruplet()(x, [0, 1, 0, 1], key=jax.random.key(0))), 3)
      0.671
    """
    parts = build_parts(
        "revisiting_quadruplet",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        default_distance="lp",
        only_distances=("lp",),
        with_classes=True,
    )
    kernel = Bound(
        _quadruplet,
        distance=parts.distance,
        alpha1=alpha1,
        alpha2=alpha2,
        low=parts.reducer.low,
        high=parts.reducer.high,
    )
    name = "revisiting_quadruplet"
    more = drawn(name, triplets_per_anchor)
    if parity:
        more["prepare"] = _count_fourths
    return on_pairs(name, parts, kernel, reads_classes=True, **more)


def revisiting_adversarial_separation_views(
    source: Float[Array, "b d"],
    target: Float[Array, "b d"],
    valid: Bool[Array, " b"],
    *,
    weight: float,
    learned: dict[str, dict[str, Array]],
) -> Float[Array, ""]:
    """Returns the adversarial separation of two embeddings; see `revisiting_adversarial_separation`."""

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


def _adversarial_separation(
    first: Array, second: Array, valid: Array, params: Any, *, weight: float
) -> Array:
    return revisiting_adversarial_separation_views(
        first, second, valid, weight=weight, learned=params
    )


def _init_perceptron(key: Array, num_classes: int, dim: int, *, width: int) -> Variables:
    """Makes {"params": {"hidden" and "output": {"kernel": [in, out], "bias": [out]}}}, uniform in +-1/sqrt(in)."""
    del num_classes

    def layer(key: Array, rows: int, columns: int) -> dict[str, Array]:
        draw = lambda key, *shape: jax.random.uniform(key, shape, minval=-1, maxval=1)
        first, second = jax.random.split(key)
        scale = 1 / math.sqrt(rows)
        return {
            "kernel": scale * draw(first, rows, columns),
            "bias": scale * draw(second, columns),
        }

    hidden, output = jax.random.split(key)
    return {"params": {"hidden": layer(hidden, dim, width), "output": layer(output, width, dim)}}


@checked("loss")
def revisiting_adversarial_separation(
    weight: NonNegativeFloat = 1500.0,
    proj_dim: PositiveInt = 512,
    *,
    regularizer: RegularizerSpec = None,
) -> Loss:
    """Makes the adversarial separation of two embeddings of the same images (Milbich et al., DiVA, ECCV 2020).

    L = -weight mean_i mean_d ( u(R(t_i))_d u(g(R(s_i)))_d )^2,    u(x) = x / ||x||,    g a two-layer perceptron (ReLU)

    R is the identity with its gradient reversed: g, which is `params` of the loss, learns to predict the target from
    the source, and the embeddings learn to make that impossible. The batch is the source and `ref_embeddings` the
    target; the other direction is another such loss with the two exchanged. The defaults are
    DiVA's (with a learning rate of 1e-5); the ICML 2020 code holds this function, but not the flags that it reads.

    Args:
      weight: of the loss, 0 or more; DiVA's default.
      proj_dim: the width of g; DiVA's default.
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.

    Raises:
      UserError: at the call, no target of the same shape.

    Example:
      >>> loss = revisiting_adversarial_separation(proj_dim=3)
      >>> variables = loss.init(jax.random.key(0), num_classes=2, dim=2)
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> mean, _ = loss.apply(variables, x, None, ref_embeddings=x[::-1])
      >>> bool(mean.compute() < 0)
      True
    """
    name = "revisiting_adversarial_separation"
    return ViewsLoss(
        name=name,
        relation=SAME_LABEL,
        kernel=Bound(_adversarial_separation, weight=weight),
        init_variables=Bound(_init_perceptron, width=proj_dim),
        regularizers=build_parts(name, regularizer=regularizer).regularizers,
    )
