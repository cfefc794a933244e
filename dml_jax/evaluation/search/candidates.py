"""Searches in float32 that find candidates for the nearest neighbours, one per backend.

A search is `(queries [q, d], squares [q], count) -> Found`: for each query `count` rows of the gallery that are
nearest up to float32 rounding. What is made of them (`index.Index`) is exact and so does not depend on
which search found them. The approximate searches (`APPROXIMATE`) may miss neighbours; they say that nothing
they left out is known to be farther.
"""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from dml_jax import streams
from dml_jax.errors import UserError
from dml_jax.mesh import axes_of, data_devices, data_mesh


class Found(NamedTuple):
    """Candidates, nearest first.

    Attributes:
      near: squared Euclidean distances, `inf` where there is no candidate.
      rows: of the gallery.
      furthest: no row that is missing among the candidates has a smaller `near`.
      coarse: how far `near` may lie under the value that the search computed, as a share of it.
    """

    near: Float[Array | np.ndarray, "q count"]
    rows: Int[Array | np.ndarray, "q count"]
    furthest: Float[Array | np.ndarray, " q"]
    coarse: float = 0.0


Search = Callable[[np.ndarray, np.ndarray, int], Found]

# Queries and rows of the gallery that a device compares at a time: their tile of distances stays in a CPU's cache
# (8 MiB), and takes 512 MiB of an accelerator's memory.
ON_CPU, ON_ACCELERATOR = (1024, 2048), (8192, 16384)
# Bytes of an accelerator for what is kept of all groups, about one float32 of 16 rows for each query (2 GiB).
KEPT_BYTES = 1 << 31
GROUPS = (64, 32, 16, 8, 4)
KEPT = (2, 4)
# The share of queries that may need a second search because more than that fell into one group.
CROWDED = 0.02
# Above every squared distance between vectors of norm about 1, and finite.
FAR = np.float32(2.0**100)
# The GPU indexes of faiss refuse to return more neighbours than this.
FAISS_GPU_COUNT = 2048


def jax_search(gallery: Float[np.ndarray, "n d"], block: int | None) -> Search:
    """A search by blocked matrix products over the devices of the mesh.

    The gallery lies on the devices once, a part on each, in an order drawn at random. A device goes over
    it in tiles [queries, rows] of distances. It keeps of each group of rows only the two or four nearest
    and a bound on the next, and searches among these; that is enough unless more neighbours share a group,
    which the bound tells. Where very many are wanted it merges each tile into the best so far. The devices'
    best are gathered and the best of them kept.
    """
    mesh = data_mesh()
    shards = data_devices()
    size, dim = gallery.shape
    width = _tile(block or block_sizes(size)[1], -(-size // shards))
    blocks = -(-size // (shards * width))
    order = streams.generator("evaluation", size).permutation(size)
    padded = np.zeros((shards * blocks * width, dim), np.float32)
    np.take(gallery, order, axis=0, out=padded[:size])
    norms = np.full(len(padded), np.inf, np.float32)
    norms[:size] = np.einsum("nd,nd->n", padded[:size], padded[:size], dtype=np.float64)
    rows = np.zeros(len(padded), np.int32)
    rows[:size] = order
    parts = tuple(
        place(array.reshape(-1, width, *array.shape[1:]), mesh) for array in (padded, norms, rows)
    )

    def search(queries: np.ndarray, squares: np.ndarray, count: int) -> Found:
        group, kept = _plan(count, size, width, blocks)
        near, found, furthest = _nearest(
            queries, as_float32(squares), *parts, count=count, group=group, kept=kept, mesh=mesh
        )
        return Found(near, found, furthest, coarse=group * 2.0**-23 if group > 1 else 0.0)

    return search


def faiss_search(gallery: Float[np.ndarray, "n d"], block: int | None) -> Search:
    """A search by faiss's flat index.

    On GPUs where faiss sees any and the count allows it, else on the CPU. `block` plays no part:
    faiss has blocks of its own.
    """
    faiss = _faiss()
    cpu = faiss.IndexFlatL2(gallery.shape[1])
    cpu.add(gallery)
    gpu = faiss.index_cpu_to_all_gpus(cpu) if faiss.get_num_gpus() > 0 else None

    def search(queries: np.ndarray, squares: np.ndarray, count: int) -> Found:
        index = cpu if gpu is None or count > FAISS_GPU_COUNT else gpu
        near, rows = index.search(queries, count)
        return Found(near, rows, near[:, -1])

    return search


def jax_approximate(gallery: Float[np.ndarray, "n d"], block: int | None) -> Search:
    """`jax.lax.approx_max_k` (Chern et al. 2022) on one device.

    Its recall is about 0.95 or better on TPUs; on other devices it is exact up to rounding. `block` plays no part.
    """
    norms = np.einsum("nd,nd->n", gallery, gallery, dtype=np.float64).astype(np.float32)
    vectors, sizes = jnp.asarray(gallery), jnp.asarray(norms)

    def search(queries: np.ndarray, squares: np.ndarray, count: int) -> Found:
        near, rows = _approximate(queries, as_float32(squares), vectors, sizes, count=count)
        return Found(near, rows, np.full(len(queries), np.inf))

    return search


def faiss_ivf(gallery: Float[np.ndarray, "n d"], block: int | None) -> Search:
    """faiss's inverted file: sqrt(n) cells, of which the 16 nearest are looked into. `block` plays no part."""
    faiss = _faiss()
    cells = max(1, round(len(gallery) ** 0.5))
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(gallery.shape[1]), gallery.shape[1], cells)
    index.nprobe = 16
    index.train(gallery)
    index.add(gallery)
    return _unbounded(index)


def faiss_hnsw(gallery: Float[np.ndarray, "n d"], block: int | None) -> Search:
    """faiss's navigable small world graph: 32 links a node, search width 128. `block` plays no part."""
    index = _faiss().IndexHNSWFlat(gallery.shape[1], 32)
    index.hnsw.efConstruction = 80
    index.hnsw.efSearch = 128
    index.add(gallery)
    return _unbounded(index)


def _unbounded(index: Any) -> Search:
    def search(queries: np.ndarray, squares: np.ndarray, count: int) -> Found:
        near, rows = index.search(queries, count)
        missing = rows < 0
        near[missing], rows[missing] = np.inf, 0
        return Found(near, rows, np.full(len(queries), np.inf))

    return search


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise UserError("backend 'faiss' needs the faiss module, which is not installed") from error
    return faiss


SEARCHES: dict[str, Callable[[np.ndarray, int | None], Search]] = {
    "approx_max_k": jax_approximate,
    "faiss": faiss_search,
    "faiss_hnsw": faiss_hnsw,
    "faiss_ivf": faiss_ivf,
    "jax": jax_search,
}
APPROXIMATE = ("approx_max_k", "faiss_hnsw", "faiss_ivf")


def block_sizes(size: int) -> tuple[int, int]:
    """(queries, rows of a gallery of `size`) that a device compares at a time unless a block is given."""
    if jax.default_backend() == "cpu":
        return ON_CPU
    queries, rows = ON_ACCELERATOR
    # A power of two, so that few programs are compiled.
    most = 1 << max(8, (4 * KEPT_BYTES // size).bit_length() - 1)
    return min(queries, most), rows


def as_float32(squares: np.ndarray) -> np.ndarray:
    return np.minimum(squares, FAR).astype(np.float32)


def place(array: np.ndarray, mesh: Mesh | None) -> Array:
    """On the devices, the leading axis split over all of them; every process holds the whole array."""
    if mesh is None:
        return jnp.asarray(array)
    sharding = NamedSharding(mesh, PartitionSpec(axes_of(mesh)))
    return jax.make_array_from_callback(array.shape, sharding, lambda where: array[where])


def _tile(block: int, size: int) -> int:
    """The rows of a tile: at most about `block`, a multiple of the largest group where there are that many."""
    width = min(block, size)
    return -(-width // GROUPS[0]) * GROUPS[0] if width >= GROUPS[0] else width


def _plan(count: int, size: int, width: int, blocks: int) -> tuple[int, int]:
    """(how many rows share a group, how many nearest of each are kept); (1, 1): no groups."""
    best = (1, 1)
    for group, kept in itertools.product(GROUPS, KEPT):
        # Of `count` rows among size / group groups, so many sets of kept + 1 are expected to share one.
        crowded = math.comb(count, kept + 1) * (group / size) ** kept
        # A device's part must hold `count` rows that are kept.
        enough = kept * blocks * width >= group * count
        # Fewer groups to choose among come first, then fewer comparisons.
        if width % group == 0 and crowded <= CROWDED and enough and group > best[0]:
            best = (group, kept)
    return best


@partial(jax.jit, static_argnames=("count", "group", "kept", "mesh"))
def _nearest(
    queries: Float[Array, "q d"],
    squares: Float[Array, " q"],
    gallery: Float[Array, "blocks rows d"],
    norms: Float[Array, "blocks rows"],
    rows: Int[Array, "blocks rows"],
    *,
    count: int,
    group: int,
    kept: int,
    mesh: Mesh | None,
) -> tuple[Float[Array, "q count"], Int[Array, "q count"], Float[Array, " q"]]:
    axes = () if mesh is None else axes_of(mesh)
    stream = partial(_grouped, group=group, kept=kept) if group > 1 else _merged

    def local(
        squares: Array, queries: Array, gallery: Array, norms: Array, rows: Array
    ) -> tuple[Array, Array, Array]:
        near, at, bound = stream(squares[:, None], queries, gallery, norms, count)
        found = rows.reshape(-1)[at]
        if mesh is not None:
            near, found = (lax.all_gather(a, axes, axis=1, tiled=True) for a in (near, found))
            near, where = lax.top_k(-near, count)
            near, found = -near, jnp.take_along_axis(found, where, axis=1)
            bound = lax.pmin(bound, axes)
        near = jnp.where(near < FAR, near, jnp.inf)
        return near, found, jnp.minimum(bound, near[:, -1])

    if mesh is None:
        return local(squares, queries, gallery, norms, rows)
    whole, split = PartitionSpec(), PartitionSpec(axes)
    # check_vma cannot see that what follows an all_gather is the same on every device.
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(whole, whole, split, split, split),
        out_specs=whole,
        check_vma=False,
    )(squares, queries, gallery, norms, rows)


def distances(
    squares: Float[Array, "q 1"],
    queries: Float[Array, "q d"],
    vectors: Float[Array, "n d"],
    sizes: Float[Array, " n"],
) -> Float[Array, "q n"]:
    """Squared distances from 0 to FAR, which also stands for what is padding or overflows."""
    products = lax.dot_general(
        queries, vectors, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST
    )
    far = squares + sizes[None, :] - 2 * products
    return jnp.where(far < FAR, jnp.maximum(far, 0), FAR)


def _merged(
    squares: Float[Array, "q 1"],
    queries: Float[Array, "q d"],
    gallery: Float[Array, "blocks rows d"],
    norms: Float[Array, "blocks rows"],
    count: int,
) -> tuple[Float[Array, "q count"], Int[Array, "q count"], Float[Array, " q"]]:
    """The `count` nearest of one device's part, each tile merged into the best before it."""
    width = gallery.shape[1]

    def step(
        best: tuple[Array, Array, Array], part: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array, Array], None]:
        near, rows, start = best
        far = jnp.concatenate([near, distances(squares, queries, *part)], axis=1)
        far, where = lax.top_k(-far, count)
        kept = jnp.take_along_axis(rows, jnp.minimum(where, count - 1), axis=1)
        rows = jnp.where(where < count, kept, start + where - count)
        return (-far, rows, start + width), None

    empty = jnp.full((len(queries), count), FAR, jnp.float32)
    none = jnp.zeros((len(queries), count), jnp.int32)
    (near, rows, _), _ = lax.scan(step, (empty, none, jnp.int32(0)), (gallery, norms))
    return near, rows, jnp.full(len(queries), jnp.inf, jnp.float32)


def _grouped(
    squares: Float[Array, "q 1"],
    queries: Float[Array, "q d"],
    gallery: Float[Array, "blocks rows d"],
    norms: Float[Array, "blocks rows"],
    count: int,
    group: int,
    kept: int,
) -> tuple[Float[Array, "q count"], Int[Array, "q count"], Float[Array, " q"]]:
    """The `count` nearest of one device's part among the `kept` nearest of each group of rows.

    Also, for each query, a bound under which no other row of a group lies. Distances are not negative, so their
    bits compare as integers do; a row's number in its group takes the place of the last bits.
    """
    blocks, width = gallery.shape[:2]
    groups = width // group
    number = jnp.arange(group, dtype=jnp.int32)[None, :, None]

    def step(bound: Array, part: tuple[Array, Array]) -> tuple[Array, list[Array]]:
        far = distances(squares, queries, *part)
        bits = lax.bitcast_convert_type(far, jnp.int32).reshape(len(far), group, groups)
        *least, next_ = _smallest(bits & -group | number, kept + 1)
        return jnp.minimum(bound, next_.min(axis=1)), least

    most = jnp.full(len(queries), np.iinfo(np.int32).max, jnp.int32)
    bound, least = lax.scan(step, most, (gallery, norms))
    # [kept, blocks, q, groups] -> [q, kept * blocks * groups]
    keys = jnp.moveaxis(jnp.stack(least), 2, 0).reshape(len(queries), -1)
    keys, where = lax.top_k(-lax.bitcast_convert_type(keys, jnp.float32), count)
    bits = lax.bitcast_convert_type(-keys, jnp.int32)
    tile, of = where // groups % blocks, where % groups
    rows = tile * width + (bits & (group - 1)) * groups + of
    near, bound = (lax.bitcast_convert_type(b & -group, jnp.float32) for b in (bits, bound))
    return near, rows, bound


def _smallest(bits: Int[Array, "q group n"], count: int) -> list[Array]:
    """The smallest values over axis 1, in order: compiled as loops over whole vectors, unlike a sort."""
    least = [jnp.full_like(bits[:, 0], np.iinfo(np.int32).max)] * count
    for i in range(bits.shape[1]):
        # What is pushed out of one place goes on to the next.
        new = bits[:, i]
        for place, old in enumerate(least):
            least[place], new = jnp.minimum(old, new), jnp.maximum(old, new)
    return least


@partial(jax.jit, static_argnames="count")
def _approximate(
    queries: Float[Array, "q d"],
    squares: Float[Array, " q"],
    vectors: Float[Array, "n d"],
    sizes: Float[Array, " n"],
    *,
    count: int,
) -> tuple[Float[Array, "q count"], Int[Array, "q count"]]:
    near, rows = lax.approx_max_k(
        -distances(squares[:, None], queries, vectors, sizes), count, recall_target=0.95
    )
    return -near, rows
