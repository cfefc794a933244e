"""Augmentations of images: factories such as `random_resized_crop(size)`, and `build`, which chains them from a config.

An augmentation is a function of (Pillow image, NumPy generator) that returns a Pillow image; all of its randomness
comes from the generator, so that a training image depends on (seed, epoch, step, place) alone. One of your own is a
class (or a function that returns such a function) in a file of yours:

    # my_package/my_module.py
    from dataclasses import dataclass
    from PIL import ImageOps

    @dataclass(frozen=True)
    class Invert:
        p: float = 0.5

        def __call__(self, image, rng):
            return ImageOps.invert(image) if rng.random() < self.p else image

and a config names it: `augment=({"name": "my_package.my_module:Invert", "p": 0.2}, ...)`. Images are grey ("L") or
"RGB". With `data.workers` above 0 an augmentation travels to other processes, so it has to be picklable, as instances
of a class at module level are. Values of a config are checked against the annotations, which may be ranges of
`dml_jax.parameters`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from dml_jax import names, parameters
from dml_jax.bound import Bound
from dml_jax.data.base import Augmentation
from dml_jax.data.decoding import to_picture
from dml_jax.data.randaugment import rand_augment
from dml_jax.errors import UserError
from dml_jax.parameters import Fraction, PositiveFloat, PositiveInt, checked

__all__ = [
    "Augmentation",
    "Chain",
    "available",
    "build",
    "center_crop",
    "flip",
    "get",
    "rand_augment",
    "random_resized_crop",
    "resize",
]

Size = PositiveInt | tuple[PositiveInt, PositiveInt]


@checked("augmentation")
def random_resized_crop(
    size: Size,
    scale: tuple[PositiveFloat, PositiveFloat] = (0.08, 1.0),
    ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3),
    resampling: Literal["pillow", "simd"] = "pillow",
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
    return Bound(_random_resized_crop, size=size, scale=scale, ratio=ratio, resampling=resampling)


@checked("augmentation")
def resize(size: Size) -> Augmentation:
    """Scales the shorter side to `size` and keeps the aspect ratio, or scales to `size` = (height, width).

    The scaling is bilinear and antialiased. The longer side is rounded down, as in torchvision.

    Args:
      size: of the shorter side in pixels, or (height, width).

    Raises:
      UserError: a value out of range.

    Example:
      >>> resize(15)(Image.new("RGB", (40, 30)), np.random.default_rng()).size
      (20, 15)
    """
    return Bound(_resize, size=size)


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


TABLE: dict[str, Callable[..., Augmentation]] = {
    "center_crop": center_crop,
    "flip": flip,
    "rand_augment": rand_augment,
    "random_resized_crop": random_resized_crop,
    "resize": resize,
}


def available() -> list[str]:
    """Lists the names that `get` and `build` accept.

    Example:
      >>> available()
      ['center_crop', 'flip', 'rand_augment', 'random_resized_crop', 'resize']
    """
    return sorted(TABLE)


def get(name: str, **hyper: Any) -> Augmentation:
    """Makes an augmentation by name.

    Args:
      name: a name of `available`, or "package.module:name" for a factory of your own.
      **hyper: the arguments of the factory.

    Raises:
      UserError: an unknown name or argument, with near misses, or a value out of range.

    Example:
      >>> get("flip", p=0.2) == flip(0.2)
      True
    """
    return parameters.make("augmentation", TABLE, Augmentation, name, hyper)  # type: ignore[type-abstract]


@dataclass(frozen=True)
class Chain:
    """Augmentations of an array, one after the other; it compares and hashes by what it holds.

    Attributes:
      steps: the augmentations in the order in which they are applied.
    """

    steps: tuple[Augmentation, ...]

    def __call__(
        self, image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "h2 w2 c"]:
        """Augments an image of one (grey) or three channels (RGB).

        Args:
          image: uint8 `[height, width, channels]`; it is not written to.
          rng: the source of all draws.
        """
        first = self.steps[0] if self.steps else None
        # Cut out of the array: Pillow then copies the part, not the whole image, which takes a tenth of decoding it.
        cut = isinstance(first, Bound) and first.function is _random_resized_crop
        picture: Any = image if cut else to_picture(image)
        for step in self.steps:
            picture = step(picture, rng)
        array = np.asarray(picture, np.uint8)
        return array[..., None] if image.shape[-1] == 1 else array


def build(config: Sequence[str | Mapping[str, Any] | Augmentation]) -> Chain:
    """Chains the augmentations that a config describes.

    Args:
      config: augmentations, their names, or mappings with a name and arguments.

    Raises:
      UserError: an item without a name, an unknown name or argument, or a value out of range.

    Example:
      >>> chain = build([{"name": "random_resized_crop", "size": 32}, "flip"])
      >>> chain(np.zeros((50, 40, 3), np.uint8), np.random.default_rng()).shape
      (32, 32, 3)
    """
    for item in config:
        named = isinstance(item, (str, Augmentation)) or (hasattr(item, "keys") and "name" in item)
        if not named:
            raise UserError(
                f"augmentation {item} has no 'name'; accepted: {', '.join(available())}"
            )
    return Chain(tuple(names.build("augmentation", get, Augmentation, item) for item in config))


def _random_resized_crop(
    image: Image.Image | np.ndarray,
    rng: np.random.Generator,
    *,
    size: int | tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    resampling: Literal["pillow", "simd"],
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
    return part.resize((width, height), Image.Resampling.BILINEAR)


def _resize_simd(image: Image.Image, width: int, height: int) -> Image.Image:
    import cykooz_resizer as simd  # an optional dependency

    filtering = simd.ResizeAlg.convolution(simd.FilterType.bilinear)
    scaled = Image.new(image.mode, (width, height))
    # A resizer of its own for each image: one must not be used by two threads at once.
    simd.Resizer().resize_pil(image, scaled, simd.ResizeOptions(filtering))
    return scaled


def _resize(
    image: Image.Image, rng: np.random.Generator, *, size: int | tuple[int, int]
) -> Image.Image:
    height, width = _height_and_width(size)
    target = (width, height)
    if isinstance(size, int):
        short, long = sorted(image.size)
        other = int(size * long / short)
        target = (size, other) if image.width <= image.height else (other, size)
    return image if target == image.size else image.resize(target, Image.Resampling.BILINEAR)


def _center_crop(
    image: Image.Image, rng: np.random.Generator, *, size: int | tuple[int, int]
) -> Image.Image:
    height, width = _height_and_width(size)
    wide, high = max(width - image.width, 0), max(height - image.height, 0)
    if wide or high:
        border = (wide // 2, high // 2, (wide + 1) // 2, (high + 1) // 2)
        image = ImageOps.expand(image, border)
    top = round((image.height - height) / 2)
    left = round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))


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
