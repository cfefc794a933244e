"""The forms for CPU give XLA's values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dml_jax.models.backbones import convolution

SHAPES = [(2, 8, 7), (1, 5, 4), (3, 9, 10)]


def compare(form, reference, x, kernel, stride, padding=None):
    edges = convolution._edges(x.shape, len(kernel), stride, padding)
    value = jax.jit(form, static_argnums=(2, 3))(x, kernel, stride, edges)
    expected = reference(x, kernel, stride, edges)
    assert value.shape == expected.shape
    np.testing.assert_allclose(value, expected, atol=1e-5)
    # A cotangent that differs everywhere, so that a gradient at a wrong place shows.
    weights = jax.random.normal(jax.random.key(9), expected.shape)

    def gradients(f):
        return jax.jit(jax.grad(lambda a, k: jnp.sum(f(a, k, stride, edges) * weights), (0, 1)))(
            x, kernel
        )

    for got, wanted in zip(gradients(form), gradients(reference), strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-5)


@pytest.mark.parametrize(("stride", "height", "width"), SHAPES)
def test_depthwise(stride, height, width):
    x = jax.random.normal(jax.random.key(0), (2, height, width, 4))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 1, 4))
    compare(convolution.depthwise_by_shifts, convolution.depthwise_by_xla, x, kernel, stride)


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_forward_mode(stride):
    """jvp, and the derivative of a gradient, which needs the transposes to have derivatives of their own."""
    keys = jax.random.split(jax.random.key(0), 4)
    x, x_dot = (jax.random.normal(key, (1, 6, 5, 2)) for key in keys[:2])
    kernel, kernel_dot = (jax.random.normal(key, (3, 3, 1, 2)) for key in keys[2:])

    def derivatives(form):
        edges = convolution._edges(x.shape, 3, stride, None)
        f = lambda x, kernel: form(x, kernel, stride, edges)
        loss = lambda x, kernel: jnp.sum(f(x, kernel) ** 3)
        slope = jax.jvp(f, (x, kernel), (x_dot, kernel_dot))[1]
        return slope, jax.jvp(jax.grad(loss, (0, 1)), (x, kernel), (x_dot, kernel_dot))[1]

    got = jax.jit(derivatives, static_argnums=0)(convolution.depthwise_by_shifts)
    wanted = jax.jit(derivatives, static_argnums=0)(convolution.depthwise_by_xla)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-3), got, wanted)


@pytest.mark.parametrize(("stride", "height", "width"), SHAPES[:2])
def test_patches(stride, height, width):
    size = 2 + stride
    x = jax.random.normal(jax.random.key(0), (2, height, width, 3))
    kernel = jax.random.normal(jax.random.key(1), (size, size, 3, 5))
    compare(convolution.by_patches, convolution.by_xla, x, kernel, stride)


@pytest.mark.parametrize(("size", "stride", "padding"), [(3, 2, 1), (7, 2, 3), (3, 1, 0)])
def test_patches_with_padding(size, stride, padding):
    x = jax.random.normal(jax.random.key(0), (2, 9, 8, 3))
    kernel = jax.random.normal(jax.random.key(1), (size, size, 3, 5))
    compare(convolution.by_patches, convolution.by_xla, x, kernel, stride, padding)


@pytest.mark.parametrize(("stride", "padding"), [(1, 3), (2, 1)])
def test_depthwise_of_seven(stride, padding):
    x = jax.random.normal(jax.random.key(0), (2, 9, 8, 3))
    kernel = jax.random.normal(jax.random.key(1), (7, 7, 1, 3))
    forms = convolution.depthwise_by_shifts, convolution.depthwise_by_xla
    compare(*forms, x, kernel, stride, padding)


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (1, 2), (2, 2), (4, 4)])
def test_windows_without_overlap(size, stride):
    x = jax.random.normal(jax.random.key(0), (2, 7, 9, 5))
    kernel = jax.random.normal(jax.random.key(1), (size, size, 5, 6))
    got = convolution.convolve(x, kernel, stride=stride, padding=0)
    expected = convolution.by_xla(x, kernel, stride, ((0, 0), (0, 0)))
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("side", [8, 9])
def test_convolve_chooses_no_other_numbers(side):
    """Up to 64 places of the result are computed by patches, 81 by XLA's convolution."""
    x = jax.random.normal(jax.random.key(0), (2, side, side, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 5))
    wanted = convolution.by_xla(x, kernel, 1, ((1, 1), (1, 1)))
    text = str(jax.make_jaxpr(lambda x: convolution.convolve(x, kernel, padding=1))(x))
    assert ("conv_general_dilated" in text) == (side == 9)
    np.testing.assert_allclose(convolution.convolve(x, kernel, padding=1), wanted, atol=1e-5)


def test_gradient_of_the_kernel_is_summed_in_float32():
    """65 x 65 ones: bfloat16 sums stop at 256."""
    x, kernel = jnp.ones((1, 65, 65, 1), jnp.bfloat16), jnp.ones((3, 3, 1, 1), jnp.bfloat16)
    loss = lambda k: convolution.depthwise(x, k).sum(dtype=jnp.float32)
    gradient = jax.grad(loss)(kernel)
    assert gradient.dtype == jnp.bfloat16
    assert gradient[1, 1, 0, 0] == jnp.bfloat16(65 * 65)
