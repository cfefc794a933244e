"""What is in play on a block of anchors: pairs and triplets, in static shapes.

A miner narrows the relation to a `Selection`. Any loss can read any selection: pair losses take
`pairs()`, triplet losses the triplets, with PML's conversions (pairs join on the anchor; a triplet
(a, p, n) gives the pairs (a, p) and (a, n), and counts as often as it occurs).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dml_jax.linear import linear_call


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["order"],
    meta_fields=["low", "high", "own_order"],
)
@dataclass(frozen=True)
class Within:
    """Of the triplets of a row, those with low < order_an - order_ap <= high.

    Attributes:
      order: distances of the anchors to the references by which the miner chose (a similarity is
        negated, so that smaller is always closer).
      own_order: whether that is the very distance by which the loss is computed.
    """

    order: Float[Array, "a n"]
    low: float
    high: float
    own_order: bool = False

    def negatives(self, one: Bool[Array, "a n"], neg: Array) -> Array:
        """Returns the weights of the negatives that form a triplet with the marked positive of each row."""
        gap = self.order - pick(one, self.order)[:, None]
        return jnp.where((gap > self.low) & (gap <= self.high), neg, jnp.zeros_like(neg))


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["order", "refs"],
    meta_fields=["test", "bound"],
)
@dataclass(frozen=True)
class Streamed:
    """Of the triplets of a row, those that pass a test which is no interval of the row.

    Attributes:
      order: distances of the anchors to the references by which the miner chose.
      refs: the references, for the distances of a positive to the negatives.
      test: `test(one, order, refs, bound) -> [a, n]`: with which negatives the positive that `one` `[a, n]` marks
        in each row forms a triplet. A plain function, so that equal miners compile once.
    """

    order: Float[Array, "a n"]
    refs: Any
    test: Callable[[Array, Array, Array, float], Array]
    bound: float

    def negatives(self, one: Bool[Array, "a n"], neg: Array) -> Array:
        """Returns the weights of the negatives that form a triplet with the marked positive of each row."""
        chosen = self.test(one, self.order, self.refs, self.bound)
        return jnp.where(chosen, neg, jnp.zeros_like(neg))


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["positive", "negative", "weight"],
    meta_fields=["intra_class_negatives"],
)
@dataclass(frozen=True)
class Listed:
    """Up to k triplets of each anchor, by index; weight 0 marks an empty slot.

    Attributes:
      intra_class_negatives: True where a triplet may name what the relation does not allow: the anchor itself as a
        positive, a sample of the anchor's class as a negative. How many do is reported then (`pairwise.in_play`).
    """

    positive: Int[Array, "a k"]
    negative: Int[Array, "a k"]
    weight: Float[Array, "a k"]
    intra_class_negatives: bool = False


Triplets = Within | Streamed | Listed

# Up to this many positives in the fullest row, streaming over them beats sorting the row.
STREAM_LIMIT = 64


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Selection:
    """Pairs (and triplets) in play.

    Attributes:
      pos, neg: weights `[a, n]` of the pairs; 0 where a pair is out of play.
      triplets: None if every pair of a positive and a negative of the row is a triplet.
    """

    pos: Array
    neg: Array
    triplets: Triplets | None = None

    def pairs(self) -> tuple[Array, Array]:
        """Returns the (pos, neg) weights of pairs; what a pair weighs is how many triplets hold it."""
        if self.triplets is None:
            return self.pos, self.neg
        if isinstance(self.triplets, Listed):
            rows = jnp.arange(self.pos.shape[0])[:, None]
            none = jnp.zeros(self.pos.shape, self.triplets.weight.dtype)
            weight = self.triplets.weight
            return (
                none.at[rows, self.triplets.positive].add(weight),
                none.at[rows, self.triplets.negative].add(weight),
            )
        if isinstance(self.triplets, Streamed):
            return _streamed_pairs(self.pos, self.neg, self.triplets)
        most = jnp.max(jnp.sum(self.pos > 0, -1))
        return jax.lax.cond(
            most <= STREAM_LIMIT, _streamed_pairs, _sorted_pairs, self.pos, self.neg, self.triplets
        )


def _streamed_pairs(pos: Array, neg: Array, triplets: Within | Streamed) -> tuple[Array, Array]:
    """Counts how many triplets hold each pair, one positive of every row at a time."""
    neg = neg.astype(jnp.float32)

    def count(one: Array, weight: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        partners = triplets.negatives(one, neg) * weight.astype(neg.dtype)[:, None]
        return sums[0] + jnp.where(one, jnp.sum(partners, -1)[:, None], 0), sums[1] + partners

    return each_positive(count, pos, (jnp.zeros_like(neg), jnp.zeros_like(neg)))


def _sorted_pairs(pos: Array, neg: Array, within: Within) -> tuple[Array, Array]:
    """Counts how many triplets hold each pair, by the sorted row: O(n log n) for any number of positives.

    The partners of a pair are an interval of the sorted pairs of the other kind; their number is a
    difference of prefix sums.
    """
    order = within.order

    def between(weight: Array, side: str, first: Array, last: Array) -> Array:
        """Returns the weight of the pairs in [first, last), or (first, last] where side is "right"."""
        weight = weight.astype(jnp.float32)
        ranked, weight = jax.lax.sort((jnp.where(weight > 0, order, jnp.inf), weight), num_keys=1)
        counts = jnp.pad(jnp.cumsum(weight, -1), [(0, 0), (1, 0)])
        ends = (jax.vmap(partial(jnp.searchsorted, side=side))(ranked, x) for x in (first, last))
        low, high = (jnp.take_along_axis(counts, end, -1) for end in ends)
        return jnp.maximum(high - low, 0)

    return (
        pos * between(neg, "right", order + within.low, order + within.high),
        neg * between(pos, "left", order - within.high, order - within.low),
    )


def draw(keys: Array, mask: Array, count: int = 1) -> Int[Array, "a k"]:
    """Draws `count` columns of each row's mask, uniformly and with replacement, by the rows' own keys.

    Which rank among the marked is drawn depends on the key and on how many there are, nothing else. A row
    without any has an arbitrary column.
    """

    def one(key: Array, row: Array) -> Array:
        # int32, so that no default type changes a choice.
        ranks = jnp.cumsum(row > 0, dtype=jnp.int32)
        rank = jax.random.randint(key, (count,), 0, jnp.maximum(ranks[-1], 1), jnp.int32)
        return jnp.minimum(jnp.searchsorted(ranks, rank + 1), row.shape[0] - 1)

    return jax.vmap(one)(keys, mask)


def draw_positive(pos: Array, neg: Array, keys: Array) -> Selection:
    """Draws one positive of each anchor that has any, uniformly by the anchors' own keys, and all negatives."""
    one = jnp.arange(pos.shape[1])[None, :] == draw(keys, pos)
    return Selection(jnp.where(one, pos, jnp.zeros_like(pos)), neg)


def draw_triplets(pos: Array, neg: Array, keys: Array, count: int) -> Selection:
    """Draws `count` triplets of each anchor that has any, with replacement: p and n uniformly.

    `keys` are the anchors' own. PML: `triplets_per_anchor` (get_random_triplet_indices).
    """
    halves = jax.vmap(jax.random.split)(keys)
    positive, negative = (draw(halves[:, i], x, count) for i, x in enumerate((pos, neg)))
    return Selection(pos, neg, list_triplets(pos, neg, positive, negative))


def list_triplets(
    pos: Array, neg: Array, positive: Int[Array, "a k"], negative: Int[Array, "a k"]
) -> Listed:
    """Lists these triplets, of the anchors that have a positive and a negative."""
    some = jnp.any(pos > 0, -1, keepdims=True) & jnp.any(neg > 0, -1, keepdims=True)
    weight = jnp.broadcast_to(some, positive.shape).astype(jnp.float32)
    return Listed(positive, negative, weight)


def pairs_of_triplets(
    pos: Array, neg: Array, triplets: Triplets | None, dtype: Any
) -> tuple[Array, Array]:
    """Counts how many triplets hold each pair: (a, p) and (a, n), `[a, n]`."""
    if triplets is not None:
        return Selection(pos, neg, triplets).pairs()
    positive, negative = pos.astype(dtype), neg.astype(dtype)
    return (
        positive * jnp.sum(negative, -1, keepdims=True),
        negative * jnp.sum(positive, -1, keepdims=True),
    )


def pick(one: Array, values: Array) -> Array:
    """Returns the value under the row's only True, `[a, n] -> [a]`; 0 in a row without one."""
    return jnp.sum(jnp.where(one, values, 0), axis=-1)


def first_place(mask: Array) -> Int[Array, " a"]:
    """Returns the column of the first True of each row, `[a, n] -> [a]`; n in a row without one."""
    columns = jnp.arange(mask.shape[1])[None, :]
    return jnp.min(jnp.where(mask, columns, mask.shape[1]), axis=-1, initial=mask.shape[1])


def place_of_least(values: Array, mask: Array) -> Int[Array, "a 1"]:
    """Returns the column of the smallest masked value of each row, the first of equal ones; any in a row without.

    As argmin, whose index makes XLA's loop on CPU five times slower.
    """
    least = jnp.min(jnp.where(mask, values, jnp.inf), axis=-1, keepdims=True)
    # Not `values == least`: of values that are no numbers the first masked one is taken.
    place = first_place(mask & ~(values > least))
    return jnp.minimum(place, mask.shape[1] - 1)[:, None]


@jax.custom_jvp
def rows_at(one: Array, rows: Float[Array, "n d"]) -> Float[Array, "a d"]:
    """Returns the row at the only True of each row of `one` `[a, n]`; zeros in a row without one.

    It is a lookup, whose derivative is a matmul: that adds in a fixed order (a scatter on a GPU does not).
    """
    return _look_up(one, rows)


@rows_at.defjvp
def _rows_at_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    one, rows = primals
    return rows_at(one, rows), linear_call(_look_up, _look_up_transposed, one, tangents[1])


def _look_up(one: Array, rows: Array) -> Array:
    place = first_place(one)[:, None]
    found = jnp.take(rows, jnp.minimum(place[:, 0], rows.shape[0] - 1), axis=0)
    return jnp.where(place < rows.shape[0], found, 0)


def _look_up_transposed(one: Array, cotangent: Array) -> Array:
    # (g^T one)^T, because of what a large transposed operand costs (distances.inner_products).
    slopes = jnp.matmul(cotangent.T, one.astype(cotangent.dtype), precision="highest")
    return jax.lax.optimization_barrier(slopes).T


def each_positive(body: Callable[[Array, Array, Any], Any], pos: Array, init: Any) -> Any:
    """Loops over the positives of all rows at once: the k-th positive of every row, k = 0, 1, ...

    `body(one, weight, carry)` gets the mask of the k-th positive, `[a, n]`, and its weight, `[a]`, 0 in
    rows that have no k-th. It runs as often as the row with most positives has any: O(a n) a turn,
    no sort and no `[a, n, n]` array.
    """
    some = pos > 0
    columns = jnp.arange(pos.shape[1])[None, :]

    def turn(state: tuple[Array, Any]) -> tuple[Array, Any]:
        place, carry = state
        one = columns == place[:, None]
        carry = body(one, pick(one, pos), carry)
        return first_place(some & (columns > place[:, None])), carry

    def more(state: tuple[Array, Any]) -> Array:
        return jnp.any(state[0] < pos.shape[1])

    return jax.lax.while_loop(more, turn, (first_place(some), init))[1]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def sum_over_positives(
    term: Callable[[Array, Any, Any], tuple[Array, Array]], operands: Any, rest: Any, pos: Array
) -> tuple[Array, Array]:
    """Returns (sum_p w_p value_p, sum_p w_p count_p) of each row, streamed over its positives.

    A loop of dynamic length has no reverse mode in JAX; the backward pass here is a second such loop, which
    differentiates one positive at a time, so that nothing is kept per positive.

    Args:
      term: `term(one [a, n], operands, rest)` gives one positive's (value, count), `[a, ...]`, by its mask. It holds no
        arrays of its own.
      operands: a tree of float arrays; the value alone has a derivative, by these.
      rest: a tree of constants.
      pos: the weights of the positives, `[a, n]`.
    """

    def body(one: Array, weight: Array, carry: Any) -> Any:
        terms = term(one, operands, rest)
        return jax.tree.map(lambda sum_, x: sum_ + _by_row(weight, x) * x, carry, terms)

    shapes = jax.eval_shape(term, pos > 0, operands, rest)
    return each_positive(body, pos, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))


def _by_row(weight: Array, x: Array) -> Array:
    """Returns the weights `[a]` in the shape and type that multiply `[a, ...]` row by row."""
    return weight.astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


@sum_over_positives.defjvp
def _sum_over_positives_jvp(term: Any, primals: Any, tangents: Any) -> tuple[Any, Any]:
    total, count = sum_over_positives(term, *primals)
    forward, backward = partial(_tangent_sum, term), partial(_cotangent_sum, term)
    slope = linear_call(forward, backward, primals, tangents[0])
    flat: Any = np.zeros(count.shape, jax.dtypes.float0)
    if jnp.issubdtype(count.dtype, jnp.inexact):
        flat = jnp.zeros_like(count)
    return (total, count), (slope, flat)


def _tangent_sum(term: Any, primals: Any, tangents: Any) -> Array:
    operands, rest, pos = primals

    def body(one: Array, weight: Array, sum_: Array) -> Array:
        slope = jax.jvp(lambda x: term(one, x, rest)[0], (operands,), (tangents,))[1]
        return sum_ + _by_row(weight, slope) * slope

    shape = jax.eval_shape(term, pos > 0, operands, rest)[0]
    return each_positive(body, pos, jnp.zeros(shape.shape, shape.dtype))


def _cotangent_sum(term: Any, primals: Any, cotangent: Array) -> Any:
    operands, rest, pos = primals

    def body(one: Array, weight: Array, slopes: Any) -> Any:
        _, pull = jax.vjp(lambda x: term(one, x, rest)[0], operands)
        return jax.tree.map(jnp.add, slopes, pull(_by_row(weight, cotangent) * cotangent)[0])

    return each_positive(body, pos, jax.tree.map(jnp.zeros_like, operands))
