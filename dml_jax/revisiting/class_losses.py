"""Losses against class weights, as the ICML 2020 system computes them.

What holds for all of them stands in `dml_jax.revisiting`.
"""

import math
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from dml_jax import classwise, distances, regularizers
from dml_jax.bound import Bound
from dml_jax.losses.base import (
    DistanceSpec,
    Loss,
    MinerSpec,
    ReducerSpec,
    RegularizerSpec,
    RelationSpec,
    build_parts,
)
from dml_jax.losses.centers import soft_triple_logits
from dml_jax.losses.class_weights import (
    Cosines,
    Target,
    fan_in_centers,
    fan_in_weights,
    small_weights,
)
from dml_jax.losses.classification import (
    arc_face_logits,
    cos_face_logits,
    normalized_softmax_logits,
)
from dml_jax.losses.forms import (
    against_classes,
    from_logits,
)
from dml_jax.losses.proxy_nca import proxy_nca_logits
from dml_jax.parameters import (
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    checked,
)
from dml_jax.regularizers import Regularizer


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
        default_distance={"name": "dot_product", "normalize_embeddings": False},
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
