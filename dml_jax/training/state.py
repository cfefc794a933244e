"""The training state: one dict of plain dicts and arrays, and its way onto and off the devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dml_jax.errors import UserError
from dml_jax.losses import Loss
from dml_jax.mesh import axes_of
from dml_jax.models import Model

State = dict[str, Any]
# What is told of a step that is not finite.
WATCHED = ("loss", "grad_norm", "update_norm")


def init(
    model: Model,
    loss: Loss,
    tx: optax.GradientTransformation,
    seed: int,
    num_weight_classes: int,
    storage_rows: int = 0,
    backbone: Any = None,
    *,
    ema: bool = False,
) -> State:
    """Returns the state before the first step, a pure function of the seed.

    Args:
      model: its parameters and state are drawn, or read from a file.
      loss: its parameters and state are drawn.
      tx: the optimizer of `{"model", "loss"}`.
      seed: of the run.
      num_weight_classes: the classes for which a loss against class weights has weights.
      storage_rows: how many embeddings are stored for a sampler; they are still 0.
      backbone: the model's backbone, where it was read from its file already.
      ema: True where the average of the model's variables is kept, too.

    Returns:
      `{"params": {"model", "loss"}, "state": {"model", "loss"}, "opt", "key": uint32 [2], "step": int32}`, and with
      storage_rows also `"storage": float32 [storage_rows, dim]`, with ema `"ema": {"params": {"model"}, "state":
      {"model"}}`. `key` is the data of a key from which every step derives its own.
    """
    model_key, loss_key, steps_key = jax.random.split(jax.random.key(seed), 3)
    model_variables = model.init(model_key, backbone)
    loss_variables = loss.init(loss_key, num_weight_classes, model.dim)
    variables = {
        part: {"model": model_variables.get(part, {}), "loss": loss_variables.get(part, {})}
        for part in ("params", "state")
    }
    # A weakly typed leaf would turn strong in the first step and have the second one compiled again.
    variables = jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), variables)
    storage = {"storage": jnp.zeros((storage_rows, model.dim), jnp.float32)} if storage_rows else {}
    averages = {"ema": {k: {"model": v["model"]} for k, v in variables.items()}} if ema else {}
    return {
        **variables,
        **storage,
        **averages,
        "opt": tx.init(variables["params"]),
        "key": jax.random.key_data(steps_key),
        "step": jnp.zeros((), jnp.int32),
    }


def make(init: Callable[[Any], State], model: Model, shardings: Any) -> State:
    """Returns the state before the first step, every array of which is made where it lies: none is whole on one device
    unless its sharding says so.

    Args:
      init: what the state is by the backbone's parameters (None: they are drawn).
      model: whose file of weights is read.
      shardings: of the state.
    """
    at = {part: shardings[part]["model"].get("backbone", {}) for part in ("params", "state")}
    loaded = model.read_backbone(at)
    return jax.jit(init, out_shardings=shardings)(loaded)


def watch(mesh: Mesh) -> State:
    """Returns what a state of a run has beside the others: what is known of the first step that was not finite.

    It is no part of a checkpoint, because a state that is not finite is not saved.

    Args:
      mesh: of the devices.
    """
    none = {"step": np.int32(-1), **dict.fromkeys(WATCHED, np.float32(0))}
    return {"first_bad": replicate(none, mesh)}


def evaluated(state: State) -> dict[str, Any]:
    """Returns `{"params", "state"}` of the model that is evaluated: the average of the trained one where it is kept.

    Args:
      state: the training state.
    """
    return {part: state.get("ema", state)[part]["model"] for part in ("params", "state")}


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Returns the tree with every array whole on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, P()))


def shard(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Returns a process's columns of a batch as global arrays, split over the devices.

    Args:
      batch: arrays `[b, ...]` by name, with `label`.
      mesh: of the devices.

    Raises:
      UserError: the devices do not divide the batch.
    """
    sharding = NamedSharding(mesh, P(axes_of(mesh)))
    devices = len(mesh.local_devices)
    size = len(batch["label"])
    if size % devices:
        raise UserError(
            f"the batch has {size} images in this process and {devices} devices to share them; "
            f"a multiple of {devices} is accepted, or train.devices that divides {size}"
        )
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def snapshot(tree: Any) -> Any:
    """Returns arrays that stay as they are while a checkpoint is written: on CPUs what is written is the memory of the
    arrays themselves, which the next step overwrites; from other devices it is copied before a save returns.

    Args:
      tree: of arrays.
    """
    on_cpu = jax.tree.leaves(tree)[0].sharding.mesh.devices.flat[0].platform == "cpu"
    return jax.tree.map(jnp.copy, tree) if on_cpu else tree


def to_host(x: jax.Array) -> np.ndarray:
    """Returns a whole array, of all processes, as one of the host that owns its memory: the step may overwrite (donate)
    the device's.
    """
    if not x.is_fully_addressable:
        return np.array(multihost_utils.process_allgather(x, tiled=True))
    return np.array(x, copy=True)
