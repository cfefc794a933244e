"""CLIP's image towers.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021; the larger ones:
Cherti et al., "Reproducible scaling laws for contrastive language-image learning", CVPR 2023 (OpenCLIP).
"""

from collections.abc import Mapping
from typing import Any, Literal

from dml_jax.bound import Bound
from dml_jax.models.backbones.shared import STATISTICS, Remat
from dml_jax.models.backbones.vision_transformer import (
    VisionTransformer,
    check_image_size,
)
from dml_jax.models.base import DType, Model, WeightsFile
from dml_jax.models.heads import HeadSpec
from dml_jax.models.pooling import Pooling
from dml_jax.models.sources import clip as sources
from dml_jax.parameters import PositiveInt, checked

# Width, depth, heads, hidden features of an MLP, features after the projection.
SIZES = {
    "b": (768, 12, 12, 3072, 512),
    "l": (1024, 24, 16, 4096, 768),
    "h": (1280, 32, 16, 5120, 1024),
    "g": (1408, 40, 16, 6144, 1024),
    "bigg": (1664, 48, 16, 8192, 1280),
}


@checked("model")
def clip(
    size: Literal["b", "l", "h", "g", "bigg"] = "b",
    *,
    patch: Literal[14, 16, 32] | None = None,
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu",
    projection: bool = False,
    position_size: PositiveInt = 224,
    antialias: bool = True,
    statistics: Literal["clip", "half"] = "clip",
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
    """Makes the image tower of CLIP ViT-B/L (OpenAI) or ViT-H/g/bigG (OpenCLIP), for RGB images.

    Its features are the class token after the last layer norm: 768, 1024, 1280, 1408 or 1664 of them, or, with
    `projection`, 512, 768, 1024, 1024 or 1280 of the space that images and texts share. Weights are those of OpenAI's
    CLIP, OpenCLIP or the transformers library (the text tower in the file is left out), or timm's without a projection.

    Args:
      size: "b", "l", "h", "g" or "bigg".
      patch: the side of a patch in pixels: 14, 16 or 32; None is 16 for "b" and 14 for the others.
      activation: of the MLPs: "quick_gelu" (OpenAI's weights, and OpenCLIP's of DFN and MetaCLIP) or "gelu" (other
        weights of OpenCLIP, such as LAION's and DataComp's).
      projection: True to map the class token to the space that images and texts share.
      position_size: the side of the images, in pixels, that the position embedding is learned for: of those that the
        weights were trained with. It is resampled to `image_size` (bicubic).
      antialias: whether that is antialiased, as OpenCLIP and timm do it; False is the transformers library's.
      statistics: of the images' channels: "clip" (OpenAI's) or "half" (mean and standard deviation 0.5), which a few
        weights of OpenCLIP need.
      remat: what the backward pass keeps of each layer: all of it ("none"), the results of its linear maps ("dots") or
        its input alone ("block"); the rest is computed again.
      scan: True to run the layers in one loop, which is traced and compiled as one layer; it holds their parameters
        twice. On CPUs `remat` saves memory only with it.
      fused_attention: True for cuDNN's attention on GPUs where dtype is "bfloat16"; elsewhere it changes nothing.
      embedding_dim: the output dimension of the head; None leaves the backbone's features.
      normalize: True to divide every embedding by its Euclidean norm.
      weights: a file with the backbone's parameters, which `Model.init` reads; None draws them.
      image_size: the side of the (square) images in pixels, a multiple of `patch`.
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
      >>> clip("b", patch=32, projection=True).dim
      512
    """
    width, depth, attention_heads, hidden, projected = SIZES[size]
    side = patch or (16 if size == "b" else 14)
    check_image_size("clip", image_size, side)
    check_image_size("clip", position_size, side, "position_size")
    backbone = Bound(
        VisionTransformer,
        width=width,
        depth=depth,
        heads=attention_heads,
        hidden=hidden,
        patch=side,
        grid=position_size // side,
        antialias=antialias,
        patch_bias=False,
        norm_pre=True,
        projection=projected if projection else None,
        activation=activation,
        eps=1e-5,
        remat=remat,
        scan=scan,
        fused_attention=fused_attention,
    )
    mean, std = STATISTICS[statistics]
    return Model(
        "clip",
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
        lora=lora,
    )
