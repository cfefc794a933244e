"""Where a patch is: learned position embeddings resampled to other grids, and rotary ones."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def cubic_matrix(
    inputs: int, outputs: int, *, scale: float | None = None, antialias: bool = False
) -> Float[np.ndarray, "outputs inputs"]:
    """Returns the bicubic resampling of an axis, as torch defines it, as a matrix `[outputs, inputs]`.

    Output o sits at x = (o + 1/2) / scale - 1/2. Without `antialias` the four nearest samples (repeated at the border)
    are weighted by Keys' cubic with a = -3/4. With it a is -1/2, the kernel is stretched by 1 / scale when shrinking,
    and weights that fall outside are left out and the rest rescaled. jax.image.resize has the second only.

    Args:
      inputs: the length of the axis before.
      outputs: the length of the axis after.
      scale: output samples to an input sample; None is outputs / inputs.
      antialias: which of the two.

    Example:
      >>> cubic_matrix(4, 2).round(2)
      array([[ 0.5 ,  0.59, -0.09,  0.  ],
             [ 0.  , -0.09,  0.59,  0.5 ]])
    """
    ratio = inputs / outputs if scale is None else 1 / scale
    positions = (np.arange(outputs) + 0.5) * ratio - 0.5
    matrix = np.zeros((outputs, inputs))
    if antialias:
        distance = np.abs(np.arange(inputs)[None] - positions[:, None]) / max(ratio, 1)
        matrix = _keys(distance, -0.5)
        matrix /= matrix.sum(1, keepdims=True)
        return matrix
    for tap in range(-1, 3):
        source = np.floor(positions).astype(int) + tap
        weight = _keys(np.abs(source - positions), -0.75)
        np.add.at(matrix, (np.arange(outputs), source.clip(0, inputs - 1)), weight)
    return matrix


def _keys(x: Float[np.ndarray, "*n"], a: float) -> Float[np.ndarray, "*n"]:
    """Keys' cubic convolution kernel at distances x >= 0."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def resample(
    table: Float[Array, "g*g d"], rows: int, columns: int, *, offset: float, antialias: bool
) -> Float[Array, "rows*columns d"]:
    """Resamples the embedding of a square grid, row by row, to another grid; the same grid is left as it is.

    Args:
      table: the embedding `[g * g, d]`.
      rows: of the grid that is asked for.
      columns: likewise.
      offset: is added to rows and columns before the scale is worked out.
      antialias: as for `cubic_matrix`.

    Example:
      >>> resample(jnp.ones((9, 2)), 2, 4, offset=0.0, antialias=True).shape
      (8, 2)
    """
    grid = math.isqrt(table.shape[0])
    if (rows, columns) == (grid, grid):
        return table
    down, across = (
        jnp.asarray(
            cubic_matrix(grid, n, scale=(n + offset) / grid, antialias=antialias), jnp.float32
        )
        for n in (rows, columns)
    )
    square = table.reshape(grid, grid, -1)
    highest = jax.lax.Precision.HIGHEST
    resampled: Array = jnp.einsum("ni,mj,ijd->nmd", down, across, square, precision=highest)
    return resampled.reshape(rows * columns, -1)


class Rotation(NamedTuple):
    """The angles by which the tokens' queries and keys are turned.

    Attributes:
      cos: of the angle of each token and feature, `[t, d]`.
      sin: likewise.
    """

    cos: Float[Array, "t d"]
    sin: Float[Array, "t d"]


def rotation(
    rows: int,
    columns: int,
    features: int,
    *,
    prefix: int = 0,
    base: float = 100.0,
    stretch: Float[Array, ""] | float = 1.0,
) -> Rotation:
    """Returns the rotary position embedding of a grid of patches along both of its axes (RoPE as DINOv3 has it).

    A patch is at (y, x) in [-1, 1]^2, its centre. Feature i of the first quarter has the angle 2 pi y / base^(4 i / d),
    of the second quarter 2 pi x / base^(4 i / d); the other half repeats them.

    Args:
      rows: of the grid.
      columns: likewise.
      features: d, of a head; a multiple of 4.
      prefix: how many tokens come before the patches; they are not turned.
      base: the ratio of the longest period to the shortest one, nearly.
      stretch: a factor of the positions.

    Example:
      >>> rotation(1, 2, 4, prefix=1).cos  # y is 0, x is -1/2 and 1/2
      Array([[ 1.,  1.,  1.,  1.],
             [ 1., -1.,  1., -1.],
             [ 1., -1.,  1., -1.]], dtype=float32)
    """
    y, x = ((2 * np.arange(n) + 1) / n - 1 for n in (rows, columns))
    places = np.stack(np.meshgrid(y, x, indexing="ij"), -1).reshape(-1, 2, 1)
    quarter = features // 4
    angles = (2 * np.pi * places / base ** (np.arange(quarter) / quarter)).reshape(
        -1, features // 2
    )
    padded = np.pad(np.tile(angles, (1, 2)), ((prefix, 0), (0, 0)))
    turned = jnp.asarray(padded, jnp.float32) * stretch
    return Rotation(jnp.cos(turned), jnp.sin(turned))


def rotate(x: Float[Array, "b t h d"], by: Rotation) -> Float[Array, "b t h d"]:
    """Turns each pair of features (i, i + d / 2) of all heads by the token's angle, in float32.

    Args:
      x: queries or keys.
      by: the angles.
    """
    cos, sin = (a[None, :, None, :] for a in by)
    wide = x.astype(jnp.float32)
    first, second = jnp.split(wide, 2, -1)
    return (wide * cos + jnp.concatenate([-second, first], -1) * sin).astype(x.dtype)
