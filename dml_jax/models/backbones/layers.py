"""What convolutional backbones are made of."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dml_jax.models.backbones.convolution import convolve
from dml_jax.models.backbones.norm import BatchNorm, Norm
from dml_jax.models.backbones.shared import Remat


class ConvNorm(nnx.Module):
    """A convolution with torch's padding of half the kernel's size, then batch normalisation.

    Args:
      size: of the kernel, odd.
      inputs: channels.
      outputs: channels.
      stride: of both axes.
      bias: True for one before the normalisation.
      norm: "batch" or "frozen".
      eps: of the normalisation.
      dtype: what is computed in.
      rngs: of the kernel, which is drawn from a normal distribution of variance 2 / (size^2 outputs) (He et al., 2015,
        "fan out").
    """

    def __init__(
        self,
        size: int,
        inputs: int,
        outputs: int,
        *,
        stride: int = 1,
        bias: bool = False,
        norm: Norm,
        eps: float = 1e-5,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        shape = (size, size, inputs, outputs)
        # One axis, because a draw of four compiles twice as long.
        flat = jax.random.normal(rngs.params(), (math.prod(shape),))
        self.kernel = nnx.Param((2 / (size * size * outputs)) ** 0.5 * flat.reshape(shape))
        if bias:
            self.bias = nnx.Param(jnp.zeros(outputs))
        self.norm = BatchNorm(outputs, frozen=norm == "frozen", eps=eps)
        self.biased = bias
        self.stride = stride
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b p q d"]:
        """Convolves and normalises.

        Args:
          x: the images.
          train: True in training.
        """
        kernel = self.kernel[...].astype(self.dtype)
        x = convolve(x, kernel, stride=self.stride, padding=kernel.shape[0] // 2)
        if self.biased:
            x = x + self.bias[...].astype(self.dtype).reshape(1, 1, 1, -1)
        return self.norm(x, train=train)


def rectified(unit: ConvNorm, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b p q d"]:
    """Returns max(0, unit(x)).

    Args:
      unit: a convolution with its normalisation.
      x: the images.
      train: True in training.
    """
    return jax.nn.relu(unit(x, train=train))


def rematerialised(block: Any, x: Array, *, remat: Remat, **how: Any) -> Array:
    """Runs a module, and keeps of it for the backward pass what `remat` says.

    Args:
      block: the module; what it changes of its state stays changed.
      x: its input.
      remat: "none" for all (it rematerialises nothing), "dots" for the results of matrix products and convolutions,
        "block" for the input alone.
      **how: further arguments of the module.
    """
    if remat == "none":
        return block(x, **how)
    parts: Any = nnx.split(block, nnx.Param, ...)
    graphdef, params, state = parts

    def apply(params: Any, state: Any, x: Array) -> tuple[Array, Any]:
        module = nnx.merge(graphdef, params, state)
        y = module(x, **how)
        return y, nnx.state(module, nnx.Not(nnx.Param))

    policy: Callable[..., bool] | None = _is_product if remat == "dots" else None
    y, state = jax.checkpoint(apply, policy=policy)(params, state, x)
    nnx.update(block, state)
    return y


def _is_product(primitive: Any, *_: Any, **params: Any) -> bool:
    products = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return primitive is jax.lax.conv_general_dilated_p or products(primitive, *_, **params)
