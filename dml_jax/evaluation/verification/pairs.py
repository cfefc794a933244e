"""All pairs of a query and an item of the gallery in tiles, and histograms of their distances.

A pair of a query and an item of the gallery is genuine where the item is relevant, an impostor elsewhere; a query's
pair with itself is neither. Pairs come in tiles, as often as they are asked for, and are never all in memory. A
distance is a float64 matrix product (0 where that is within its rounding), rounded to float32.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from dml_jax import names
from dml_jax.evaluation.metrics.relevance import ByClass
from dml_jax.evaluation.search.index import DISTANCES
from dml_jax.evaluation.vectors import as_embeddings, as_ids, normalize_rows

# Queries and items of a tile: its distances are float64 for a moment (32 MiB).
TILE = 2048
# Buckets of a histogram, and the float32 numbers that the first one spreads over them: 16 powers of two.
BUCKETS = 1 << 18
SPAN = 1 << 27


class Tile(NamedTuple):
    """Some pairs.

    Attributes:
      rows, columns: slices of the queries and of the items.
      weight: how often each of its pairs counts.
      found: [b, c], distances in float32, or codes of them.
      genuine: [b, c].
      own: (places in rows, places in columns) of the queries' pairs with themselves.
    """

    rows: slice
    columns: slice
    weight: int
    found: np.ndarray
    genuine: Bool[np.ndarray, "b c"]
    own: tuple[np.ndarray, np.ndarray]


class Window(NamedTuple):
    """Histogram of the float32 numbers whose bits lie in [low, high), as integers: bucket (bits - start) >> shift.

    The first bucket reaches down to `low`, the last of `buckets` ones up to `high`.
    """

    low: int
    high: int
    start: int
    shift: int
    buckets: int

    @classmethod
    def over(cls, low: int, high: int) -> "Window":
        """As fine as the number of buckets allows."""
        shift = max(0, math.ceil(math.log2((high - low) / BUCKETS)))
        return cls(low, high, low, shift, -(-(high - low) >> shift))

    def bounds(self, bucket: int) -> tuple[int, int]:
        """The bits from which and below which the bucket's numbers lie."""
        low = self.start + (bucket << self.shift)
        high = low + (1 << self.shift)
        return (
            self.low if bucket == 0 else low,
            self.high if bucket == self.buckets - 1 else high,
        )


@dataclass(frozen=True)
class Pairs:
    """All pairs of queries and items.

    Attributes:
      queries, items: float32 [q, d] and [n, d], unit vectors for cosine.
      own: [q], each query's own place among the items, -1 for none.
      relevance: which items are relevant to which queries.
      classes: [q], for OPIS.
      distance: `euclidean` or `cosine`.
      symmetric: the queries are the items, in this order, and relevance goes both ways: half of the pairs stand
        for all.
    """

    queries: np.ndarray
    items: np.ndarray
    own: np.ndarray
    relevance: Any
    classes: np.ndarray | None
    distance: str
    symmetric: bool

    @classmethod
    def of(
        cls,
        queries: Float[np.ndarray, "q d"],
        items: Float[np.ndarray, "n d"],
        own: Int[np.ndarray, " q"],
        relevance: Any,
        classes: Int[np.ndarray, " q"] | None,
        distance: str,
    ) -> "Pairs":
        """From embeddings as given."""
        symmetric = (
            queries is items
            and isinstance(relevance, ByClass)
            and np.array_equal(own, np.arange(len(items)))
        )
        if distance == "cosine":
            queries = normalize_rows(queries).astype(np.float32)
            items = queries if symmetric else normalize_rows(items).astype(np.float32)
        return cls(queries, items, own, relevance, classes, distance, symmetric)

    @property
    def genuine(self) -> int:
        """How many pairs are genuine."""
        return int(self.relevance.relevant.sum())

    @property
    def impostors(self) -> int:
        """How many pairs are not."""
        return len(self.queries) * len(self.items) - int((self.own >= 0).sum()) - self.genuine

    @cached_property
    def largest(self) -> float:
        """No distance is larger."""
        if self.distance == "cosine":
            return 2.0
        norms = [
            math.sqrt(np.einsum("nd,nd->n", v, v, dtype=np.float64).max())
            for v in (self.queries, self.items)
        ]
        return sum(norms)

    def tiles(self, windows: Sequence[Window] = ()) -> Iterator[Tile]:
        """Distances, or with windows codes of them: 0 outside of all, else 1 + the bucket, counted through them all."""
        size = min(TILE, 1 << max(7, (max(len(self.queries), len(self.items)) - 1).bit_length()))
        # One device of this process, whatever the mesh in context.
        device = jax.local_devices()[0]
        here = jax.sharding.Mesh(np.array([device]), ("here",))
        vectors, lone = [], []
        for part in (self.queries,) if self.symmetric else (self.queries, self.items):
            room = -len(part) % size
            vectors.append(jax.device_put(np.pad(part, ((0, room), (0, 0))), device))
            zero = self.distance == "cosine" and ~part.any(axis=1)
            lone.append(
                jax.device_put(np.pad(zero + np.zeros(len(part), np.float32), (0, room)), device)
            )
        table = None
        if windows:
            offsets = np.cumsum([1, *(window.buckets for window in windows[:-1])])
            rows = [(*window, at) for window, at in zip(windows, offsets, strict=True)]
            table = jax.device_put(np.array(rows, np.int32), device)
        waiting: deque = deque()
        for row in range(0, len(self.queries), size):
            for column in range(row if self.symmetric else 0, len(self.items), size):
                # Only the dispatch: other code of this thread keeps its own precision.
                with jax.enable_x64(True), jax.set_mesh(here):
                    found = _tile(
                        vectors[0],
                        vectors[-1],
                        lone[0],
                        lone[-1],
                        row,
                        column,
                        table,
                        size=size,
                        cosine=self.distance == "cosine",
                    )
                waiting.append((row, column, found))
                # The next tile is computed while this one is counted.
                if len(waiting) == 2:
                    yield self._tile(size, *waiting.popleft())
        while waiting:
            yield self._tile(size, *waiting.popleft())

    def _tile(self, size: int, row: int, column: int, found: jax.Array) -> Tile:
        rows = slice(row, min(row + size, len(self.queries)))
        columns = slice(column, min(column + size, len(self.items)))
        genuine = self.relevance.mask(np.arange(rows.start, rows.stop), columns)
        own = self.own[rows]
        mine = np.flatnonzero((own >= columns.start) & (own < columns.stop))
        return Tile(
            rows,
            columns,
            2 if self.symmetric and row != column else 1,
            np.asarray(found)[: rows.stop - row, : columns.stop - column],
            genuine,
            (mine, own[mine] - column),
        )


@partial(jax.jit, static_argnames=("size", "cosine"))
def _tile(
    queries: Float[Array, "q d"],
    items: Float[Array, "n d"],
    lone_queries: Float[Array, " q"],
    lone_items: Float[Array, " n"],
    row: Int[Array, ""],
    column: Int[Array, ""],
    table: Int[Array, "windows 6"] | None,
    *,
    size: int,
    cosine: bool,
) -> Array:
    """Distances of `size` queries to as many items, or their codes in a table of windows and the first code of each.

    Zero vectors are "lone": at right angles to everything for cosine.
    """

    def part(vectors: Array, lone: Array, start: Array) -> tuple[Array, Array]:
        found = lax.dynamic_slice_in_dim(vectors, start, size).astype(jnp.float64)
        return found, jnp.sum(found * found, axis=1) + lax.dynamic_slice_in_dim(lone, start, size)

    a, squares_a = part(queries, lone_queries, row)
    b, squares_b = part(items, lone_items, column)
    sums = squares_a[:, None] + squares_b[None, :]
    squared = sums - 2 * jnp.matmul(a, b.T, precision=lax.Precision.HIGHEST)
    # Equal vectors are at distance 0 and not at that of rounding.
    squared = jnp.where(squared <= (queries.shape[1] + 8) * 2.0**-52 * sums, 0, squared)
    far = (squared / 2 if cosine else jnp.sqrt(squared)).astype(jnp.float32)
    if table is None:
        return far
    bits = lax.bitcast_convert_type(far, jnp.int32)
    code = jnp.zeros_like(bits)
    for i in range(table.shape[0]):
        low, high, start, shift, buckets, offset = (table[i, j] for j in range(6))
        bucket = jnp.clip((bits - start) >> shift, 0, buckets - 1)
        code = jnp.where((bits >= low) & (bits < high), offset + bucket, code)
    return code


def histograms(pairs: Pairs, windows: Sequence[Window]) -> list[Int[np.ndarray, "2 buckets"]]:
    """How many impostors and how many genuine pairs have their distance in each bucket of each window."""
    size = 1 + sum(window.buckets for window in windows)
    counts = np.zeros((2, size), np.int64)

    def count(codes: np.ndarray) -> np.ndarray:
        return np.bincount(codes.reshape(-1), minlength=size)

    # Few pairs lie in later windows.
    first = windows[0].buckets == BUCKETS
    for tile in pairs.tiles(windows):
        codes = tile.found
        genuine = count(codes[tile.genuine])
        found = count(codes if first else codes[codes > 0]) - count(codes[tile.own])
        counts[0] += tile.weight * (found - genuine)
        counts[1] += tile.weight * genuine
    return np.split(counts[:, 1:], np.cumsum([window.buckets for window in windows[:-1]]), axis=1)


def pairs_of(
    embeddings: Float[np.ndarray, "q d"],
    labels: Int[np.ndarray, " q"],
    *,
    gallery: Float[np.ndarray, "n d"] | None = None,
    gallery_labels: Int[np.ndarray, " n"] | None = None,
    own: Int[np.ndarray, " q"] | None = None,
    distance: str = "euclidean",
) -> Pairs:
    """The pairs whose curve `roc_curve` draws; arguments and errors as there."""
    names.resolve("distance", dict.fromkeys(DISTANCES), distance)
    queries = as_embeddings("embeddings", embeddings)
    labels = as_ids("labels", labels, len(queries))
    items, others = queries, labels
    if gallery is None or gallery_labels is None:
        if gallery is not None or gallery_labels is not None or own is not None:
            raise ValueError("a gallery needs gallery_labels, and these and own a gallery")
        own = np.arange(len(queries))
    else:
        items = as_embeddings("gallery", gallery)
        others = as_ids("gallery_labels", gallery_labels, len(items))
        if items.shape[1] != queries.shape[1]:
            raise ValueError(
                f"queries have {queries.shape[1]} dimensions, the gallery has {items.shape[1]}"
            )
        own = np.full(len(queries), -1) if own is None else as_ids("own", own, len(queries))
    _, of = np.unique(np.concatenate([labels, others]), return_inverse=True)
    classes, of_items = of[: len(labels)], of[len(of) - len(others) :]
    relevance = ByClass(classes, of_items, own)
    return Pairs.of(queries, items, own, relevance, classes, distance)
