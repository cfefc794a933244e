"""Colours, blur and erased parts, as torchvision defines them, on Pillow images."""

import math
from typing import Literal

import numpy as np
from PIL import Image, ImageEnhance
from scipy import ndimage

from dml_jax.bound import Bound
from dml_jax.data.base import Augmentation
from dml_jax.errors import UserError
from dml_jax.parameters import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, checked


@checked("augmentation")
def color_jitter(
    brightness: NonNegativeFloat = 0.0,
    contrast: NonNegativeFloat = 0.0,
    saturation: NonNegativeFloat = 0.0,
    hue: NonNegativeFloat = 0.0,
) -> Augmentation:
    """Changes brightness, contrast, saturation and hue by random factors, in a random order.

    A factor is drawn evenly from [max(0, 1 - x), 1 + x], the shift of the hue from [-hue, hue], where 1 is once around.
    The pixels are torchvision's. Saturation and hue of a grey image stay.

    Args:
      brightness: the range of its factor; 0 leaves it.
      contrast: likewise.
      saturation: likewise.
      hue: the range of its shift, at most 0.5.

    Raises:
      UserError: a value out of range.

    Example:
      >>> color_jitter(0.2, 0.2, 0.2, 0.2)(Image.new("RGB", (8, 6), "red"), np.random.default_rng(0)).size
      (8, 6)
    """
    if hue > 0.5:
        raise UserError(f"hue of augmentation 'color_jitter' is {hue}; accepted: 0 to 0.5")
    return Bound(
        _color_jitter, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue
    )


def _color_jitter(
    image: Image.Image,
    rng: np.random.Generator,
    *,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
) -> Image.Image:
    ranges = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    factors = {k: rng.uniform(max(0.0, 1 - x), 1 + x) for k, x in ranges.items() if x}
    if hue:
        factors["hue"] = rng.uniform(-hue, hue)
    names = list(factors)
    for i in rng.permutation(len(names)):
        image = adjusted(image, names[i], factors[names[i]])
    return image


_ENHANCE = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


def adjusted(image: Image.Image, name: str, factor: float) -> Image.Image:
    """Returns an image with another brightness, contrast, saturation or hue.

    Args:
      image: grey or RGB.
      name: what is changed.
      factor: 1 leaves it; of the hue the shift, which 0 leaves.

    >>> adjusted(Image.new("RGB", (1, 1), (200, 0, 0)), "brightness", 0.5).getpixel((0, 0))
    (100, 0, 0)
    """
    if name != "hue":
        return _ENHANCE[name](image).enhance(factor)
    if image.mode == "L":
        return image
    h, s, v = image.convert("HSV").split()
    # Around the circle: numbers of 8 bits.
    turned = np.asarray(h) + np.uint8(int(factor * 255) % 256)
    return Image.merge("HSV", (Image.fromarray(turned), s, v)).convert("RGB")


@checked("augmentation")
def grayscale(p: Fraction = 0.1) -> Augmentation:
    """Takes the colours away at random; the image keeps its channels.

    Args:
      p: the probability, from 0 to 1; torchvision's default.

    Raises:
      UserError: a value out of range.

    Example:
      >>> grayscale(1.0)(Image.new("RGB", (1, 1), (255, 0, 0)), np.random.default_rng()).getpixel((0, 0))
      (76, 76, 76)
    """
    return Bound(_grayscale, p=p)


def _grayscale(image: Image.Image, rng: np.random.Generator, *, p: float) -> Image.Image:
    if rng.random() >= p or image.mode == "L":
        return image
    return image.convert("L").convert("RGB")


@checked("augmentation")
def gaussian_blur(
    kernel_size: PositiveInt = 9,
    sigma: tuple[PositiveFloat, PositiveFloat] = (0.1, 2.0),
    p: Fraction = 1.0,
) -> Augmentation:
    """Blurs the image with a Gaussian whose width is drawn evenly; the border is mirrored as often as needed.

    The pixels are torchvision's, but for rounding (one level).

    Args:
      kernel_size: the pixels of the kernel's side, an odd number.
      sigma: the range of the standard deviation in pixels; torchvision's default.
      p: the probability, from 0 to 1; torchvision's blurs always.

    Raises:
      UserError: a value out of range, an even kernel, or a range that descends.

    Example:
      >>> gaussian_blur(3)(Image.new("L", (8, 6)), np.random.default_rng(0)).size
      (8, 6)
    """
    if kernel_size % 2 == 0:
        raise UserError(
            f"kernel_size of augmentation 'gaussian_blur' is {kernel_size}; accepted: an odd number"
        )
    if sigma[0] > sigma[1]:
        raise UserError(
            f"sigma of augmentation 'gaussian_blur' is {sigma}; accepted: two ascending numbers above 0"
        )
    return Bound(_gaussian_blur, kernel_size=kernel_size, sigma=sigma, p=p)


def _gaussian_blur(
    image: Image.Image,
    rng: np.random.Generator,
    *,
    kernel_size: int,
    sigma: tuple[float, float],
    p: float,
) -> Image.Image:
    if rng.random() >= p:
        return image
    return blurred(image, kernel_size, rng.uniform(*sigma))


def blurred(image: Image.Image, kernel_size: int, sigma: float) -> Image.Image:
    """Returns an image blurred by a Gaussian.

    Args:
      image: grey or RGB.
      kernel_size: the pixels of the kernel's side, an odd number.
      sigma: the standard deviation in pixels.

    >>> blurred(Image.new("L", (3, 3), 7), 3, 1.0).getpixel((1, 1))
    7
    """
    half = kernel_size // 2
    places = np.arange(-half, half + 1, dtype=np.float32)
    kernel = np.exp(-0.5 * (places / np.float32(sigma)) ** 2)
    kernel /= kernel.sum()
    pixels = np.asarray(image, np.float32)
    for axis in (0, 1):
        pixels = ndimage.correlate1d(pixels, kernel, axis, mode="mirror")
    return Image.fromarray(np.rint(pixels).clip(0, 255).astype(np.uint8))


@checked("augmentation")
def random_erasing(
    p: Fraction = 0.5,
    scale: tuple[PositiveFloat, PositiveFloat] = (0.02, 0.33),
    ratio: tuple[PositiveFloat, PositiveFloat] = (0.3, 3.3),
    value: int | Literal["random"] = 0,
) -> Augmentation:
    """Fills a random rectangle of the image (Zhong et al., AAAI 2020).

    torchvision's draws of area and aspect: ten tries, and no rectangle where none fits. It erases normalised tensors,
    where 0 is the mean colour; here it is an image of 0 to 255.

    Args:
      p: the probability, from 0 to 1; torchvision's default.
      scale: the range of the share of the area.
      ratio: the range of height / width, drawn evenly in logarithms.
      value: what the rectangle is filled with, 0 to 255, or "random" for even noise.

    Raises:
      UserError: a value out of range, or a range that descends.

    Example:
      >>> picture = Image.new("L", (20, 20), 255)
      >>> erased = np.asarray(random_erasing(1.0)(picture, np.random.default_rng(0)))
      >>> bool(0 < (erased == 0).mean() < 0.4)
      True
    """
    for name, bounds in (("scale", scale), ("ratio", ratio)):
        if bounds[0] > bounds[1] or (name == "scale" and bounds[1] > 1):
            raise UserError(
                f"{name} of augmentation 'random_erasing' is {bounds}; accepted: two ascending numbers above 0"
                + (", at most 1" if name == "scale" else "")
            )
    if isinstance(value, int) and not 0 <= value <= 255:
        raise UserError(f"value of augmentation 'random_erasing' is {value}; accepted: 0 to 255")
    return Bound(_random_erasing, p=p, scale=scale, ratio=ratio, value=value)


def _random_erasing(
    image: Image.Image,
    rng: np.random.Generator,
    *,
    p: float,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    value: int | str,
) -> Image.Image:
    box = _draw_box(image.width, image.height, rng, scale, ratio) if rng.random() < p else None
    if box is None:
        return image
    top, left, height, width = box
    pixels = np.array(image)
    shape = pixels[top : top + height, left : left + width].shape
    filling = rng.integers(0, 256, shape, np.uint8) if value == "random" else value
    pixels[top : top + height, left : left + width] = filling
    return Image.fromarray(pixels)


def _draw_box(
    width: int,
    height: int,
    rng: np.random.Generator,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int] | None:
    """Draws the (top, left, height, width) of a rectangle; None where none fits."""
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    return None
