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
    sizes = {
        "s": "vits16",
        "s_plus": "vits16plus",
        "b": "vitb16",
        "l": "vitl16",
        "h_plus": "vith16plus",
    }
    return [
        Published(
            "dinov3",
            {"size": size},
            f"hf://facebook/dinov3-{name}-pretrain-lvd1689m",
            "DINOv3 License, to be accepted there",
        )
        for size, name in sizes.items()
    ]


PUBLISHED: tuple[Published, ...] = (
    Published(
        "bn_inception",
        {},
        "http://data.lip6.fr/cadene/pretrainedmodels/bn_inception-52deb4733.pth",
        "BSD-3-Clause",
        "52deb4733",
    ),
    Published("clip", {"size": "b", "patch": 32}, "hf://openai/clip-vit-base-patch32", "MIT"),
    Published("clip", {"size": "b", "patch": 16}, "hf://openai/clip-vit-base-patch16", "MIT"),
    Published("clip", {"size": "l", "patch": 14}, "hf://openai/clip-vit-large-patch14", "MIT"),
    Published(
        "convnext", {"size": "t"}, f"{TORCH}/convnext_tiny-983f1562.pth", "BSD-3-Clause", "983f1562"
    ),
    Published(
        "convnext",
        {"size": "s"},
        f"{TORCH}/convnext_small-0c510722.pth",
        "BSD-3-Clause",
        "0c510722",
    ),
    Published(
        "convnext", {"size": "b"}, f"{TORCH}/convnext_base-6075fbad.pth", "BSD-3-Clause", "6075fbad"
    ),
    Published(
        "convnext",
        {"size": "l"},
        f"{TORCH}/convnext_large-ea097f82.pth",
        "BSD-3-Clause",
        "ea097f82",
    ),
    *_dinov3(),
    Published("googlenet", {}, f"{TORCH}/googlenet-1378be20.pth", "BSD-3-Clause", "1378be20"),
    Published(
        "plain_vit",
        {"size": "s", "patch": 16},
        "hf://timm/vit_small_patch16_224.augreg_in21k",
        "Apache-2.0",
    ),
    Published(
        "plain_vit",
        {"size": "b", "patch": 16},
        "hf://timm/vit_base_patch16_224.augreg_in21k",
        "Apache-2.0",
    ),
    Published(
        "plain_vit",
        {"size": "l", "patch": 16},
        "hf://timm/vit_large_patch16_224.augreg_in21k",
        "Apache-2.0",
    ),
    Published("resnet", {"size": 18}, f"{TORCH}/resnet18-f37072fd.pth", "BSD-3-Clause", "f37072fd"),
    Published("resnet", {"size": 34}, f"{TORCH}/resnet34-b627a593.pth", "BSD-3-Clause", "b627a593"),
    Published("resnet", {"size": 50}, f"{TORCH}/resnet50-19c8e357.pth", "BSD-3-Clause", "19c8e357"),
    Published("resnet", {"size": 50}, f"{TORCH}/resnet50-11ad3fa6.pth", "BSD-3-Clause", "11ad3fa6"),
    Published(
        "resnet", {"size": 101}, f"{TORCH}/resnet101-63fe2227.pth", "BSD-3-Clause", "63fe2227"
    ),
    Published(
        "siglip", {"size": "b", "patch": 16}, "hf://google/siglip2-base-patch16-224", "Apache-2.0"
    ),
    Published(
        "siglip",
        {"size": "so400m", "patch": 14, "image_size": 224},
        "hf://google/siglip2-so400m-patch14-224",
        "Apache-2.0",
    ),
    *_dinov2(),
)
