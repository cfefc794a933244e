"""A small residual network for small images, quick to train on a CPU."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dml_jax.models.base import Family, uniform
from dml_jax.models.convolution import convolve


class _GroupNorm(nnx.Module):
    """Each group of `group` channels of a sample to mean 0 and variance 1; scale and shift.

    nnx.GroupNorm's numbers, from sums per channel: on CPU the training step is a sixth faster.
    """

    def __init__(self, channels: int, *, group: int):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.group = group

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        def mean(y):
            sums = y.mean((1, 2)).reshape(y.shape[0], -1, self.group)
            return jnp.repeat(sums.mean(-1), self.group, -1)

        wide = x.astype(jnp.float32)
        center = mean(wide)
        variance = jnp.maximum(mean(wide * wide) - center * center, 0)
        scale = jax.lax.rsqrt(variance + 1e-6) * self.scale[None]
        shift = self.bias[None] - center * scale
        return (wide * scale[:, None, None] + shift[:, None, None]).astype(x.dtype)


class _Conv(nnx.Module):
    """Convolution without bias, then group normalisation."""

    def __init__(self, inputs: int, outputs: int, *, size=3, stride=1, dtype, rngs):
        init = uniform((6 / (size * size * inputs)) ** 0.5)  # He et al., 2015
        self.kernel = nnx.Param(init(rngs.params(), (size, size, inputs, outputs)))
        self.norm = _GroupNorm(outputs, group=8)
        self.stride = stride
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b p q d"]:
        return self.norm(convolve(x, self.kernel.astype(self.dtype), stride=self.stride))


class ConvNet(nnx.Module):
    """Features [B, 4 width]: three stages of 3x3 convolutions, then the mean over positions.

    A stem with stride 2, and a first convolution with stride 2 in each stage: 32x32 images have
    8x8, 4x4 and 2x2 positions in the stages. Group normalisation, so that an embedding never
    depends on the rest of its batch.

    Args:
      width: channels of the first stage, a multiple of 8; the next ones have twice and four
        times as many.
      depth: convolutions in a stage; all but the first are residual.
      channels: of the images.
    """

    stochastic = False

    def __init__(
        self,
        *,
        width: int = 32,
        depth: int = 2,
        channels: int = 1,
        image_size: int,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        for name, value, unit in [
            ("width", width, 8),
            ("depth", depth, 1),
            ("channels", channels, 1),
        ]:
            if not isinstance(value, int) or value < 1 or value % unit:
                kind = "integer" if unit == 1 else f"multiple of {unit}"
                raise ValueError(f"convnet {name} = {value!r}: a positive {kind} is needed")
        common = {"dtype": dtype, "rngs": rngs}
        self.stem = _Conv(channels, width, size=4, stride=2, **common)
        inputs = width
        layers = []
        for stage in range(3):
            outputs = width << stage
            for i in range(depth):
                name = f"stage_{stage}_{i}"
                setattr(self, name, _Conv(inputs, outputs, stride=1 if i else 2, **common))
                layers.append(name)
                inputs = outputs
        self.layers = tuple(layers)
        self.features = inputs
        self.channels = channels

    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool, key: Array | None
    ) -> Float[Array, "b f"]:
        x = jax.nn.relu(self.stem(x))
        for name in self.layers:
            y = getattr(self, name)(x)
            x = jax.nn.relu(x + y if y.shape == x.shape else y)
        return x.mean((1, 2), dtype=jnp.float32)


FAMILY = Family(ConvNet, 32, (0.5,), (0.5,))
