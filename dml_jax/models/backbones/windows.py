"""Windows that slide over images, and pooling over them, in slices that XLA fuses.

On CPU, XLA's own windows (`lax.reduce_window`) are slower, and the gradient of their maximum ten times.
"""

import functools
import operator
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int8

Edges = tuple[tuple[int, int], tuple[int, int]]


def max_pool(
    x: Float[Array, "b h w c"], size: int, *, stride: int, padding: int = 0, ceil: bool = False
) -> Float[Array, "b p q c"]:
    """Takes the maximum of each channel over windows of `size` x `size`, as torch.nn.MaxPool2d does.

    The gradient goes to the first of equal values, row by row.

    Args:
      x: the images.
      size: of the windows.
      stride: between windows, of both axes.
      padding: on all four sides, which is never the maximum.
      ceil: True where a last window may reach over the lower and right edge, if it begins within the padded image;
        False where such a window is left out.

    Example:
      >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
      >>> max_pool(x, 3, stride=2, ceil=True)[0, :, :, 0]
      Array([[10., 11.],
             [14., 15.]], dtype=float32)
    """
    rows, columns = (_pool_edges(n, size, stride, padding, ceil) for n in x.shape[1:3])
    return _max_pool(x, size, stride, (rows, columns))


def avg_pool(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b h w c"]:
    """Takes the mean over the `size` x `size` places around each, where places outside of the image count as zeros.

    Args:
      x: the images.
      size: odd.

    Example:
      >>> avg_pool(9 * jnp.ones((1, 4, 4, 1)), 3)[0, 0, :2, 0]
      Array([4., 6.], dtype=float32)
    """
    edge = (size // 2, size // 2)
    sums = x
    for axis in (1, 2):
        padded = jnp.pad(sums, [edge if a == axis else (0, 0) for a in range(4)])
        sums = add(lax.slice_in_dim(padded, i, i + x.shape[axis], axis=axis) for i in range(size))
    return sums / size**2


def _pool_edges(inputs: int, size: int, stride: int, padding: int, ceil: bool) -> tuple[int, int]:
    outputs = (inputs + 2 * padding - size) // stride + 1
    if ceil and (outputs - 1) * stride + size < inputs + 2 * padding:
        outputs += outputs * stride < inputs + padding
    return padding, max((outputs - 1) * stride + size - inputs - padding, 0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def _max_pool(x: Array, size: int, stride: int, edges: Edges) -> Array:
    return _argmax(x, size, stride, edges)[0]


@_max_pool.defjvp
def _max_pool_jvp(
    size: int, stride: int, edges: Edges, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    largest, first = _argmax(*primals, size, stride, edges)
    slopes = taps(pad(*tangents, edges), size, stride)
    return largest, add(jnp.where(first == i, slope, 0) for i, slope in enumerate(slopes))


def _argmax(
    x: Array, size: int, stride: int, edges: Edges
) -> tuple[Float[Array, "b p q c"], Int8[Array, "b p q c"]]:
    """Returns the maxima, and the number of the first place of the window that has each."""
    largest, *others = taps(pad(x, edges, -jnp.inf), size, stride)
    first = jnp.zeros(largest.shape, jnp.int8)
    for i, value in enumerate(others, 1):
        first = jnp.where(value > largest, jnp.int8(i), first)
        largest = jnp.maximum(largest, value)
    return largest, first


def pad(x: Array, edges: Edges, value: float = 0.0) -> Array:
    """Adds rows and columns.

    Args:
      x: images [b, h, w, c].
      edges: how many above and below, left and right.
      value: what they hold.
    """
    return jnp.pad(x, ((0, 0), *edges, (0, 0)), constant_values=value)


def taps(x: Array, size: int, stride: int) -> list[Array]:
    """Returns a slice of padded images for each place of a window, row by row; each is [b, p, q, c].

    Args:
      x: images [b, h, w, c].
      size: of the windows.
      stride: between windows.
    """
    shape = tuple((n - size) // stride + 1 for n in x.shape[1:3])
    return [tap(x, i, j, stride, shape) for i in range(size) for j in range(size)]


def tap(x: Array, i: int, j: int, stride: int, shape: tuple[int, ...]) -> Array:
    """Returns every `stride`-th row and column of images from (i, j) on, `shape` of them.

    Args:
      x: images [b, h, w, c].
      i: the first row.
      j: the first column.
      stride: between rows, and between columns.
      shape: the number of rows and of columns.
    """
    last = (i + (shape[0] - 1) * stride + 1, j + (shape[1] - 1) * stride + 1)
    return lax.slice(x, (0, i, j, 0), (x.shape[0], *last, x.shape[3]), (1, stride, stride, 1))


def add(arrays: Iterable[Array]) -> Array:
    """Returns the sum of arrays.

    Args:
      arrays: one or more.
    """
    return functools.reduce(operator.add, arrays)
