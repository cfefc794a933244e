"""Batch normalisation."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dml_jax.errors import UserError

Norm = Literal["batch", "frozen"]
MOMENTUM = 0.1  # torch's


class BatchNorm(nnx.Module):
    """Batch normalisation: y = (x - m) / sqrt(v + eps) * scale + bias for each channel.

    In training m and v are the mean and the variance (divided by their number) of all values of the channel in the
    batch, and the running statistics move by a tenth towards m and v n / (n - 1), as torch has it. Otherwise m and v
    are the running statistics. A frozen one uses them in training, too, and never changes them, while scale and bias
    are trained (Roth et al., ICML 2020). A batch that is split over devices under `jit` has the statistics of the whole
    batch. Ioffe and Szegedy, ICML 2015.

    Args:
      channels: of x.
      frozen: True for a frozen one.
      eps: is added to the variance.
    """

    def __init__(self, channels: int, *, frozen: bool, eps: float = 1e-5) -> None:
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.mean = nnx.BatchStat(jnp.zeros(channels))
        self.var = nnx.BatchStat(jnp.ones(channels))
        self.frozen = frozen
        self.eps = eps

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        """Normalises, and updates the running statistics where they are not frozen.

        Args:
          x: the images.
          train: True in training.

        Raises:
          UserError: one value of a channel in training, which has no variance.
        """
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if train and not self.frozen:
            n = x.size // x.shape[-1]
            if n == 1:
                raise UserError(
                    "batch normalisation in training sees one value of each channel: one image with a map of 1 x 1; "
                    "accepted: a larger batch or image_size, or norm='frozen'"
                )
            mean = wide.mean((0, 1, 2))
            centred = wide - mean.reshape(1, 1, 1, -1)
            var = (centred * centred).mean((0, 1, 2))
            self.mean.set_value(self._moved(self.mean[...], mean))
            self.var.set_value(self._moved(self.var[...], var * (n / (n - 1))))
        else:
            var = self.var[...]
            centred = wide - self.mean.reshape(1, 1, 1, -1)
        slope = jax.lax.rsqrt(var + self.eps) * self.scale
        y = centred * slope.reshape(1, 1, 1, -1) + self.bias.reshape(1, 1, 1, -1)
        return y.astype(x.dtype)

    @staticmethod
    def _moved(running: Array, now: Array) -> Array:
        return jax.lax.stop_gradient((1 - MOMENTUM) * running + MOMENTUM * now)
