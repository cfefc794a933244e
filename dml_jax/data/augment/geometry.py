"""Parts of images, and images scaled and mirrored."""

import math
from importlib.util import find_spec
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from dml_jax.bound import Bound
from dml_jax.data.augment.operations import RESAMPLING, Interpolation
from dml_jax.data.base import Augmentation
from dml_jax.data.decoding import to_picture
from dml_jax.errors import UserError
from dml_jax.parameters import Fraction, PositiveFloat, PositiveInt, checked

Size = PositiveInt | tuple[PositiveInt, PositiveInt]


@checked("augmentation")
def random_resized_crop(
    size: Size,
    scale: tuple[PositiveFloat, PositiveFloat] = (0.08, 1.0),
    ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3),
    resampling: Literal["pillow", "simd"] = "pillow",
    interpolation: Interpolation = "bilinear",
) -> Augmentation:
    """Cuts out a random part of the image and scales it to `size`.

    The part's area is uniform in `scale` times the image's area, and its width / height log-uniform in `ratio`. After
    ten draws that do not fit into the image it is the largest central part within `ratio`. The scaling is bilinear and
    antialiased. This is torchvision's algorithm with the draws of another generator.

    Args:
      size: a side in pixels, or (height, width).
      scale: the least and the largest share of the image's area, ascending and above 0; torchvision's default.
      ratio: the least and the largest width / height, ascending and above 0; torchvision's default.
      resampling: what scales. "pillow" gives torchvision's pixels; "simd" (cykooz.resizer, `pip install dml_jax[simd]`)
        the same filter in a third of the time, with coefficients of 16 bits: a fifth of the pixels differ, by one or
        two levels of 256.
      interpolation: bilinear (antialiased) or nearest.

    Raises:
      UserError: a value out of range, bounds that do not ascend, or "simd" without its package.

    Example:
      >>> rng = np.random.Generator(np.random.Philox(key=0))
      >>> random_resized_crop(24, scale=(0.3, 1.0))(Image.new("RGB", (40, 30)), rng).size
      (24, 24)
    """
    for name, bounds in (("scale", scale), ("ratio", ratio)):
        if bounds[0] > bounds[1]:
            raise UserError(
                f"{name} of augmentation 'random_resized_crop' is {bounds}; accepted: two ascending numbers above 0"
            )
    if resampling == "simd" and find_spec("cykooz_resizer") is None:
        raise UserError(
            "resampling='simd' of augmentation 'random_resized_crop' needs the package cykooz.resizer "
            "(pip install dml_jax[simd]); 'pillow' needs none"
        )
    if resampling == "simd" and interpolation != "bilinear":
        raise UserError(
            f"resampling='simd' of augmentation 'random_resized_crop' is bilinear and interpolation={interpolation!r}; "
            "resampling='pillow' is accepted"
        )
    return Bound(
        _random_resized_crop,
        size=size,
        scale=scale,
        ratio=ratio,
        resampling=resampling,
        interpolation=interpolation,
    )


@checked("augmentation")
def resize(size: Size, interpolation: Interpolation = "bilinear") -> Augmentation:
    """Scales the shorter side to `size` and keeps the aspect ratio, or scales to `size` = (height, width).

    The longer side is rounded down, as in torchvision.

    Args:
      size: of the shorter side in pixels, or (height, width).
      interpolation: bilinear (antialiased) or nearest.

    Raises:
      UserError: a value out of range.

    Example:
      >>> resize(15)(Image.new("RGB", (40, 30)), np.random.default_rng()).size
      (20, 15)
    """
    return Bound(_resize, size=size, interpolation=interpolation)


@checked("augmentation")
def center_crop(size: Size) -> Augmentation:
    """Cuts out the centre of the image; where the image is smaller than `size`, it lies on black.

    Args:
      size: a side in pixels, or (height, width).

    Raises:
      UserError: a value out of range.

    Example:
      >>> center_crop((20, 50))(Image.new("RGB", (40, 30)), np.random.default_rng()).size
      (50, 20)
    """
    return Bound(_center_crop, size=size)


@checked("augmentation")
def random_crop(size: Size) -> Augmentation:
    """Cuts out a part of this size at a random place; where the image is smaller, it lies on black.

    As torchvision's RandomCrop with `pad_if_needed`, but that all of the border is on both sides alike.

    Args:
      size: a side in pixels, or (height, width).

    Raises:
      UserError: a value out of range.

    Example:
      >>> random_crop((20, 10))(Image.new("RGB", (40, 30)), np.random.default_rng(0)).size
      (10, 20)
    """
    return Bound(_random_crop, size=size)


@checked("augmentation")
def flip(p: Fraction = 0.5) -> Augmentation:
    """Mirrors the image left to right at random.

    Args:
      p: the probability, from 0 to 1; torchvision's default.

    Raises:
      UserError: a value out of range.

    Example:
      >>> flip() == flip(p=0.5)
      True
    """
    return Bound(_flip, p=p)


def is_random_resized_crop(step: Augmentation) -> bool:
    """Returns True for what `random_resized_crop` made: it takes an array, too, and cuts before it copies.

    Args:
      step: any augmentation.
    """
    return isinstance(step, Bound) and step.function is _random_resized_crop


def _random_resized_crop(
    image: Image.Image | np.ndarray,
    rng: np.random.Generator,
    *,
    size: int | tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    resampling: Literal["pillow", "simd"],
    interpolation: Interpolation,
) -> Image.Image:
    height, width = _height_and_width(size)
    # Cropping first: with resize(box=) the filter would reach beyond the part's border.
    if isinstance(image, Image.Image):
        left, top, w, h = _draw_crop(image.width, image.height, rng, scale, ratio)
        part = image.crop((left, top, left + w, top + h))
    else:
        left, top, w, h = _draw_crop(image.shape[1], image.shape[0], rng, scale, ratio)
        part = to_picture(image[top : top + h, left : left + w])
    if resampling == "simd":
        return _resize_simd(part, width, height)
    return part.resize((width, height), RESAMPLING[interpolation])


def _resize_simd(image: Image.Image, width: int, height: int) -> Image.Image:
    import cykooz_resizer as simd  # an optional dependency

    filtering = simd.ResizeAlg.convolution(simd.FilterType.bilinear)
    scaled = Image.new(image.mode, (width, height))
    # A resizer of its own for each image: one must not be used by two threads at once.
    simd.Resizer().resize_pil(image, scaled, simd.ResizeOptions(filtering))
    return scaled


def _resize(
    image: Image.Image,
    rng: np.random.Generator,
    *,
    size: int | tuple[int, int],
    interpolation: Interpolation,
) -> Image.Image:
    height, width = _height_and_width(size)
    target = (width, height)
    if isinstance(size, int):
        short, long = sorted(image.size)
        other = int(size * long / short)
        target = (size, other) if image.width <= image.height else (other, size)
    return image if target == image.size else image.resize(target, RESAMPLING[interpolation])


def _center_crop(
    image: Image.Image, rng: np.random.Generator, *, size: int | tuple[int, int]
) -> Image.Image:
    height, width = _height_and_width(size)
    image = _on_black(image, width, height)
    top = round((image.height - height) / 2)
    left = round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))


def _random_crop(
    image: Image.Image, rng: np.random.Generator, *, size: int | tuple[int, int]
) -> Image.Image:
    height, width = _height_and_width(size)
    image = _on_black(image, width, height)
    top = int(rng.integers(0, image.height - height + 1))
    left = int(rng.integers(0, image.width - width + 1))
    return image.crop((left, top, left + width, top + height))


def _on_black(image: Image.Image, width: int, height: int) -> Image.Image:
    """Returns an image with a black border, as far as it is smaller than that."""
    wide, high = max(width - image.width, 0), max(height - image.height, 0)
    if not (wide or high):
        return image
    border = (wide // 2, high // 2, (wide + 1) // 2, (high + 1) // 2)
    return ImageOps.expand(image, border)


def _flip(image: Image.Image, rng: np.random.Generator, *, p: float) -> Image.Image:
    return ImageOps.mirror(image) if rng.random() < p else image


def _height_and_width(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _draw_crop(
    width: int,
    height: int,
    rng: np.random.Generator,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """Draws the (left, top, width, height) of a random part of an image."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = width * height * rng.uniform(scale[0], scale[1])
        aspect = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
            return int(left), int(top), w, h
    if width / height < ratio[0]:
        w, h = width, round(width / ratio[0])
    elif width / height > ratio[1]:
        w, h = round(height * ratio[1]), height
    else:
        w, h = width, height
    return (width - w) // 2, (height - h) // 2, w, h
