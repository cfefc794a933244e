"""All pairs of a query and an item of the gallery in tiles, and histograms of their distances.

A pair of a query and an item of the gallery is genuine where the item is relevant, an impostor elsewhere; a query's
pair with itself is neither. Pairs come in tiles, as often as they are asked for, and are never all in memory.

A distance is computed in float64 from a matrix product of the vectors less their median, so that neither an offset
nor an outlier costs precision; it is 0 where it is within the rounding of that product. It is then rounded to 32
significant bits, which makes ties of distances that only rounding tells apart. The bits of such a number, read as an
integer, are its *key*: keys are ordered as the distances are, and histograms count keys.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from dml_jax import names
from dml_jax.errors import UserError
from dml_jax.evaluation.metrics.relevance import ByClass, Relevance
from dml_jax.evaluation.search.index import DISTANCES
from dml_jax.evaluation.vectors import ZERO_NORM, as_embeddings, as_ids, norms

# Queries and items of a tile: its distances are float64 for a moment (32 MiB).
TILE = 2048
# Buckets of the first histogram (counts of more do not stay in the cache, which costs where there are many pairs), and
# of all later ones of a pass together.
BUCKETS, BUCKETS_OF_FEW, FEW = 1 << 16, 1 << 18, 1 << 24
FINE_BUCKETS = 1 << 20
# A float64 number has 53 significant bits; so many of them are rounded away in a key.
ROUNDED_BITS = 21
KEYS_PER_POWER_OF_TWO = 1 << (52 - ROUNDED_BITS)
# The first histogram resolves distances down to 2^-16 of the large ones.
POWERS = 16
# Queries and items whose distances tell where the first histogram has to be fine, and genuine pairs that do.
SAMPLE, GENUINE_SAMPLE = 256, 1 << 13
# The shares of the sampled distances of impostors and of genuine pairs, at either end, that it may leave out.
TRIMMED = (1e-4, 1e-3)
# Rows of which the centre is the median; odd, so that the median of whole numbers is a whole number.
CENTRE_SAMPLE = 1023
# float64 numbers in flight on the host, and codes that are counted at a time, which stay in its cache.
CHUNK = 1 << 22
COUNTED = 1 << 18
# With more windows than this they are found by bisection.
UNROLLED = 8


class Tile(NamedTuple):
    """Some pairs.

    Attributes:
      rows: a slice of the queries.
      columns: a slice of the items.
      weight: how often each of its pairs counts.
      found: [b, c], distances, or codes of their buckets.
      genuine: [b, c].
      self_pairs: (places in rows, places in columns) of the queries' pairs with themselves.
    """

    rows: slice
    columns: slice
    weight: int
    found: np.ndarray
    genuine: Bool[np.ndarray, "b c"]
    self_pairs: tuple[np.ndarray, np.ndarray]


class Window(NamedTuple):
    """A histogram of the keys in [low, high): key k is in bucket (k - start) >> shift.

    The first bucket reaches down to `low`, the last one up to `high`.
    """

    low: int
    high: int
    start: int
    shift: int
    buckets: int

    @classmethod
    def over(cls, low: int, high: int, buckets: int) -> "Window":
        """Divides a range of keys into at most so many buckets of equal width."""
        shift = max(0, math.ceil(math.log2((high - low) / buckets)))
        return cls(low, high, low, shift, -(-(high - low) >> shift))

    def edges(self) -> Int[np.ndarray, " buckets_and_1"]:
        """Returns the keys at which the buckets begin, and `high`."""
        inner = self.start + (np.arange(1, self.buckets, dtype=np.int64) << self.shift)
        return np.concatenate([[self.low], inner, [self.high]])


def keys_of(distances: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Returns the keys of distances: they are rounded to 32 significant bits, and ordered as the distances are.

    >>> keys_of(np.array([0.5, 0.5 + 1e-16, 0.5 + 1e-9])) - keys_of(np.array([0.5]))
    array([0, 0, 4])
    """
    bits = np.ascontiguousarray(distances, np.float64).view(np.int64)
    return (bits + (1 << (ROUNDED_BITS - 1))) >> ROUNDED_BITS


def distances_of(keys: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Returns the distances that have these keys.

    >>> distances_of(keys_of(np.array([0.0, 0.75, 3.0])))
    array([0.  , 0.75, 3.  ])
    """
    return (np.asarray(keys, np.int64) << ROUNDED_BITS).view(np.float64)


@dataclass(frozen=True)
class Pairs:
    """All pairs of queries and items.

    Attributes:
      queries: float32 [q, d].
      items: float32 [n, d].
      self_index: [q], each query's own place among the items, -1 for none.
      relevance: which items are relevant to which queries.
      classes: [q], the queries' classes, for OPIS.
      distance: `euclidean` or `cosine`.
      symmetric: True where the queries are the items, in this order, and relevance goes both ways: half of the pairs
        stand for all.
    """

    queries: Float[np.ndarray, "q d"]
    items: Float[np.ndarray, "n d"]
    self_index: Int[np.ndarray, " q"]
    relevance: Relevance
    classes: Int[np.ndarray, " q"] | None
    distance: str
    symmetric: bool

    @classmethod
    def of(
        cls,
        queries: Float[np.ndarray, "q d"],
        items: Float[np.ndarray, "n d"],
        self_index: Int[np.ndarray, " q"],
        relevance: Relevance,
        classes: Int[np.ndarray, " q"] | None,
        distance: str,
    ) -> "Pairs":
        """Makes the pairs; `symmetric` is found out."""
        symmetric = (
            queries is items
            and isinstance(relevance, ByClass)
            and np.array_equal(self_index, np.arange(len(items)))
        )
        return cls(queries, items, self_index, relevance, classes, distance, symmetric)

    @property
    def genuine(self) -> int:
        """How many pairs are genuine."""
        return int(self.relevance.relevant.sum())

    @property
    def impostors(self) -> int:
        """How many pairs are impostors."""
        pairs = len(self.queries) * len(self.items) - int((self.self_index >= 0).sum())
        return pairs - self.genuine

    @cached_property
    def centre(self) -> Float[np.ndarray, " d"]:
        """The median of the items' coordinates, over some rows: what is subtracted before distances are computed."""
        count = min(len(self.items), CENTRE_SAMPLE)
        rows = _spaced(len(self.items), count - (count + 1) % 2)
        return np.median(self._scaled(self.items, rows), axis=0)

    def _scaled(self, vectors: np.ndarray, rows: np.ndarray | slice) -> Float[np.ndarray, "b d"]:
        """Some of the vectors in float64, divided by their norms for cosine."""
        found = vectors[rows].astype(np.float64)
        return found / self._divisors(found)[:, None] if self.distance == "cosine" else found

    def _divisors(self, vectors: np.ndarray) -> Float[np.ndarray, " n"]:
        """The vectors' norms; inf for zero vectors, which makes them zero."""
        lengths = norms(vectors)
        return np.where(lengths <= ZERO_NORM, np.inf, lengths)

    @cached_property
    def largest(self) -> float:
        """No distance is larger."""
        if self.distance == "cosine":
            return 2.0
        size = max(1, CHUNK // self.items.shape[1])
        return sum(
            max(
                float(norms(vectors[i : i + size] - self.centre).max())
                for i in range(0, len(vectors), size)
            )
            for vectors in (self.queries, self.items)
        )

    def first_window(self) -> Window:
        """The window of the first pass: over all keys, fine where the distances of a sample of pairs are."""
        top = int(keys_of(np.array([self.largest * (1 + 1e-6)]))[0]) + 1
        low, high = np.inf, 0.0
        for sample, share in zip(self._sampled_distances(), TRIMMED, strict=True):
            positive = np.sort(sample[sample > 0])
            cut = int(share * len(positive))
            if len(positive):
                low, high = min(low, positive[cut]), max(high, positive[len(positive) - 1 - cut])
        if high == 0:
            low = high = self.largest
        start, end = map(int, keys_of(np.array([low, high])))
        start = max(start, end - POWERS * KEYS_PER_POWER_OF_TWO, 0)
        few = len(self.queries) * len(self.items) <= FEW
        buckets = BUCKETS_OF_FEW if few else BUCKETS
        shift = max(0, math.ceil(math.log2((end - start + 1) / (buckets - 2))))
        # The first and the last bucket are for what the sample has nothing of.
        return Window(0, top, start - (1 << shift), shift, buckets)

    def _sampled_distances(self) -> tuple[np.ndarray, np.ndarray]:
        """Distances of some impostors and of some genuine pairs."""
        rows = _spaced(len(self.queries), max(1, min(SAMPLE, CHUNK // len(self.items))))
        columns = _spaced(len(self.items), SAMPLE)
        relevant = self.relevance.hits(rows, np.tile(columns, (len(rows), 1)))
        relevant |= self.self_index[rows, None] == columns[None, :]
        query_index, at = np.nonzero(~relevant)
        impostors = self._some_distances(rows[query_index], columns[at])
        query_index, places = self.relevance.members(rows)
        kept = _spaced(len(query_index), GENUINE_SAMPLE)
        return impostors, self._some_distances(rows[query_index[kept]], places[kept])

    def _some_distances(self, rows: np.ndarray, places: np.ndarray) -> np.ndarray:
        found = np.empty(len(rows))
        size = max(1, CHUNK // self.items.shape[1])
        for start in range(0, len(rows), size):
            some = slice(start, start + size)
            apart = self._scaled(self.queries, rows[some]) - self._scaled(self.items, places[some])
            found[some] = np.einsum("md,md->m", apart, apart)
        return found / 2 if self.distance == "cosine" else np.sqrt(found)

    def tiles(self, windows: Sequence[Window] = (), *, complete: bool = False) -> Iterator[Tile]:
        """Yields the pairs in tiles, with their distances or their codes.

        Args:
          windows: where given, disjoint and ascending, tiles hold codes: 0 outside of all windows, else 1 + the number
            of the bucket, counted through all windows.
          complete: True where the only window holds every key.
        """
        size = min(TILE, 1 << max(7, (max(len(self.queries), len(self.items)) - 1).bit_length()))
        device = _device()
        here = jax.sharding.Mesh(np.array([device]), ("here",))
        parts = (self.queries,) if self.symmetric else (self.queries, self.items)
        put = partial(jax.device_put, device=device)
        vectors = [put(np.pad(part, ((0, -len(part) % size), (0, 0)))) for part in parts]
        divisors: list[Array | None] = [None, None]
        zero: list[Array | None] = [None, None]
        if self.distance == "cosine":
            lengths = [self._divisors(part) for part in parts]
            with jax.enable_x64(True):
                divisors = [
                    put(np.pad(found, (0, -len(found) % size), constant_values=1.0))
                    for found in lengths
                ]
            if any(np.isinf(found).any() for found in lengths):
                zero = [put(np.pad(np.isinf(found), (0, -len(found) % size))) for found in lengths]
        with jax.enable_x64(True):
            table = put(_table(windows)) if windows else None
            centre = put(self.centre)
        waiting: deque[tuple[int, int, Array]] = deque()
        for row in range(0, len(self.queries), size):
            for column in range(row if self.symmetric else 0, len(self.items), size):
                # Only the dispatch: other code of this thread keeps its own precision.
                with jax.enable_x64(True), jax.set_mesh(here):
                    found = _tile(
                        (vectors[0], divisors[0], zero[0]),
                        (vectors[-1], divisors[-1], zero[-1]),
                        centre,
                        row,
                        column,
                        table,
                        size=size,
                        cosine=self.distance == "cosine",
                        complete=complete,
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
        self_index = self.self_index[rows]
        mine = np.flatnonzero((self_index >= columns.start) & (self_index < columns.stop))
        return Tile(
            rows,
            columns,
            2 if self.symmetric and row != column else 1,
            np.asarray(found)[: rows.stop - row, : columns.stop - column],
            genuine,
            (mine, self_index[mine] - column),
        )


def _spaced(size: int, count: int) -> Int[np.ndarray, " m"]:
    """At most `count` of the numbers below `size`, at equal steps."""
    return np.unique(np.linspace(0, size - 1, min(size, count)).astype(np.int64))


def _device() -> jax.Device:
    """One device of this process, whatever the mesh in context; the host's CPU beside TPUs, which have no float64."""
    device = jax.local_devices()[0]
    return jax.local_devices(backend="cpu")[0] if device.platform == "tpu" else device


def _table(windows: Sequence[Window]) -> Int[np.ndarray, "windows 6"]:
    """The windows and the code of the first bucket of each, with empty windows up to a power of two of them."""
    offsets = np.cumsum([1, *(window.buckets for window in windows[:-1])])
    table = np.array([(*window, at) for window, at in zip(windows, offsets, strict=True)], np.int64)
    room = (1 << (len(windows) - 1).bit_length()) - len(windows)
    largest = np.iinfo(np.int64).max
    empty = np.array([[largest, largest, 0, 0, 1, 0]], np.int64)
    return np.concatenate([table, np.repeat(empty, room, axis=0)])


Side = tuple[Array, Array | None, Array | None]


@partial(jax.jit, static_argnames=("size", "cosine", "complete"))
def _tile(
    queries: Side,
    items: Side,
    centre: Float[Array, " d"],
    row: Int[Array, ""],
    column: Int[Array, ""],
    table: Int[Array, "windows 6"] | None,
    *,
    size: int,
    cosine: bool,
    complete: bool,
) -> Array:
    """Distances of `size` queries to as many items, or their codes in a table of windows.

    Queries and items are (vectors, divisors, which of them are zero); zero vectors have cosine 0 with everything.
    """

    def part(side: Side, start: Array) -> tuple[Array, Array, Array | None]:
        vectors, divisors, zero = side
        found = lax.dynamic_slice_in_dim(vectors, start, size).astype(jnp.float64)
        if divisors is not None:
            found = found / lax.dynamic_slice_in_dim(divisors, start, size)[:, None]
        found = found - centre[None, :]
        if zero is not None:
            zero = lax.dynamic_slice_in_dim(zero, start, size)
        return found, jnp.sum(found * found, axis=1), zero

    a, squares_a, zero_a = part(queries, row)
    b, squares_b, zero_b = part(items, column)
    sums = squares_a[:, None] + squares_b[None, :]
    squared = sums - 2 * jnp.matmul(a, b.T, precision=lax.Precision.HIGHEST)
    # Equal vectors are at distance 0 and not at that of rounding.
    squared = jnp.where(squared <= (a.shape[1] + 8) * 2.0**-52 * sums, 0, squared)
    distances = squared / 2 if cosine else jnp.sqrt(squared)
    if zero_a is not None and zero_b is not None:
        distances = jnp.where(zero_a[:, None] | zero_b[None, :], 1.0, distances)
    bits = lax.bitcast_convert_type(distances, jnp.int64)
    # Logical shifts: unlike arithmetic ones they are vector instructions everywhere, and nothing is negative here.
    keys = lax.shift_right_logical(bits + (1 << (ROUNDED_BITS - 1)), jnp.int64(ROUNDED_BITS))
    if table is None:
        return lax.bitcast_convert_type(keys << ROUNDED_BITS, jnp.float64)
    if complete:
        _, _, start, shift, buckets, _ = table[0]
        above = jnp.maximum(keys - start, 0)
        bucket = lax.shift_right_logical(above, jnp.broadcast_to(shift, above.shape))
        return 1 + jnp.minimum(bucket, buckets - 1).astype(jnp.int32)
    if table.shape[0] > UNROLLED:
        found = jnp.searchsorted(table[:, 0], keys, side="right", method="scan_unrolled") - 1
        return _codes(keys, *(table[:, j][jnp.maximum(found, 0)] for j in (0, 1, 3, 5)))
    codes = [_codes(keys, *(table[i, j] for j in (0, 1, 3, 5))) for i in range(table.shape[0])]
    return sum(codes[1:], codes[0])


def _codes(keys: Array, low: Array, high: Array, shift: Array, offset: Array) -> Int[Array, "b c"]:
    """The codes of keys in a window whose buckets start at `low`, 0 outside of it."""
    # As unsigned numbers, what lies below the window is far above it: one comparison in place of two.
    above, size, shift = ((x).astype(jnp.uint64) for x in (keys - low, high - low, shift))
    bucket = lax.shift_right_logical(above, jnp.broadcast_to(shift, above.shape))
    return jnp.where(above < size, offset.astype(jnp.int32) + bucket.astype(jnp.int32), 0)


def histograms(
    pairs: Pairs, windows: Sequence[Window], *, complete: bool = False
) -> list[Int[np.ndarray, "2 buckets"]]:
    """Counts impostors and genuine pairs in each bucket of each window, in one pass over the pairs.

    Args:
      pairs: all of them.
      windows: disjoint, ascending, from `Window.over`.
      complete: True where the only window holds every key, as `Pairs.first_window` does.
    """
    size = 1 + sum(window.buckets for window in windows)
    counts = np.zeros((2, size), np.int64)

    def count(codes: np.ndarray) -> np.ndarray:
        flat = codes.reshape(-1)
        found = np.bincount(flat[:COUNTED], minlength=size)
        for start in range(COUNTED, len(flat), COUNTED):
            found += np.bincount(flat[start : start + COUNTED], minlength=size)
        return found

    for tile in pairs.tiles(windows, complete=complete):
        codes = tile.found
        genuine = count(codes[tile.genuine])
        found = count(codes if complete else codes[codes > 0]) - count(codes[tile.self_pairs])
        counts[0] += tile.weight * (found - genuine)
        counts[1] += tile.weight * genuine
    return np.split(counts[:, 1:], np.cumsum([window.buckets for window in windows[:-1]]), axis=1)


def pairs_of(
    embeddings: Float[np.ndarray, "q d"],
    labels: Int[np.ndarray, " q"],
    *,
    gallery: Float[np.ndarray, "n d"] | None = None,
    gallery_labels: Int[np.ndarray, " n"] | None = None,
    self_index: Int[np.ndarray, " q"] | None = None,
    distance: str = "euclidean",
) -> Pairs:
    """Makes the pairs whose curve `roc_curve` draws; arguments and errors as there.

    >>> pairs = pairs_of(np.eye(4), np.array([0, 0, 1, 1]))
    >>> pairs.genuine, pairs.impostors
    (4, 8)
    """
    names.resolve("distance", dict.fromkeys(DISTANCES), distance)
    queries = as_embeddings("embeddings", embeddings)
    labels = as_ids("labels", labels, len(queries))
    items, others = queries, labels
    if gallery is None or gallery_labels is None:
        if gallery is not None or gallery_labels is not None or self_index is not None:
            raise UserError("a gallery needs gallery_labels, and these and self_index a gallery")
        self_index = np.arange(len(queries))
    else:
        items = as_embeddings("gallery", gallery)
        others = as_ids("gallery_labels", gallery_labels, len(items))
        if items.shape[1] != queries.shape[1]:
            raise UserError(
                f"queries have {queries.shape[1]} dimensions, the gallery has {items.shape[1]}"
            )
        self_index = (
            np.full(len(queries), -1)
            if self_index is None
            else as_ids("self_index", self_index, len(queries))
        )
    _, number = np.unique(np.concatenate([labels, others]), return_inverse=True)
    classes, of_items = number[: len(labels)], number[len(number) - len(others) :]
    relevance = ByClass(classes, of_items, self_index)
    return Pairs.of(queries, items, self_index, relevance, classes, distance)
