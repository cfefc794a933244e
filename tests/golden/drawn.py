"""Arrays that look random and follow from a name alone, so that golden files need not hold them; samples of others."""

import zlib

import numpy as np


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns float32 multiples of 1/256 in [-0.4, 0.6): the high bytes of a multiplicative hash of name and place."""
    size = int(np.prod(shape))
    x = np.arange(size, dtype=np.uint64) + np.uint64(zlib.crc32(name.encode()) << 20)
    for factor in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
        x = x * np.uint64(factor)  # wraps around
        x ^= x >> np.uint64(31)
    return (((x >> np.uint64(56)).astype(np.float32) - 102) / 256).reshape(shape)


def sample(array: np.ndarray) -> np.ndarray:
    """Returns every 23rd entry of an array of more than 64."""
    return array.ravel()[::23] if array.size > 64 else array.ravel()
