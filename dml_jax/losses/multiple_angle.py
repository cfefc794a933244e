"""Losses that multiply the angle to the own class: large-margin softmax and SphereFace."""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dml_jax import distances
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
from dml_jax.losses.class_weights import Cosines, Target, normal_weights, with_own
from dml_jax.losses.forms import ClassChunk, against_classes
from dml_jax.parameters import PositiveFloat, PositiveInt, checked

Norms = tuple[Float[Array, "a 1"], Float[Array, "1 c"]]


def multiple_angle(cosines: Float[Array, "a c"], margin: int) -> Float[Array, "a c"]:
    """Returns psi(theta) = (-1)^k cos(m theta) - 2k with k = floor(m theta / pi), of cos theta.

    cos(m theta) is a polynomial (Chebyshev's) in cos theta, and k counts the angles j pi / m up to theta:
    no arccosine, so the derivative is finite at perfect alignment.
    """
    powers = np.polynomial.chebyshev.cheb2poly([0.0] * margin + [1.0])[::-1]
    angle = jnp.polyval(jnp.asarray(powers, cosines.dtype), cosines)
    steps = np.cos(np.pi * np.arange(1, margin) / margin)
    k = sum((cosines <= step).astype(cosines.dtype) for step in steps)
    return jnp.where(k % 2 == 0, angle, -angle) - 2 * k


def large_margin_softmax_logits(
    cosines: Cosines, target: Target, *, margin: int, scale: float, norms: Norms
) -> Cosines:
    """Returns the logits of L-Softmax; `norms` are those of the embeddings and of the class weights."""
    own = with_own(partial(multiple_angle, margin=margin), cosines, target)
    return scale * norms[0] * norms[1] * own


def _large_margin_softmax(chunk: ClassChunk, *, margin: int, scale: float) -> Cosines:
    norms = distances.norms(chunk.embeddings)[:, None], distances.norms(chunk.weights)[None, :]
    how: dict[str, Any] = dict(margin=margin, scale=scale, norms=norms)
    return large_margin_softmax_logits(chunk.sims, chunk.target, **how)


def _sphere_face(chunk: ClassChunk, *, margin: int, scale: float) -> Cosines:
    norms = distances.norms(chunk.embeddings)[:, None]
    return sphere_face_logits(chunk.sims, chunk.target, margin=margin, scale=scale, norms=norms)


@checked("loss")
def large_margin_softmax(
    margin: PositiveInt = 4,
    scale: PositiveFloat = 1.0,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes L-Softmax: logits scale ||x|| ||w_y|| psi(theta_y), scale ||x|| ||w_c|| cos theta_c for the others.

    psi(theta) = (-1)^k cos(margin theta) - 2k, k = floor(margin theta / pi); Liu et al., ICML
    2016. Class weights are `params["weights"]`, drawn from N(0, 1). Same as PML.

    Args:
      margin: a factor of the angle, a whole number; PML's default.
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
      >>> mean, _ = large_margin_softmax().apply(variables, x, [0, 0, 1, 1])
      >>> round(float(mean.compute()), 3)
      0.776
    """
    parts = build_parts(
        "large_margin_softmax",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        with_classes=True,
        only_distances=("cosine",),
        centers=1,
    )
    kernel = Bound(_large_margin_softmax, margin=margin, scale=scale)
    return against_classes("large_margin_softmax", parts, kernel, init_weights=normal_weights)


def sphere_face_logits(
    cosines: Cosines, target: Target, *, margin: int, scale: float, norms: Float[Array, "a 1"]
) -> Cosines:
    """Returns the logits of SphereFace; `norms` are those of the embeddings."""
    own = with_own(partial(multiple_angle, margin=margin), cosines, target)
    return scale * norms * own


@checked("loss")
def sphere_face(
    margin: PositiveInt = 4,
    scale: PositiveFloat = 1.0,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes SphereFace (A-Softmax): logits scale ||x|| psi(theta_y), scale ||x|| cos theta_c for the others.

    psi as in L-Softmax; the class weights, `params["weights"]`, drawn from N(0, 1), count as unit vectors (Liu et al.,
    CVPR 2017). Same as PML.

    Args:
      margin: a factor of the angle, a whole number; the paper's and PML's default.
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
      >>> mean, _ = sphere_face().apply(variables, x, [0, 0, 1, 1])
      >>> round(float(mean.compute()), 3)
      0.776
    """
    parts = build_parts(
        "sphere_face",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        with_classes=True,
        only_distances=("cosine",),
        centers=1,
    )
    kernel = Bound(_sphere_face, margin=margin, scale=scale)
    return against_classes("sphere_face", parts, kernel, init_weights=normal_weights)
