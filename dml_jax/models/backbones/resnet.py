"""Residual networks.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, with the stride in the 3 x 3 convolution of a
bottleneck ("v1.5"), as torchvision has it.
"""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dml_jax.bound import Bound
from dml_jax.models.backbones.layers import ConvNorm, rectified, rematerialised
from dml_jax.models.backbones.norm import Norm
from dml_jax.models.backbones.shared import STATISTICS, Remat
from dml_jax.models.backbones.windows import max_pool
from dml_jax.models.base import DType, Model, WeightsFile
from dml_jax.models.heads import HeadSpec
from dml_jax.models.pooling import Parts, Pooling
from dml_jax.models.sources import resnet as sources
from dml_jax.parameters import PositiveInt, checked

# Blocks of each stage, and whether they are bottlenecks.
SIZES = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}


class _Block(nnx.Module):
    """relu(x + f(x)), where f is two 3 x 3 convolutions, or 1 x 1, 3 x 3 and 1 x 1 to four times the width.

    Where f changes the shape, x goes through a 1 x 1 convolution.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        *,
        stride: int,
        bottleneck: bool,
        norm: Norm,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        outputs = width * (4 if bottleneck else 1)
        shapes = [(3, inputs, width, stride), (3, width, width, 1)]
        if bottleneck:
            shapes = [(1, inputs, width, 1), (3, width, width, stride), (1, width, outputs, 1)]
        names = []
        for i, (size, a, b, s) in enumerate(shapes, 1):
            unit = ConvNorm(size, a, b, stride=s, norm=norm, dtype=dtype, rngs=rngs)
            setattr(self, f"conv{i}", unit)
            names.append(f"conv{i}")
        self.convs = tuple(names)
        self.reshapes = stride != 1 or inputs != outputs
        if self.reshapes:
            self.shortcut = ConvNorm(
                1, inputs, outputs, stride=stride, norm=norm, dtype=dtype, rngs=rngs
            )

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b p q d"]:
        y = x
        for name in self.convs[:-1]:
            y = rectified(getattr(self, name), y, train)
        y = getattr(self, self.convs[-1])(y, train=train)
        return jax.nn.relu(y + (self.shortcut(x, train=train) if self.reshapes else x))


class ResNet(nnx.Module):
    """The backbone; its parts are the places of the last map.

    Args:
      depths: blocks of each stage.
      width: of the first stage; each further one is twice as wide.
      bottleneck: whether blocks are bottlenecks.
      norm: "batch" or "frozen".
      remat: as for `resnet`.
      image_size: is not needed.
      dtype: what is computed in.
      rngs: of the draws.
    """

    channels = 3
    stochastic = False
    pooling = "average"
    token_features = None

    def __init__(
        self,
        *,
        depths: tuple[int, ...],
        width: int = 64,
        bottleneck: bool,
        norm: Norm = "batch",
        remat: Remat = "none",
        image_size: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        self.stem = ConvNorm(7, 3, width, stride=2, norm=norm, dtype=dtype, rngs=rngs)
        inputs = width
        stages = []
        for number, depth in enumerate(depths, 1):
            stage: Any = nnx.Module()
            for i in range(depth):
                block = _Block(
                    inputs,
                    width << (number - 1),
                    stride=2 if number > 1 and i == 0 else 1,
                    bottleneck=bottleneck,
                    norm=norm,
                    dtype=dtype,
                    rngs=rngs,
                )
                setattr(stage, f"block_{i:02d}", block)
                inputs = (width << (number - 1)) * (4 if bottleneck else 1)
            setattr(self, f"stage_{number}", stage)
            stages.append(depth)
        self.depths = tuple(depths)
        self.remat: Remat = remat
        self.features = inputs

    def __call__(self, x: Float[Array, "b h w 3"], *, train: bool, key: Array | None) -> Parts:
        x = max_pool(rectified(self.stem, x, train), 3, stride=2, padding=1)
        for number, depth in enumerate(self.depths, 1):
            stage = getattr(self, f"stage_{number}")
            for i in range(depth):
                block = getattr(stage, f"block_{i:02d}")
                x = rematerialised(block, x, remat=self.remat, train=train)
        return Parts(x.reshape(x.shape[0], -1, x.shape[-1]))


@checked("model")
def resnet(
    size: Literal[18, 34, 50, 101] = 50,
    *,
    norm: Norm = "batch",
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
    """Makes ResNet-18, 34, 50 or 101 (He et al., CVPR 2016; stride in the 3 x 3 convolution), for RGB images.

    Its features are the mean over the places of the last map: 512 of the first two, 2048 of the others. Images are
    scaled by the mean and the standard deviation of ImageNet. Weights are those that torchvision, timm or the
    transformers library publishes; a classifier in the file is left out.

    Args:
      size: 18, 34, 50 or 101 layers.
      norm: "batch" for batch normalisation; "frozen" for one that uses the running statistics in training, too, and
        never changes them, while scale and bias are trained; with weights alone, as drawn at random it normalises
        nothing.
      remat: what the backward pass keeps of each block: "none" for all of it (it rematerialises nothing), "dots" for
        the results of its convolutions, "block" for its input alone; the rest is computed again.
      embedding_dim: the output dimension of the head; None leaves the backbone's features.
      normalize: True to divide every embedding by its Euclidean norm.
      weights: a file with the backbone's parameters, which `Model.init` reads; None draws them.
      image_size: the side of the (square) images in pixels.
      dtype: what the backbone computes in; parameters, statistics, head and embeddings are float32.
      pooling: over places: "average" (None), "max", "double" (their sum) or "gem".
      head: "linear", "mlp", or a dict of the name and hyper-parameters (`dml_jax.models.heads`).
      heads: several embeddings in place of embedding_dim, as in `{"a": {"dim": 64}, "b": {"dim": 64, "name": "mlp"}}`.

    Raises:
      UserError: a value out of range.

    Example:
      >>> resnet(50, image_size=64, embedding_dim=128).dim
      128
    """
    depths, bottleneck = SIZES[size]
    mean, std = STATISTICS["imagenet"]
    return Model(
        "resnet",
        Bound(ResNet, depths=depths, bottleneck=bottleneck, norm=norm, remat=remat),
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
