"""Convolutions in the form that is fast on the backend at hand.

On CPU, XLA's depthwise convolutions are ten to fifty times slower than the sums of shifted slices that they can be
written as, and so are the gradients of others on small maps (up to three times) than products of patches. All forms
give the same numbers.
"""

import functools
import operator

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from dml_jax.linear import linear_call
from dml_jax.models.backbones.windows import Edges, add, pad, tap, taps

# Places of a map up to which patches are faster on CPU; above, XLA's convolution is, and needs less memory.
SMALL_MAP = 64


def convolve(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "k k c d"],
    *,
    stride: int = 1,
    padding: int | None = None,
) -> Float[Array, "b p q d"]:
    """Convolves: y[b, p, q, d] = sum_ijc x[b, p s + i - a, q s + j - a', c] kernel[i, j, c, d].

    Args:
      x: the images.
      kernel: k x k weights from c to d channels.
      stride: s, of both axes.
      padding: a = a', zeros on all four sides, as in torch; None: TensorFlow's SAME, which makes ceil(h / s) rows and
        has the odd row of padding at the bottom.

    Example:
      >>> convolve(jnp.ones((1, 5, 5, 2)), jnp.ones((3, 3, 2, 4)), stride=2).shape
      (1, 3, 3, 4)
      >>> convolve(jnp.ones((1, 6, 6, 2)), jnp.ones((3, 3, 2, 4)), stride=2, padding=0).shape
      (1, 2, 2, 4)
    """
    size = kernel.shape[0]
    if size == 1 and not padding:
        return _product(x[:, ::stride, ::stride], kernel)
    if size == stride and padding == 0:
        rows, columns = (n // size for n in x.shape[1:3])
        x = x[:, : rows * size, : columns * size].reshape(len(x), rows, size, columns, -1)
        return _product(x.swapaxes(2, 3).reshape(len(x), rows, columns, -1), kernel)
    edges = _edges(x.shape, size, stride, padding)
    rows, columns = (
        (n + sum(edge) - size) // stride + 1 for n, edge in zip(x.shape[1:3], edges, strict=True)
    )
    small = _on_cpu() and rows * columns <= SMALL_MAP
    return (by_patches if small else by_xla)(x, kernel, stride, edges)


def depthwise(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "k k 1 c"],
    *,
    stride: int = 1,
    padding: int | None = None,
) -> Float[Array, "b p q c"]:
    """Convolves each channel on its own: y[b, p, q, c] = sum_ij x[b, p s + i - a, q s + j - a', c] kernel[i, j, 0, c].

    Args:
      x: the images.
      kernel: k x k weights of each channel.
      stride: s, of both axes.
      padding: as in `convolve`.

    Example:
      >>> depthwise(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 1, 2)))[0, 1, 1, 0]
      Array(9., dtype=float32)
    """
    edges = _edges(x.shape, kernel.shape[0], stride, padding)
    return (depthwise_by_shifts if _on_cpu() else depthwise_by_xla)(x, kernel, stride, edges)


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _edges(shape: tuple[int, ...], size: int, stride: int, padding: int | None) -> Edges:
    def edge(inputs: int) -> tuple[int, int]:
        if padding is not None:
            return padding, padding
        total = max((-(-inputs // stride) - 1) * stride + size - inputs, 0)
        return total // 2, total - total // 2

    return edge(shape[1]), edge(shape[2])


def by_xla(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "k k e d"],
    stride: int,
    edges: Edges,
    groups: int = 1,
) -> Float[Array, "b p q d"]:
    """Computes `convolve` as XLA's own operation; `groups` are as it defines them."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        edges,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@functools.partial(jax.checkpoint, static_argnums=(2, 3))
def by_patches(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k c d"], stride: int, edges: Edges
) -> Float[Array, "b p q d"]:
    """Computes `convolve` as one product of patches [b p q, k k c] and the kernel.

    The patches, k k / s s times the size of x, are made again for the gradient.
    """
    return _product(jnp.concatenate(taps(pad(x, edges), kernel.shape[0], stride), -1), kernel)


def _product(patches: Float[Array, "b p q i"], kernel: Float[Array, "k k c d"]) -> Array:
    """On two axes: on CPU that is faster than a product over the last of four."""
    flat = patches.reshape(-1, patches.shape[-1]) @ kernel.reshape(-1, kernel.shape[-1])
    return flat.reshape(*patches.shape[:-1], -1)


def depthwise_by_xla(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k 1 c"], stride: int, edges: Edges
) -> Float[Array, "b p q c"]:
    """Computes `depthwise` as XLA's convolution with a group for each channel."""
    return by_xla(x, kernel, stride, edges, groups=x.shape[-1])


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def depthwise_by_shifts(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k 1 c"], stride: int, edges: Edges
) -> Float[Array, "b p q c"]:
    """Computes `depthwise` as a sum of strided slices times a row of the kernel, which XLA fuses."""
    size = kernel.shape[0]
    rows = kernel.reshape(size * size, 1, 1, 1, -1)
    return add(map(operator.mul, taps(pad(x, edges), size, stride), rows))


@depthwise_by_shifts.defjvp
def _depthwise_jvp(
    stride: int, edges: Edges, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    """The convolution is linear in the images and in the kernel, each with a transpose that is fast."""
    x, kernel = primals
    of_images = linear_call(
        lambda kernel, x_dot: depthwise_by_shifts(x_dot, kernel, stride, edges),
        functools.partial(_to_images, shape=x.shape[1:3], stride=stride, edges=edges),
        kernel,
        tangents[0],
    )
    of_kernel = linear_call(
        lambda x, kernel_dot: depthwise_by_shifts(x, kernel_dot, stride, edges),
        functools.partial(_to_kernel, size=kernel.shape[0], stride=stride, edges=edges),
        x,
        tangents[1],
    )
    return depthwise_by_shifts(x, kernel, stride, edges), of_images + of_kernel


def _to_images(
    kernel: Array, g: Array, *, shape: tuple[int, ...], stride: int, edges: Edges
) -> Array:
    """The flipped kernel over g with stride - 1 zeros between its rows."""
    size = kernel.shape[0]
    wide = []
    for inputs, outputs, (before, _) in zip(shape, g.shape[1:3], edges, strict=True):
        low = size - 1 - before
        high = inputs + size - 1 - low - (outputs - 1) * stride - 1
        wide.append((low, high, stride - 1))
    g = lax.pad(g, jnp.zeros((), g.dtype), [(0, 0, 0), *wide, (0, 0, 0)])
    return depthwise_by_shifts(g, kernel[::-1, ::-1], 1, ((0, 0), (0, 0)))


def _to_kernel(x: Array, g: Array, *, size: int, stride: int, edges: Edges) -> Array:
    """One pass that carries a sum for each place: separate ones would each write a shifted copy of x first."""
    x = pad(x, edges)
    places = [(i, j) for i in range(size) for j in range(size)]
    wide = jnp.promote_types(x.dtype, jnp.float32)
    products = [(tap(x, i, j, stride, g.shape[1:3]) * g).astype(wide) for i, j in places]
    zeros = [jnp.zeros((), wide)] * len(places)
    sums = lax.reduce(products, zeros, lambda a, b: list(map(operator.add, a, b)), (1, 2))
    return jnp.stack(sums).sum(1).reshape(size, size, 1, x.shape[-1]).astype(x.dtype)
