"""Searches in float32 that find candidates for the nearest neighbours, one per backend.

A search is `(queries [q, d], count) -> (squared [q, count], rows [q, count])`: for each query
`count` rows of the gallery that are nearest up to float32 rounding, in any order, with their
approximate squared Euclidean distances. What is made of them (`neighbours.Index`) is exact and so
does not depend on which search found them.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from dml_jax.evaluation.mesh import data_mesh

Search = Callable[[np.ndarray, int], tuple[Array | np.ndarray, Array | np.ndarray]]

GALLERY_BLOCK = 8192
# The GPU indexes of faiss refuse to return more neighbours than this.
FAISS_GPU_COUNT = 2048


def jax_search(gallery: Float[np.ndarray, "n d"], block: int | None) -> Search:
    """A search by blocked matrix products and streaming top-k over the `data` axis of the mesh.

    The gallery lies on the devices once, a part on each. A device holds [queries, block]
    similarities at a time and keeps its own `count` best; the devices' best are gathered and the
    best of them kept.
    """
    mesh = data_mesh()
    shards = 1 if mesh is None else mesh.shape["data"]
    size, dim = gallery.shape
    blocks = -(-size // (shards * (block or GALLERY_BLOCK)))
    rows = -(-size // (shards * blocks))
    padded = np.zeros((shards * blocks * rows, dim), np.float32)
    padded[:size] = gallery
    norms = np.full(len(padded), np.inf, np.float32)
    norms[:size] = np.einsum("nd,nd->n", gallery, gallery, dtype=np.float64)
    parts = _place(padded.reshape(-1, rows, dim), mesh), _place(norms.reshape(-1, rows), mesh)
    return lambda queries, count: _nearest(queries, *parts, count=count, mesh=mesh)


def faiss_search(gallery: Float[np.ndarray, "n d"], block: int | None) -> Search:
    """A search by faiss's flat index.

    On GPUs where faiss sees any and the count allows it, else on the CPU. `block` plays no part:
    faiss has blocks of its own.
    """
    try:
        import faiss
    except ImportError as error:
        raise ValueError(
            "backend 'faiss' needs the faiss module, which is not installed"
        ) from error
    cpu = faiss.IndexFlatL2(gallery.shape[1])
    cpu.add(gallery)
    gpu = faiss.index_cpu_to_all_gpus(cpu) if faiss.get_num_gpus() > 0 else None

    def search(queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        index = cpu if gpu is None or count > FAISS_GPU_COUNT else gpu
        return index.search(queries, count)

    return search


SEARCHES: dict[str, Callable[[np.ndarray, int | None], Search]] = {
    "jax": jax_search,
    "faiss": faiss_search,
}


def _place(array: np.ndarray, mesh: Mesh | None) -> Array:
    """On the devices, the leading axis split over `data`; every process holds the whole array."""
    if mesh is None:
        return jnp.asarray(array)
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return jax.make_array_from_callback(array.shape, sharding, lambda where: array[where])


@partial(jax.jit, static_argnames=("count", "mesh"))
def _nearest(
    queries: Float[Array, "q d"],
    gallery: Float[Array, "blocks rows d"],
    norms: Float[Array, "blocks rows"],
    *,
    count: int,
    mesh: Mesh | None,
) -> tuple[Float[Array, "q count"], Int[Array, "q count"]]:
    squares = jnp.sum(queries * queries, axis=1, keepdims=True)
    if mesh is None:
        return _stream(squares, queries, gallery, norms, count, jnp.int32(0))

    def local(squares: Array, queries: Array, gallery: Array, norms: Array) -> tuple[Array, Array]:
        first = lax.axis_index("data") * gallery.shape[0] * gallery.shape[1]
        near, rows = _stream(squares, queries, gallery, norms, count, first)
        near, rows = (lax.all_gather(a, "data", axis=1, tiled=True) for a in (near, rows))
        near, where = lax.top_k(-near, count)
        return -near, jnp.take_along_axis(rows, where, axis=1)

    whole, split = PartitionSpec(), PartitionSpec("data")
    # check_vma cannot see that what follows an all_gather is the same on every device.
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(whole, whole, split, split),
        out_specs=whole,
        check_vma=False,
    )(squares, queries, gallery, norms)


def _stream(
    squares: Float[Array, "q 1"],
    queries: Float[Array, "q d"],
    gallery: Float[Array, "blocks rows d"],
    norms: Float[Array, "blocks rows"],
    count: int,
    first: Int[Array, ""],
) -> tuple[Float[Array, "q count"], Int[Array, "q count"]]:
    """The `count` nearest of one device's part; places that it cannot fill are infinitely far."""
    width = gallery.shape[1]

    def step(best: tuple[Array, Array, Array], part: tuple[Array, Array]) -> tuple[tuple, None]:
        near, rows, start = best
        vectors, sizes = part
        products = lax.dot_general(
            queries, vectors, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST
        )
        far = jnp.concatenate([near, squares + sizes[None, :] - 2 * products], axis=1)
        far, where = lax.top_k(-far, count)
        kept = jnp.take_along_axis(rows, jnp.minimum(where, count - 1), axis=1)
        rows = jnp.where(where < count, kept, start + where - count)
        return (-far, rows, start + width), None

    empty = jnp.full((len(queries), count), jnp.inf, jnp.float32)
    none = jnp.zeros((len(queries), count), jnp.int32)
    (near, rows, _), _ = lax.scan(step, (empty, none, first), (gallery, norms))
    return near, rows
