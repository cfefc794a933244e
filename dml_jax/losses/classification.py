"""Losses against class weights: logit kernels `(cosines [a, c], target [a, c], *, ...) -> logits` and their factories.

`target` marks the class of each sample. A kernel acts on each logit alone, so that any chunk of the
classes will do; the classwise driver makes the cross entropy of it. Where a class has k centers the
similarities are `[a, k * c]`, the first centers of all classes before the second ones.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dml_jax import classwise, distances
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
from dml_jax.losses.forms import ClassChunk, against_classes, from_logits
from dml_jax.parameters import PositiveFloat, PositiveInt, checked

Cosines = Float[Array, "a c"]
Target = Bool[Array, "a c"]
Norms = tuple[Float[Array, "a 1"], Float[Array, "1 c"]]


def with_own(
    change: Callable[[Float[Array, "a 1"]], Float[Array, "a 1"]], cosines: Cosines, target: Target
) -> Cosines:
    """Returns the cosines with that of each sample's class changed; `change` sees one a sample, not all classes."""
    own = jnp.sum(jnp.where(target, cosines, 0), axis=1, keepdims=True)
    return jnp.where(target, change(own), cosines)


def normal_weights(key: Array, num_classes: int, dim: int) -> Float[Array, "c d"]:
    """Draws class weights from N(0, 1), as PML initialises them."""
    return jax.random.normal(key, (num_classes, dim))


def small_weights(key: Array, num_classes: int, dim: int) -> Float[Array, "c d"]:
    """Draws class weights from N(0, 1/64), as the authors of Proxy-NCA++ and the ICML 2020 code do.

    Only their directions matter to the loss; its gradient is eight times that of N(0, 1), so that they turn
    faster under SGD.
    """
    return jax.random.normal(key, (num_classes, dim)) / 8


def fan_in_weights(key: Array, num_classes: int, dim: int) -> Float[Array, "c d"]:
    """Draws class weights uniformly from +-1/sqrt(dim), as the ICML 2020 code initialises them."""
    return jax.random.uniform(key, (num_classes, dim), minval=-1, maxval=1) / math.sqrt(dim)


def fan_in_centers(key: Array, rows: int, dim: int) -> Float[Array, "c d"]:
    """Draws centers uniformly from +-1/sqrt(number of all centers), as PML and the paper's code do."""
    return jax.random.uniform(key, (rows, dim), minval=-1, maxval=1) / math.sqrt(rows)


def unit_weights(key: Array, num_classes: int, dim: int) -> Float[Array, "c d"]:
    """Draws unit vectors in directions drawn uniformly from a cube, as PML initialises P2SGrad."""
    return distances.normalize(jax.random.uniform(key, (num_classes, dim), minval=-1, maxval=1))


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


def proxy_nca_logits(
    sims: Cosines, target: Target, *, softmax_scale: float, similarity: bool
) -> Cosines:
    """Returns the logits of Proxy-NCA; see `proxy_nca`."""
    del target
    return softmax_scale * jnp.where(similarity, sims, -sims)


@checked("loss")
def proxy_nca(
    softmax_scale: PositiveFloat = 1.0,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes Proxy-NCA with the own class in the denominator: logits -softmax_scale d^2(x, w_c).

    Movshovitz-Attias et al., ICCV 2017, up to the denominator, which there leaves the own class out (the loss
    "revisiting_proxy_nca" does). As a log-softmax: no sample is lost. Differs from PML in
    this: PML drops the samples whose probability underflows to 0, the hardest ones, from the mean. A
    miner makes a sample weigh by its number of pairs as an anchor, as in PML. Proxies are `params["weights"]`, drawn
    from N(0, 1). Similarities are not negated.

    Args:
      softmax_scale: above 0; PML's default.
      miner: weighs the samples by how often it chose them (`dml_jax.miners`); None: alike.
      distance: by default {"name": "lp", "power": 2}, squared Euclidean between normalised vectors, as in PML
        (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a scale of 0 or less.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> variables = {"params": {"weights": jnp.eye(2)}}
      >>> mean, _ = proxy_nca().apply(variables, x, [0, 0, 1, 1])
      >>> round(float(mean.compute()), 3)
      0.206
    """
    parts = build_parts(
        "proxy_nca",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        with_classes=True,
        default_distance={"name": "lp", "power": 2},
        centers=1,
    )
    kernel = from_logits(
        proxy_nca_logits, softmax_scale=softmax_scale, similarity=parts.distance.similarity
    )
    return against_classes(
        "proxy_nca", parts, kernel, init_weights=normal_weights, weigh_partners=False
    )


def proxy_nca_pp_logits(
    sims: Cosines, target: Target, *, temperature: float, similarity: bool
) -> Cosines:
    """Returns the logits of Proxy-NCA++; see `proxy_nca_pp`."""
    del target
    return jnp.where(similarity, sims, -sims) / temperature


@checked("loss")
def proxy_nca_pp(
    temperature: PositiveFloat = 1 / 9,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes Proxy-NCA++: logits -d^2(x, w_c) / temperature (Teh, DeVries, Taylor, ECCV 2020).

    The own class is in the denominator, and the temperature
    1/9 and the first proxies, drawn from N(0, 1/64), are those of the authors' code. The paper also uses
    global max pooling, layer norm and a larger learning rate for the proxies. PML has no such loss.

    Args:
      temperature: above 0; the default of the authors' code.
      miner: weighs the samples by how often it chose them (`dml_jax.miners`); None: alike.
      distance: by default {"name": "lp", "power": 2}, squared Euclidean between normalised vectors
        (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a temperature of 0 or less.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> variables = {"params": {"weights": jnp.eye(2)}}
      >>> mean, _ = proxy_nca_pp().apply(variables, x, [0, 0, 1, 1])
      >>> round(float(mean.compute()), 3)
      0.007
    """
    parts = build_parts(
        "proxy_nca_pp",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        with_classes=True,
        default_distance={"name": "lp", "power": 2},
        centers=1,
    )
    kernel = from_logits(
        proxy_nca_pp_logits, temperature=temperature, similarity=parts.distance.similarity
    )
    return against_classes("proxy_nca_pp", parts, kernel, init_weights=small_weights)


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
