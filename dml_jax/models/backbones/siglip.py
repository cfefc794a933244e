"""SigLIP's image towers.

Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023; Tschannen et al., "SigLIP 2", 2025,
arXiv:2502.14786 (the variants of one resolution, which have the same architecture).
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
from dml_jax.models.sources import siglip as sources
from dml_jax.parameters import PositiveInt, checked

# Width, depth, heads, hidden features of an MLP.
SIZES = {
    "b": (768, 12, 12, 3072),
    "l": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
    "g_opt": (1536, 40, 16, 6144),
}


@checked("model")
def siglip(
    size: Literal["b", "l", "so400m", "g_opt"] = "b",
    *,
    patch: Literal[14, 16, 32] | None = None,
    position_size: PositiveInt = 224,
    antialias: bool = True,
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
    """Makes the image tower of SigLIP or SigLIP 2 (of one resolution) ViT-B/L/So400m/g-opt, for RGB images.

    There is no class token: its features, 768, 1024, 1152 or 1536 of them, are what a learned query attends to in the
    patches after the last layer norm, plus an MLP of it. Images are scaled to [-1, 1]. Weights are those of the
    transformers library or OpenCLIP (the text tower in the file is left out), of timm, or of
    google-research/big_vision, with layers apart or stacked.

    Args:
      size: "b", "l", "so400m" or "g_opt".
      patch: the side of a patch in pixels: 14, 16 or 32; None is 14 for "so400m" and 16 for the others.
      position_size: the side of the images, in pixels, that the position embedding is learned for: of those that the
        weights were trained with. It is resampled to `image_size` (bicubic).
      antialias: whether that is antialiased, as timm does it; False is the transformers library's.
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
      pooling: "token" (None; what is pooled by attention), or over patches "average", "max", "double" (their sum),
        "gem", or "token_average" for token and average side by side.
      head: "linear", "mlp", or a dict of the name and hyper-parameters (`dml_jax.models.heads`).
      heads: several embeddings in place of embedding_dim, as in `{"a": {"dim": 64}, "b": {"dim": 64, "name": "mlp"}}`.
      lora: low-rank adaptation in place of training the backbone: a dict of `rank`, `alpha` and `match`, the pattern of
        the adapted maps, such as ".*/(qkv|out)" (`dml_jax.models.lora`).

    Raises:
      UserError: a value out of range.

    Example:
      >>> siglip("b", image_size=64, embedding_dim=128).dim
      128
    """
    width, depth, attention_heads, hidden = SIZES[size]
    side = patch or (14 if size == "so400m" else 16)
    check_image_size("siglip", image_size, side)
    check_image_size("siglip", position_size, side, "position_size")
    backbone = Bound(
        VisionTransformer,
        width=width,
        depth=depth,
        heads=attention_heads,
        hidden=hidden,
        patch=side,
        grid=position_size // side,
        class_token=False,
        antialias=antialias,
        activation="gelu_tanh",
        remat=remat,
        scan=scan,
        fused_attention=fused_attention,
    )
    mean, std = STATISTICS["half"]
    return Model(
        "siglip",
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
