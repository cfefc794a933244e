"""DINOv2's vision transformer.

Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024; registers: Darcet et al.,
"Vision Transformers Need Registers", ICLR 2024.
"""

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
from dml_jax.models.sources import dinov2
from dml_jax.parameters import Interval, NonNegativeFloat, NonNegativeInt, PositiveInt, checked

PATCH = 14
GRID = 37  # patches on a side of the 518-pixel images that the position embedding was learned on
# Width, depth, heads.
SIZES = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "g": (1536, 40, 24)}


@checked("model")
def vit(
    size: Literal["s", "b", "l", "g"] = "s",
    *,
    registers: NonNegativeInt = 0,
    layer_scale: NonNegativeFloat = 1e-5,
    drop_path: Annotated[float, Interval(0, 1, closed_low=True)] = 0.0,
    offset: NonNegativeFloat = 0.0,
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
    """Makes DINOv2's ViT-S/B/L/g with patches of 14 pixels, for RGB images; the last has SwiGLU layers.

    Its features are the class token after the last layer norm: 384, 768, 1024 or 1536 of them. Images are scaled by the
    mean and the standard deviation of ImageNet. Weights are those that facebookresearch/dinov2, the transformers
    library or timm publishes. The position embedding is learned for 37 x 37 patches and resampled to any other grid
    (see `offset`); models with registers resample with antialiasing, the others without, as DINOv2 does.

    Args:
      size: "s", "b", "l" or "g".
      registers: the number of tokens beside the class token that take no part in the embedding, from 0 on; published
        models have 0 or 4.
      layer_scale: the first value of the residual branches' learned scales; 1e-5 is DINOv2's.
      drop_path: the probability, below 1, of leaving a residual branch out in training, the same at all depths.
      offset: is added to the number of patches of a side before the scale is worked out by which the position embedding
        is resampled: 0 is the plain definition and that of the transformers library; the DINOv2 repository uses 0.1
        where there are no registers, a shift of under one hundredth of a patch per patch.
      remat: what the backward pass keeps of each layer: all of it ("none"), the results of its linear maps ("dots") or
        its input alone ("block"); the rest is computed again.
      scan: True to run the layers in one loop, which is traced and compiled as one layer; it holds their parameters
        twice. On CPUs `remat` saves memory only with it.
      fused_attention: True for cuDNN's attention on GPUs where dtype is "bfloat16"; elsewhere it changes nothing.
      embedding_dim: the output dimension of the head; None leaves the backbone's features.
      normalize: True to divide every embedding by its Euclidean norm.
      weights: a file with the backbone's parameters, which `Model.init` reads; None draws them.
      image_size: the side of the (square) images in pixels, a multiple of 14.
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
      >>> vit("s", image_size=98, embedding_dim=128).dim
      128
    """
    width, depth, attention_heads = SIZES[size]
    check_image_size("vit", image_size, PATCH)
    gated = size == "g"
    # SwiGLU keeps two thirds of the hidden size, rounded up to a multiple of eight.
    hidden = -(-int(4 * width * 2 / 3) // 8) * 8 if gated else 4 * width
    backbone = Bound(
        VisionTransformer,
        width=width,
        depth=depth,
        heads=attention_heads,
        hidden=hidden,
        patch=PATCH,
        grid=GRID,
        registers=registers,
        antialias=registers > 0,
        offset=offset,
        drop_path=drop_path,
        gated=gated,
        layer_scale=layer_scale,
        remat=remat,
        scan=scan,
        fused_attention=fused_attention,
    )
    mean, std = STATISTICS["imagenet"]
    return Model(
        "vit",
        backbone,
        image_size,
        sources=dinov2.tables(depth, registers, gated),
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
