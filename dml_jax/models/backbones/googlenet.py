"""GoogLeNet with batch normalisation.

Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, as torchvision has it: its "5x5" branch is of 3x3
convolutions, as the published weights are.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dml_jax.bound import Bound
from dml_jax.models.backbones.layers import ConvNorm, rectified, rematerialised
from dml_jax.models.backbones.norm import Norm
from dml_jax.models.backbones.shared import Remat
from dml_jax.models.backbones.windows import max_pool
from dml_jax.models.base import DType, Model, WeightsFile
from dml_jax.models.heads import HeadSpec
from dml_jax.models.pooling import Parts, Pooling
from dml_jax.models.sources import googlenet as sources
from dml_jax.parameters import Interval, PositiveInt, checked

# Of each block, the channels of 1x1; of 3x3 and what reduces its input; of "5x5", likewise; of the pooled branch.
Widths = tuple[int, int, int, int, int, int]
BLOCKS: dict[str, Widths] = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
# The size of the windows of the pooling before a block.
POOLED = {"4a": 3, "5a": 2}
EPS = 1e-3


class _Block(nnx.Module):
    """Four branches side by side: 1x1; 3x3; 3x3 again, named after the paper's 5x5; the maximum of 3x3, then 1x1."""

    def __init__(
        self, inputs: int, widths: Widths, *, norm: Norm, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> None:
        one, reduce3, three, reduce5, five, pooled = widths

        def unit(size: int, inputs: int, outputs: int) -> ConvNorm:
            return ConvNorm(size, inputs, outputs, norm=norm, eps=EPS, dtype=dtype, rngs=rngs)

        self.conv1x1 = unit(1, inputs, one)
        self.conv3x3_reduce = unit(1, inputs, reduce3)
        self.conv3x3 = unit(3, reduce3, three)
        self.conv5x5_reduce = unit(1, inputs, reduce5)
        self.conv5x5 = unit(3, reduce5, five)
        self.pool_proj = unit(1, inputs, pooled)
        self.outputs = one + three + five + pooled

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w d"]:
        branches = [
            rectified(self.conv1x1, x, train),
            rectified(self.conv3x3, rectified(self.conv3x3_reduce, x, train), train),
            rectified(self.conv5x5, rectified(self.conv5x5_reduce, x, train), train),
            rectified(self.pool_proj, max_pool(x, 3, stride=1, padding=1), train),
        ]
        return jnp.concatenate(branches, -1)


class GoogLeNet(nnx.Module):
    """The backbone; its parts are the places of the last map.

    Dropout takes a feature out of all parts of an image, which for every pooling is the same as out of its features.

    Args:
      stem: the channels of the three convolutions before the blocks.
      blocks: the widths of each block by its name.
      dropout: the probability of leaving a feature out in training.
      norm: "batch" or "frozen".
      remat: as for `googlenet`.
      image_size: is not needed.
      dtype: what is computed in.
      rngs: of the draws.
    """

    channels = 3
    pooling = "average"
    token_features = None

    def __init__(
        self,
        *,
        stem: tuple[int, int, int] = (64, 64, 192),
        blocks: tuple[tuple[str, Widths], ...] = tuple(BLOCKS.items()),
        dropout: float = 0.2,
        norm: Norm = "batch",
        remat: Remat = "none",
        image_size: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        first, reduce, inputs = stem
        common: dict[str, Any] = {"norm": norm, "dtype": dtype, "rngs": rngs}
        self.conv1 = ConvNorm(7, 3, first, stride=2, eps=EPS, **common)
        self.conv2 = ConvNorm(1, first, reduce, eps=EPS, **common)
        self.conv3 = ConvNorm(3, reduce, inputs, eps=EPS, **common)
        for name, widths in blocks:
            block = _Block(inputs, widths, **common)
            setattr(self, f"inception_{name}", block)
            inputs = block.outputs
        self.blocks = tuple(name for name, _ in blocks)
        self.dropout = dropout
        self.stochastic = dropout > 0
        self.remat: Remat = remat
        self.features = inputs

    def __call__(self, x: Float[Array, "b h w 3"], *, train: bool, key: Array | None) -> Parts:
        x = max_pool(rectified(self.conv1, x, train), 3, stride=2, ceil=True)
        x = rectified(self.conv3, rectified(self.conv2, x, train), train)
        x = max_pool(x, 3, stride=2, ceil=True)
        for name in self.blocks:
            if name in POOLED:
                x = max_pool(x, POOLED[name], stride=2, ceil=True)
            block = getattr(self, f"inception_{name}")
            x = rematerialised(block, x, remat=self.remat, train=train)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        if train and self.dropout and key is not None:
            keep = jax.random.bernoulli(key, 1 - self.dropout, (x.shape[0], 1, x.shape[-1]))
            x = jnp.where(keep, x / (1 - self.dropout), 0)
        return Parts(x)


@checked("model")
def googlenet(
    *,
    dropout: Annotated[float, Interval(0, 1, closed_low=True)] = 0.2,
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
    """Makes GoogLeNet with batch normalisation (Szegedy et al., CVPR 2015; torchvision), for RGB images.

    Its features are the mean over the places of the last map, 1024 of them. Images are scaled to -1..1, which is what
    torchvision's `transform_input` makes of ImageNet's mean and standard deviation for its published weights
    (`googlenet-1378be20`). Classifier and auxiliary heads in the file are left out. Roth et al. (ICML 2020) use images
    of 227 pixels.

    Args:
      dropout: the probability, below 1, of leaving a feature out in training, before the head.
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
      >>> googlenet(image_size=64, embedding_dim=128).dim
      128
    """
    return Model(
        "googlenet",
        Bound(GoogLeNet, dropout=dropout, norm=norm, remat=remat),
        image_size,
        sources=sources.tables(),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        embedding_dim=embedding_dim,
        normalize=normalize,
        weights=weights,
        dtype=dtype,
        pooling=pooling,
        head=head,
        heads=heads,
    )
