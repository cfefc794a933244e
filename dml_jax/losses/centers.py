"""Losses of several centers a class: sub-center ArcFace and SoftTriple.

The similarities are `[a, k * c]`, the first centers of all classes before the second ones.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dml_jax import distances
from dml_jax.losses.base import (
    DistanceSpec,
    Loss,
    MinerSpec,
    ReducerSpec,
    RegularizerSpec,
    RelationSpec,
    build_parts,
)
from dml_jax.losses.class_weights import (
    Cosines,
    Target,
    fan_in_centers,
    normal_weights,
)
from dml_jax.losses.classification import arc_face_logits
from dml_jax.losses.forms import against_classes, from_logits
from dml_jax.parameters import PositiveFloat, PositiveInt, checked


def sub_center_arc_face_logits(
    cosines: Float[Array, "a kc"],
    target: Target,
    *,
    margin: float,
    scale: float,
    sub_centers: int,
) -> Cosines:
    """Returns the logits of ArcFace by the nearest center; see `sub_center_arc_face`."""
    cosines = cosines.reshape(len(cosines), sub_centers, -1)
    # The maximum with the derivative shared at ties, as that of jnp.max is, in a third of its time.
    hit = cosines == jnp.max(jax.lax.stop_gradient(cosines), axis=1, keepdims=True)
    nearest = jnp.sum(jnp.where(hit, cosines, 0), axis=1) / jnp.sum(hit, axis=1)
    return arc_face_logits(nearest, target, margin=margin, scale=scale)


@checked("loss")
def sub_center_arc_face(
    margin: float = 28.6,
    scale: PositiveFloat = 64.0,
    sub_centers: PositiveInt = 3,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes ArcFace on the cosine of the nearest center: cos theta_c = max_k cos(x, w_ck).

    Deng et al., ECCV 2020. Weights `params["weights"]` `[num_classes, sub_centers, dim]`, drawn from N(0, 1). Differs
    from PML as arc_face does, and in the gradient at ties (here shared).

    Args:
      margin: in degrees; PML's default.
      scale: above 0; the paper's and PML's default.
      sub_centers: how many centers a class has; the paper's and PML's default.
      miner: weighs the samples by how often it chose them (`dml_jax.miners`); None: alike.
      distance: "cosine" alone (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: another distance than "cosine".

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> variables = {"params": {"weights": jnp.eye(4, 2).reshape(2, 2, 2)}}
      >>> mean, _ = sub_center_arc_face(scale=4, sub_centers=2).apply(variables, x, [0, 0, 1, 1])
      >>> round(float(mean.compute()), 3)
      2.81
    """
    parts = build_parts(
        "sub_center_arc_face",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        with_classes=True,
        only_distances=("cosine",),
        centers=sub_centers,
    )
    kernel = from_logits(
        sub_center_arc_face_logits, margin=margin, scale=scale, sub_centers=sub_centers
    )
    return against_classes(
        "sub_center_arc_face", parts, kernel, init_weights=normal_weights, centers=sub_centers
    )


def soft_triple_logits(
    sims: Float[Array, "a kc"],
    target: Target,
    *,
    centers_per_class: int,
    la: float,
    gamma: float,
    margin: float,
) -> Cosines:
    """Returns the logits of SoftTriple; see `soft_triple`."""
    sims = sims.reshape(len(sims), centers_per_class, -1)
    near = jnp.sum(jax.nn.softmax(sims / gamma, axis=1) * sims, axis=1)
    return la * jnp.where(target, near - margin, near)


@checked("loss")
def soft_triple(
    centers_per_class: PositiveInt = 10,
    la: PositiveFloat = 20.0,
    gamma: PositiveFloat = 0.1,
    margin: float = 0.01,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes SoftTriple: logits la (S_c - margin [c = y]) with S_c = sum_k softmax_k(s_ck / gamma) s_ck.

    Qian et al., ICCV 2019; the paper's penalty on the centers is the regularizer
    "sparse_centers". Weights `params["weights"]` `[num_classes, centers_per_class, dim]`, uniform in +-1/sqrt(number of
    centers). Same as PML.

    Args:
      centers_per_class: how many centers a class has; the paper's and PML's default.
      la: the scale, above 0; the paper's and PML's default.
      gamma: the temperature among the centers of a class, above 0; the paper's and PML's default.
      margin: the paper's and PML's default.
      miner: weighs the samples by how often it chose them (`dml_jax.miners`); None: alike.
      distance: "cosine", the default, or "dot_product" (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a distance that is no similarity.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> variables = {"params": {"weights": jnp.eye(4, 2).reshape(2, 2, 2)}}
      >>> mean, _ = soft_triple(la=4, centers_per_class=2).apply(variables, x, [0, 0, 1, 1])
      >>> round(float(mean.compute()), 3)
      1.85
    """
    parts = build_parts(
        "soft_triple",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        with_classes=True,
        only_distances=("cosine", "dot_product"),
        centers=centers_per_class,
    )
    kernel = from_logits(
        soft_triple_logits, centers_per_class=centers_per_class, la=la, gamma=gamma, margin=margin
    )
    return against_classes(
        "soft_triple", parts, kernel, init_weights=fan_in_centers, centers=centers_per_class
    )


class Outliers(NamedTuple):
    """What `sub_center_outliers` found.

    Attributes:
      outliers: the samples that are farther than the threshold from their class's dominant center.
      dominant: which center is the nearest to most samples of a class; -1 for a class without samples.
    """

    outliers: Bool[Array, " b"]
    dominant: Int[Array, " c"]


def sub_center_outliers(
    weights: Float[Array, "c k d"],
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    *,
    threshold: float = 75.0,
) -> Outliers:
    """Finds the samples at an angle beyond `threshold` degrees from the dominant center of their class.

    Deng et al., ECCV 2020 (PML: `SubCenterArcFaceLoss.get_outliers`, which returns indices,
    and the vectors `weights[c, dominant[c]]`). Of centers that are nearest equally often the first is
    dominant.
    """
    classes, centers, dim = weights.shape
    unit = distances.normalize(weights.reshape(-1, dim)).reshape(weights.shape)
    cosines = jnp.einsum(
        "bd,bkd->bk", distances.normalize(embeddings), unit[labels], precision="highest"
    )
    nearest = jnp.argmax(cosines, axis=-1)
    counts = jnp.zeros((classes, centers), jnp.int32).at[labels, nearest].add(1)
    dominant = jnp.where(jnp.sum(counts, -1) > 0, jnp.argmax(counts, -1), -1)
    own = jnp.take_along_axis(cosines, dominant[labels][:, None], axis=1)[:, 0]
    return Outliers(own < math.cos(math.radians(threshold)), dominant)
