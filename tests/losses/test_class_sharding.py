"""Class weights that are stored sharded by class: same value and gradient, and no device holds all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dml_jax import classwise, losses

CLASSES, DIM, BATCH = 32, 6, 24


@pytest.mark.parametrize("name", ["arc_face", "cos_face", "normalized_softmax", "proxy_anchor"])
def test_sharded_by_class(name):
    loss = losses.get(name)
    x = jax.random.normal(jax.random.key(0), (BATCH, DIM))
    labels = jnp.asarray(np.random.default_rng(0).integers(0, CLASSES, BATCH))
    weights = loss.init(jax.random.key(1), CLASSES, DIM)["params"]["weights"]

    def value(weights, x):
        return loss.apply({"params": {"weights": weights}}, x, labels, block=2)[0].compute()

    graded = jax.value_and_grad(value, argnums=(0, 1))
    want = graded(weights, x)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    by_class = NamedSharding(mesh, PartitionSpec("data"))
    with jax.set_mesh(mesh):
        run = jax.jit(graded, in_shardings=(by_class, by_class)).lower(weights, x).compile()
        got = run(jax.device_put(weights, by_class), jax.device_put(x, by_class))
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, atol=1e-5 * float(jnp.abs(w).max()))
    # The gradient of the weights comes out where the weights are, and nothing gathers [classes, dim].
    assert got[1][0].sharding.is_equivalent_to(by_class, 2)
    assert f"f32[{CLASSES},{DIM}]" not in run.as_text()


def test_blocks_divide_the_classes_where_they_can():
    """Then nothing copies the weights to pad them: the program holds no array of more classes."""
    even = [classwise.even_block(*case) for case in [(100_000, 256), (1000, 256), (11, 5), (3, 8)]]
    assert even == [250, 250, 5, 3]
    loss, x = losses.get("cos_face"), jax.random.normal(jax.random.key(0), (BATCH, DIM))
    labels, weights = jnp.arange(BATCH), jax.random.normal(jax.random.key(1), (30, DIM))

    def value(weights, block):
        return loss.apply({"params": {"weights": weights}}, x, labels, block=block)[0].compute()

    run = jax.jit(jax.grad(value), static_argnums=1)
    assert f"f32[32,{DIM}]" not in run.lower(weights, 8).compile().as_text()
    np.testing.assert_allclose(run(weights, 8), run(weights, None), atol=1e-6)
