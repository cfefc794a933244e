"""DINOv3's vision transformer (Simeoni et al., "DINOv3", 2025, arXiv:2508.10104)."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from dml_jax.bound import Bound
from dml_jax.models.backbones.shared import STATISTICS, Remat
from dml_jax.models.backbones.vision_transformer import (
    VisionTransformer,
    check_image_size,
)
from dml_jax.models.base import DType, Model, WeightsFile
from dml_jax.models.heads import HeadSpec
from dml_jax.models.pooling import Pooling
from dml_jax.models.sources import dinov3 as sources
from dml_jax.parameters import Interval, NonNegativeFloat, NonNegativeInt, PositiveInt, checked

PATCH = 16


class Size(NamedTuple):
    """A published size.

    Attributes:
      width: the features of a token.
      depth: the number of layers.
      heads: of the attention.
      hidden: the features between the two maps of an MLP.
      gated: True where the MLPs are SwiGLU.
    """

    width: int
    depth: int
    heads: int
    hidden: int
    gated: bool = False


SIZES = {
    "s": Size(384, 12, 6, 1536),
    "s_plus": Size(384, 12, 6, 1536, gated=True),
    "b": Size(768, 12, 12, 3072),
    "l": Size(1024, 24, 16, 4096),
    "l_plus": Size(1024, 24, 16, 4096, gated=True),
    "h_plus": Size(1280, 32, 20, 5120, gated=True),
    "7b": Size(4096, 40, 32, 8192, gated=True),
}


@checked("model")
def dinov3(
    size: Literal["s", "s_plus", "b", "l", "l_plus", "h_plus", "7b"] = "s",
    *,
    registers: NonNegativeInt = 4,
    layer_scale: NonNegativeFloat = 1e-5,
    drop_path: Annotated[float, Interval(0, 1, closed_low=True)] = 0.0,
    rescale: Annotated[float, Interval(1, closed_low=True)] | None = None,
    qkv_bias: bool | None = None,
    statistics: Literal["imagenet", "satellite"] = "imagenet",
    remat: Remat = "none",
    scan: bool = False,
    fused_attention: bool = False,
    embedding_dim: PositiveInt | None = None,
    normalize: bool = True,
    weights: WeightsFile | None = None,
    image_size: PositiveInt = 224,
    dtype: DType = "float32",
    pooling: Pooling | None = None,
    head: HeadSpec = "linear",
    heads: Mapping[str, Any] | None = None,
    lora: Mapping[str, Any] | None = None,
) -> Model:
    """Makes DINOv3's ViT-S/S+/B/L/L+/H+/7B with patches of 16 pixels, for RGB images.

    Its features are the class token after the last layer norm: 384, 384, 768, 1024, 1024, 1280 or 4096 of them. Places
    of patches enter as rotary embeddings of queries and keys, so that images may have any size. Keys have no bias; the
    MLPs of the plus sizes and of 7B are SwiGLU. Weights are those that facebookresearch/dinov3, the transformers
    library or timm publishes.

    Args:
      size: "s", "s_plus", "b", "l", "l_plus", "h_plus" or "7b".
      registers: the number of tokens beside the class token that take no part in the embedding, from 0 on;
        published models have 4.
      layer_scale: the first value of the residual branches' learned scales; 1e-5 is DINOv3's.
      drop_path: the probability, below 1, of leaving a residual branch out in training, the same at all depths.
      rescale: r, from 1 on, where the patches' places are multiplied in training by a number drawn log-uniformly from
        [1 / r, r], one for a batch; the authors trained with 2. None leaves them as they are.
      qkv_bias: whether queries and values have a bias; None: all sizes but 7b, as published. Files of timm whose name
        has no "qkvb" need False.
      statistics: of the images' channels: "imagenet", or "satellite" for weights that were trained on SAT-493M.
      remat: what the backward pass keeps of each layer: all of it ("none"), the results of its linear maps ("dots") or
        its input alone ("block"); the rest is computed again.
      scan: True to run the layers in one loop, which is traced and compiled as one layer; it holds their parameters
        twice. On CPUs `remat` saves memory only with it.
      fused_attention: True for cuDNN's attention on GPUs where dtype is "bfloat16"; elsewhere it changes nothing.
      embedding_dim: the output dimension of the head; None leaves the backbone's features.
      normalize: True to divide every embedding by its Euclidean norm.
      weights: a file with the backbone's parameters, which `Model.init` reads; None draws them.
      image_size: the side of the (square) images in pixels, a multiple of 16.
      dtype: what the backbone computes in; parameters, head and embeddings are float32.
      pooling: "token" (None), or over patches "average", "max", "double" (their sum), "gem", or "token_average" for
        token and average side by side.
      head: "linear", "mlp", or a dict of the name and hyper-parameters (`dml_jax.models.heads`).
      heads: several embeddings in place of embedding_dim, as in `{"a": {"dim": 64}, "b": {"dim": 64, "name": "mlp"}}`.
      lora: low-rank adaptation in place of training the backbone: a dict of `rank`, `alpha` and `match`, the pattern of
        the adapted maps, such as ".*/(qkv|out)" (`dml_jax.models.lora`).

    Raises:
      UserError: a value out of range.

    Example:
      >>> dinov3("s_plus", image_size=96, embedding_dim=128).dim
      128
    """
    shape = SIZES[size]
    check_image_size("dinov3", image_size, PATCH)
    biased = size != "7b" if qkv_bias is None else qkv_bias
    backbone = Bound(
        VisionTransformer,
        **shape._asdict(),
        patch=PATCH,
        registers=registers,
        rescale=rescale,
        token_std=0.02,
        drop_path=drop_path,
        bias="query_value" if biased else "none",
        layer_scale=layer_scale,
        eps=1e-5,
        remat=remat,
        scan=scan,
        fused_attention=fused_attention,
    )
    mean, std = STATISTICS[statistics]
    return Model(
        "dinov3",
        backbone,
        image_size,
        sources=sources.tables(shape.gated),
        mean=mean,
        std=std,
        embedding_dim=embedding_dim,
        normalize=normalize,
        weights=weights,
        dtype=dtype,
        pooling=pooling,
        head=head,
        heads=heads,
        lora=lora,
    )
