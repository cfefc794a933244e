"""Losses on pairs, as the ICML 2020 system computes them.

What holds for all of them stands in `dml_jax.revisiting`.
"""

import math
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dml_jax import distances
from dml_jax.bound import Bound
from dml_jax.errors import UserError
from dml_jax.losses.angular import angular_rows
from dml_jax.losses.base import (
    DistanceSpec,
    Loss,
    MinerSpec,
    ReducerSpec,
    RegularizerSpec,
    RelationSpec,
    build_parts,
)
from dml_jax.losses.distribution import histogram_value, pair_histograms
from dml_jax.losses.forms import (
    SumsLoss,
    from_rows,
    on_pairs,
)
from dml_jax.losses.kernels import Mask, Pairs, Rows, Sims, log_one_plus_sum_exp
from dml_jax.losses.lifted import generalized_lifted_structure_rows
from dml_jax.losses.pair import multi_similarity_rows, nt_xent_rows
from dml_jax.miners.pairs import select_multi_similarity
from dml_jax.pairwise import Block
from dml_jax.parameters import (
    Interval,
    PositiveFloat,
    checked,
)
from dml_jax.selection import (
    Selection,
    draw_positive,
    pick,
    sum_over_positives,
)

RAW_DOT = {"name": "dot_product", "normalize_embeddings": False}
RAW_LP = {"name": "lp", "eps": 1e-6, "normalize_embeddings": False}
NORM_PENALTY = {"name": "lp", "weight": 0.005}
NodeCount = Annotated[int, Interval(2, closed_low=True)]


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
      >>> import jax
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
      >>> import jax
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
