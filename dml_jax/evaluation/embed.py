"""The embeddings of a split, computed on every device, in the order of the ids."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from dml_jax.distances import normalize
from dml_jax.errors import UserError
from dml_jax.mesh import axes_of, data_devices, data_mesh

# (embeddings, or a dict of several; labels; ids)
Embedded = tuple[Any, Int[np.ndarray, " n"], Int[np.ndarray, " n"]]


def embed(
    apply: Callable[[Any, Array], Any], variables: Any, batches: Iterable[dict[str, np.ndarray]]
) -> Embedded:
    """Embeds batches; returns `(embeddings float32 [n, d], labels int64 [n], ids int64 [n])` of valid rows, by id.

    Each batch is split over the devices of the mesh in context. With several processes each
    gives its own rows, in as many batches as the others, and all of them return everything.

    Args:
      apply: `(variables, images [b, ...]) -> embeddings [b, d]`, or a dict of several, which then come back
        as a dict; compiled once for a given function and batch shape, so pass the same function each time.
      variables: its first argument.
      batches: `{"image", "label", "id", "valid"}`, all of one size; rows that are not valid are
        dropped.

    Raises:
      UserError: no batch at all, no valid row, an id that occurs twice.

    >>> batch = {"image": np.ones((2, 3)), "label": np.array([4, 5]), "id": np.array([1, 0]), "valid": np.ones(2)}
    >>> embed(lambda variables, images: images * variables, 2.0, [batch])[1:]
    (array([5, 4]), array([0, 1]))
    """
    step = jax.jit(apply)
    parts: list[Any] = []
    waiting = None
    for batch in batches:
        # One batch is computed while the one before is brought back and the next one decoded.
        images, about = _place(batch)
        found = step(variables, images)
        if waiting is not None:
            parts.append(_collect(*waiting))
        waiting = (found, about)
    if waiting is None:
        raise UserError("no batch to embed; accepted: at least one")
    parts.append(_collect(*waiting))
    embeddings, labels, ids = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    if not len(ids):
        raise UserError("no valid row to embed; accepted: at least one")
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    twice = ids[1:][ids[1:] == ids[:-1]]
    if len(twice):
        raise UserError(f"id {twice[0]} occurs more than once among the batches; ids must differ")
    return jax.tree.map(lambda x: x[order], embeddings), labels[order], ids


def pixels(batches: Iterable[dict[str, np.ndarray]]) -> Embedded:
    """Returns the images themselves, flattened, divided by 255 and L2-normalised (black: zero), as `embed` does.

    Args:
      batches: as in `embed`.

    >>> batch = {"image": np.full((1, 2, 2), 9), "label": np.ones(1), "id": np.zeros(1), "valid": np.ones(1)}
    >>> pixels([batch])[0].round(4)
    array([[0.5, 0.5, 0.5, 0.5]], dtype=float32)
    """
    return embed(_pixels, {}, batches)


def _pixels(variables: Any, images: Array) -> Float[Array, "b d"]:
    flat = images.reshape(len(images), -1).astype(jnp.float32) / 255
    return normalize(flat)


def _place(batch: dict[str, np.ndarray]) -> tuple[Any, Any]:
    """The images, and (label, id, valid) as pairs of int32, with their rows split over the mesh.

    Where the rows do not divide by the devices, rows that are not valid are added.
    """
    images = np.asarray(batch["image"])
    about = np.stack([batch["label"], batch["id"], batch["valid"]], axis=1)
    # Devices hold no int64 by default.
    about = np.ascontiguousarray(about, np.int64).view(np.int32)
    mesh = data_mesh()
    if mesh is None:
        return images, about
    missing = -len(images) % max(1, data_devices() // jax.process_count())
    sharding = NamedSharding(mesh, PartitionSpec(axes_of(mesh)))

    def place(array: np.ndarray) -> Array:
        filled = np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])
        return jax.make_array_from_process_local_data(sharding, filled)

    return place(images), place(about)


def _collect(found: Any, about: Any) -> Embedded:
    """Embeddings, labels and ids of the valid rows of all processes."""
    if jax.process_count() > 1:
        found, about = multihost_utils.process_allgather((found, about), tiled=True)
    labels, ids, valid = np.ascontiguousarray(about).view(np.int64).T
    keep = valid != 0
    found = jax.tree.map(lambda x: np.asarray(x, np.float32)[keep], found)
    return found, labels[keep], ids[keep]
