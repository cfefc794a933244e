"""How many items of a gallery lie nearer to a query than given distances, counted on the devices in float32.

A device goes over its part of the gallery tile by tile, as the search of `candidates` does. An item whose float32
distance lies within the rounding error of one of a query's distances is not counted but marked; whoever asks decides
on it in float64.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, UInt32

from dml_jax.evaluation.search import candidates
from dml_jax.evaluation.search.candidates import FAR
from dml_jax.mesh import axes_of, data_devices, data_mesh

# Marks of so many items share a word.
BITS = 32
# Intervals that one pass over a tile looks at.
STEP = 4
# (queries, their squares, low [q, m], high [q, m]) -> (counts [q, m], marks [q, items / BITS]).
Count = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], tuple[Array, Array]]


def counter(gallery: Float[np.ndarray, "n d"], weights: Int[np.ndarray, " n"]) -> Count:
    """Puts a gallery on the devices, a part on each; returns the function that counts.

    For each query and each of its intervals from `low` to `high` it gives how many items are nearer than `low`, each
    counted `weights` times, without those that are marked; and the marks of items that lie in any of the query's
    intervals, as `marked` reads them. The intervals of a query come first in its row; where `high` is
    negative there is none.

    Args:
      gallery: vectors of norms of about 1 at most.
      weights: how often each counts.
    """
    mesh = data_mesh()
    devices = data_devices()
    width = (
        -(-min(candidates.block_sizes(len(gallery))[1], -(-len(gallery) // devices)) // BITS) * BITS
    )
    blocks = -(-len(gallery) // (width * devices)) * devices
    padding = blocks * width - len(gallery)

    def tiles(array: np.ndarray, fill: float) -> Array:
        pad = ((0, padding), *((0, 0),) * (array.ndim - 1))
        padded = np.pad(array, pad, constant_values=fill) if padding else array
        # Items whose marks share a word lie at the same place of the `BITS` parts of a tile.
        padded = padded.reshape(blocks, width // BITS, BITS, *array.shape[1:]).swapaxes(1, 2)
        return candidates.place(padded.reshape(blocks, width, *array.shape[1:]), mesh)

    squares = np.einsum("nd,nd->n", gallery, gallery, dtype=np.float64)
    on_devices = (
        tiles(gallery, 0),
        tiles(candidates.as_float32(squares), float(FAR)),
        tiles(weights.astype(np.int32), 0),
    )

    def count(
        queries: np.ndarray, squares: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> tuple[Array, Array]:
        steps = -(-int((high >= 0).sum(axis=1).max()) // STEP)
        return _count(
            queries, candidates.as_float32(squares), low, high, steps, *on_devices, mesh=mesh
        )

    return count


def marked(words: UInt32[np.ndarray, "q words"]) -> tuple[np.ndarray, np.ndarray]:
    """The marks that words hold: (queries, ascending; items), item i being bit i % 32 of word i / 32."""
    query, word = np.nonzero(words)
    bits = (words[query, word][:, None] >> np.arange(BITS, dtype=np.uint32)) & 1
    which, bit = np.nonzero(bits)
    return query[which], word[which] * BITS + bit


@partial(jax.jit, static_argnames=("mesh",))
def _count(
    queries: Float[Array, "q d"],
    squares: Float[Array, " q"],
    low: Float[Array, "q m"],
    high: Float[Array, "q m"],
    steps: Int[Array, ""],
    gallery: Float[Array, "blocks rows d"],
    norms: Float[Array, "blocks rows"],
    weights: Int[Array, "blocks rows"],
    *,
    mesh: Mesh | None,
) -> tuple[Int[Array, "q m"], UInt32[Array, "q words"]]:
    axes = () if mesh is None else axes_of(mesh)
    count, width = low.shape

    def local(
        squares: Array, queries: Array, low: Array, high: Array, steps: Array, *parts: Array
    ) -> tuple[Array, Array]:
        # [m / STEP, STEP, q, 1]
        low, high = (a.T.reshape(width // STEP, STEP, count, 1) for a in (low, high))

        def tile(counts: Array, part: tuple[Array, ...]) -> tuple[Array, Array]:
            far = candidates.distances(squares[:, None], queries, part[0], part[1])

            def mark(i: Array, marks: Array) -> Array:
                for j in range(STEP):
                    marks |= (far >= low[i, j]) & (far <= high[i, j])
                return marks

            marks = lax.fori_loop(0, steps, mark, jnp.zeros(far.shape, bool))
            # Written out over the parts of a tile, sums are compiled as loops over whole vectors.
            left = jnp.where(marks, jnp.inf, far).reshape(count, BITS, -1)
            often = part[2].reshape(BITS, 1, -1)

            def add(i: Array, counts: Array) -> Array:
                found = []
                for j in range(STEP):
                    sums = jnp.zeros_like(left[:, 0], jnp.int32)
                    for k in range(BITS):
                        sums += jnp.where(left[:, k] < low[i, j], often[k], 0)
                    found.append(sums.sum(axis=1))
                return counts.at[i].add(jnp.stack(found))

            counts = lax.fori_loop(0, steps, add, counts)
            marks = marks.reshape(left.shape)
            words = jnp.zeros_like(left[:, 0], jnp.uint32)
            for k in range(BITS):
                words |= jnp.where(marks[:, k], np.uint32(1 << k), np.uint32(0))
            return counts, words

        none = jnp.zeros((width // STEP, STEP, count), jnp.int32)
        counts, words = lax.scan(tile, none, parts)
        counts = counts.reshape(width, count).T
        words = words.swapaxes(0, 1).reshape(count, -1)
        if mesh is not None:
            counts = lax.psum(counts, axes)
            words = lax.all_gather(words, axes, axis=1, tiled=True)
        return counts, words

    given = (squares, queries, low, high, steps, gallery, norms, weights)
    if mesh is None:
        return local(*given)
    whole, split = PartitionSpec(), PartitionSpec(axes)
    # check_vma cannot see that what follows an all_gather is the same on every device.
    return jax.shard_map(
        local, mesh=mesh, in_specs=(whole,) * 5 + (split,) * 3, out_specs=whole, check_vma=False
    )(*given)
