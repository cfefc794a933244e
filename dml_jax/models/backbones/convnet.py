"""A small residual network for small images, quick to train on a CPU."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dml_jax.bound import Bound
from dml_jax.errors import UserError
from dml_jax.models.backbones.convolution import convolve
from dml_jax.models.base import DType, Model, WeightsFile
from dml_jax.models.heads import HeadSpec
from dml_jax.models.initializers import uniform
from dml_jax.models.pooling import Parts, Pooling
from dml_jax.parameters import PositiveInt, checked


class _GroupNorm(nnx.Module):
    """Normalises each group of `group` channels of a sample to mean 0 and variance 1, then scales and shifts.

    It gives nnx.GroupNorm's numbers from sums per channel: on CPU the training step is a sixth faster.
    """

    def __init__(self, channels: int, *, group: int) -> None:
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.group = group

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        def mean(y: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
            sums = y.mean((1, 2)).reshape(y.shape[0], -1, self.group)
            return jnp.repeat(sums.mean(-1), self.group, -1)

        wide = x.astype(jnp.float32)
        center = mean(wide)
        variance = jnp.maximum(mean(wide * wide) - center * center, 0)
        scale = jax.lax.rsqrt(variance + 1e-6) * self.scale[None]
        shift = self.bias[None] - center * scale
        return (wide * scale[:, None, None] + shift[:, None, None]).astype(x.dtype)


class _Conv(nnx.Module):
    """A convolution without bias, then group normalisation."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        size: int = 3,
        stride: int = 1,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        init = uniform((6 / (size * size * inputs)) ** 0.5)  # He et al., 2015
        self.kernel = nnx.Param(init(rngs.params(), (size, size, inputs, outputs)))
        self.norm = _GroupNorm(outputs, group=8)
        self.stride = stride
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b p q d"]:
        return self.norm(convolve(x, self.kernel.astype(self.dtype), stride=self.stride))


class ConvNet(nnx.Module):
    """Three stages of 3x3 convolutions, with 4 `width` features at each position of the last.

    The stem and the first convolution of each stage have stride 2: 32x32 images have 8x8, 4x4 and 2x2 positions in the
    stages. The normalisation is by groups, so that an embedding never depends on the rest of its batch.
    """

    stochastic = False
    pooling = "average"
    token_features = None

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        channels: int,
        image_size: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        self.stem = _Conv(channels, width, size=4, stride=2, dtype=dtype, rngs=rngs)
        inputs = width
        layers = []
        for stage in range(3):
            outputs = width << stage
            for i in range(depth):
                name = f"stage_{stage}_{i}"
                layer = _Conv(inputs, outputs, stride=1 if i else 2, dtype=dtype, rngs=rngs)
                setattr(self, name, layer)
                layers.append(name)
                inputs = outputs
        self.layers = tuple(layers)
        self.features = inputs
        self.channels = channels

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, key: Array | None) -> Parts:
        x = jax.nn.relu(self.stem(x))
        for name in self.layers:
            y = getattr(self, name)(x)
            x = jax.nn.relu(x + y if y.shape == x.shape else y)
        return Parts(x.reshape(x.shape[0], -1, x.shape[-1]))


@checked("model")
def convnet(
    width: PositiveInt = 32,
    depth: PositiveInt = 2,
    channels: PositiveInt = 1,
    *,
    embedding_dim: PositiveInt | None = None,
    normalize: bool = True,
    weights: WeightsFile | None = None,
    image_size: PositiveInt = 32,
    dtype: DType = "float32",
    pooling: Pooling | None = None,
    head: HeadSpec = "linear",
    heads: Mapping[str, Any] | None = None,
) -> Model:
    """Makes a small residual network for small images, quick to train on a CPU.

    It has three stages of 3x3 convolutions with group normalisation, and its features are the mean over positions, 4
    `width` of them.

    Args:
      width: the channels of the first stage, a multiple of 8; the next ones have twice and four times as many.
      depth: the convolutions in a stage, from 1 on; all but the first are residual.
      channels: of the images.
      embedding_dim: the output dimension of the head; None leaves the backbone's features.
      normalize: True to divide every embedding by its Euclidean norm.
      weights: a file with the backbone's arrays (`dml_jax.models.files`), which `Model.init` reads; None draws them.
      image_size: the side of the (square) images in pixels.
      dtype: what the backbone computes in; parameters, head and embeddings are float32.
      pooling: over positions: "average" (None), "max", "double" (their sum) or "gem".
      head: "linear", "mlp", or a dict of the name and hyper-parameters (`dml_jax.models.heads`).
      heads: several embeddings in place of embedding_dim, as in `{"a": {"dim": 64}, "b": {"dim": 64, "name": "mlp"}}`.

    Raises:
      UserError: a value out of range.

    Example:
      >>> convnet(width=16).dim
      64
    """
    if width % 8:
        raise UserError(f"width of model 'convnet' is {width}; accepted: a multiple of 8")
    return Model(
        "convnet",
        Bound(ConvNet, width=width, depth=depth, channels=channels),
        image_size,
        embedding_dim=embedding_dim,
        normalize=normalize,
        weights=weights,
        dtype=dtype,
        pooling=pooling,
        head=head,
        heads=heads,
    )
