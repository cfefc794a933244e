"""Convolutions with SAME padding, in the form that is fast on the backend at hand.

On CPU, XLA's convolutions and above all their gradients are slower, some of them ten times, than the products of
shifted slices that they can be written as. Both forms give the same numbers.
"""

import functools
import operator
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from dml_jax.linear import linear_call

TAPS = [(i, j) for i in range(3) for j in range(3)]


def convolve(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k c d"], *, stride: int = 1
) -> Float[Array, "b p q d"]:
    """Convolves: y[b, p, q, d] = sum_ijc x[b, p s + i - a, q s + j - a', c] kernel[i, j, c, d].

    The padding (a, a') is TensorFlow's SAME: ceil(h / s) rows, and the odd row of padding at the bottom.

    Args:
      x: the images.
      kernel: k x k weights from c to d channels.
      stride: s, of both axes.

    Example:
      >>> convolve(jnp.ones((1, 5, 5, 2)), jnp.ones((3, 3, 2, 4)), stride=2).shape
      (1, 3, 3, 4)
    """
    if kernel.shape[:2] == (1, 1) and stride == 1:
        # On two axes: on CPU that is faster than a product over the last of four.
        return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], -1)
    return (by_patches if _on_cpu() else by_xla)(x, kernel, stride)


def depthwise(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 1 c"], *, stride: int = 1
) -> Float[Array, "b p q c"]:
    """Convolves each channel on its own: y[b, p, q, c] = sum_ij x[b, p s + i - a, q s + j - a', c] kernel[i, j, 0, c].

    Args:
      x: the images.
      kernel: 3 x 3 weights of each channel.
      stride: s, of both axes; the padding is as in `convolve`.

    Example:
      >>> depthwise(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 1, 2)))[0, 1, 1, 0]
      Array(9., dtype=float32)
    """
    return (depthwise_by_shifts if _on_cpu() else depthwise_by_xla)(x, kernel, stride)


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def by_xla(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k e d"], stride: int, groups: int = 1
) -> Float[Array, "b p q d"]:
    """Computes `convolve` as XLA's own operation; `groups` are as it defines them."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@functools.partial(jax.checkpoint, static_argnums=(2,))
def by_patches(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k c d"], stride: int
) -> Float[Array, "b p q d"]:
    """Computes `convolve` as one product of patches [b p q, k k c] and the kernel.

    The patches, k k / s s times the size of x, are made again for the gradient.
    """
    size = kernel.shape[0]
    x = _pad(x, size, stride)
    shape = _outputs(x, size, stride)
    taps = [_tap(x, i, j, stride, shape) for i in range(size) for j in range(size)]
    patches = jnp.concatenate(taps, -1)
    flat = patches.reshape(-1, patches.shape[-1]) @ kernel.reshape(-1, kernel.shape[-1])
    return flat.reshape(*patches.shape[:-1], -1)


def depthwise_by_xla(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 1 c"], stride: int
) -> Float[Array, "b p q c"]:
    """Computes `depthwise` as XLA's convolution with a group for each channel."""
    return by_xla(x, kernel, stride, groups=x.shape[-1])


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def depthwise_by_shifts(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 1 c"], stride: int
) -> Float[Array, "b p q c"]:
    """Computes `depthwise` as a sum of nine strided slices times a row of the kernel, which XLA fuses."""
    x = _pad(x, 3, stride)
    shape = _outputs(x, 3, stride)
    return _sum(_tap(x, i, j, stride, shape) * kernel[i : i + 1, j : j + 1] for i, j in TAPS)


@depthwise_by_shifts.defjvp
def _depthwise_jvp(
    stride: int, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    """The convolution is linear in the images and in the kernel, each with a transpose that is fast."""
    x, kernel = primals
    of_images = linear_call(
        lambda kernel, x_dot: depthwise_by_shifts(x_dot, kernel, stride),
        functools.partial(_to_images, size=x.shape[1:3], stride=stride),
        kernel,
        tangents[0],
    )
    of_kernel = linear_call(
        lambda x, kernel_dot: depthwise_by_shifts(x, kernel_dot, stride),
        functools.partial(_to_kernel, stride=stride),
        x,
        tangents[1],
    )
    return depthwise_by_shifts(x, kernel, stride), of_images + of_kernel


def _to_images(kernel: Array, g: Array, *, size: tuple[int, ...], stride: int) -> Array:
    """The flipped kernel over g with stride - 1 zeros between its rows."""
    edges = []
    for inputs, outputs in zip(size, g.shape[1:3], strict=True):
        before, _ = _padding(inputs, 3, stride)
        low = 2 - before
        edges.append((low, inputs + 2 - low - (outputs - 1) * stride - 1, stride - 1))
    wide = lax.pad(g, jnp.zeros((), g.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    return _sum(_tap(wide, i, j, 1, size) * kernel[2 - i : 3 - i, 2 - j : 3 - j] for i, j in TAPS)


def _to_kernel(x: Array, g: Array, *, stride: int) -> Array:
    """One pass that carries nine sums: nine separate ones would each write a shifted copy of x to memory first."""
    padded = _pad(x, 3, stride)
    shape = g.shape[1:3]
    products = [(_tap(padded, i, j, stride, shape) * g).astype(jnp.float32) for i, j in TAPS]
    zeros = [jnp.zeros((), jnp.float32)] * len(TAPS)
    sums = lax.reduce(products, zeros, lambda a, b: list(map(operator.add, a, b)), (1, 2))
    return jnp.stack(sums).sum(1).reshape(3, 3, 1, x.shape[-1]).astype(x.dtype)


def _padding(inputs: int, size: int, stride: int) -> tuple[int, int]:
    total = max((-(-inputs // stride) - 1) * stride + size - inputs, 0)
    return total // 2, total - total // 2


def _pad(x: Array, size: int, stride: int) -> Array:
    rows, columns = (_padding(n, size, stride) for n in x.shape[1:3])
    return jnp.pad(x, ((0, 0), rows, columns, (0, 0)))


def _outputs(padded: Array, size: int, stride: int) -> tuple[int, ...]:
    return tuple((n - size) // stride + 1 for n in padded.shape[1:3])


def _tap(x: Array, i: int, j: int, stride: int, shape: tuple[int, ...]) -> Array:
    """Returns every `stride`-th row and column of x from (i, j) on, `shape` of them."""
    last = (i + (shape[0] - 1) * stride + 1, j + (shape[1] - 1) * stride + 1)
    return lax.slice(x, (0, i, j, 0), (x.shape[0], *last, x.shape[3]), (1, stride, stride, 1))


def _sum(arrays: Iterable[Array]) -> Array:
    return functools.reduce(operator.add, arrays)
