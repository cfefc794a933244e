"""Inception with batch normalisation.

Ioffe and Szegedy, "Batch Normalization", ICML 2015, as the pretrainedmodels library has it (Cadene), which most papers
on deep metric learning from 2017 to 2020 start from.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dml_jax.bound import Bound
from dml_jax.errors import UserError
from dml_jax.models.backbones.layers import ConvNorm, rectified, rematerialised
from dml_jax.models.backbones.norm import Norm
from dml_jax.models.backbones.shared import Remat
from dml_jax.models.backbones.windows import avg_pool, max_pool
from dml_jax.models.base import DType, Model, WeightsFile
from dml_jax.models.heads import HeadSpec
from dml_jax.models.pooling import Parts, Pooling
from dml_jax.models.sources import bn_inception as sources
from dml_jax.parameters import PositiveInt, checked

# Of each block, the channels of 1x1; of 3x3 and what reduces its input; of the two 3x3 in a row, likewise; and of the
# pooled branch. A block without 1x1 and without the last halves the map.
Widths = tuple[int, int, int, int, int, int]
BLOCKS: dict[str, Widths] = {
    "3a": (64, 64, 64, 64, 96, 32),
    "3b": (64, 64, 96, 64, 96, 64),
    "3c": (0, 128, 160, 64, 96, 0),
    "4a": (224, 64, 96, 96, 128, 128),
    "4b": (192, 96, 128, 96, 128, 128),
    "4c": (160, 128, 160, 128, 160, 128),
    "4d": (96, 128, 192, 160, 192, 128),
    "4e": (0, 128, 192, 192, 256, 0),
    "5a": (352, 192, 320, 160, 224, 128),
    "5b": (352, 192, 320, 192, 224, 128),
}
# In the order of the network's channels, blue first. Roth et al. (ICML 2020) scale images so.
MEAN, STD = (0.4078, 0.4588, 0.502), (0.0039, 0.0039, 0.0039)


class _Block(nnx.Module):
    """Four branches side by side: 1x1; 3x3; two 3x3; a pooling, then 1x1.

    A block that halves the map has stride 2 in the last convolution of a branch and in its pooling, which is of the
    maximum, and neither of the 1x1.
    """

    def __init__(
        self,
        inputs: int,
        widths: Widths,
        *,
        max_pooled: bool,
        norm: Norm,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        one, reduce, three, double_reduce, double, pooled = widths
        stride = 1 if one else 2

        def unit(size: int, inputs: int, outputs: int, stride: int = 1) -> ConvNorm:
            return ConvNorm(
                size, inputs, outputs, stride=stride, bias=True, norm=norm, dtype=dtype, rngs=rngs
            )

        if one:
            self.conv1x1 = unit(1, inputs, one)
            self.pool_proj = unit(1, inputs, pooled)
        self.conv3x3_reduce = unit(1, inputs, reduce)
        self.conv3x3 = unit(3, reduce, three, stride)
        self.double_reduce = unit(1, inputs, double_reduce)
        self.double_1 = unit(3, double_reduce, double)
        self.double_2 = unit(3, double, double, stride)
        self.outputs = one + three + double + (pooled or inputs)
        self.halves = not one
        self.max_pooled = max_pooled

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b p q d"]:
        three = rectified(self.conv3x3, rectified(self.conv3x3_reduce, x, train), train)
        double = rectified(self.double_1, rectified(self.double_reduce, x, train), train)
        double = rectified(self.double_2, double, train)
        if self.halves:
            pooled = max_pool(x, 3, stride=2, ceil=True)
            return jnp.concatenate([three, double, pooled], -1)
        pooled = max_pool(x, 3, stride=1, padding=1) if self.max_pooled else avg_pool(x, 3)
        one, pooled = rectified(self.conv1x1, x, train), rectified(self.pool_proj, pooled, train)
        return jnp.concatenate([one, three, double, pooled], -1)


class BNInception(nnx.Module):
    """The backbone; its parts are the places of the last map.

    Args:
      stem: the channels of the three convolutions before the blocks.
      blocks: the widths of each block by its name; the last one's pooled branch is of the maximum.
      norm: "batch" or "frozen".
      remat: as for `bn_inception`.
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
        stem: tuple[int, int, int] = (64, 64, 192),
        blocks: tuple[tuple[str, Widths], ...] = tuple(BLOCKS.items()),
        norm: Norm = "batch",
        remat: Remat = "none",
        image_size: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        first, reduce, inputs = stem
        common: dict[str, Any] = {"norm": norm, "dtype": dtype, "rngs": rngs}
        self.conv1 = ConvNorm(7, 3, first, stride=2, bias=True, **common)
        self.conv2_reduce = ConvNorm(1, first, reduce, bias=True, **common)
        self.conv2 = ConvNorm(3, reduce, inputs, bias=True, **common)
        for name, widths in blocks:
            block = _Block(inputs, widths, max_pooled=name == blocks[-1][0], **common)
            setattr(self, f"inception_{name}", block)
            inputs = block.outputs
        self.blocks = tuple(f"inception_{name}" for name, _ in blocks)
        self.remat: Remat = remat
        self.features = inputs

    def __call__(self, x: Float[Array, "b h w 3"], *, train: bool, key: Array | None) -> Parts:
        x = max_pool(rectified(self.conv1, x, train), 3, stride=2, ceil=True)
        x = rectified(self.conv2, rectified(self.conv2_reduce, x, train), train)
        x = max_pool(x, 3, stride=2, ceil=True)
        for name in self.blocks:
            x = rematerialised(getattr(self, name), x, remat=self.remat, train=train)
        return Parts(x.reshape(x.shape[0], -1, x.shape[-1]))


@checked("model")
def bn_inception(
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
    """Makes BN-Inception (Ioffe and Szegedy, ICML 2015; the pretrainedmodels library), for RGB images.

    Its features are the mean over the places of the last map, 1024 of them. The network takes blue first; images are
    turned round and scaled as Roth et al. (ICML 2020) do, to 256.4 x less (104.6, 117.6, 128.7) in blue, green and red
    for x from 0 to 1. Weights are those of pretrainedmodels (`bn_inception-52deb4733`); a classifier in the file is
    left out.

    Args:
      norm: "batch" for batch normalisation; "frozen" for one that uses the running statistics in training, too, and
        never changes them, while scale and bias are trained; with weights alone, as drawn at random it normalises
        nothing.
      remat: what the backward pass keeps of each block: "none" for all of it (it rematerialises nothing), "dots" for
        the results of its convolutions, "block" for its input alone; the rest is computed again.
      embedding_dim: the output dimension of the head; None leaves the backbone's features.
      normalize: True to divide every embedding by its Euclidean norm.
      weights: a file with the backbone's parameters, which `Model.init` reads; None draws them.
      image_size: the side of the (square) images in pixels: a multiple of 32, one less, or up to 6 more.
      dtype: what the backbone computes in; parameters, statistics, head and embeddings are float32.
      pooling: over places: "average" (None), "max", "double" (their sum) or "gem".
      head: "linear", "mlp", or a dict of the name and hyper-parameters (`dml_jax.models.heads`).
      heads: several embeddings in place of embedding_dim, as in `{"a": {"dim": 64}, "b": {"dim": 64, "name": "mlp"}}`.

    Raises:
      UserError: a value out of range.

    Example:
      >>> bn_inception(image_size=64, embedding_dim=128, norm="frozen").dim
      128
    """
    # The maps before blocks 3c and 4e must be even: convolutions and pooling halve odd ones differently.
    if image_size < 31 or (image_size + 1) % 32 > 7:
        near = max(32, round(image_size / 32) * 32)
        raise UserError(
            f"image_size of model 'bn_inception' is {image_size}, where the maps of its branches differ in size; "
            f"accepted: a multiple of 32, such as {near}, one less, or up to 6 more"
        )
    return Model(
        "bn_inception",
        Bound(BNInception, norm=norm, remat=remat),
        image_size,
        sources=sources.tables(),
        mean=MEAN,
        std=STD,
        bgr=True,
        embedding_dim=embedding_dim,
        normalize=normalize,
        weights=weights,
        dtype=dtype,
        pooling=pooling,
        head=head,
        heads=heads,
    )
