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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dml_jax import names, parameters
from dml_jax.data.augment.colour import color_jitter, gaussian_blur, grayscale, random_erasing
from dml_jax.data.augment.geometry import (
    center_crop,
    flip,
    is_random_resized_crop,
    random_crop,
    random_resized_crop,
    resize,
)
from dml_jax.data.augment.policies import aug_mix, rand_augment, trivial_augment
from dml_jax.data.base import Augmentation
from dml_jax.data.decoding import to_picture
from dml_jax.errors import UserError

__all__ = [
    "Augmentation",
    "Chain",
    "aug_mix",
    "available",
    "build",
    "center_crop",
    "color_jitter",
    "flip",
    "gaussian_blur",
    "get",
    "grayscale",
    "rand_augment",
    "random_crop",
    "random_erasing",
    "random_resized_crop",
    "resize",
    "trivial_augment",
]

TABLE: dict[str, Callable[..., Augmentation]] = {
    "aug_mix": aug_mix,
    "center_crop": center_crop,
    "color_jitter": color_jitter,
    "flip": flip,
    "gaussian_blur": gaussian_blur,
    "grayscale": grayscale,
    "rand_augment": rand_augment,
    "random_crop": random_crop,
    "random_erasing": random_erasing,
    "random_resized_crop": random_resized_crop,
    "resize": resize,
    "trivial_augment": trivial_augment,
}


def available() -> list[str]:
    """Lists the names that `get` and `build` accept.

    Example:
      >>> available()[:4]
      ['aug_mix', 'center_crop', 'color_jitter', 'flip']
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
        cut = first is not None and is_random_resized_crop(first)
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
