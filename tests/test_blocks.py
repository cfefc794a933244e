"""Blocks of anchors: derivatives by all that a function reads, and what lies in memory beside a block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dml_jax import blocks, losses
from dml_jax.mesh import make_mesh

X = jnp.asarray(np.random.default_rng(0).normal(size=(12, 3)), jnp.float32)


def energy(x, y, scale, block):
    """sum_ij tanh(scale_i x_i . y_j), of anchors, references and an array that the function holds."""

    def of_block(ids, valid, rows, refs, factor):
        values = jnp.tanh(factor * scale[ids][:, None] * (rows @ refs.T))
        return jnp.sum(jnp.where(valid[:, None], values, 0)), jnp.sum(values, 1)

    total, rows = blocks.map_anchors(of_block, x, y, broadcast_args=jnp.float32(2), block=block)
    return total + jnp.sum(rows**2)


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("block", [3, 5])
def test_derivatives_by_all_that_is_read(devices, block):
    """Also where anchors and references are one array, in which blocks of 3 are read, and of 5 are not."""
    scale = jnp.linspace(0.5, 2, 12 + 8)  # as many as there are ids with padding
    one = lambda x, scale, block: energy(x, x, scale, block)
    apart = lambda x, scale, block: energy(x, x + 0, scale, block)
    direction = (jnp.roll(X, 1, 0), jnp.cos(scale))
    want, slope = jax.jvp(lambda *a: one(*a, None), (X, scale), direction)
    gradients = jax.grad(one, (0, 1))(X, scale, None)
    by_rows = jax.grad(lambda x: energy(x, jax.lax.stop_gradient(x), scale, None))(X)
    assert (
        np.abs(np.asarray(by_rows - gradients[0])).max() > 0.1
    )  # a gradient of anchors alone would be seen
    with jax.set_mesh(make_mesh(devices)):
        for fn in (one, apart):
            blocked = lambda *a, fn=fn: fn(*a, block)
            found = jax.jit(lambda *a, f=blocked: jax.jvp(f, a, direction))(X, scale)
            np.testing.assert_allclose(found, (want, slope), rtol=1e-5)
            for got, expected in zip(
                jax.jit(jax.grad(blocked, (0, 1)))(X, scale), gradients, strict=True
            ):
                np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def temporaries(batch=2**14, dim=128, block=16):
    """Of a loss and its gradient, as a multiple of the embeddings' size."""
    loss = losses.get("multi_similarity", miner="multi_similarity")

    def value(x, labels):
        return loss.apply({}, x, labels, block=block)[0].compute()

    shapes = (
        jax.ShapeDtypeStruct((batch, dim), jnp.float32),
        jax.ShapeDtypeStruct((batch,), "int32"),
    )
    program = jax.jit(jax.value_and_grad(value)).lower(*shapes).compile()
    return program.memory_analysis().temp_size_in_bytes / (4 * batch * dim)


def test_no_copies_of_the_batch_lie_beside_a_block(monkeypatch):
    """Three arrays of the size of the embeddings, and rows of 16 anchors; four with a copy to take the blocks from."""
    found = temporaries()
    assert found < 3.7
    monkeypatch.setattr(blocks, "_columns_of", lambda anchors, refs: {})
    losses.PairLoss._apply.clear_cache()
    assert temporaries() > 3.7
    losses.PairLoss._apply.clear_cache()
