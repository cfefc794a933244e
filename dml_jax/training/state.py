"""The training state: one dict of plain dicts and arrays, and its way onto and off the devices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

State = dict[str, Any]


def make_mesh(devices: int | None = None, *, alone: bool = False) -> Mesh:
    """One axis `data` over all devices, or over the first so many of every process, or of this one `alone`.

    Raises ValueError where a process has fewer devices than asked for.
    """
    have = jax.local_device_count()
    if devices is not None and not 1 <= devices <= have:
        raise ValueError(f"train.devices={devices}; 1 to {have} are here")
    processes = [jax.process_index()] if alone else range(jax.process_count())
    used = [d for p in processes for d in jax.local_devices(process_index=p)[:devices]]
    return jax.make_mesh((len(used),), ("data",), axis_types=(AxisType.Auto,), devices=used)


def init(
    model: Any,
    loss: Any,
    tx: optax.GradientTransformation,
    seed: int,
    classes: int,
    stored: int = 0,
) -> State:
    """The state before the first step.

    Returns `{"params": {"model", "loss"}, "state": {"model", "loss"}, "opt", "key": uint32 [2], "step": int32}`;
    `key` is the data of a key from which every step derives its own. Where embeddings of so many images are to be
    `stored`, for a sampler, there is also `"storage": float32 [stored, dim]`, still 0. A pure function of the seed.
    """
    of_model, of_loss, of_steps = jax.random.split(jax.random.key(seed), 3)
    model_variables = model.init(of_model)
    loss_variables = loss.init(of_loss, classes, model.dim)
    variables = {
        part: {"model": model_variables.get(part, {}), "loss": loss_variables.get(part, {})}
        for part in ("params", "state")
    }
    # A weakly typed leaf would turn strong in the first step and have the second one compiled again.
    variables = jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), variables)
    storage = {"storage": jnp.zeros((stored, model.dim), jnp.float32)} if stored else {}
    return {
        **variables,
        **storage,
        "opt": tx.init(variables["params"]),
        "key": jax.random.key_data(of_steps),
        "step": jnp.zeros((), jnp.int32),
    }


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The tree with every array whole on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """A process's columns of a batch as global arrays, split over the axis `data`.

    Raises ValueError where the devices do not divide the batch.
    """
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    devices = len(mesh.local_devices)
    size = len(batch["label"])
    if size % devices:
        raise ValueError(
            f"the batch has {size} images in this process and {devices} devices to share them; "
            f"a multiple of {devices} is accepted, or train.devices that divides {size}"
        )
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def to_host(tree: Any) -> Any:
    """The tree as numpy arrays that own their memory: the step may overwrite (donate) the device's."""
    return jax.tree.map(lambda x: np.array(x, copy=True), jax.device_get(tree))
