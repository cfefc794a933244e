"""MobileNetV2 1.0 with its batch normalisation folded into the convolutions.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dml_jax.models.backbones.convolution import convolve, depthwise
from dml_jax.models.base import DType, Model, WeightsFile
from dml_jax.models.heads import HeadSpec
from dml_jax.models.initializers import uniform
from dml_jax.models.pooling import Parts, Pooling
from dml_jax.models.published import Rule, Table
from dml_jax.parameters import PositiveInt, checked

# Expansion, output channels, repeats and stride of the first block: table 2 of the paper.
STAGES = [
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
]


class _Conv(nnx.Module):
    """A convolution with a kernel (HWIO), a bias and SAME padding; 1x1, depthwise, or any other."""

    def __init__(
        self,
        size: int,
        inputs: int,
        outputs: int,
        *,
        stride: int = 1,
        depthwise: bool = False,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        shape = (size, size, 1 if depthwise else inputs, outputs)
        init = uniform((6 / math.prod(shape[:3])) ** 0.5)
        self.kernel = nnx.Param(init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(outputs))
        self.stride = stride
        self.depthwise = depthwise
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b p q d"]:
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        convolution = depthwise if self.depthwise else convolve
        x = convolution(x, kernel, stride=self.stride)
        return x + bias.reshape(1, 1, 1, -1)


class _Block(nnx.Module):
    """An inverted residual: expand, filter, project; the input is added where it has the output's shape."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        expansion: int,
        stride: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        wide = inputs * expansion
        if expansion != 1:
            self.expand = _Conv(1, inputs, wide, dtype=dtype, rngs=rngs)
        self.depthwise = _Conv(3, wide, wide, stride=stride, depthwise=True, dtype=dtype, rngs=rngs)
        self.project = _Conv(1, wide, outputs, dtype=dtype, rngs=rngs)
        self.expands = expansion != 1
        self.residual = stride == 1 and inputs == outputs

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b p q d"]:
        y = jax.nn.relu6(self.expand(x)) if self.expands else x
        y = self.project(jax.nn.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class MobileNetV2(nnx.Module):
    """The backbone, with 1280 features at each position of the last ReLU6."""

    features = 1280
    channels = 3
    stochastic = False
    pooling = "average"
    token_features = None

    def __init__(self, *, image_size: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.stem = _Conv(3, 3, 32, stride=2, dtype=dtype, rngs=rngs)
        inputs = 32
        blocks: list[str] = []
        for expansion, outputs, repeats, stride in STAGES:
            for i in range(repeats):
                block = _Block(
                    inputs,
                    outputs,
                    expansion=expansion,
                    stride=stride if i == 0 else 1,
                    dtype=dtype,
                    rngs=rngs,
                )
                name = f"block_{len(blocks):02d}"
                setattr(self, name, block)
                blocks.append(name)
                inputs = outputs
        self.blocks = tuple(blocks)
        self.head_conv = _Conv(1, inputs, self.features, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w 3"], *, train: bool, key: Array | None) -> Parts:
        x = jax.nn.relu6(self.stem(x))
        for name in self.blocks:
            x = getattr(self, name)(x)
        x = jax.nn.relu6(self.head_conv(x))
        return Parts(x.reshape(x.shape[0], -1, x.shape[-1]))


# Files by our own paths, in which a classifier is left out.
_LAYERS = ("stem", "head_conv", *(f"block_{{:02}}/{m}" for m in ("expand", "depthwise", "project")))
SOURCES = (
    Table(
        "MobileNetV2 with folded normalisation",
        tuple(Rule(f"{x}/{y}", f"{x}/{y}") for x in _LAYERS for y in ("kernel", "bias")),
        {"classifier/.*": "classifies ImageNet"},
    ),
)


@checked("model")
def mobilenet_v2(
    *,
    embedding_dim: PositiveInt | None = None,
    normalize: bool = True,
    weights: WeightsFile | None = None,
    image_size: PositiveInt = 224,
    dtype: DType = "float32",
    pooling: Pooling | None = None,
    head: HeadSpec = "linear",
    heads: Mapping[str, Any] | None = None,
) -> Model:
    """Makes MobileNetV2 1.0 (Sandler et al., CVPR 2018), with 1280 features of RGB images.

    Its batch normalisation is folded into the convolutions, so it is meant to start from `weights`: drawn at random (He
    et al., 2015) it trains slowly. A classifier in the file of weights is left out.

    Args:
      embedding_dim: the output dimension of the head; None leaves the backbone's features.
      normalize: True to divide every embedding by its Euclidean norm.
      weights: a file with the backbone's arrays (`dml_jax.models.files`), which `Model.init` reads; None draws them.
      image_size: the side of the (square) images in pixels; 224 is the paper's.
      dtype: what the backbone computes in; parameters, head and embeddings are float32.
      pooling: over positions: "average" (None), "max", "double" (their sum) or "gem".
      head: "linear", "mlp", or a dict of the name and hyper-parameters (`dml_jax.models.heads`).
      heads: several embeddings in place of embedding_dim, as in `{"a": {"dim": 64}, "b": {"dim": 64, "name": "mlp"}}`.

    Raises:
      UserError: a value out of range.

    Example:
      >>> mobilenet_v2(image_size=96).dim
      1280
    """
    return Model(
        "mobilenet_v2",
        MobileNetV2,
        image_size,
        embedding_dim=embedding_dim,
        normalize=normalize,
        weights=weights,
        dtype=dtype,
        sources=SOURCES,
        pooling=pooling,
        head=head,
        heads=heads,
    )
