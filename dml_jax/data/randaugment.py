"""RandAugment (Cubuk et al., NeurIPS workshops 2020) as torchvision defines it, on Pillow images."""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

_Op = Callable[[Image.Image, float], Image.Image]


def _affine(
    image: Image.Image, matrix: tuple[float, float, float, float, float, float]
) -> Image.Image:
    """Moves pixels by the inverse map, nearest neighbour, black where nothing comes from."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> _Op:
    return lambda image, m: kind(image).enhance(1 + m)


OPS: dict[str, tuple[_Op, bool]] = {
    "Identity": (lambda image, m: image, False),
    "ShearX": (lambda image, m: _affine(image, (1, m, 0, 0, 1, 0)), True),
    "ShearY": (lambda image, m: _affine(image, (1, 0, 0, m, 1, 0)), True),
    "TranslateX": (lambda image, m: _affine(image, (1, 0, -int(m), 0, 1, 0)), True),
    "TranslateY": (lambda image, m: _affine(image, (1, 0, 0, 0, 1, -int(m))), True),
    "Rotate": (lambda image, m: image.rotate(m, Image.Resampling.NEAREST), True),
    "Brightness": (_enhance(ImageEnhance.Brightness), True),
    "Color": (_enhance(ImageEnhance.Color), True),
    "Contrast": (_enhance(ImageEnhance.Contrast), True),
    "Sharpness": (_enhance(ImageEnhance.Sharpness), True),
    "Posterize": (lambda image, m: ImageOps.posterize(image, int(m)), False),
    "Solarize": (lambda image, m: ImageOps.solarize(image, math.ceil(m)), False),
    "AutoContrast": (lambda image, m: ImageOps.autocontrast(image), False),
    "Equalize": (lambda image, m: ImageOps.equalize(image), False),
}
"""Name -> (operation on image and magnitude, whether the magnitude's sign is drawn)."""


def magnitude_of(name: str, magnitude: int, bins: int, width: int, height: int) -> float:
    """The strength of an operation at one of `bins` evenly spaced levels: degrees, pixels, bits or shares.

    Shear to 0.3, translation to 150/331 of the side, rotation to 30 degrees, the enhancements to 0.9, 8 to 4
    bits, solarisation from 255 down to 0; 0 for the operations without a strength.
    """
    match name:
        case "ShearX" | "ShearY":
            return _level(0, 0.3, magnitude, bins)
        case "TranslateX":
            return _level(0, 150 / 331 * width, magnitude, bins)
        case "TranslateY":
            return _level(0, 150 / 331 * height, magnitude, bins)
        case "Rotate":
            return _level(0, 30, magnitude, bins)
        case "Brightness" | "Color" | "Contrast" | "Sharpness":
            return _level(0, 0.9, magnitude, bins)
        case "Posterize":
            return float(round(8 - 4 * magnitude / (bins - 1)))
        case "Solarize":
            return 255 * _level(1, 0, magnitude, bins)
    return 0.0


def _level(start: float, end: float, i: int, bins: int) -> float:
    """`torch.linspace(start, end, bins)[i]` to the bit: a rounding decides over a pixel in int(m)."""
    first, last = np.float32(start), np.float32(end)
    step = float((last - first) / np.float32(bins - 1))
    # Products and sums in double, rounded once, as a fused multiply-add does.
    if i < bins // 2:
        return float(np.float32(float(first) + step * i))
    return float(np.float32(float(last) - step * (bins - 1 - i)))


def rand_augment(
    image: Image.Image,
    rng: np.random.Generator,
    *,
    num_ops: int = 3,
    magnitude: int = 9,
    num_magnitude_bins: int = 31,
) -> Image.Image:
    """`num_ops` of the 14 operations in turn, each drawn evenly, with repetition; signs are + or - evenly.

    Works on grey (L) and RGB images. Each operation gives torchvision's pixels (nearest neighbour, black
    fill); torchvision applies 2 by default, the draws themselves come from another generator.

    Raises ValueError where num_ops is negative or the magnitude is not one of the bins.
    """
    if num_ops < 0:
        raise ValueError(f"rand_augment: num_ops={num_ops}; at least 0 is accepted")
    if num_magnitude_bins < 2:
        raise ValueError(
            f"rand_augment: num_magnitude_bins={num_magnitude_bins}; at least 2 is accepted"
        )
    if not 0 <= magnitude < num_magnitude_bins:
        raise ValueError(
            f"rand_augment: magnitude={magnitude}; 0 to {num_magnitude_bins - 1} is accepted"
        )
    kinds = list(OPS)
    for _ in range(num_ops):
        name = kinds[rng.integers(len(kinds))]
        operation, signed = OPS[name]
        strength = magnitude_of(name, magnitude, num_magnitude_bins, *image.size)
        if signed and rng.integers(2):
            strength = -strength
        image = operation(image, strength)
    return image
