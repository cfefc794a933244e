"""What backbones of every kind share: image statistics, linear maps, dropped branches, and what is computed again."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

Remat = Literal["none", "block", "dots"]

SMALL = nnx.initializers.truncated_normal(0.02)

# Mean and standard deviation of the images, as published weights expect them.
STATISTICS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "satellite": ((0.430, 0.411, 0.296), (0.213, 0.156, 0.143)),
}


class Linear(nnx.Linear):
    """A linear map whose kernel starts from a truncated normal distribution with sigma = 0.02."""

    def __init__(
        self, inputs: int, outputs: int, *, bias: bool = True, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> None:
        super().__init__(inputs, outputs, use_bias=bias, kernel_init=SMALL, dtype=dtype, rngs=rngs)


def drop_path(
    y: Float[Array, "b t d"], key: Array, rate: Float[Array, ""] | float
) -> Float[Array, "b t d"]:
    """Makes each sample zero with a probability, and divides the others by 1 less it (stochastic depth).

    Args:
      y: a residual branch.
      key: of the draw.
      rate: the probability, below 1.
    """
    keep = jax.random.bernoulli(key, 1 - rate, (y.shape[0], 1, 1))
    return jnp.where(keep, y / jnp.asarray(1 - rate, y.dtype), 0)
