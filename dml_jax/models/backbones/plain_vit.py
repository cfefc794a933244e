"""The plain vision transformer (Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021)."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from dml_jax.bound import Bound
from dml_jax.models.backbones.shared import STATISTICS, Remat
from dml_jax.models.backbones.vision_transformer import (
    VisionTransformer,
    check_image_size,
)
from dml_jax.models.base import DType, Model, WeightsFile
from dml_jax.models.heads import HeadSpec
from dml_jax.models.pooling import Pooling
from dml_jax.models.sources import vit as sources
from dml_jax.parameters import Interval, PositiveInt, checked

# Width, depth, heads: table 1 of the paper, and the two smaller ones of Touvron et al. (DeiT, ICML 2021).
SIZES = {
    "ti": (192, 12, 3),
    "s": (384, 12, 6),
    "b": (768, 12, 12),
    "l": (1024, 24, 16),
    "h": (1280, 32, 16),
}


@checked("model")
def plain_vit(
    size: Literal["ti", "s", "b", "l", "h"] = "s",
    *,
    patch: Literal[8, 14, 16, 32] = 16,
    position_size: PositiveInt = 224,
    antialias: bool = True,
    drop_path: Annotated[float, Interval(0, 1, closed_low=True)] = 0.0,
    statistics: Literal["half", "imagenet"] = "half",
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
    """Makes the plain ViT-Ti/S/B/L/H of supervised training, DeiT, DINO (the first one) and MAE, for RGB images.

    Its features are the class token after the last layer norm: 192, 384, 768, 1024 or 1280 of them. Weights are those
    of timm (`vit_small_patch16_224` and the like; DeiT without distillation, facebookresearch/dino, MAE), of
    torchvision (`vit_b_16`), of the transformers library (ViTModel) or of google-research/vision_transformer.

    Args:
      size: "ti", "s", "b", "l" or "h"; published ViT-H has patches of 14 pixels.
      patch: the side of a patch in pixels: 8, 14, 16 or 32.
      position_size: the side of the images, in pixels, that the position embedding is learned for: of those that the
        weights were trained with. It is resampled to `image_size` (bicubic).
      antialias: whether that is antialiased, as timm does it; False is the transformers library's and torchvision's.
      drop_path: the probability, below 1, of leaving a residual branch out in training, in the last layer; it grows
        linearly from 0 in the first one, as in timm and DeiT.
      statistics: of the images' channels: "half" (mean and standard deviation 0.5; the weights of google-research and
        timm's AugReg) or "imagenet" (DeiT, DINO, MAE, torchvision).
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
      >>> plain_vit("s", image_size=96, embedding_dim=128).dim
      128
    """
    width, depth, attention_heads = SIZES[size]
    check_image_size("plain_vit", image_size, patch)
    check_image_size("plain_vit", position_size, patch, "position_size")
    backbone = Bound(
        VisionTransformer,
        width=width,
        depth=depth,
        heads=attention_heads,
        hidden=4 * width,
        patch=patch,
        grid=position_size // patch,
        antialias=antialias,
        drop_path=drop_path,
        drop_path_grows=True,
        remat=remat,
        scan=scan,
        fused_attention=fused_attention,
    )
    mean, std = STATISTICS[statistics]
    return Model(
        "plain_vit",
        backbone,
        image_size,
        sources=sources.tables(attention_heads),
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
