"""The programs of verification on the devices: intervals in float32 that hold the distances, and the bins they lie in.

Products of vectors are where float32 loses its precision. A vector is s (h + l), with s a power of two and h whole
numbers whose products with others float32 adds without rounding; only the products with l, 2^-10 of the others, are
rounded. The rest is computed with the rounding errors of its sums (Knuth's two-sum), so that an interval is a few
units in the last place of the distance wide, or somewhat more for vectors much longer than their distance.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

# Half of the bits of a float32 significand: products of whole numbers of this many bits and their sums are exact.
HALF = 12
# Products that are added in one go where they are rounded: the bound of the error grows with their number.
ADDED = 256
# No squared distance is off by more than this because numbers are too small for float32 (2^-126, times 2^24).
VANISHING = 2.0**-100
# Stands for the bits of a distance that may be 0: it is below every edge.
LOWEST = -(1 << 29)
# With more windows than this they are found by bisection.
UNROLLED = 8


class Side(NamedTuple):
    """Queries or items on the devices: vectors are scale * (whole + rest), all of them divided by one power of two.

    Attributes:
      whole: int16 [n, d], whole numbers of a norm of at most about 2^12.
      rest: float32 [n, d].
      scale: float32 [n], powers of two.
      squares: float32 [2, n], whose sum is the square of a vector's norm.
      zero: [n], the zero vectors, for cosine.
    """

    whole: Int[Array, "n d"]
    rest: Float[Array, "n d"]
    scale: Float[Array, " n"]
    squares: Float[Array, "2 n"]
    zero: Bool[Array, " n"]


@partial(jax.jit, static_argnames=("mesh", "size", "rows", "kind", "cosine", "fine"))
def codes(
    queries: Side,
    items: Side,
    where: Int[Array, "tiles 2"],
    edges: Int[Array, "..."],
    numbers: Int[Array, " 4"],
    steps: Float[Array, " 3"],
    bounds: Float[Array, " 2"],
    *,
    mesh: Mesh,
    size: int,
    rows: int,
    kind: str,
    cosine: bool,
    fine: bool,
) -> Int[Array, "tiles size size"]:
    """Computes the codes of a tile on each device.

    Args:
      queries: all of them.
      items: all of them.
      where: the first row and the first column of each tile.
      edges: of `Bins`, as the bits of float32 numbers.
      numbers: the shift of bits, how many bins there are, the codes of what lies below windows and above them.
      steps: of distances: the first one, how many there are in 1, and how much the number of a step may be off; of
        bits: by how much the first edge is above its bits, and how many buckets there are in one of them.
      bounds: of `_bounds`.
      mesh: of this process's devices.
      size: of a tile.
      rows: of a tile that are computed at a time.
      kind: of `Bins`.
      cosine: True where a distance is half of its square.
      fine: True where exact products are apart from rounded ones.
    """

    def local(
        where: Array,
        queries: Side,
        items: Side,
        edges: Array,
        numbers: Array,
        steps: Array,
        bounds: Array,
    ) -> Array:
        some = _part(items, where[0, 1], size)
        compute = partial(_codes, kind=kind, cosine=cosine, fine=fine)

        def stretch(start: Array) -> Array:
            return compute(_part(queries, start, rows), some, edges, numbers, steps, bounds)

        return lax.map(stretch, where[0, 0] + jnp.arange(0, size, rows)).reshape(1, size, size)

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(P("tiles"), *[P()] * 6),
        out_specs=P("tiles"),
    )(where, queries, items, edges, numbers, steps, bounds)


def _codes(
    a: Side,
    b: Side,
    edges: Array,
    numbers: Array,
    steps: Array,
    bounds: Array,
    *,
    kind: str,
    cosine: bool,
    fine: bool,
) -> Int[Array, "b c"]:
    bits, low, high = _intervals(a, b, bounds, cosine=cosine, fine=fine)
    if kind == "bits":
        # The part of a bucket that lies below the distance.
        above = bits - edges[0]
        within = (above & ((1 << numbers[0]) - 1)).astype(jnp.float32) - steps[0]
        first, last = (
            (above >> numbers[0]) + jnp.floor((within + x) * steps[1]).astype(jnp.int32)
            for x in (low, high)
        )
        first, last = (jnp.clip(x, 0, numbers[1] - 1) for x in (first, last))
        return jnp.where(first == last, first + 1, 0)
    least = bits + jnp.floor(low).astype(jnp.int32)
    most = bits + jnp.ceil(high).astype(jnp.int32)
    if kind == "windows":
        return _in_windows(least, most, edges, numbers)
    first, last = (lax.bitcast_convert_type(jnp.maximum(x, 0), jnp.float32) for x in (least, most))
    first, last = ((x - steps[0]) * steps[1] for x in (first, last))
    first, last = (
        jnp.ceil(jnp.clip(x, -1, numbers[1] + 1)).astype(jnp.int32)
        for x in (first - steps[2], last + steps[2])
    )
    first, last = (jnp.clip(x, 0, numbers[1]) for x in (first, last))
    return jnp.where(first == last, first + 1, 0)


def _part(side: Side, start: Array, size: int) -> Side:
    """Takes the vectors of a tile."""
    squares = lax.dynamic_slice_in_dim(side.squares, start, size, axis=1)
    others = side._replace(squares=side.scale)
    found = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size), others)
    return found._replace(squares=squares)


def _intervals(
    a: Side, b: Side, bounds: Array, *, cosine: bool, fine: bool
) -> tuple[Int[Array, "b c"], Float[Array, "b c"], Float[Array, "b c"]]:
    """Intervals that hold the distances: float32 numbers by their bits, and what to add to these at either end.

    Between two powers of two the bits of a float32 number count its units in the last place.
    """
    squared, left, error = _squared(a, b, bounds, fine)
    rounded, lost = _two_sum(squared, left)
    small = rounded <= 16 * error
    rounded = jnp.where(small, 20 * error, rounded)
    distance = rounded / 2 if cosine else jnp.sqrt(rounded)
    bits = lax.bitcast_convert_type(distance, jnp.int32)
    ulp = lax.bitcast_convert_type(bits & 0x7F800000, jnp.float32) * 2.0**-23
    if cosine:
        offset, half = lost / 2 / ulp, error / 2 / ulp
    else:
        # What rounding took from the root, by its square, of whose halves all products are exact (Dekker 1971).
        upper = lax.bitcast_convert_type(bits & -(1 << HALF), jnp.float32)
        lower = distance - upper
        lost = (squared - upper * upper) - 2 * upper * lower - lower * lower + left
        per_ulp = 0.5 / (distance * ulp)
        offset, half = lost * per_ulp, error * per_ulp
    # The second order of the root, and the roundings above.
    half = half * 1.07 + 2.0**-8
    # Below a power of two units are half as long, so that there are twice as many of them.
    wide = (half > 0.5) | (((bits + 4) & 0x7FFFFF) < 8)
    low = offset - jnp.where(wide, 2 * half + jnp.abs(offset), half)
    low = jnp.where(small, LOWEST - bits.astype(jnp.float32), low)
    high = jnp.where(small, 0.0, offset + half)
    if cosine:
        # Zero vectors are at distance 1 from everything.
        zero = a.zero[:, None] | b.zero[None, :]
        bits = jnp.where(zero, np.float32(1).view(np.int32), bits)
        low, high = (jnp.where(zero, 0.0, x) for x in (low, high))
    return bits, low, high


def _squared(a: Side, b: Side, bounds: Array, fine: bool) -> tuple[Array, Array, Array]:
    """(squared distances, what to add to them, by how much their sum is off at most)."""
    wholes = a.whole.astype(jnp.float32), b.whole.astype(jnp.float32)
    sums = wholes[0] + a.rest, wholes[1] + b.rest
    # Products with powers of two are exact.
    twice = 2 * a.scale[:, None] * b.scale[None, :]
    squares, lost = _two_sum(a.squares[0][:, None], b.squares[0][None, :])
    left = lost + (a.squares[1][:, None] + b.squares[1][None, :])
    squared, lost = _two_sum(squares, -twice * _products(*(wholes if fine else sums)))
    left = left + lost
    if fine:
        rests = [wholes[0], a.rest], [b.rest, sums[1]]
        left = left - twice * _products(*(jnp.concatenate(x, axis=1) for x in rests))
    error = twice / 2 * bounds[0] + squares * bounds[1] + VANISHING
    return squared, left, error


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """(a + b rounded, what the rounding took away) (Knuth 1969)."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def _products(a: Array, b: Array) -> Array:
    """All inner products, of `ADDED` coordinates at a time."""
    parts = [
        jnp.matmul(a[:, i : i + ADDED], b[:, i : i + ADDED].T, precision=lax.Precision.HIGHEST)
        for i in range(0, a.shape[1], ADDED)
    ]
    return sum(parts[1:], parts[0])


def _in_windows(low: Array, high: Array, edges: Array, numbers: Array) -> Int[Array, "b c"]:
    """0 where an interval of bits touches a window, else the code of what lies below all or above some of them."""
    starts, ends = edges[:, 0], edges[:, 1]
    above = low >= ends[0]
    if len(edges) > UNROLLED:
        i = jnp.searchsorted(starts, high, side="right", method="scan_unrolled") - 1
        touches = (i >= 0) & (low < ends[jnp.maximum(i, 0)])
    else:
        each = [(high >= starts[i]) & (low < ends[i]) for i in range(len(edges))]
        touches = sum(each[1:], each[0])
    return jnp.where(touches, 0, jnp.where(above, numbers[3], numbers[2]))
