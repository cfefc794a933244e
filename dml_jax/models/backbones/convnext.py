"""ConvNeXt: convolutions of 7 x 7 in the place of attention.

Liu et al., "A ConvNet for the 2020s", CVPR 2022.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dml_jax.bound import Bound
from dml_jax.errors import UserError
from dml_jax.models.backbones.convolution import convolve, depthwise
from dml_jax.models.backbones.layers import rematerialised
from dml_jax.models.backbones.shared import SMALL, STATISTICS, Linear, Remat, drop_path
from dml_jax.models.base import DType, Model, WeightsFile
from dml_jax.models.heads import HeadSpec
from dml_jax.models.pooling import Parts, Pooling
from dml_jax.models.sources import convnext as sources
from dml_jax.parameters import Interval, NonNegativeFloat, PositiveInt, checked

# Blocks and channels of each stage.
SIZES = {
    "t": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "s": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "b": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "l": ((3, 3, 27, 3), (192, 384, 768, 1536)),
}
WINDOW = 7


def _norm(width: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(width, epsilon=1e-6, use_fast_variance=False, dtype=dtype, rngs=rngs)


class _Conv(nnx.Module):
    """A convolution with a bias: of patches without overlap, or of 7 x 7 in each channel on its own."""

    def __init__(
        self, size: int, inputs: int, outputs: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> None:
        shape = (size, size, inputs, outputs)
        # One axis, because a draw of four compiles twice as long.
        self.kernel = nnx.Param(SMALL(rngs.params(), (math.prod(shape),)).reshape(shape))
        self.bias = nnx.Param(jnp.zeros(outputs))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b p q d"]:
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        if len(kernel) == WINDOW:
            x = depthwise(x, kernel, padding=WINDOW // 2)
        else:
            x = convolve(x, kernel, stride=len(kernel), padding=0)
        return x + bias.reshape(1, 1, 1, -1)


class _Block(nnx.Module):
    """x + scale * f(x), where f is a 7 x 7 convolution in each channel, a layer norm and an MLP of each place."""

    def __init__(self, width: int, *, layer_scale: float, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.depthwise = _Conv(WINDOW, 1, width, dtype=dtype, rngs=rngs)
        self.norm = _norm(width, dtype, rngs)
        self.mlp_in = Linear(width, 4 * width, dtype=dtype, rngs=rngs)
        self.mlp_out = Linear(4 * width, width, dtype=dtype, rngs=rngs)
        self.scale = nnx.Param(jnp.full(width, layer_scale))

    def __call__(
        self, x: Float[Array, "b h w c"], *, key: Array | None, drop: float
    ) -> Float[Array, "b h w c"]:
        y = self.norm(self.depthwise(x)).reshape(x.shape[0], -1, x.shape[-1])
        y = self.mlp_out(jax.nn.gelu(self.mlp_in(y), approximate=False))
        y = y * self.scale[...].astype(x.dtype).reshape(1, 1, -1)
        if key is not None and drop:
            y = drop_path(y, key, drop)
        return x + y.reshape(x.shape)


class ConvNeXt(nnx.Module):
    """The backbone: parts are the places of the last map, the token is their mean, both after the last layer norm.

    Args:
      depths: blocks of each stage.
      widths: channels of each stage.
      drop_path: as for `convnext`.
      layer_scale: as for `convnext`.
      remat: as for `convnext`.
      image_size: is not needed.
      dtype: what is computed in.
      rngs: of the draws.
    """

    channels = 3
    pooling = "token"

    def __init__(
        self,
        *,
        depths: tuple[int, ...],
        widths: tuple[int, ...],
        drop_path: float = 0.0,
        layer_scale: float = 1e-6,
        remat: Remat = "none",
        image_size: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        self.stem = _Conv(4, 3, widths[0], dtype=dtype, rngs=rngs)
        self.stem_norm = _norm(widths[0], dtype, rngs)
        for number, (depth, width) in enumerate(zip(depths, widths, strict=True), 1):
            stage: Any = nnx.Module()
            if number > 1:
                stage.downsample_norm = _norm(widths[number - 2], dtype, rngs)
                stage.downsample = _Conv(2, widths[number - 2], width, dtype=dtype, rngs=rngs)
            for i in range(depth):
                block = _Block(width, layer_scale=layer_scale, dtype=dtype, rngs=rngs)
                setattr(stage, f"block_{i:02d}", block)
            setattr(self, f"stage_{number}", stage)
        self.norm = _norm(widths[-1], dtype, rngs)
        self.depths = tuple(depths)
        self.drop_path = drop_path
        self.stochastic = drop_path > 0
        self.remat: Remat = remat
        self.features = self.token_features = widths[-1]

    def __call__(self, x: Float[Array, "b h w 3"], *, train: bool, key: Array | None) -> Parts:
        x = self.stem_norm(self.stem(x))
        count, last = 0, sum(self.depths) - 1
        for number, depth in enumerate(self.depths, 1):
            stage = getattr(self, f"stage_{number}")
            if number > 1:
                x = stage.downsample(stage.downsample_norm(x))
            for i in range(depth):
                x = rematerialised(
                    getattr(stage, f"block_{i:02d}"),
                    x,
                    remat=self.remat,
                    key=jax.random.fold_in(key, count) if train and key is not None else None,
                    drop=self.drop_path * count / max(last, 1),
                )
                count += 1
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return Parts(self.norm(x), self.norm(x.mean(1, dtype=wide).astype(x.dtype)))


@checked("model")
def convnext(
    size: Literal["t", "s", "b", "l"] = "t",
    *,
    drop_path: Annotated[float, Interval(0, 1, closed_low=True)] = 0.0,
    layer_scale: NonNegativeFloat = 1e-6,
    remat: Remat = "none",
    embedding_dim: PositiveInt | None = None,
    normalize: bool = True,
    weights: WeightsFile | None = None,
    image_size: PositiveInt = 224,
    dtype: DType = "float32",
    pooling: Pooling | None = None,
    head: HeadSpec = "linear",
    heads: Mapping[str, Any] | None = None,
) -> Model:
    """Makes ConvNeXt-T/S/B/L (Liu et al., CVPR 2022), for RGB images.

    Its features are the last layer norm of the mean over the places of the last map: 768, 768, 1024 or 1536 of them.
    Images are scaled by the mean and the standard deviation of ImageNet. Weights are those that torchvision, timm,
    facebookresearch (ConvNeXt and DINOv3) or the transformers library publishes; a classifier in the file is left out.

    Args:
      size: "t", "s", "b" or "l".
      drop_path: the probability, below 1, of leaving the last block's branch out in training; it grows evenly from 0 at
        the first block.
      layer_scale: the first value of the branches' learned scales.
      remat: what the backward pass keeps of each block: "none" for all of it (it rematerialises nothing), "dots" for
        the results of its linear maps, "block" for its input alone; the rest is computed again.
      embedding_dim: the output dimension of the head; None leaves the backbone's features.
      normalize: True to divide every embedding by its Euclidean norm.
      weights: a file with the backbone's parameters, which `Model.init` reads; None draws them.
      image_size: the side of the (square) images in pixels, 32 or more.
      dtype: what the backbone computes in; parameters, head and embeddings are float32.
      pooling: "token" (None) for the norm of the mean; over the places, each after the norm, "average", "max", "double"
        (their sum) or "gem"; "token_average" for token and average side by side.
      head: "linear", "mlp", or a dict of the name and hyper-parameters (`dml_jax.models.heads`).
      heads: several embeddings in place of embedding_dim, as in `{"a": {"dim": 64}, "b": {"dim": 64, "name": "mlp"}}`.

    Raises:
      UserError: a value out of range.

    Example:
      >>> convnext("t", image_size=64, embedding_dim=128).dim
      128
    """
    depths, widths = SIZES[size]
    if image_size < 32:
        raise UserError(f"image_size of model 'convnext' is {image_size}; accepted: 32 or more")
    backbone = Bound(
        ConvNeXt,
        depths=depths,
        widths=widths,
        drop_path=drop_path,
        layer_scale=layer_scale,
        remat=remat,
    )
    mean, std = STATISTICS["imagenet"]
    return Model(
        "convnext",
        backbone,
        image_size,
        sources=sources.tables(),
        mean=mean,
        std=std,
        embedding_dim=embedding_dim,
        normalize=normalize,
        weights=weights,
        dtype=dtype,
        pooling=pooling,
        head=head,
        heads=heads,
    )
