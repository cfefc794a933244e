"""Losses against class weights: logit kernels `(cosines [a, c], target [a, c], *, ...) -> logits`.

`target` marks the class of each sample. A kernel acts on each logit alone, so that any chunk of the
classes will do; the classwise driver makes the cross entropy of it. Where a class has k centers the
similarities are `[a, k * c]`, the first centers of all classes before the second ones.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dml_jax import distances

Cosines = Float[Array, "a c"]
Target = Bool[Array, "a c"]
Norms = tuple[Float[Array, "a 1"], Float[Array, "1 c"]]


def with_own(
    change: Callable[[Float[Array, "a 1"]], Float[Array, "a 1"]], cosines: Cosines, target: Target
) -> Cosines:
    """The cosines with that of each sample's class changed; `change` sees one a sample, not all classes."""
    own = jnp.sum(jnp.where(target, cosines, 0), axis=1, keepdims=True)
    return jnp.where(target, change(own), cosines)


def cos_face_logits(
    cosines: Cosines, target: Target, *, margin: float = 0.35, scale: float = 64.0
) -> Cosines:
    """CosFace: scale (cos theta_y - margin) for the sample's class, scale cos theta_c for the others.

    Wang et al., CVPR 2018, eq. 4. Same as PML.
    """
    return scale * jnp.where(target, cosines - margin, cosines)


def arc_face_logits(
    cosines: Cosines, target: Target, *, margin: float = 28.6, scale: float = 64.0
) -> Cosines:
    """ArcFace: scale cos(theta_y + margin) for the sample's class, scale cos theta_c for the others.

    `margin` in degrees. Deng et al., CVPR 2019, eq. 3; beyond theta_y = 180 degrees - margin the logit
    goes on as scale (cos theta_y - m sin m), so that it falls monotonically, as in PML. Differs from PML
    in the gradient at perfect alignment: cos(theta + m) = cos theta cos m - sin theta sin m, with the
    derivative of sin theta taken as 0 where sin^2 theta is under the rounding error (PML: infinite).
    """
    m = math.radians(margin)

    def shift(own: Array) -> Array:
        sin2 = 1 - own * own
        some = sin2 > jnp.finfo(own.dtype).eps
        sine = jnp.where(some, jnp.sqrt(jnp.where(some, sin2, 1)), 0)
        shifted = own * math.cos(m) - sine * math.sin(m)
        return jnp.where(own >= -math.cos(m), shifted, own - m * math.sin(m))

    return scale * with_own(shift, cosines, target)


def normalized_softmax_logits(
    sims: Cosines, target: Target, *, temperature: float = 0.05, similarity: bool = True
) -> Cosines:
    """Normalised softmax: s / temperature with unit class weights (Zhai and Wu, BMVC 2019).

    The default distance is the dot product, of normalised vectors as in PML: cosine. With a distance
    (`similarity=False`) the logit is -d / temperature.
    """
    del target
    return jnp.where(similarity, sims, -sims) / temperature


def multiple_angle(cosines: Float[Array, "a c"], margin: int) -> Float[Array, "a c"]:
    """psi(theta) = (-1)^k cos(m theta) - 2k with k = floor(m theta / pi), of cos theta.

    cos(m theta) is a polynomial (Chebyshev's) in cos theta, and k counts the angles j pi / m up to theta:
    no arccosine, so the derivative is finite at perfect alignment.
    """
    powers = np.polynomial.chebyshev.cheb2poly([0.0] * margin + [1.0])[::-1]
    angle = jnp.polyval(jnp.asarray(powers, cosines.dtype), cosines)
    steps = np.cos(np.pi * np.arange(1, margin) / margin)
    k = sum((cosines <= step).astype(cosines.dtype) for step in steps)
    return jnp.where(k % 2 == 0, angle, -angle) - 2 * k


def large_margin_softmax_logits(
    cosines: Cosines, target: Target, *, margin: int = 4, scale: float = 1.0, norms: Norms
) -> Cosines:
    """L-Softmax: scale ||x|| ||w_y|| psi(theta_y), scale ||x|| ||w_c|| cos theta_c for the others.

    psi(theta) = (-1)^k cos(margin theta) - 2k, k = floor(margin theta / pi); Liu et al., ICML
    2016. `norms` are those of the embeddings and of the class weights. Same as PML.
    """
    own = with_own(partial(multiple_angle, margin=margin), cosines, target)
    return scale * norms[0] * norms[1] * own


def sphere_face_logits(
    cosines: Cosines, target: Target, *, margin: int = 4, scale: float = 1.0, norms: Norms
) -> Cosines:
    """SphereFace (A-Softmax): scale ||x|| psi(theta_y), scale ||x|| cos theta_c for the others.

    psi as in L-Softmax; the class weights count as unit vectors (Liu et al., CVPR 2017). Same as PML.
    """
    own = with_own(partial(multiple_angle, margin=margin), cosines, target)
    return scale * norms[0] * own


def sub_center_arc_face_logits(
    cosines: Float[Array, "a kc"],
    target: Target,
    *,
    margin: float = 28.6,
    scale: float = 64.0,
    sub_centers: int = 3,
) -> Cosines:
    """ArcFace on the cosine of the nearest center: cos theta_c = max_k cos(x, w_ck).

    Deng et al., ECCV 2020. Weights `[num_classes, sub_centers, dim]`. Differs from PML as
    arc_face does, and in the gradient at ties (here shared).
    """
    cosines = cosines.reshape(len(cosines), sub_centers, -1)
    # The maximum with the derivative shared at ties, as that of jnp.max is, in a third of its time.
    hit = cosines == jnp.max(jax.lax.stop_gradient(cosines), axis=1, keepdims=True)
    nearest = jnp.sum(jnp.where(hit, cosines, 0), axis=1) / jnp.sum(hit, axis=1)
    return arc_face_logits(nearest, target, margin=margin, scale=scale)


def soft_triple_logits(
    sims: Float[Array, "a kc"],
    target: Target,
    *,
    centers_per_class: int = 10,
    la: float = 20.0,
    gamma: float = 0.1,
    margin: float = 0.01,
) -> Cosines:
    """SoftTriple: la (S_c - margin [c = y]) with S_c = sum_k softmax_k(s_ck / gamma) s_ck.

    Qian et al., ICCV 2019; the paper's penalty on the centers is the regularizer
    "sparse_centers". Weights `[num_classes, centers_per_class, dim]`. Same as PML.
    """
    sims = sims.reshape(len(sims), centers_per_class, -1)
    near = jnp.sum(jax.nn.softmax(sims / gamma, axis=1) * sims, axis=1)
    return la * jnp.where(target, near - margin, near)


def proxy_nca_logits(
    sims: Cosines, target: Target, *, softmax_scale: float = 1.0, similarity: bool = False
) -> Cosines:
    """Proxy-NCA with the own class in the denominator: -softmax_scale d^2(x, w_c).

    Movshovitz-Attias et al., ICCV 2017, up to the denominator, which there leaves the own class out.
    Squared distances of unit vectors by default. As a log-softmax: no sample is lost. Differs from PML in
    this: PML drops the samples whose probability underflows to 0, the hardest ones, from the mean. A
    miner makes a sample weigh by its number of pairs as an anchor, as in PML.
    """
    del target
    return softmax_scale * jnp.where(similarity, sims, -sims)


def proxy_nca_pp_logits(
    sims: Cosines, target: Target, *, temperature: float = 1 / 9, similarity: bool = False
) -> Cosines:
    """Proxy-NCA++: -d^2(x, w_c) / temperature (Teh, DeVries, Taylor, ECCV 2020).

    Squared distances of unit vectors by default; the own class is in the denominator, and the temperature
    1/9 and the first proxies, drawn from N(0, 1/64), are those of the authors' code. The paper also uses
    global max pooling, layer norm and a larger learning rate for the proxies. PML has no such loss.
    """
    del target
    return jnp.where(similarity, sims, -sims) / temperature


def p2s_grad_terms(cosines: Cosines, target: Target) -> Cosines:
    """P2SGrad as a squared error: (cos theta_c - [c = y])^2, averaged over samples and classes.

    Its derivative by cos theta_c is, up to a factor, the gradient of Zhang et al., CVPR 2019. The
    class weights count as unit vectors. PML rescales them to unit length in place in every step and so
    has a radial part in their gradient, which is projected out here; PML is NaN for a zero vector (here
    its cosines are 0) and takes no miner.
    """
    return jnp.square(cosines - target)


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
    """Samples at an angle beyond `threshold` degrees from the dominant center of their class.

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


def normal_weights(key: Array, num_classes: int, dim: int) -> Float[Array, "c d"]:
    """Class weights drawn from N(0, 1), as PML initialises them."""
    return jax.random.normal(key, (num_classes, dim))


def small_weights(key: Array, num_classes: int, dim: int) -> Float[Array, "c d"]:
    """Class weights drawn from N(0, 1/64), as the authors of Proxy-NCA++ and the ICML 2020 code do.

    Only their directions matter to the loss; its gradient is eight times that of N(0, 1), so that they turn
    faster under SGD.
    """
    return jax.random.normal(key, (num_classes, dim)) / 8


def fan_in_weights(key: Array, num_classes: int, dim: int) -> Float[Array, "c d"]:
    """Class weights drawn uniformly from +-1/sqrt(dim), as the ICML 2020 code initialises them."""
    return jax.random.uniform(key, (num_classes, dim), minval=-1, maxval=1) / math.sqrt(dim)


def fan_in_centers(key: Array, rows: int, dim: int) -> Float[Array, "c d"]:
    """Centers drawn uniformly from +-1/sqrt(number of all centers), as PML and the paper's code do."""
    return jax.random.uniform(key, (rows, dim), minval=-1, maxval=1) / math.sqrt(rows)


def unit_weights(key: Array, num_classes: int, dim: int) -> Float[Array, "c d"]:
    """Unit vectors in directions drawn uniformly from a cube, as PML initialises P2SGrad."""
    return distances.normalize(jax.random.uniform(key, (num_classes, dim), minval=-1, maxval=1))
