"""Miners whose choice depends on all pairs of a batch: by counting them, never by listing them.

Each has two parts: `prepare_...(whole_batch)` adds up counts over all blocks of anchors, the same on every device, and
`select_...(block, miner_state)` looks up what that means for its block.
"""

import fractions
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt

from dml_jax import distances
from dml_jax.bound import Bound
from dml_jax.mining import Mask, Miner, Sims
from dml_jax.pairwise import Block, WholeBatch
from dml_jax.parameters import Fraction, PositiveInt, checked
from dml_jax.selection import Selection

DIGIT = 16  # bits of a number that one pass over the pairs finds out
# So many neighbouring floats count as equal: a compiler may round the distance of (i, j) otherwise than that of (j, i),
# and otherwise in one pass than in another.
SAME = 64
CHUNK = 64  # draws that are looked up at a time


class Cut(NamedTuple):
    """Where the hardest pairs of each kind, positive and negative, end.

    Attributes:
      key: of the least hard pair that is chosen, `[2]`.
      ties: how many of the pairs that are as hard as that one are chosen, `[2]`.
      before: how many such pairs the anchors before each have, `[b, 2]`.
    """

    key: UInt[Array, " 2"]
    ties: UInt[Array, " 2"]
    before: UInt[Array, "b 2"]


@checked("miner")
def hdc(filter_percentage: Fraction = 0.5, *, distance: Any = None) -> Miner:
    """Keeps the hardest ceil(filter_percentage * count) pairs of the batch, of each kind (Yuan et al., ICCV 2017).

    The hardest positives are the farthest, the hardest negatives the nearest, over all anchors. The number is exact: of
    several that are equally hard, up to 64 roundings of their distance, the first in the order (anchor, reference) are
    taken. Up to 2^32 pairs.

    Args:
      filter_percentage: the share of pairs, 0 to 1, to four decimals; 0.5 is PML's default.
      distance: a name, a dict with a name, or a `Distance`; Euclidean ("lp") by default, as in PML.

    Example:
      >>> from dml_jax import miners
      >>> x = [[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [-1.0, 0.0]]
      >>> [i.tolist() for i in miners.hdc(0.25)(x, [0, 0, 1, 1]).indices()]
      [[2], [3], [1, 2], [2, 1]]

    Differs from PML, which takes any of several that are equally hard. PML's `set_idx_externally` (mining what another
    miner chose) is not there.
    """
    built = distances.build(distance, "lp")
    prepare = Bound(prepare_hdc, filter_percentage=filter_percentage, similarity=built.similarity)
    select = Bound(select_hdc, similarity=built.similarity)
    return Miner("hdc", select, built, triplets=False, prepare=prepare)


def prepare_hdc(whole_batch: WholeBatch, *, filter_percentage: float, similarity: bool) -> Cut:
    """Returns the cut, by radix selection.

    A pass over all pairs counts the next digit of those that share the digits found so far; one more
    counts the ties of each anchor.
    """
    dtype = jnp.promote_types(whole_batch.anchors[0].dtype, jnp.float32)
    bits = 8 * dtype.itemsize
    key = jnp.zeros(2, f"uint{bits}")
    left = count = jnp.zeros(2, jnp.uint32)
    for shift in range(bits - DIGIT, -1, -DIGIT):
        first = shift == bits - DIGIT
        digits = partial(_count_digits, shift=shift, first=first, similarity=similarity)
        counts, _ = whole_batch.map_blocks(digits, key)
        upto = jnp.cumsum(counts[:, ::-1], -1)  # from the hardest digit down
        if first:
            left = count = _share(filter_percentage, upto[:, -1])
        place = jnp.sum(upto < left[:, None], -1)
        left -= jnp.where(place > 0, upto[jnp.arange(2), place - 1], 0)
        key = (key << DIGIT) | (2**DIGIT - 1 - place).astype(key.dtype)

    def beside(block: Block) -> tuple[UInt[Array, " 2"], UInt[Array, "a 2"]]:
        harder, tied = _against(block, block.prepass_sums, similarity)
        return jnp.sum(harder, (1, 2), dtype=jnp.uint32), jnp.sum(tied, -1, dtype=jnp.uint32).T

    harder, tied = whole_batch.map_blocks(beside, key)
    return Cut(key, count - harder, jnp.cumsum(tied, 0) - tied)


def _against(
    block: Block, key: UInt[Array, " 2"], similarity: bool
) -> tuple[Bool[Array, "2 a n"], Bool[Array, "2 a n"]]:
    """Returns which pairs of each kind are harder than the key of their kind, and which are as hard."""
    keys, there = _hardness(block, similarity)
    least = _by_kind(block, key)
    apart = jnp.where(keys > least, keys - least, least - keys) > SAME
    return there & (apart & (keys > least))[None], there & ~apart[None]


def _count_digits(
    block: Block, *, shift: int, first: bool, similarity: bool
) -> tuple[UInt[Array, "2 r"], tuple[()]]:
    """Counts, for each kind, the pairs with each digit at `shift`, among those with the higher digits found so far."""
    keys, there = _hardness(block, similarity)
    there = jnp.any(there, 0)
    if not first:
        there &= (keys >> (shift + DIGIT)) == _by_kind(block, block.prepass_sums)
    digits = ((keys >> shift) & (2**DIGIT - 1)).astype(jnp.uint32)
    place = digits + _by_kind(block, jnp.asarray([0, 2**DIGIT], jnp.uint32))
    counts = jnp.zeros(2 << DIGIT, jnp.uint32).at[place].add(there.astype(jnp.uint32))
    return counts.reshape(2, -1), ()


def _hardness(block: Block, similarity: bool) -> tuple[UInt[Array, "a n"], Bool[Array, "2 a n"]]:
    """Returns a number of each pair that is larger for a harder pair of its kind, and where there are pairs of each."""
    far = -block.sims if similarity else block.sims
    there = jnp.stack([block.related.pos > 0, block.related.neg > 0])
    hard = jnp.where(there[0], far, -far)
    hard = jnp.where(hard == 0, jnp.zeros_like(hard), hard)  # -0 is 0
    # The bits of floats are ordered like the floats, those of negative ones backwards.
    bits = 8 * hard.dtype.itemsize
    raw = jax.lax.bitcast_convert_type(hard, f"uint{bits}")
    top = jnp.asarray(1 << (bits - 1), raw.dtype)
    return jnp.where(raw >= top, ~raw, raw | top), there


def _by_kind(block: Block, values: Array) -> Array:
    """Returns `values[0]` for positive pairs, `values[1]` for the others, `[a, n]`."""
    return jnp.where(block.related.pos > 0, values[0], values[1])


def _share(share: float, counts: UInt[Array, " 2"]) -> UInt[Array, " 2"]:
    """Returns ceil(share * counts), computed in integers, whatever the size of the counts."""
    ratio = fractions.Fraction(share).limit_denominator(2**DIGIT - 1)
    whole, rest = counts // ratio.denominator, counts % ratio.denominator
    part = (ratio.numerator * rest + ratio.denominator - 1) // ratio.denominator
    return ratio.numerator * whole + part


def select_hdc(block: Block, cut: Cut, *, similarity: bool) -> Selection:
    """Chooses the pairs of `hdc`."""
    harder, tied = _against(block, cut.key, similarity)
    rank = cut.before[block.anchor_ids].T[:, :, None] + jnp.cumsum(tied, -1, dtype=jnp.uint32)
    keep = harder | tied & (rank <= cut.ties[:, None, None])
    return Selection(keep[0], keep[1])


class Draws(NamedTuple):
    """Pairs of one kind that were drawn, by their place.

    Attributes:
      row, column: of each, `[draws]`.
      there: False where a draw's bin is empty.
    """

    row: Int[Array, " t"]
    column: Int[Array, " t"]
    there: Bool[Array, " t"]


@checked("miner")
def uniform_histogram(
    num_bins: PositiveInt = 100,
    pos_per_bin: PositiveInt = 10,
    neg_per_bin: PositiveInt = 10,
    *,
    distance: Any = None,
) -> Miner:
    """Draws as many pairs of each distance, from every bin of a histogram that is not empty, with replacement.

    Bins of equal width lie between the smallest and the largest distance of the batch's pairs, for positives and
    negatives apart; a bin holds its lower end, the last its upper end, too. A pair weighs as often as it was drawn.

    Args:
      num_bins: bins, at least 1; 100 is PML's default.
      pos_per_bin: positive pairs drawn from a bin, at least 1; 10 is PML's default.
      neg_per_bin: negative pairs drawn from a bin, at least 1; 10 is PML's default.
      distance: a name, a dict with a name, or a `Distance`; Euclidean ("lp") by default, as in PML.

    Example:
      >>> import jax
      >>> from dml_jax import miners
      >>> x = [[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [-1.0, 0.0]]
      >>> miner = miners.uniform_histogram(num_bins=2, pos_per_bin=1, neg_per_bin=3)
      >>> [len(i) for i in miner(x, [0, 0, 1, 1], key=jax.random.key(0)).indices()]
      [2, 2, 6, 6]

    Distribution as PML's.
    """
    built = distances.build(distance, "lp")
    prepare = Bound(
        prepare_uniform_histogram,
        num_bins=num_bins,
        pos_per_bin=pos_per_bin,
        neg_per_bin=neg_per_bin,
    )
    return Miner(
        "uniform_histogram",
        select_uniform_histogram,
        built,
        triplets=False,
        prepare=prepare,
        draws=True,
    )


def prepare_uniform_histogram(
    whole_batch: WholeBatch, *, num_bins: int, pos_per_bin: int, neg_per_bin: int
) -> tuple[Draws, Draws]:
    """Draws the pairs of both kinds: a pass for the ends, one for the counts of each anchor, one for the columns.

    A draw is a rank among the pairs of its bin in the order (anchor, reference). Draws are in the order of their
    anchors, so that each block has a stretch of them.
    """
    assert whole_batch.key is not None
    ends = whole_batch.map_blocks(_ends)[1]
    low, high = jnp.min(ends[0], 0), jnp.max(ends[1], 0)
    some = low <= high
    low, high = jnp.where(some, low, 0), jnp.where(some, high, 0)
    edges = jax.vmap(partial(jnp.linspace, num=num_bins + 1))(low, high)
    _, counts = whole_batch.map_blocks(_count_bins, edges)

    def draw(key: Key[Array, ""], counts: Int[Array, "b r"], each: int) -> tuple[Array, ...]:
        upto = jnp.cumsum(counts, 0)
        total = upto[-1][:, None]
        # int32, so that no default type changes a choice.
        rank = jax.random.randint(key, (num_bins, each), 0, jnp.maximum(total, 1), jnp.int32)
        row = jax.vmap(partial(jnp.searchsorted, side="right"))(upto.T, rank)
        row = jnp.minimum(row, counts.shape[0] - 1)
        bins = jnp.broadcast_to(jnp.arange(num_bins)[:, None], row.shape)
        rank -= (upto - counts)[row, bins]
        order = jnp.argsort(row.ravel())
        there = jnp.broadcast_to(total > 0, row.shape)
        return tuple(x.ravel()[order] for x in (row, bins, rank, there))

    sizes = (pos_per_bin, neg_per_bin)
    drawn = [
        draw(k, counts[i], size)
        for i, (k, size) in enumerate(zip(jax.random.split(whole_batch.key), sizes, strict=True))
    ]
    columns, _ = whole_batch.map_blocks(_find, (edges, [x[:3] for x in drawn]))
    first, second = (Draws(x[0], c, x[3]) for x, c in zip(drawn, columns, strict=True))
    return first, second


def _kinds(block: Block) -> tuple[Bool[Array, "a n"], Bool[Array, "a n"]]:
    return block.related.pos > 0, block.related.neg > 0


def _ends(block: Block) -> tuple[tuple[()], tuple[Float[Array, "a 2"], Float[Array, "a 2"]]]:
    """Returns the smallest and the largest distance of each anchor's pairs, by kind."""
    low = [jnp.min(jnp.where(x, block.sims, jnp.inf), -1) for x in _kinds(block)]
    high = [jnp.max(jnp.where(x, block.sims, -jnp.inf), -1) for x in _kinds(block)]
    return (), (jnp.stack(low, -1), jnp.stack(high, -1))


def _bins(sims: Sims, edges: Float[Array, " r"]) -> Int[Array, "a n"]:
    """Returns the bin of each distance: [low, high), but [low, high] for the last."""
    last = edges.shape[0] - 2
    width = (edges[-1] - edges[0]) / (last + 1)
    guess = (sims - edges[0]) / jnp.where(width > 0, width, 1)
    place = jnp.clip(jnp.floor(guess).astype(jnp.int32), 0, last)
    # The quotient is off by a rounding error, and so by one bin at most.
    place -= (sims < edges[place]) & (place > 0)
    place += (sims >= edges[place + 1]) & (place < last)
    return jnp.where(width > 0, place, last)


def _count_bins(block: Block) -> tuple[tuple[()], list[Int[Array, "a r"]]]:
    """Counts the pairs of each anchor in each bin, by kind."""
    rows = jnp.arange(block.sims.shape[0])[:, None]
    none = jnp.zeros((block.sims.shape[0], block.prepass_sums.shape[1] - 1), jnp.int32)
    return (), [
        none.at[rows, _bins(block.sims, edges)].add(kind.astype(jnp.int32))
        for edges, kind in zip(block.prepass_sums, _kinds(block), strict=True)
    ]


def _find(block: Block) -> tuple[list[Int[Array, " t"]], tuple[()]]:
    """Returns the columns of the drawn pairs whose anchors are in the block, by kind; 0 for the others."""
    all_edges, drawn = block.prepass_sums

    def columns(kind: Mask, edges: Array, draws: tuple[Array, ...]) -> Int[Array, " t"]:
        rows, bins, ranks = draws
        start, end = jnp.searchsorted(rows, block.anchor_ids[jnp.asarray([0, -1])] + jnp.arange(2))

        def turn(state: tuple[Array, Array]) -> tuple[Array, Array]:
            start, found = state
            at = jnp.minimum(start + jnp.arange(CHUNK), end - 1)
            place = rows[at] - block.anchor_ids[0]
            members = kind[place] & (_bins(block.sims[place], edges) == bins[at][:, None])
            column = jax.vmap(jnp.searchsorted)(jnp.cumsum(members, -1), ranks[at] + 1)
            return start + CHUNK, found.at[at].set(column)

        none = jnp.zeros_like(rows)
        return jax.lax.while_loop(lambda state: state[0] < end, turn, (start, none))[1]

    both = zip(_kinds(block), all_edges, drawn, strict=True)
    return [columns(*x) for x in both], ()


def select_uniform_histogram(block: Block, drawn: tuple[Draws, Draws]) -> Selection:
    """Chooses the pairs of `uniform_histogram`."""

    def weights(mask: Mask, draws: Draws) -> Float[Array, "a n"]:
        place = draws.row - block.anchor_ids[0]
        inside = (place >= 0) & (place < mask.shape[0]) & draws.there
        place = jnp.where(inside, place, mask.shape[0])  # out of range: dropped
        return jnp.zeros(mask.shape).at[place, draws.column].add(1.0, mode="drop")

    return Selection(weights(block.related.pos, drawn[0]), weights(block.related.neg, drawn[1]))
