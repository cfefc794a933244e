"""The training state: one dict of plain dicts and arrays, and its way onto and off the devices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dml_jax.errors import UserError
from dml_jax.losses import Loss
from dml_jax.mesh import DATA_AXIS
from dml_jax.models import Model

State = dict[str, Any]


def make_mesh(devices: int | None = None, *, alone: bool = False) -> Mesh:
    """Returns a mesh with the one axis `data`.

    Args:
      devices: how many devices of every process are used; None: all.
      alone: True for the devices of this process only.

    Raises:
      UserError: a process has fewer devices.

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
    return jax.make_mesh((len(used),), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=used)


def init(
    model: Model,
    loss: Loss,
    tx: optax.GradientTransformation,
    seed: int,
    num_weight_classes: int,
    storage_rows: int = 0,
) -> State:
    """Returns the state before the first step, a pure function of the seed.

    Args:
      model: its parameters and state are drawn, or read from a file.
      loss: its parameters and state are drawn.
      tx: the optimizer of `{"model", "loss"}`.
      seed: of the run.
      num_weight_classes: the classes for which a loss against class weights has weights.
      storage_rows: how many embeddings are stored for a sampler; they are still 0.

    Returns:
      `{"params": {"model", "loss"}, "state": {"model", "loss"}, "opt", "key": uint32 [2], "step": int32}`, and with
      storage_rows also `"storage": float32 [storage_rows, dim]`. `key` is the data of a key from which every step
      derives its own.
    """
    model_key, loss_key, steps_key = jax.random.split(jax.random.key(seed), 3)
    model_variables = model.init(model_key)
    loss_variables = loss.init(loss_key, num_weight_classes, model.dim)
    variables = {
        part: {"model": model_variables.get(part, {}), "loss": loss_variables.get(part, {})}
        for part in ("params", "state")
    }
    # A weakly typed leaf would turn strong in the first step and have the second one compiled again.
    variables = jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), variables)
    storage = {"storage": jnp.zeros((storage_rows, model.dim), jnp.float32)} if storage_rows else {}
    return {
        **variables,
        **storage,
        "opt": tx.init(variables["params"]),
        "key": jax.random.key_data(steps_key),
        "step": jnp.zeros((), jnp.int32),
    }


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Returns the tree with every array whole on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, P()))


def shard(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Returns a process's columns of a batch as global arrays, split over the axis `data`.

    Args:
      batch: arrays `[b, ...]` by name, with `label`.
      mesh: with the axis `data`.

    Raises:
      UserError: the devices do not divide the batch.
    """
    sharding = NamedSharding(mesh, P(DATA_AXIS))
    devices = len(mesh.local_devices)
    size = len(batch["label"])
    if size % devices:
        raise UserError(
            f"the batch has {size} images in this process and {devices} devices to share them; "
            f"a multiple of {devices} is accepted, or train.devices that divides {size}"
        )
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def to_host(tree: Any) -> Any:
    """Returns the tree as numpy arrays that own their memory: the step may overwrite (donate) the device's."""
    return jax.tree.map(lambda x: np.array(x, copy=True), jax.device_get(tree))
