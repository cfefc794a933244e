"""Which bin the distance of each pair falls in, over all devices, in float32, with float64 for the pairs in doubt.

A device computes an interval that holds a pair's distance (`intervals`). Where the interval lies in one bin, that is
the pair's bin; else the pair is in doubt, and the host finds its bin in float64 (`Pairs.bins`). So the bins are
those of the keys, whatever the devices, their number and the order in which they add.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from dml_jax.evaluation.verification import intervals
from dml_jax.evaluation.verification.intervals import ADDED, HALF, LOWEST, UNROLLED, Side
from dml_jax.evaluation.verification.pairs import (
    KEYS_PER_POWER_OF_TWO,
    Pairs,
    Vectors,
    Window,
    distances_of,
)
from dml_jax.mesh import data_mesh

# Queries and items of a tile, on CPUs and on accelerators.
TILE, ON_ACCELERATOR = 2048, 4096
# Queries that a CPU computes at a time: what it computes stays in its cache.
ROWS = 256
# A key is the bits of a float32 number times this, but for the offset between the exponents of float64 and float32.
KEYS_PER_ULP = KEYS_PER_POWER_OF_TWO >> 23
EXPONENTS = (1023 - 127) * KEYS_PER_POWER_OF_TWO


class Bins(NamedTuple):
    """What the distances of pairs are sorted into; codes of bins count from 1, and 0 means in doubt.

    Attributes:
      size: how many there are; the code `size + 1` is that of a pair that is in none.
      exact: keys -> bins, from 0; a negative number for none, which differs from gap to gap between bins.
      kind: how a device finds the bin of an interval: by `bits`, in `windows` or by `steps`.
      edges: keys, for bits [start], for windows [windows, 2].
      shift: for bits, of keys.
      outside: for windows, the codes of pairs below the first and above the last of them.
      steps: for steps, the distances of the first and of the last one.
      complete: True where a pair that is in no doubt can be in a bin.
    """

    size: int
    exact: Callable[[np.ndarray], np.ndarray]
    kind: str
    edges: Int[np.ndarray, "..."]
    shift: int = 0
    outside: tuple[int, int] = (0, 0)
    steps: tuple[float, float] = (0.0, 0.0)
    complete: bool = True

    @classmethod
    def of_windows(cls, windows: Sequence[Window]) -> "Bins":
        """The buckets of windows, which are disjoint and ascending, counted through all of them."""
        low, high, start, shift, buckets = np.array(windows, np.int64).T
        offsets = np.cumsum(buckets) - buckets
        count = int(buckets.sum())

        def exact(keys: np.ndarray) -> np.ndarray:
            begun = np.searchsorted(low, keys, side="right")
            i = np.maximum(begun - 1, 0)
            bucket = np.minimum(np.maximum(keys - start[i], 0) >> shift[i], buckets[i] - 1)
            return np.where((keys >= low[i]) & (keys < high[i]), offsets[i] + bucket, -1 - begun)

        both = (count + 1, count + 1)
        edges = np.stack([low, high], axis=1)
        return cls(count, exact, "windows", edges, outside=both, complete=False)

    @classmethod
    def of_window(cls, window: Window) -> "Bins":
        """The buckets of a window that holds every key."""
        found = cls.of_windows([window])
        if 1 << window.shift >= KEYS_PER_ULP:
            edges = np.array([window.start])
            return found._replace(kind="bits", edges=edges, shift=window.shift, complete=True)
        # float32 cannot tell the buckets apart, but for the first and the last one.
        end = window.start + (window.buckets << window.shift)
        edges = np.array([[window.start, end]])
        return found._replace(edges=edges, outside=(1, window.buckets), complete=True)

    @classmethod
    def of_steps(cls, at: Float[np.ndarray, " t"]) -> "Bins":
        """For each of some thresholds at equal steps, the distances up to it and above the one before."""

        def exact(keys: np.ndarray) -> np.ndarray:
            found = np.searchsorted(at, distances_of(keys))
            return np.where(found < len(at), found, -1)

        return cls(len(at), exact, "steps", np.empty(0), steps=(float(at[0]), float(at[-1])))


class Tile(NamedTuple):
    """Some pairs.

    Attributes:
      rows: a slice of the queries.
      columns: a slice of the items.
      weight: how often each of its pairs counts.
      codes: [b, c], of their bins.
      genuine: [b, c].
      self_pairs: (places in rows, places in columns) of the queries' pairs with themselves.
      doubt: (places in rows, places in columns, bins from 0) of the other pairs whose code is 0; without those that
        are in no bin.
    """

    rows: slice
    columns: slice
    weight: int
    codes: Int[np.ndarray, "b c"]
    genuine: Bool[np.ndarray, "b c"]
    self_pairs: tuple[np.ndarray, np.ndarray]
    doubt: tuple[np.ndarray, np.ndarray, np.ndarray]


def tiles(pairs: Pairs, bins: Bins) -> Iterator[Tile]:
    """Yields this process's share of the pairs in tiles, with their bins.

    The tiles are dealt out to the devices of the mesh in context; without one, one device has all of them. Devices hold
    all vectors, 6 bytes a coordinate.

    Args:
      pairs: all of them.
      bins: what their distances are sorted into.
    """
    mesh = data_mesh()
    devices = [jax.local_devices()[0]] if mesh is None else list(mesh.devices.flat)
    mine = [
        i for i, d in enumerate(devices) if mesh is None or d.process_index == jax.process_index()
    ]
    local = Mesh(np.array([devices[i] for i in mine]), ("tiles",))
    on_cpu = devices[0].platform == "cpu"
    largest = max(len(pairs.queries), len(pairs.items))
    size = min(TILE if on_cpu else ON_ACCELERATOR, 1 << max(7, (largest - 1).bit_length()))
    power = _power(pairs)
    sides = [_side(pairs, "queries", power, size)]
    if not pairs.symmetric:
        sides.append(_side(pairs, "items", power, size))
    # Few windows, and steps, are hardly wider by the rounding of all products; that of two thirds of them is saved.
    fine = bins.kind == "bits" or (bins.kind == "windows" and len(bins.edges) > UNROLLED)
    bounds = _bounds(pairs, sides, fine)
    on_devices = [jax.device_put(side, NamedSharding(local, P())) for side in sides]
    edges, steps = _on_device(bins, power)
    shift = max(0, bins.shift - (KEYS_PER_ULP.bit_length() - 1))
    numbers = np.array([shift, bins.size, *bins.outside], np.int32)
    corners = [
        (row, column)
        for row in range(0, len(pairs.queries), size)
        for column in range(row if pairs.symmetric else 0, len(pairs.items), size)
    ]
    waiting: deque[tuple[list[tuple[int, int]], Array]] = deque()
    source = _Source(pairs, bins)

    def next_tiles() -> Iterator[Tile]:
        some, found = waiting.popleft()
        shards = {shard.index[0].start or 0: shard.data for shard in found.addressable_shards}
        for i, corner in enumerate(some):
            yield source.tile(size, corner, np.asarray(shards[i])[0])

    for start in range(0, len(corners), len(devices)):
        some = [corners[start + i] for i in mine if start + i < len(corners)]
        if not some:
            break
        # A device without a tile computes one of the others'.
        where = np.array([*some, *[some[0]] * (len(mine) - len(some))], np.int32)
        with jax.set_mesh(local):
            found = intervals.codes(
                on_devices[0],
                on_devices[-1],
                where,
                edges,
                numbers,
                steps,
                bounds,
                mesh=local,
                size=size,
                rows=min(size, ROWS) if on_cpu else size,
                kind=bins.kind,
                cosine=pairs.distance == "cosine",
                fine=fine,
            )
        waiting.append((some, found))
        # The next tiles are computed while these are counted.
        if len(waiting) == 2:
            yield from next_tiles()
    while waiting:
        yield from next_tiles()


class _Source:
    """Makes tiles of what devices found. The vectors of the last rows and columns are kept."""

    def __init__(self, pairs: Pairs, bins: Bins) -> None:
        self.pairs, self.bins = pairs, bins
        self._kept: dict[str, tuple[slice, Vectors]] = {}

    def _vectors(self, which: str, rows: slice) -> Vectors:
        if which not in self._kept or self._kept[which][0] != rows:
            self._kept[which] = rows, self.pairs.vectors(which, rows)
        return self._kept[which][1]

    def tile(self, size: int, corner: tuple[int, int], found: np.ndarray) -> Tile:
        pairs, (row, column) = self.pairs, corner
        rows = slice(row, min(row + size, len(pairs.queries)))
        columns = slice(column, min(column + size, len(pairs.items)))
        found = found[: rows.stop - row, : columns.stop - column]
        genuine = pairs.relevance.mask(np.arange(rows.start, rows.stop), columns)
        self_index = pairs.self_index[rows]
        mine = np.flatnonzero((self_index >= columns.start) & (self_index < columns.stop))
        at = np.flatnonzero(found == 0)
        a, b = np.divmod(at, found.shape[1])
        others = self_index[a] != b + column
        a, b = a[others], b[others]
        in_bins = a
        if len(a):
            sides = (self._vectors("queries", rows), self._vectors("items", columns))
            in_bins = pairs.bins(self.bins.exact, *sides, a, b)
            some = in_bins >= 0
            a, b, in_bins = a[some], b[some], in_bins[some]
        weight = 2 if pairs.symmetric and row != column else 1
        self_pairs = (mine, self_index[mine] - column)
        return Tile(rows, columns, weight, found, genuine, self_pairs, (a, b, in_bins))


def _power(pairs: Pairs) -> int:
    """The power of two that vectors are divided by, so that no square overflows."""
    if pairs.distance == "cosine" or pairs.largest == 0:
        return 0
    return math.frexp(pairs.largest)[1]


def _side(pairs: Pairs, which: str, power: int, size: int) -> Side:
    """The vectors as devices take them, padded to whole tiles."""
    count, dim = (pairs.queries if which == "queries" else pairs.items).shape
    padded = -(-count // size) * size
    whole = np.zeros((padded, dim), np.int16)
    rest = np.zeros((padded, dim), np.float32)
    scale, zero = np.zeros(padded, np.float32), np.zeros(padded, bool)
    squares = np.zeros((2, padded), np.float32)
    for start in range(0, count, size):
        rows = slice(start, min(start + size, count))
        found = pairs.vectors(which, rows)
        centred = np.ldexp(found.centred, -power)
        exact = np.ldexp(found.squares, -2 * power)
        # Rounded to whole numbers, a vector is at most half a unit of each coordinate longer.
        lengths = np.sqrt(exact) * (1 + dim**0.5 * 2.0**-HALF)
        exponents = np.frexp(lengths)[1] - HALF
        units = np.ldexp(centred, -exponents[:, None])
        whole[rows] = np.rint(units)
        rest[rows] = units - whole[rows]
        scale[rows] = np.where(lengths > 0, np.ldexp(1.0, exponents), 0)
        squares[0, rows] = exact
        squares[1, rows] = exact - squares[0, rows]
        if found.zero is not None:
            zero[rows] = found.zero
    arrays: Any = (whole, rest, scale, squares, zero)
    return Side(*arrays)


def _bounds(pairs: Pairs, sides: Sequence[Side], fine: bool) -> Float[np.ndarray, " 2"]:
    """By how much a squared distance may be off: times both scales, and times the sum of the squares."""
    dim = pairs.queries.shape[1]
    unit = 2.0**-24
    longest = 1.01 * 2.0**HALF
    rests = [
        float(np.sqrt(np.einsum("nd,nd->n", side.rest, side.rest).max(initial=0) * 1.01))
        for side in sides
    ]
    # Of additions in a row; a few more for how accelerators multiply float32 numbers.
    terms = min(2 * dim if fine else dim, ADDED)
    rounded = (terms + -(-2 * dim // ADDED) + 16) * unit
    product = rounded * longest * (rests[0] + rests[-1] if fine else longest)
    # What float32 leaves of the rests.
    product += 4 * longest * dim**0.5 * unit
    # The last term covers what the host takes for 0.
    return np.array([2.02 * product, 2.0**-43 + (dim + 8) * 2.0**-51], np.float32)


def _on_device(bins: Bins, power: int) -> tuple[np.ndarray, np.ndarray]:
    """(edges as the bits of float32 numbers, rounded outwards; `steps` of `codes`)."""
    keys = bins.edges - (EXPONENTS + power * KEYS_PER_POWER_OF_TWO) if len(bins.edges) else 0
    steps = np.zeros(3, np.float32)
    if bins.kind == "steps":
        low, high = (math.ldexp(step, -power) for step in bins.steps)
        per_step = (bins.size - 1) / (high - low)
        steps[:] = low, min(per_step, 1e30), min(per_step * high * 2.0**-20, 1e30)
        return np.zeros(1, np.int32), steps
    down, up = np.floor_divide(keys, KEYS_PER_ULP), -np.floor_divide(-keys, KEYS_PER_ULP)
    if bins.kind == "bits":
        steps[:2] = (keys - down * KEYS_PER_ULP)[0] / KEYS_PER_ULP, KEYS_PER_ULP / (1 << bins.shift)
    edges = down if bins.kind == "bits" else np.stack([down[:, 0], up[:, 1]], axis=1)
    edges = np.clip(edges, LOWEST >> 1, np.iinfo(np.int32).max)
    if bins.kind == "windows":
        # Empty windows up to a power of two of them, so that few programs are compiled.
        room = (1 << (len(edges) - 1).bit_length()) - len(edges)
        edges = np.pad(edges, ((0, room), (0, 0)), constant_values=np.iinfo(np.int32).max)
    return edges.astype(np.int32), steps
