"""The axis that the batch is split over: with it, without it, and inside of a compiled function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from dml_jax import mesh


def made(devices, axis=mesh.DATA_AXIS):
    chosen = jax.devices()[:devices]
    return jax.make_mesh((devices,), (axis,), axis_types=(AxisType.Auto,), devices=chosen)


def seen():
    return mesh.batch_axes(), mesh.data_devices(), mesh.data_mesh()


def test_without_a_mesh():
    assert seen() == ((), 1, None)
    x = jnp.ones((4, 2))
    assert mesh.constrain(x, P("data")) is x


def test_an_axis_of_another_name_is_none():
    with jax.set_mesh(made(4, "model")):
        assert seen() == ((), 1, None)
        x = jnp.ones((4, 2))
        assert mesh.constrain(x, P("data")) is x


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_with_it(devices):
    with jax.set_mesh(made(devices)) as context:
        assert seen() == (("data",), devices, made(devices)), context
        inside = []
        jax.jit(lambda x: inside.append(mesh.data_devices()) or x)(jnp.ones(3))
        assert inside == [devices]
    assert seen() == ((), 1, None)


def test_a_constraint_splits_the_rows_and_changes_no_value():
    x = np.arange(16.0).reshape(8, 2)
    with jax.set_mesh(made(4)):
        rows = jax.jit(lambda x: mesh.constrain(x, P("data")))(x)
        whole = jax.jit(lambda x: mesh.constrain(x, P()))(x)
    np.testing.assert_array_equal(rows, x)
    assert {s.data.shape for s in rows.addressable_shards} == {(2, 2)}
    assert {s.data.shape for s in whole.addressable_shards} == {(8, 2)}
