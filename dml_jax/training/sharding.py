"""How the training state lies on the devices.

Parameters, moments and stored embeddings are split over the axis `fsdp` of the mesh, where it has one, and class
weights with their moments by class over all devices, which is how the losses against class weights read them.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dml_jax import trees
from dml_jax.errors import UserError
from dml_jax.mesh import FSDP_AXIS, axes_of

CLASS_WEIGHTS = "loss/(.*/)?weights"


@dataclass(frozen=True)
class Rule:
    """Which axis of an array is split over the devices.

    Attributes:
      above: arrays of fewer elements are whole on every device.
      axes: pairs of a regular expression for the paths of parameters, such as "model/head/.*", and the axis that is
        split, or None for arrays that are whole; the first one that matches the whole path counts. Without one the
        largest axis that can be divided is split.

    Example:
      >>> Rule(above=1024, axes=(("model/backbone/stem/.*", None),))
      Rule(above=1024, axes=(('model/backbone/stem/.*', None),))
    """

    above: int = 2**16
    axes: tuple[tuple[str, int | None], ...] = ()


def of_state(state: Any, mesh: Mesh, rule: Rule) -> Any:
    """Returns the sharding of every array of a training state, in a tree of the same structure.

    What belongs to a parameter (a moment, an average) is sharded as the parameter: its path ends in the parameter's,
    and its shape is the same.

    Args:
      state: the state, or its shapes.
      mesh: of the devices.
      rule: what is split.

    Raises:
      UserError: the rule names an axis that an array does not have, or that the devices do not divide.
    """
    params = {path: x.shape for path, x in trees.leaves_by_path(state["params"]).items()}

    def sharding(keys: tuple[Any, ...], x: Any) -> NamedSharding:
        path = trees.path_of(keys)
        name = next((end for end in _ends(path) if params.get(end) == x.shape), path)
        return NamedSharding(mesh, _spec(name, x.shape, mesh, rule))

    return jax.tree_util.tree_map_with_path(sharding, state)


def _ends(path: str) -> list[str]:
    """Returns the path without its first 0, 1, 2, ... names.

    >>> _ends("opt/mu/loss")
    ['opt/mu/loss', 'mu/loss', 'loss']
    """
    parts = path.split("/")
    return ["/".join(parts[i:]) for i in range(len(parts))]


def _spec(name: str, shape: tuple[int, ...], mesh: Mesh, rule: Rule) -> P:
    for pattern, axis in rule.axes:
        if re.fullmatch(pattern, name):
            return P() if axis is None else _chosen(name, shape, mesh, axis, pattern)
    if math.prod(shape) < rule.above:
        return P()
    everywhere = axes_of(mesh)
    if re.fullmatch(CLASS_WEIGHTS, name) and shape[0] % mesh.size == 0:
        return _split(0, everywhere)
    devices = mesh.shape.get(FSDP_AXIS, 1)
    divisible = [axis for axis, size in enumerate(shape) if size % devices == 0]
    if devices == 1 or not divisible:
        return P()
    return _split(max(divisible, key=lambda axis: shape[axis]), (FSDP_AXIS,))


def _chosen(name: str, shape: tuple[int, ...], mesh: Mesh, axis: int, pattern: str) -> P:
    axes: tuple[str, ...] = (FSDP_AXIS,) if FSDP_AXIS in mesh.axis_names else ()
    if re.fullmatch(CLASS_WEIGHTS, name) and axis == 0:
        axes = axes_of(mesh)
    devices = math.prod(mesh.shape[a] for a in axes)
    if not 0 <= axis < len(shape) or shape[axis] % devices:
        accepted = [i for i, size in enumerate(shape) if size % devices == 0]
        raise UserError(
            f"train.shard_axes has ({pattern!r}, {axis}), but {name} is {shape} and {devices} devices share it; "
            f"accepted: {', '.join(map(str, [*accepted, None]))}"
        )
    return _split(axis, axes) if axes else P()


def _split(axis: int, axes: tuple[str, ...]) -> P:
    return P(*(None,) * axis, axes)
