"""What crosses the borders between the parts of the library."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mean:
    """A quotient that is not divided yet: only sums may cross a block, a device or a process.

    Attributes:
      total: the sum of weighted values.
      weight: what it will be divided by; 0 where there was nothing to average.
      stats: fractions worth logging, by name (what a miner left in play, say).
    """

    total: Float[Array, ""]
    weight: Float[Array, ""]
    stats: dict[str, Array] = field(default_factory=dict)

    def compute(self) -> Float[Array, ""]:
        """total / weight, and exactly 0 with a zero gradient where the weight is 0."""
        some = self.weight != 0
        return jnp.where(some, self.total / jnp.where(some, self.weight, 1), 0)
