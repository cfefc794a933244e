"""Pooling over windows: against XLA's, with ties, windows over the edge, and forward mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dml_jax.models.backbones.windows import avg_pool, max_pool

# Size, stride, padding, whether the last window may reach over the edge; side; places of a row of the result as torch
# counts them.
CASES = [
    (3, 2, 1, False, 8, 4),
    (3, 2, 0, True, 8, 4),
    (3, 2, 0, True, 9, 4),
    (2, 2, 0, True, 7, 4),
]
CASES += [(3, 1, 1, True, 5, 5), (2, 2, 1, True, 5, 3)]


@pytest.mark.parametrize(("size", "stride", "padding", "ceil", "side", "places"), CASES)
def test_max_pool(size, stride, padding, ceil, side, places):
    """Values are of five kinds, so that most windows have ties: the gradient goes to the first, as XLA's does."""
    x = jax.random.randint(jax.random.key(0), (2, side, side + 1, 3), -2, 3).astype(jnp.float32)

    @jax.jit
    def ours(x):
        return max_pool(x, size, stride=stride, padding=padding, ceil=ceil)

    @jax.jit
    def xla(x):
        edges = []
        for n, outputs in zip(x.shape[1:3], ours(x).shape[1:3], strict=True):
            edges.append((padding, (outputs - 1) * stride + size - n - padding))
        window, strides = (1, size, size, 1), (1, stride, stride, 1)
        return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, [(0, 0), *edges, (0, 0)])

    y, pull = jax.vjp(ours, x)
    assert y.shape[1] == places
    expected, pull_expected = jax.vjp(xla, x)
    np.testing.assert_array_equal(y, expected)
    g = jax.random.normal(jax.random.key(1), y.shape)
    np.testing.assert_allclose(pull(g)[0], pull_expected(g)[0], atol=1e-6)
    # jnp.maximum would divide the gradient among equal values.
    assert np.count_nonzero(pull(jnp.ones_like(y))[0] % 1) == 0
    x_dot = jax.random.normal(jax.random.key(2), x.shape)
    slope = jnp.vdot(jax.jvp(ours, (x,), (x_dot,))[1], g)
    np.testing.assert_allclose(slope, jnp.vdot(x_dot, pull(g)[0]), rtol=1e-4)


def test_max_pool_keeps_nan():
    x = jnp.ones((1, 4, 4, 1)).at[0, 3, 3, 0].set(jnp.nan)
    assert np.isnan(jax.vjp(lambda x: max_pool(x, 3, stride=1), x)[0][0, 1, 1, 0])


def test_avg_pool():
    x = jnp.arange(12.0).reshape(1, 3, 4, 1)
    padded = np.pad(np.asarray(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = sum(padded[:, i : i + 3, j : j + 4] for i in range(3) for j in range(3)) / 9
    np.testing.assert_allclose(avg_pool(x, 3), expected, rtol=1e-6)
