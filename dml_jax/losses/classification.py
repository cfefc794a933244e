"""Losses against class weights: logit kernels `(cosines [a, c], target [a, c], *, ...) -> logits`.

`target` marks the class of each sample. A kernel acts on each logit alone, so that any chunk of the
classes will do; the classwise driver makes the cross entropy of it.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Cosines = Float[Array, "a c"]
Target = Bool[Array, "a c"]


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
    sin2 = 1 - cosines * cosines
    some = sin2 > jnp.finfo(cosines.dtype).eps
    sine = jnp.where(some, jnp.sqrt(jnp.where(some, sin2, 1)), 0)
    shifted = cosines * math.cos(m) - sine * math.sin(m)
    own = jnp.where(cosines >= -math.cos(m), shifted, cosines - m * math.sin(m))
    return scale * jnp.where(target, own, cosines)


def normalized_softmax_logits(
    sims: Cosines, target: Target, *, temperature: float = 0.05, similarity: bool = True
) -> Cosines:
    """Normalised softmax: s / temperature with unit class weights (Zhai and Wu, BMVC 2019).

    The default distance is the dot product, of normalised vectors as in PML: cosine. With a distance
    (`similarity=False`) the logit is -d / temperature.
    """
    del target
    return jnp.where(similarity, sims, -sims) / temperature


def normal_weights(key: Array, num_classes: int, dim: int) -> Float[Array, "c d"]:
    """Class weights drawn from N(0, 1), as PML initialises them."""
    return jax.random.normal(key, (num_classes, dim))
