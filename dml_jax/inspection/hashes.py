"""Hashes of decoded pictures: one that any change of a pixel changes, and one that small changes leave as it is."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8, UInt64
from PIL import Image
from scipy.fft import dctn

from dml_jax.data.base import DecodeError, Source
from dml_jax.data.decoding import to_picture

# The side to which a picture is scaled, and that of the low frequencies that are kept.
SIDE, KEPT = 32, 8
# A picture whose grey levels deviate less than this has no structure that a hash could tell.
FLAT = 4.0
# Images that wait for a thread.
_AT_A_TIME = 256


class Hash(NamedTuple):
    """The hashes of a picture.

    Attributes:
      pixels: 64 bits of a cryptographic hash of size and pixels.
      near: 64 bits, whether each low frequency is above the median of all; similar pictures share most.
      mirrored: the same of the picture left to right.
      flat: True where the picture has too little structure for `near`.
    """

    pixels: int
    near: int
    mirrored: int
    flat: bool


def hash_of(image: UInt8[np.ndarray, "h w c"]) -> Hash:
    """Returns the hashes of a picture.

    The perceptual one is that of a discrete cosine transform (Zauner, 2010): the picture in 32 x 32 grey levels, of
    whose frequencies the lowest 8 x 8 are compared with their median.

    Args:
      image: grey or RGB.

    >>> picture = np.add.outer(np.arange(64), np.arange(48))[..., None].astype(np.uint8)
    >>> one, other = hash_of(picture), hash_of(picture // 2 + 40)
    >>> one.pixels == other.pixels, one.near == other.near, one.near == one.mirrored
    (False, True, False)
    """
    digest = hashlib.blake2b(image.tobytes(), digest_size=8)
    digest.update(repr(image.shape).encode())
    small = to_picture(image).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    grey = np.asarray(small, np.float32)
    pixels = int.from_bytes(digest.digest(), "little")
    return Hash(pixels, _bits(grey), _bits(grey[:, ::-1]), bool(grey.std() < FLAT))


def _bits(grey: np.ndarray) -> int:
    low = dctn(grey, norm="ortho")[:KEPT, :KEPT].ravel()
    # The first one is the mean grey level, which says nothing.
    return int.from_bytes(np.packbits(low > np.median(low[1:])).tobytes(), "little")


@dataclass(frozen=True, eq=False)
class Hashes:
    """The hashes of the images of a split.

    Attributes:
      pixels: as in `Hash`, likewise the others.
      near: see there.
      mirrored: see there.
      flat: see there.
      broken: the places of images that cannot be decoded, and why; their hashes mean nothing.
    """

    pixels: UInt64[np.ndarray, " n"]
    near: UInt64[np.ndarray, " n"]
    mirrored: UInt64[np.ndarray, " n"]
    flat: Bool[np.ndarray, " n"]
    broken: Mapping[int, str]

    @property
    def whole(self) -> Bool[np.ndarray, " n"]:
        """True where the image could be decoded."""
        return ~np.isin(np.arange(len(self.pixels)), list(self.broken))


def hashes_of(
    source: Source,
    threads: int,
    watch: Callable[[Iterable[Hash | str]], Iterable[Hash | str]] = lambda found: found,
) -> Hashes:
    """Decodes a split and returns the hashes of its images.

    Args:
      source: the split.
      threads: that decode.
      watch: passes on what is found, for whoever shows how far it is.
    """

    def one(index: int) -> Hash | str:
        try:
            return hash_of(source[index]["image"])
        except DecodeError as error:
            # What is wrong, without the name of the image.
            return str(error.__cause__ or error)

    def all_of() -> Iterable[Hash | str]:
        # An executor takes all that it is given at once: of millions of images too much.
        for start in range(0, len(source), _AT_A_TIME):
            yield from pool.map(one, range(start, min(start + _AT_A_TIME, len(source))))

    with ThreadPoolExecutor(threads) as pool:
        found = list(watch(all_of()))
    nothing = Hash(0, 0, 0, True)
    whole = [nothing if isinstance(h, str) else h for h in found]
    return Hashes(
        pixels=np.array([h.pixels for h in whole], np.uint64),
        near=np.array([h.near for h in whole], np.uint64),
        mirrored=np.array([h.mirrored for h in whole], np.uint64),
        flat=np.array([h.flat for h in whole], bool),
        broken={i: h for i, h in enumerate(found) if isinstance(h, str)},
    )
