"""Losses against class weights: logit kernels `(cosines [a, c], target [a, c], *, ...) -> logits` and their factories.

`target` marks the class of each sample. A kernel acts on each logit alone, so that any chunk of the
classes will do; the classwise driver makes the cross entropy of it.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array

from dml_jax import classwise
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
    normal_weights,
    unit_weights,
    with_own,
)
from dml_jax.losses.forms import against_classes, from_logits
from dml_jax.parameters import PositiveFloat, checked


def cos_face_logits(cosines: Cosines, target: Target, *, margin: float, scale: float) -> Cosines:
    """Returns the logits of CosFace; see `cos_face`."""
    return scale * jnp.where(target, cosines - margin, cosines)


@checked("loss")
def cos_face(
    margin: float = 0.35,
    scale: PositiveFloat = 64.0,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes CosFace: logits scale (cos theta_y - margin) for the sample's class, scale cos theta_c for the others.

    Wang et al., CVPR 2018, eq. 4. Same as PML. Class weights are `params["weights"]`, drawn from N(0, 1).

    Args:
      margin: of cosines; PML's default.
      scale: above 0; PML's default.
      miner: weighs the samples by how often it chose them (`dml_jax.miners`); None: alike.
      distance: "cosine" alone (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: another distance than "cosine".

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> variables = {"params": {"weights": jnp.eye(2)}}
      >>> mean, _ = cos_face(scale=4).apply(variables, x, [0, 0, 1, 1])
      >>> round(float(mean.compute()), 3)
      0.299
    """
    parts = build_parts(
        "cos_face",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        with_classes=True,
        only_distances=("cosine",),
        centers=1,
    )
    kernel = from_logits(cos_face_logits, margin=margin, scale=scale)
    return against_classes("cos_face", parts, kernel, init_weights=normal_weights)


def arc_face_logits(cosines: Cosines, target: Target, *, margin: float, scale: float) -> Cosines:
    """Returns the logits of ArcFace, `margin` in degrees; see `arc_face`."""
    m = math.radians(margin)

    def shift(own: Array) -> Array:
        sin2 = 1 - own * own
        some = sin2 > jnp.finfo(own.dtype).eps
        sine = jnp.where(some, jnp.sqrt(jnp.where(some, sin2, 1)), 0)
        shifted = own * math.cos(m) - sine * math.sin(m)
        return jnp.where(own >= -math.cos(m), shifted, own - m * math.sin(m))

    return scale * with_own(shift, cosines, target)


@checked("loss")
def arc_face(
    margin: float = 28.6,
    scale: PositiveFloat = 64.0,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes ArcFace: logits scale cos(theta_y + margin) for the sample's class, scale cos theta_c for the others.

    Deng et al., CVPR 2019, eq. 3; beyond theta_y = 180 degrees - margin the logit
    goes on as scale (cos theta_y - m sin m), so that it falls monotonically, as in PML. Differs from PML
    in the gradient at perfect alignment: cos(theta + m) = cos theta cos m - sin theta sin m, with the
    derivative of sin theta taken as 0 where sin^2 theta is under the rounding error (PML: infinite). Class weights are
    `params["weights"]`, drawn from N(0, 1).

    Args:
      margin: in degrees; PML's default (the paper: 0.5 radians).
      scale: above 0; the paper's and PML's default.
      miner: weighs the samples by how often it chose them (`dml_jax.miners`); None: alike.
      distance: "cosine" alone (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: another distance than "cosine".

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> variables = {"params": {"weights": jnp.eye(2)}}
      >>> mean, _ = arc_face(scale=4).apply(variables, x, [0, 0, 1, 1])
      >>> round(float(mean.compute()), 3)
      0.301
    """
    parts = build_parts(
        "arc_face",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        with_classes=True,
        only_distances=("cosine",),
        centers=1,
    )
    kernel = from_logits(arc_face_logits, margin=margin, scale=scale)
    return against_classes("arc_face", parts, kernel, init_weights=normal_weights)


def normalized_softmax_logits(
    sims: Cosines, target: Target, *, temperature: float, similarity: bool
) -> Cosines:
    """Returns s / temperature, or -d / temperature of distances; see `normalized_softmax`."""
    del target
    return jnp.where(similarity, sims, -sims) / temperature


@checked("loss")
def normalized_softmax(
    temperature: PositiveFloat = 0.05,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the normalised softmax: logits s / temperature with unit class weights (Zhai and Wu, BMVC 2019).

    With a distance the logit is -d / temperature. Class weights are `params["weights"]`, drawn from N(0, 1). Same as
    PML.

    Args:
      temperature: above 0; the paper's and PML's default.
      miner: weighs the samples by how often it chose them (`dml_jax.miners`); None: alike.
      distance: by default "dot_product", of normalised vectors as in PML: cosine (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a temperature of 0 or less.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> variables = {"params": {"weights": jnp.eye(2)}}
      >>> mean, _ = normalized_softmax(temperature=0.5).apply(variables, x, [0, 0, 1, 1])
      >>> round(float(mean.compute()), 3)
      0.206
    """
    parts = build_parts(
        "normalized_softmax",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        with_classes=True,
        default_distance="dot_product",
        centers=1,
    )
    kernel = from_logits(
        normalized_softmax_logits, temperature=temperature, similarity=parts.distance.similarity
    )
    return against_classes("normalized_softmax", parts, kernel, init_weights=normal_weights)


def p2s_grad_terms(cosines: Cosines, target: Target) -> Cosines:
    """Returns (cos theta_c - [c = y])^2; see `p2s_grad`."""
    return jnp.square(cosines - target)


@checked("loss")
def p2s_grad(
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes P2SGrad as a squared error: (cos theta_c - [c = y])^2, averaged over samples and classes.

    Its derivative by cos theta_c is, up to a factor, the gradient of Zhang et al., CVPR 2019. The
    class weights count as unit vectors, and are drawn uniformly as such. PML rescales them to unit length in place in
    every step and so has a radial part in their gradient, which is projected out here; PML is NaN for a zero vector
    (here its cosines are 0) and takes no miner.

    Args:
      miner: weighs the samples by how often it chose them (`dml_jax.miners`); None: alike.
      distance: "cosine" alone (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: another distance than "cosine".

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> variables = {"params": {"weights": jnp.eye(2)}}
      >>> mean, _ = p2s_grad().apply(variables, x, [0, 0, 1, 1])
      >>> round(float(mean.compute()), 3)
      0.1
    """
    parts = build_parts(
        "p2s_grad",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        with_classes=True,
        only_distances=("cosine",),
        centers=1,
    )
    kernel = from_logits(p2s_grad_terms)
    return against_classes(
        "p2s_grad", parts, kernel, init_weights=unit_weights, over_classes=classwise.mean
    )
