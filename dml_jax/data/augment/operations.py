"""The operations of RandAugment, TrivialAugment and AugMix as torchvision defines them, on Pillow images."""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

Interpolation = Literal["nearest", "bilinear"]
RESAMPLING: dict[str, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
}
_Operation = Callable[[Image.Image, float, Image.Resampling], Image.Image]


def _affine(
    image: Image.Image,
    matrix: tuple[float, float, float, float, float, float],
    how: Image.Resampling,
) -> Image.Image:
    """Moves the pixels by an inverse affine map: those of the image, black from beyond its border."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, how)


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> _Operation:
    return lambda image, m, how: kind(image).enhance(1 + m)


OPERATIONS: dict[str, tuple[_Operation, bool]] = {
    "Identity": (lambda image, m, how: image, False),
    "ShearX": (lambda image, m, how: _affine(image, (1, m, 0, 0, 1, 0), how), True),
    "ShearY": (lambda image, m, how: _affine(image, (1, 0, 0, m, 1, 0), how), True),
    "TranslateX": (lambda image, m, how: _affine(image, (1, 0, -int(m), 0, 1, 0), how), True),
    "TranslateY": (lambda image, m, how: _affine(image, (1, 0, 0, 0, 1, -int(m)), how), True),
    "Rotate": (lambda image, m, how: image.rotate(m, how), True),
    "Brightness": (_enhance(ImageEnhance.Brightness), True),
    "Color": (_enhance(ImageEnhance.Color), True),
    "Contrast": (_enhance(ImageEnhance.Contrast), True),
    "Sharpness": (_enhance(ImageEnhance.Sharpness), True),
    "Posterize": (lambda image, m, how: ImageOps.posterize(image, int(m)), False),
    "Solarize": (lambda image, m, how: ImageOps.solarize(image, math.ceil(m)), False),
    "AutoContrast": (lambda image, m, how: ImageOps.autocontrast(image), False),
    "Equalize": (lambda image, m, how: ImageOps.equalize(image), False),
}
"""The operations by name, each with True where the sign of its strength is drawn."""


def strength_of(name: str, magnitude: int, bins: int, width: int, height: int) -> float:
    """Returns the strength of an operation in degrees, pixels, bits or shares.

    Shear goes up to 0.3, translation to 150/331 of the side, rotation to 30 degrees, the enhancements to 0.9,
    posterisation from 8 to 4 bits, solarisation from 255 down to 0; the operations without a strength have 0.

    Args:
      name: of the operation.
      magnitude: one of the evenly spaced levels, 0 to `bins` - 1.
      bins: the number of levels.
      width: of the image.
      height: of the image.

    Example:
      >>> strength_of("Rotate", 15, 31, 24, 24)
      15.0
    """
    match name:
        case "ShearX" | "ShearY":
            return level_of(0, 0.3, magnitude, bins)
        case "TranslateX":
            return level_of(0, 150 / 331 * width, magnitude, bins)
        case "TranslateY":
            return level_of(0, 150 / 331 * height, magnitude, bins)
        case "Rotate":
            return level_of(0, 30, magnitude, bins)
        case "Brightness" | "Color" | "Contrast" | "Sharpness":
            return level_of(0, 0.9, magnitude, bins)
        case "Posterize":
            return float(round(8 - 4 * magnitude / (bins - 1)))
        case "Solarize":
            return 255 * level_of(1, 0, magnitude, bins)
    return 0.0


def level_of(start: float, end: float, i: int, bins: int) -> float:
    """Returns `torch.linspace(start, end, bins)[i]` to the bit: its rounding decides over a pixel in int(m).

    Args:
      start: the first level.
      end: the last one.
      i: which one, from 0 on.
      bins: how many there are.
    """
    first, last = np.float32(start), np.float32(end)
    step = float((last - first) / np.float32(bins - 1))
    # Products and sums in double, rounded once, as a fused multiply-add does.
    if i < bins // 2:
        return float(np.float32(float(first) + step * i))
    return float(np.float32(float(last) - step * (bins - 1 - i)))
