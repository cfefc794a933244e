"""Images as callers have them (paths, Pillow images, arrays), as a source that pipelines read."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dml_jax.data.base import Images
from dml_jax.data.decoding import decode, decoded
from dml_jax.errors import UserError

Picture = str | os.PathLike[str] | Image.Image | np.ndarray


@dataclass(frozen=True, eq=False)
class PictureReader:
    """Reads images of any of the accepted kinds.

    Attributes:
      pictures: the images.
      channels: 1 (grey) or 3 (RGB).
    """

    pictures: Sequence[Any]
    channels: int

    def __call__(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        picture = self.pictures[index]
        if isinstance(picture, (str, os.PathLike)):
            with open(os.path.expanduser(picture), "rb") as file:
                return decode(file.read(), channels=self.channels)
        if isinstance(picture, np.ndarray):
            picture = Image.fromarray(picture[..., 0] if picture.shape[-1:] == (1,) else picture)
        return decoded(picture, channels=self.channels)


def source_of(images: Picture | Sequence[Picture], channels: int) -> Images:
    """Returns images as a source without classes.

    Args:
      images: paths of files, Pillow images, or uint8 arrays `[H, W]`, `[H, W, 1]` or `[H, W, 3]`; one of them, a
        sequence of them, or an array `[N, H, W, C]`.
      channels: of the source, 1 (grey) or 3 (RGB).

    Raises:
      UserError: no image, a path that is no file, an array of another shape or type.
    """
    if isinstance(images, (str, os.PathLike, Image.Image)) or (
        isinstance(images, np.ndarray) and images.ndim < 4
    ):
        images = [images]
    pictures = list(images)
    if not pictures:
        raise UserError("no image to encode; accepted: one or more")
    names = [_checked(i, picture) for i, picture in enumerate(pictures)]
    labels = np.full(len(pictures), -1, np.int64)
    return Images(labels, (), names, PictureReader(pictures, channels))


def _checked(place: int, picture: Any) -> str:
    """Returns the name of an image; raises UserError for what is none."""
    if isinstance(picture, (str, os.PathLike)):
        if not os.path.isfile(os.path.expanduser(picture)):
            raise UserError(
                f"{os.fspath(picture)!r} is not a file; the path of an image is accepted"
            )
        return os.fspath(picture)
    if isinstance(picture, np.ndarray):
        shape = picture.shape
        if picture.dtype == np.uint8 and (
            len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))
        ):
            return f"image {place}"
        raise UserError(
            f"image {place} is an array {picture.dtype}{list(shape)}; accepted: uint8 [H, W], [H, W, 1] or [H, W, 3]"
        )
    if isinstance(picture, Image.Image):
        return getattr(picture, "filename", "") or f"image {place}"
    raise UserError(
        f"image {place} is of type {type(picture).__name__}; accepted: a path, a Pillow image, or a uint8 array"
    )
