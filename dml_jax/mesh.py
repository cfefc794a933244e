"""The mesh of the devices, and the axes of it that a batch is split over.

    replica   whole copies of the state: hosts or slices that are joined by a slow network
    data      more copies of it
    fsdp      each device owns a share of the state (fully sharded data parallelism)

Along all of them every device has images of its own, so that a batch is split over all that a mesh has.
"""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from dml_jax.errors import UserError

REPLICA_AXIS, DATA_AXIS, FSDP_AXIS = "replica", "data", "fsdp"
BATCH_AXES = (REPLICA_AXIS, DATA_AXIS, FSDP_AXIS)


def make_mesh(
    devices: int | None = None, *, fsdp: int = 1, replicas: int = 1, alone: bool = False
) -> Mesh:
    """Returns a mesh with the axis `data`, and with `replica` and `fsdp` where these are above 1.

    Devices lie in the order of their processes, so that a process has a stretch of every batch, and devices that share
    a state (`fsdp`) are next to each other.

    Args:
      devices: how many devices of every process are used; None: all.
      fsdp: how many devices share a state.
      replicas: how many groups of devices are only to exchange gradients: the number of hosts or slices.
      alone: True for the devices of this process only.

    Raises:
      UserError: a process has fewer devices, or they cannot be divided so.

    >>> make_mesh(1).axis_names
    ('data',)
    """
    have = jax.local_device_count()
    if devices is not None and not 1 <= devices <= have:
        raise UserError(
            f"train.devices={devices}; this process has {have}, and 1 to {have} is accepted"
        )
    processes = [jax.process_index()] if alone else range(jax.process_count())
    used = [d for p in processes for d in jax.local_devices(process_index=p)[:devices]]
    if len(used) % (fsdp * replicas):
        raise UserError(
            f"train.fsdp={fsdp} and train.replicas={replicas} do not divide {len(used)} devices; accepted: two numbers "
            f"whose product is a divisor of {len(used)}"
        )
    shape = {REPLICA_AXIS: replicas, DATA_AXIS: len(used) // (fsdp * replicas), FSDP_AXIS: fsdp}
    axes = {name: size for name, size in shape.items() if size > 1 or name == DATA_AXIS}
    # `jax.make_mesh` may put devices in another order, and a process would have rows here and there in a batch.
    grid = np.array(used).reshape(tuple(axes.values()))
    return Mesh(grid, tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def batch_axes() -> tuple[str, ...]:
    """Returns the axes of the mesh in context (`jax.set_mesh`) that a batch is split over; none without a mesh."""
    return axes_of(jax.sharding.get_abstract_mesh())


def axes_of(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> tuple[str, ...]:
    """Returns the axes of a mesh that a batch is split over.

    Args:
      mesh: of the devices.
    """
    return tuple(name for name in BATCH_AXES if name in mesh.axis_names)


def data_devices() -> int:
    """Returns the number of devices that a batch is split over, by the mesh in context; 1 without one."""
    shape = jax.sharding.get_abstract_mesh().shape
    return int(np.prod([shape[name] for name in batch_axes()], dtype=int))


def data_mesh() -> Mesh | None:
    """Returns the mesh in context where it has an axis that a batch is split over, else None."""
    if not batch_axes():
        return None
    mesh = jax.sharding.get_mesh()
    return mesh if isinstance(mesh, Mesh) else None


def rows(before: int = 0) -> P:
    """Returns how the rows of a batch are split over the mesh in context.

    Args:
      before: how many axes an array has before that of the rows.
    """
    return P(*(None,) * before, batch_axes())


def constrain(x: jax.Array, spec: P) -> jax.Array:
    """Returns the array with this sharding over the mesh in context; as it is where a batch is not split.

    Args:
      x: an array.
      spec: its sharding.
    """
    return jax.lax.with_sharding_constraint(x, spec) if batch_axes() else x
