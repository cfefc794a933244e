"""Where weights of the backbones are published, with the licence that their authors give them."""

from dataclasses import dataclass, field
from typing import Any

HUB = "https://huggingface.co"
TORCH = "https://download.pytorch.org/models"


@dataclass(frozen=True)
class Published:
    """A file of weights.

    Attributes:
      model: the name of the model.
      hyper: its hyper-parameters.
      weights: what `weights=` takes: "hf://OWNER/NAME", or the URL of a file to download.
      licence: of the weights.
      sha256: of the file, or as much of it as its name says; "" where it is not known.
    """

    model: str
    hyper: dict[str, Any] = field(hash=False)
    weights: str = ""
    licence: str = ""
    sha256: str = ""

    @property
    def url(self) -> str:
        """The page or file."""
        return self.weights.replace("hf://", f"{HUB}/")


def _dinov2() -> list[Published]:
    sizes = {"s": "small", "b": "base", "l": "large", "g": "giant"}
    return [
        Published(
            "vit",
            {"size": size, "registers": registers},
            f"hf://facebook/dinov2-{'with-registers-' if registers else ''}{name}",
            "Apache-2.0",
        )
        for registers in (0, 4)
        for size, name in sizes.items()
    ]


def _dinov3() -> list[Published]:
    licence = "DINOv3 License, to be accepted there"
    sizes = {
        "s": "vits16",
        "s_plus": "vits16plus",
        "b": "vitb16",
        "l": "vitl16",
        "h_plus": "vith16plus",
    }
    ours = [
        Published(
            "dinov3", {"size": size}, f"hf://facebook/dinov3-{name}-pretrain-lvd1689m", licence
        )
        for size, name in sizes.items()
    ]
    # timm leaves the bias out, which is 0, but for names with _qkvb.
    timm = [
        Published(
            "dinov3",
            {"size": size, "qkv_bias": False},
            f"hf://timm/vit_{name}_patch16_dinov3.lvd1689m",
            licence,
        )
        for size, name in (("s", "small"), ("b", "base"), ("l", "large"))
    ]
    satellite = {"size": "l", "statistics": "satellite"}
    return [
        *ours,
        *timm,
        Published("dinov3", satellite, "hf://facebook/dinov3-vitl16-pretrain-sat493m", licence),
    ]


def _torchvision(model: str, name: str, **hyper: Any) -> Published:
    """A file of torchvision, whose name ends in the beginning of its hash."""
    return Published(model, hyper, f"{TORCH}/{name}.pth", "BSD-3-Clause", name.rpartition("-")[2])


def _sides(side: int) -> dict[str, int]:
    """The hyper-parameters of weights that were trained with images of another side than 224."""
    return {"position_size": side, "image_size": side}


def _clip() -> list[Published]:
    openai = [
        Published(
            "clip",
            {"size": size, "patch": patch, "activation": "quick_gelu", **more},
            f"hf://openai/clip-vit-{name}",
            "MIT",
        )
        for size, patch, name, more in (
            ("b", 32, "base-patch32", {}),
            ("b", 16, "base-patch16", {}),
            ("l", 14, "large-patch14", {}),
            ("l", 14, "large-patch14-336", _sides(336)),
        )
    ]
    laion = [
        Published(
            "clip",
            {"size": size, "patch": patch, "activation": "gelu", "statistics": statistics},
            f"hf://laion/CLIP-ViT-{name}",
            "MIT",
        )
        for size, patch, statistics, name in (
            ("b", 32, "clip", "B-32-laion2B-s34B-b79K"),
            ("b", 16, "clip", "B-16-laion2B-s34B-b88K"),
            ("l", 14, "half", "L-14-laion2B-s32B-b82K"),
            ("h", 14, "clip", "H-14-laion2B-s32B-b79K"),
        )
    ]
    return openai + laion


def _plain_vit() -> list[Published]:
    timm = [
        Published(
            "plain_vit",
            {"size": size, "patch": patch, "statistics": statistics, **more},
            f"hf://timm/{name}",
            licence,
        )
        for size, patch, statistics, name, licence, more in (
            ("ti", 16, "half", "vit_tiny_patch16_224.augreg_in21k", "Apache-2.0", {}),
            ("s", 16, "half", "vit_small_patch16_224.augreg_in21k", "Apache-2.0", {}),
            ("b", 16, "half", "vit_base_patch16_224.augreg_in21k", "Apache-2.0", {}),
            (
                "b",
                16,
                "half",
                "vit_base_patch16_384.augreg_in21k_ft_in1k",
                "Apache-2.0",
                _sides(384),
            ),
            ("l", 16, "half", "vit_large_patch16_224.augreg_in21k", "Apache-2.0", {}),
            ("s", 16, "imagenet", "deit_small_patch16_224.fb_in1k", "Apache-2.0", {}),
            ("b", 16, "imagenet", "deit_base_patch16_224.fb_in1k", "Apache-2.0", {}),
            ("s", 16, "imagenet", "vit_small_patch16_224.dino", "Apache-2.0", {}),
            ("s", 8, "imagenet", "vit_small_patch8_224.dino", "Apache-2.0", {}),
            ("b", 16, "imagenet", "vit_base_patch16_224.dino", "Apache-2.0", {}),
            ("b", 8, "imagenet", "vit_base_patch8_224.dino", "Apache-2.0", {}),
            ("b", 16, "imagenet", "vit_base_patch16_224.mae", "CC-BY-NC-4.0", {}),
            ("l", 16, "imagenet", "vit_large_patch16_224.mae", "CC-BY-NC-4.0", {}),
            ("h", 14, "imagenet", "vit_huge_patch14_224.mae", "CC-BY-NC-4.0", {}),
        )
    ]
    # torchvision resamples position embeddings without antialiasing.
    more = {"statistics": "imagenet", "antialias": False}
    return [
        *timm,
        _torchvision("plain_vit", "vit_b_16-c867db91", size="b", patch=16, **more),
        _torchvision("plain_vit", "vit_b_32-d86f8d99", size="b", patch=32, **more),
        _torchvision("plain_vit", "vit_l_16-852ce7e3", size="l", patch=16, **more),
    ]


def _siglip() -> list[Published]:
    return [
        Published(
            "siglip",
            {"size": size, "patch": patch, **_sides(side)},
            f"hf://google/siglip2-{name}-patch{patch}-{side}",
            "Apache-2.0",
        )
        for size, name, patch, side in (
            ("b", "base", 16, 224),
            ("b", "base", 16, 256),
            ("b", "base", 16, 384),
            ("b", "base", 32, 256),
            ("l", "large", 16, 256),
            ("l", "large", 16, 384),
            ("so400m", "so400m", 14, 224),
            ("so400m", "so400m", 16, 256),
            ("so400m", "so400m", 16, 384),
            ("g_opt", "giant-opt", 16, 256),
            ("g_opt", "giant-opt", 16, 384),
        )
    ]


# What a file does not say is a hyper-parameter here: the side that positions were learned for, how images are scaled,
# the activation of the MLPs, whether queries and values have a bias.
PUBLISHED: tuple[Published, ...] = (
    Published(
        "bn_inception",
        {},
        "http://data.lip6.fr/cadene/pretrainedmodels/bn_inception-52deb4733.pth",
        "BSD-3-Clause",
        "52deb4733",
    ),
    *_clip(),
    _torchvision("convnext", "convnext_tiny-983f1562", size="t"),
    _torchvision("convnext", "convnext_small-0c510722", size="s"),
    _torchvision("convnext", "convnext_base-6075fbad", size="b"),
    _torchvision("convnext", "convnext_large-ea097f82", size="l"),
    *_dinov3(),
    _torchvision("googlenet", "googlenet-1378be20"),
    *_plain_vit(),
    _torchvision("resnet", "resnet18-f37072fd", size=18),
    _torchvision("resnet", "resnet34-b627a593", size=34),
    _torchvision("resnet", "resnet50-19c8e357", size=50),
    _torchvision("resnet", "resnet50-11ad3fa6", size=50),
    _torchvision("resnet", "resnet101-63fe2227", size=101),
    *_siglip(),
    *_dinov2(),
)
