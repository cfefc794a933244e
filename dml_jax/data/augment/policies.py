"""Policies: operations drawn at random, as torchvision's RandAugment, TrivialAugmentWide and AugMix draw them."""

from typing import Annotated

import numpy as np
from PIL import Image

from dml_jax.bound import Bound
from dml_jax.data.augment.operations import (
    OPERATIONS,
    RESAMPLING,
    Interpolation,
    level_of,
    strength_of,
)
from dml_jax.data.base import Augmentation
from dml_jax.errors import UserError
from dml_jax.parameters import Interval, NonNegativeInt, PositiveFloat, PositiveInt, checked


@checked("augmentation")
def rand_augment(
    num_ops: NonNegativeInt = 3,
    magnitude: NonNegativeInt = 9,
    num_magnitude_bins: Annotated[int, Interval(2, closed_low=True)] = 31,
    interpolation: Interpolation = "nearest",
) -> Augmentation:
    """Applies `num_ops` of 14 operations one after the other (Cubuk et al., NeurIPS workshops 2020).

    Each operation is drawn evenly, with repetition, and the sign of a strength that has one is + or - evenly. Images
    are grey or RGB. Each operation gives torchvision's pixels (black fill); torchvision applies 2 of them by default,
    and the draws come from another generator.

    Args:
      num_ops: the number of operations, from 0 on.
      magnitude: the strength of the operations, one of the bins 0 to `num_magnitude_bins` - 1; torchvision's default.
      num_magnitude_bins: the number of evenly spaced strengths, at least 2; torchvision's default.
      interpolation: nearest, torchvision's default, or bilinear, with which the 2025 code trains.

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
        interpolation=interpolation,
    )


def _rand_augment(
    image: Image.Image,
    rng: np.random.Generator,
    *,
    num_ops: int,
    magnitude: int,
    num_magnitude_bins: int,
    interpolation: Interpolation,
) -> Image.Image:
    operations = list(OPERATIONS)
    for _ in range(num_ops):
        name = operations[rng.integers(len(operations))]
        operation, signed = OPERATIONS[name]
        strength = strength_of(name, magnitude, num_magnitude_bins, *image.size)
        if signed and rng.integers(2):
            strength = -strength
        image = operation(image, strength, RESAMPLING[interpolation])
    return image


@checked("augmentation")
def trivial_augment(
    num_magnitude_bins: Annotated[int, Interval(2, closed_low=True)] = 31,
    interpolation: Interpolation = "nearest",
) -> Augmentation:
    """Applies one of 14 operations, drawn evenly, with a strength that is drawn evenly (Mueller & Hutter, ICCV 2021).

    torchvision's TrivialAugmentWide: shear up to 0.99, translation up to 32 pixels, rotation up to 135 degrees, the
    enhancements up to 0.99, posterisation down to 2 bits, solarisation from 255 down to 0.

    Args:
      num_magnitude_bins: the number of evenly spaced strengths, at least 2; torchvision's default.
      interpolation: nearest, torchvision's default, or bilinear.

    Raises:
      UserError: a value out of range.

    Example:
      >>> trivial_augment()(Image.new("L", (20, 20)), np.random.default_rng(0)).size
      (20, 20)
    """
    return Bound(
        _trivial_augment, num_magnitude_bins=num_magnitude_bins, interpolation=interpolation
    )


def wide_strength_of(name: str, magnitude: int, bins: int) -> float:
    """Returns the strength of an operation in TrivialAugmentWide.

    Args:
      name: of the operation.
      magnitude: one of the evenly spaced levels, 0 to `bins` - 1.
      bins: the number of levels.

    >>> wide_strength_of("Posterize", 30, 31), wide_strength_of("Rotate", 30, 31)
    (2.0, 135.0)
    """
    match name:
        case "ShearX" | "ShearY" | "Brightness" | "Color" | "Contrast" | "Sharpness":
            return level_of(0, 0.99, magnitude, bins)
        case "TranslateX" | "TranslateY":
            return level_of(0, 32, magnitude, bins)
        case "Rotate":
            return level_of(0, 135, magnitude, bins)
        case "Posterize":
            return float(8 - round(magnitude / ((bins - 1) / 6)))
        case "Solarize":
            return 255 * level_of(1, 0, magnitude, bins)
    return 0.0


def _trivial_augment(
    image: Image.Image,
    rng: np.random.Generator,
    *,
    num_magnitude_bins: int,
    interpolation: Interpolation,
) -> Image.Image:
    name = list(OPERATIONS)[rng.integers(len(OPERATIONS))]
    operation, signed = OPERATIONS[name]
    strength = wide_strength_of(name, int(rng.integers(num_magnitude_bins)), num_magnitude_bins)
    if signed and rng.integers(2):
        strength = -strength
    return operation(image, strength, RESAMPLING[interpolation])


# Levels of a strength in AugMix, and the operations that `all_ops` adds.
_LEVELS = 10
_ENHANCEMENTS = ("Brightness", "Color", "Contrast", "Sharpness")


@checked("augmentation")
def aug_mix(
    severity: Annotated[int, Interval(1, 10, closed_low=True, closed_high=True)] = 3,
    mixture_width: PositiveInt = 3,
    chain_depth: PositiveInt | None = None,
    alpha: PositiveFloat = 1.0,
    all_ops: bool = True,
    interpolation: Interpolation = "bilinear",
) -> Augmentation:
    """Mixes the image with chains of operations on it (Hendrycks et al., ICLR 2020).

        m ~ Beta(alpha, alpha),  w ~ Dirichlet(alpha, ..., alpha):  (1 - m) x + m sum_i w_i chain_i(x)

    Hyper-parameters and strengths are torchvision's, whose AugMix applies them to tensors: its affine operations
    round otherwise than Pillow's, which are applied here.

    Args:
      severity: strengths are the first `severity` of ten levels.
      mixture_width: the number of chains.
      chain_depth: operations of a chain; None draws 1 to 3.
      alpha: of both distributions.
      all_ops: False to leave out brightness, colour, contrast and sharpness, which benchmarks of corruptions measure.
      interpolation: bilinear, torchvision's default, or nearest.

    Raises:
      UserError: a value out of range.

    Example:
      >>> aug_mix()(Image.new("RGB", (20, 20)), np.random.default_rng(0)).size
      (20, 20)
    """
    return Bound(
        _aug_mix,
        severity=severity,
        mixture_width=mixture_width,
        chain_depth=chain_depth,
        alpha=alpha,
        all_ops=all_ops,
        interpolation=interpolation,
    )


def mix_strength_of(name: str, magnitude: int, width: int, height: int) -> float:
    """Returns the strength of an operation in AugMix.

    Args:
      name: of the operation.
      magnitude: one of ten evenly spaced levels, 0 to 9.
      width: of the image.
      height: of the image.

    >>> mix_strength_of("TranslateX", 9, 30, 60)
    10.0
    """
    match name:
        case "ShearX" | "ShearY":
            return level_of(0, 0.3, magnitude, _LEVELS)
        case "TranslateX":
            return level_of(0, width / 3, magnitude, _LEVELS)
        case "TranslateY":
            return level_of(0, height / 3, magnitude, _LEVELS)
        case "Rotate":
            return level_of(0, 30, magnitude, _LEVELS)
        case "Brightness" | "Color" | "Contrast" | "Sharpness":
            return level_of(0, 0.9, magnitude, _LEVELS)
        case "Posterize":
            return float(4 - round(magnitude / ((_LEVELS - 1) / 4)))
        case "Solarize":
            # torchvision's AugMix compares tensors with it in float32: 170, where the other policies have 170.000005.
            return level_of(255, 0, magnitude, _LEVELS)
    return 0.0


def _aug_mix(
    image: Image.Image,
    rng: np.random.Generator,
    *,
    severity: int,
    mixture_width: int,
    chain_depth: int | None,
    alpha: float,
    all_ops: bool,
    interpolation: Interpolation,
) -> Image.Image:
    operations = [n for n in OPERATIONS if n != "Identity" and (all_ops or n not in _ENHANCEMENTS)]
    kept, mixed = rng.dirichlet([alpha, alpha])
    weights = mixed * rng.dirichlet([alpha] * mixture_width)
    mixture = kept * np.asarray(image, np.float32)
    for weight in weights:
        chained = image
        for _ in range(chain_depth or int(rng.integers(1, 4))):
            name = operations[rng.integers(len(operations))]
            operation, signed = OPERATIONS[name]
            strength = mix_strength_of(name, int(rng.integers(severity)), *image.size)
            if signed and rng.integers(2):
                strength = -strength
            chained = operation(chained, strength, RESAMPLING[interpolation])
        mixture += weight * np.asarray(chained, np.float32)
    # Rounded down, as torchvision's conversion to uint8 does.
    return Image.fromarray(mixture.clip(0, 255).astype(np.uint8))
