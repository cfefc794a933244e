"""Augmentation: pure functions of (image, generator), and `build`, which chains them from a configuration."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from dml_jax import names
from dml_jax.data.randaugment import rand_augment

Size = int | Sequence[int]


def random_resized_crop(
    image: Image.Image,
    rng: np.random.Generator,
    *,
    size: Size,
    scale: Sequence[float] = (0.08, 1.0),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
) -> Image.Image:
    """A random part of the image, scaled to `size` (a side, or height and width).

    The part's area is uniform in `scale` times the image's and its width / height log-uniform in `ratio`;
    after ten draws that do not fit, the largest central part within `ratio`. Bilinear and antialiased.
    torchvision's algorithm; the draws come from another generator.
    """
    height, width = _pair(size)
    left, top, w, h = _draw_crop(image.width, image.height, rng, scale, ratio)
    # Cropping first: with resize(box=) the filter would reach beyond the part's border.
    part = image.crop((left, top, left + w, top + h))
    return part.resize((width, height), Image.Resampling.BILINEAR)


def resize(image: Image.Image, rng: np.random.Generator, *, size: Size) -> Image.Image:
    """Scales the shorter side to `size`, keeping the aspect ratio; or to `size` = (height, width).

    Bilinear and antialiased. The longer side is rounded down, as torchvision does.
    """
    height, width = _pair(size)
    target = (width, height)
    if isinstance(size, int):
        short, long = sorted(image.size)
        other = int(size * long / short)
        target = (size, other) if image.width <= image.height else (other, size)
    return image if target == image.size else image.resize(target, Image.Resampling.BILINEAR)


def center_crop(image: Image.Image, rng: np.random.Generator, *, size: Size) -> Image.Image:
    """The central `size` (a side, or height and width); black around it where the image is smaller."""
    height, width = _pair(size)
    wide, high = max(width - image.width, 0), max(height - image.height, 0)
    if wide or high:
        border = (wide // 2, high // 2, (wide + 1) // 2, (high + 1) // 2)
        image = ImageOps.expand(image, border)
    top = round((image.height - height) / 2)
    left = round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))


def flip(image: Image.Image, rng: np.random.Generator, *, p: float = 0.5) -> Image.Image:
    """Mirrors left and right with probability p."""
    if not 0 <= p <= 1:
        raise ValueError(f"flip: p={p}; 0 to 1 is accepted")
    return ImageOps.mirror(image) if rng.random() < p else image


_TABLE: dict[str, Callable[..., Image.Image]] = {
    "center_crop": center_crop,
    "flip": flip,
    "rand_augment": rand_augment,
    "random_resized_crop": random_resized_crop,
    "resize": resize,
}


def available() -> list[str]:
    """The names that `build` accepts."""
    return sorted(_TABLE)


@dataclass(frozen=True)
class Chain:
    """Augmentations in order: `(uint8 [H, W, C], generator) -> uint8 [H', W', C]`, C = 1 or 3."""

    steps: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]

    def __call__(
        self, image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "h2 w2 c"]:
        grey = image.shape[-1] == 1
        picture = Image.fromarray(image[..., 0] if grey else image)
        for name, hyper in self.steps:
            picture = _TABLE[name](picture, rng, **dict(hyper))
        array = np.array(picture, np.uint8)
        return array[..., None] if grey else array


def build(config: Sequence[Mapping[str, Any]]) -> Chain:
    """A chain from a list such as `[{"name": "random_resized_crop", "size": 32}, {"name": "flip"}]`.

    Raises ValueError for an item without a name, an unknown name or an unknown or missing hyper-parameter
    (with the near misses), or a value out of range.
    """
    steps = []
    for item in config:
        hyper = dict(item)
        if "name" not in hyper:
            raise ValueError(
                f"augmentation {hyper} has no 'name'; accepted: {', '.join(available())}"
            )
        name = hyper.pop("name")
        function = names.resolve("augmentation", _TABLE, name)
        names.check_hyper(f"augmentation {name!r}", names.keywords(function), hyper)
        # Values of a configuration may be lists; tuples make the chain hashable and comparable.
        frozen = {k: tuple(v) if isinstance(v, list) else v for k, v in hyper.items()}
        steps.append((name, tuple(frozen.items())))
    chain = Chain(tuple(steps))
    # One run shows values out of range here rather than in a thread after the model was compiled.
    chain(np.zeros((8, 8, 1), np.uint8), np.random.Generator(np.random.Philox(key=0)))
    return chain


def _pair(size: Size) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(
            f"augmentation: size={size}; a side, or height and width, of at least 1 is accepted"
        )
    return pair[0], pair[1]


def _draw_crop(
    width: int,
    height: int,
    rng: np.random.Generator,
    scale: Sequence[float],
    ratio: Sequence[float],
) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a random part."""
    for name, value in (("scale", scale), ("ratio", ratio)):
        if len(value) != 2 or not 0 < value[0] <= value[1]:
            raise ValueError(
                f"random_resized_crop: {name}={tuple(value)}; two ascending numbers above 0 are accepted"
            )
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
