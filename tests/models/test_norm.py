"""Batch normalisation: torch's numbers, the frozen form, and one statistic over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dml_jax.errors import UserError
from dml_jax.models.backbones.norm import BatchNorm

X = np.array([1.0, 2.0, 3.0, 6.0], np.float32).reshape(
    2, 2, 1, 1
)  # mean 3, variance 3.5, unbiased 14 / 3


def made(frozen=False):
    norm = BatchNorm(1, frozen=frozen, eps=0.5)
    norm.scale.set_value(jnp.array([2.0]))
    norm.bias.set_value(jnp.array([1.0]))
    norm.mean.set_value(jnp.array([1.0]))
    norm.var.set_value(jnp.array([3.5]))
    return norm


def test_by_hand():
    """sqrt(3.5 + 0.5) = 2, so that y = (x - mean) + 1; of the running mean 1 a tenth becomes 3."""
    norm = made()
    np.testing.assert_allclose(norm(jnp.asarray(X), train=False), X, rtol=1e-6)
    np.testing.assert_allclose(norm(jnp.asarray(X), train=True), X - 2, rtol=1e-6)
    np.testing.assert_allclose(norm.mean[...], [1.2], rtol=1e-6)
    np.testing.assert_allclose(norm.var[...], [0.9 * 3.5 + 0.1 * 14 / 3], rtol=1e-6)


def test_frozen_uses_and_keeps_its_statistics_and_trains_scale_and_bias():
    graphdef, params, state = nnx.split(made(frozen=True), nnx.Param, ...)

    def loss(params):
        norm = nnx.merge(graphdef, params, state)
        y = norm(jnp.asarray(X), train=True)
        return jnp.sum(y * y), (y, nnx.state(norm, nnx.BatchStat))

    slopes, (y, after) = jax.grad(loss, has_aux=True)(params)
    np.testing.assert_allclose(y, X, rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, after, state)
    # Of sum y^2: 2 y (x - 1) / 2 summed, and 2 y summed.
    np.testing.assert_allclose(slopes["scale"][...], [36.0 + 2.0], rtol=1e-6)
    np.testing.assert_allclose(slopes["bias"][...], [24.0], rtol=1e-6)


def test_statistics_are_of_the_whole_batch_on_devices():
    x = np.random.default_rng(0).normal(size=(4, 3, 3, 2)).astype(np.float32)
    x *= np.arange(1, 5, dtype=np.float32).reshape(4, 1, 1, 1)
    graphdef, state = nnx.split(BatchNorm(2, frozen=False))

    @jax.jit
    def run(x):
        norm = nnx.merge(graphdef, state, copy=True)
        return norm(x, train=True), norm.mean[...], norm.var[...]

    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    for got, wanted in zip(run(split), run(x), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    # A batch of each device's own would have another answer.
    assert np.abs(np.asarray(run(x[:1])[0]) - np.asarray(run(x)[0][:1])).max() > 0.1


def test_statistics_of_bfloat16_are_float32():
    x = jnp.asarray(
        np.full((64, 8, 8, 1), 1.0) + np.arange(64).reshape(64, 1, 1, 1) / 64, jnp.bfloat16
    )
    norm = BatchNorm(1, frozen=False)
    assert norm(x, train=True).dtype == jnp.bfloat16
    np.testing.assert_allclose(norm.mean[...], [0.1 * np.mean(x.astype(np.float32))], rtol=1e-5)


def test_one_value_has_no_variance():
    with pytest.raises(UserError, match="norm='frozen'"):
        BatchNorm(3, frozen=False)(jnp.ones((1, 1, 1, 3)), train=True)
    assert BatchNorm(3, frozen=True)(jnp.ones((1, 1, 1, 3)), train=True).shape == (1, 1, 1, 3)
