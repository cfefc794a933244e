"""Writes augment_colour.npz: what torchvision makes of small images, by its operations on colours and policies.

Run it where torch and torchvision are installed: `python tests/golden/make_augment_colour.py`.
"""

import pathlib

import make_augment  # which prepares the import of torchvision
import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

ADJUST = {
    "brightness": (F.adjust_brightness, (0.0, 0.8, 1.0, 1.7)),
    "contrast": (F.adjust_contrast, (0.0, 0.8, 1.0, 1.7)),
    "saturation": (F.adjust_saturation, (0.0, 0.8, 1.0, 1.7)),
    "hue": (F.adjust_hue, (-0.5, -0.21, 0.0, 0.13, 0.5)),
}
BLURS = ((3, 0.1), (5, 1.0), (9, 2.0))


def spaces() -> dict[str, np.ndarray]:
    """The strengths of the two other policies."""
    found = {}
    for name, policy, bins in (("wide", v2.TrivialAugmentWide(), 31), ("mix", v2.AugMix(), 10)):
        space = policy._AUGMENTATION_SPACE
        for width, height in make_augment.SIZES:
            for operation, (magnitudes, _) in space.items():
                levels = magnitudes(bins, height, width)
                made = [0.0] * bins if levels is None else [float(m) for m in levels]
                found[f"{name}/{operation}/{width}x{height}"] = np.array(made)
    return found


def main() -> None:
    out: dict[str, np.ndarray] = {
        "versions": np.array([torch.__version__, torchvision.__version__])
    }
    policy = v2.RandAugment(num_ops=1)
    bilinear = v2.InterpolationMode.BILINEAR
    for kind, array in make_augment.images().items():
        image = Image.fromarray(array)
        for name, (function, factors) in ADJUST.items():
            out[f"{name}/{kind}"] = np.stack([np.asarray(function(image, f)) for f in factors])
            out[f"factors/{name}"] = np.array(factors)
        if kind == "rgb":
            out["grayscale/rgb"] = np.asarray(F.rgb_to_grayscale(image, num_output_channels=3))
        for size, sigma in BLURS:
            out[f"blur/{kind}/{size}/{sigma}"] = np.asarray(F.gaussian_blur(image, size, sigma))
        for size in (10, 40, [7, 19]):
            out[f"nearest/{kind}/{size}"] = np.asarray(
                F.resize(image, size, interpolation=v2.InterpolationMode.NEAREST)
            )
        for name in ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"):
            strengths = make_augment.strengths(policy, name, *image.size)
            made = [
                policy._apply_image_or_video_transform(
                    image, name, sign * strengths[level], bilinear, policy._fill
                )
                for level in make_augment.LEVELS
                for sign in (1, -1)
            ]
            out[f"bilinear/{name}/{kind}"] = np.stack([np.asarray(m) for m in made])
    np.savez_compressed(pathlib.Path(__file__).with_name("augment_colour.npz"), **out, **spaces())


if __name__ == "__main__":
    main()
