"""The axis of the mesh that the batch is split over."""

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

DATA_AXIS = "data"


def has_data_axis() -> bool:
    """Returns True where the mesh in context (`jax.set_mesh`) has a `data` axis."""
    return DATA_AXIS in jax.sharding.get_abstract_mesh().axis_names


def data_devices() -> int:
    """Returns the number of devices along the `data` axis of the mesh in context; 1 where there is none."""
    return jax.sharding.get_abstract_mesh().shape[DATA_AXIS] if has_data_axis() else 1


def data_mesh() -> Mesh | None:
    """Returns the mesh in context where it has a `data` axis, else None."""
    if not has_data_axis():
        return None
    mesh = jax.sharding.get_mesh()
    return mesh if isinstance(mesh, Mesh) else None


def constrain(x: jax.Array, spec: P) -> jax.Array:
    """Returns the array with this sharding over the mesh in context; as it is where there is no `data` axis."""
    return jax.lax.with_sharding_constraint(x, spec) if has_data_axis() else x
