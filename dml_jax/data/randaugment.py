"""RandAugment as torchvision defines it, on Pillow images."""

import math
from collections.abc import Callable
from typing import Annotated

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from dml_jax.bound import Bound
from dml_jax.data.base import Augmentation
from dml_jax.errors import UserError
from dml_jax.parameters import Interval, NonNegativeInt, checked

_Operation = Callable[[Image.Image, float], Image.Image]


def _affine(
    image: Image.Image, matrix: tuple[float, float, float, float, float, float]
) -> Image.Image:
    """Moves the pixels by an inverse affine map: the nearest one of the image, black from beyond its border."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> _Operation:
    return lambda image, m: kind(image).enhance(1 + m)


OPERATIONS: dict[str, tuple[_Operation, bool]] = {
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
    """Returns `torch.linspace(start, end, bins)[i]` to the bit: its rounding decides over a pixel in int(m)."""
    first, last = np.float32(start), np.float32(end)
    step = float((last - first) / np.float32(bins - 1))
    # Products and sums in double, rounded once, as a fused multiply-add does.
    if i < bins // 2:
        return float(np.float32(float(first) + step * i))
    return float(np.float32(float(last) - step * (bins - 1 - i)))


@checked("augmentation")
def rand_augment(
    num_ops: NonNegativeInt = 3,
    magnitude: NonNegativeInt = 9,
    num_magnitude_bins: Annotated[int, Interval(2, closed_low=True)] = 31,
) -> Augmentation:
    """Applies `num_ops` of 14 operations one after the other (Cubuk et al., NeurIPS workshops 2020).

    Each operation is drawn evenly, with repetition, and the sign of a strength that has one is + or - evenly. Images
    are grey or RGB. Each operation gives torchvision's pixels (nearest neighbour, black fill); torchvision applies 2 of
    them by default, and the draws come from another generator.

    Args:
      num_ops: the number of operations, from 0 on.
      magnitude: the strength of the operations, one of the bins 0 to `num_magnitude_bins` - 1; torchvision's default.
      num_magnitude_bins: the number of evenly spaced strengths, at least 2; torchvision's default.

    Raises:
      UserError: a value out of range, or a magnitude that is none of the bins.

    Example:
      >>> from PIL import Image
      >>> rand_augment(num_ops=2)(Image.new("L", (20, 20)), np.random.default_rng(0)).size
      (20, 20)
    """
    if magnitude >= num_magnitude_bins:
        raise UserError(
            f"magnitude of augmentation 'rand_augment' is {magnitude}; accepted: 0 to {num_magnitude_bins - 1}"
        )
    return Bound(
        _rand_augment,
        num_ops=num_ops,
        magnitude=magnitude,
        num_magnitude_bins=num_magnitude_bins,
    )


def _rand_augment(
    image: Image.Image,
    rng: np.random.Generator,
    *,
    num_ops: int,
    magnitude: int,
    num_magnitude_bins: int,
) -> Image.Image:
    operations = list(OPERATIONS)
    for _ in range(num_ops):
        name = operations[rng.integers(len(operations))]
        operation, signed = OPERATIONS[name]
        strength = strength_of(name, magnitude, num_magnitude_bins, *image.size)
        if signed and rng.integers(2):
            strength = -strength
        image = operation(image, strength)
    return image
