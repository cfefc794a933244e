"""How parameters are drawn."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array


def uniform(bound: float) -> nnx.Initializer:
    """Makes an initializer that draws uniformly in +-bound.

    Args:
      bound: torch.nn.Linear and Conv2d start from 1 / sqrt(fan_in).
    """

    def init(
        key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32, out_sharding: Any = None
    ) -> Array:
        # One axis, because a draw of four compiles twice as long.
        flat = jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound)
        return flat.reshape(shape)

    return init
