"""Miners whose choice depends on all pairs of a batch: by counting them, never by listing them.

Each has two parts: `..._before(whole_batch, ...)` adds up counts over all blocks of anchors, the same on every
device, and the miner looks up what that means for its block.
"""

from fractions import Fraction
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt

from dml_jax.miners.batch import Mask, Sims
from dml_jax.pairwise import Block, WholeBatch
from dml_jax.selection import Selection

DIGIT = 16  # bits of a number that one pass over the pairs finds out
CHUNK = 64  # draws that are looked up at a time


class Cut(NamedTuple):
    """Where the hardest pairs of each kind, positive and negative, end.

    Attributes:
      key: of the least hard pair that is chosen, `[2]`.
      ties: how many pairs of just that key are chosen, `[2]`.
      before: how many pairs of that key the anchors before each have, `[b, 2]`.
    """

    key: UInt[Array, " 2"]
    ties: UInt[Array, " 2"]
    before: UInt[Array, "b 2"]


def check_filter(*, filter_percentage: float = 0.5) -> None:
    """ValueError for a share that is none."""
    if not 0 <= filter_percentage <= 1:
        raise ValueError(
            f"filter_percentage of miner 'hdc' is {filter_percentage}; accepted: 0 to 1"
        )


def hdc_before(whole_batch: WholeBatch, *, filter_percentage: float, similarity: bool) -> Cut:
    """The cut by radix selection.

    A pass over all pairs counts the next digit of those that share the digits found so far; one more
    counts the ties of each anchor.
    """
    dtype = jnp.promote_types(whole_batch.anchors[0].dtype, jnp.float32)
    bits = 8 * dtype.itemsize
    key = jnp.zeros(2, f"uint{bits}")
    left = jnp.zeros(2, jnp.uint32)
    for shift in range(bits - DIGIT, -1, -DIGIT):
        first = shift == bits - DIGIT
        count = partial(_count_digits, shift=shift, first=first, similarity=similarity)
        counts, _ = whole_batch.map_blocks(count, key)
        upto = jnp.cumsum(counts[:, ::-1], -1)  # from the hardest digit down
        if first:
            left = _share(filter_percentage, upto[:, -1])
        place = jnp.sum(upto < left[:, None], -1)
        left -= jnp.where(place > 0, upto[jnp.arange(2), place - 1], 0)
        key = (key << DIGIT) | (2**DIGIT - 1 - place).astype(key.dtype)

    def ties(block: Block) -> tuple[tuple[()], UInt[Array, "a 2"]]:
        keys, there = _hardness(block, similarity)
        tied = there & (keys == _by_kind(block, block.prepass_sums))[None]
        return (), jnp.sum(tied, -1, dtype=jnp.uint32).T

    _, tied = whole_batch.map_blocks(ties, key)
    return Cut(key, left, jnp.cumsum(tied, 0) - tied)


def _count_digits(
    block: Block, *, shift: int, first: bool, similarity: bool
) -> tuple[UInt[Array, "2 r"], tuple[()]]:
    """How many pairs of each kind have which digit at `shift`, of those whose higher digits are the prepass sums."""
    keys, there = _hardness(block, similarity)
    there = jnp.any(there, 0)
    if not first:
        there &= (keys >> (shift + DIGIT)) == _by_kind(block, block.prepass_sums)
    digits = ((keys >> shift) & (2**DIGIT - 1)).astype(jnp.uint32)
    place = digits + _by_kind(block, jnp.asarray([0, 2**DIGIT], jnp.uint32))
    counts = jnp.zeros(2 << DIGIT, jnp.uint32).at[place].add(there.astype(jnp.uint32))
    return counts.reshape(2, -1), ()


def _hardness(block: Block, similarity: bool) -> tuple[UInt[Array, "a n"], Bool[Array, "2 a n"]]:
    """(a number of each pair that is larger for a harder pair of its kind, where there are pairs of each)."""
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
    """`values[0]` for positive pairs, `values[1]` for the others, `[a, n]`."""
    return jnp.where(block.related.pos > 0, values[0], values[1])


def _share(share: float, counts: UInt[Array, " 2"]) -> UInt[Array, " 2"]:
    """ceil(share * counts) in integers, whatever the size of the counts."""
    ratio = Fraction(share).limit_denominator(2**DIGIT - 1)
    whole, rest = counts // ratio.denominator, counts % ratio.denominator
    part = (ratio.numerator * rest + ratio.denominator - 1) // ratio.denominator
    return ratio.numerator * whole + part


def hdc(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    filter_percentage: float = 0.5,
    similarity: bool = False,
    block: Block,
    miner_state: Cut,
) -> Selection:
    """The hardest ceil(filter_percentage * count) pairs of the batch, of each kind (Yuan et al., ICCV 2017).

    The hardest positives are the farthest, the hardest negatives the nearest, over all anchors. The number
    is exact: of several that are equally hard the first in the order (anchor, reference) are taken, where
    PML takes any. `filter_percentage` is a share of 1, to four decimals. Up to 2^32 pairs. PML's
    `set_idx_externally` (mining what another miner chose) is not there.
    """
    del sims, pos, neg, filter_percentage
    keys, there = _hardness(block, similarity)
    cut = _by_kind(block, miner_state.key)
    tied = there & (keys == cut)[None]
    rank = miner_state.before[block.anchor_ids].T[:, :, None] + jnp.cumsum(
        tied, -1, dtype=jnp.uint32
    )
    keep = there & (keys > cut)[None] | tied & (rank <= miner_state.ties[:, None, None])
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


def check_bins(*, num_bins: int = 100, pos_per_bin: int = 10, neg_per_bin: int = 10) -> None:
    """ValueError for numbers that do not count."""
    counts = {"num_bins": num_bins, "pos_per_bin": pos_per_bin, "neg_per_bin": neg_per_bin}
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(
                f"{name} of miner 'uniform_histogram' is {count!r}; accepted: a positive integer"
            )


def uniform_histogram_before(
    whole_batch: WholeBatch,
    *,
    num_bins: int,
    pos_per_bin: int,
    neg_per_bin: int,
    key: Key[Array, ""],
) -> tuple[Draws, Draws]:
    """The draws of both kinds: a pass for the ends, one for the counts of each anchor, one for the columns.

    A draw is a rank among the pairs of its bin in the order (anchor, reference). Draws are in the order of their
    anchors, so that each block has a stretch of them.
    """
    ends = whole_batch.map_blocks(_ends)[1]
    low, high = jnp.min(ends[0], 0), jnp.max(ends[1], 0)
    some = low <= high
    low, high = jnp.where(some, low, 0), jnp.where(some, high, 0)
    edges = jax.vmap(partial(jnp.linspace, num=num_bins + 1))(low, high)
    _, counts = whole_batch.map_blocks(_count_bins, edges)

    def draw(key: Key[Array, ""], counts: Int[Array, "b r"], each: int) -> tuple[Array, ...]:
        upto = jnp.cumsum(counts, 0)
        total = upto[-1][:, None]
        rank = jax.random.randint(key, (num_bins, each), 0, jnp.maximum(total, 1))
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
        for i, (k, size) in enumerate(zip(jax.random.split(key), sizes, strict=True))
    ]
    columns, _ = whole_batch.map_blocks(_find, (edges, [x[:3] for x in drawn]))
    first, second = (Draws(x[0], c, x[3]) for x, c in zip(drawn, columns, strict=True))
    return first, second


def _kinds(block: Block) -> tuple[Bool[Array, "a n"], Bool[Array, "a n"]]:
    return block.related.pos > 0, block.related.neg > 0


def _ends(block: Block) -> tuple[tuple[()], tuple[Float[Array, "a 2"], Float[Array, "a 2"]]]:
    """The smallest and the largest distance of each anchor's pairs, by kind."""
    low = [jnp.min(jnp.where(x, block.sims, jnp.inf), -1) for x in _kinds(block)]
    high = [jnp.max(jnp.where(x, block.sims, -jnp.inf), -1) for x in _kinds(block)]
    return (), (jnp.stack(low, -1), jnp.stack(high, -1))


def _bins(sims: Sims, edges: Float[Array, " r"]) -> Int[Array, "a n"]:
    """The bin of each distance: [low, high), but [low, high] for the last."""
    last = edges.shape[0] - 2
    width = (edges[-1] - edges[0]) / (last + 1)
    guess = (sims - edges[0]) / jnp.where(width > 0, width, 1)
    place = jnp.clip(jnp.floor(guess).astype(jnp.int32), 0, last)
    # The quotient is off by a rounding error, and so by one bin at most.
    place -= (sims < edges[place]) & (place > 0)
    place += (sims >= edges[place + 1]) & (place < last)
    return jnp.where(width > 0, place, last)


def _count_bins(block: Block) -> tuple[tuple[()], list[Int[Array, "a r"]]]:
    """How many pairs of each anchor are in which bin, by kind."""
    rows = jnp.arange(block.sims.shape[0])[:, None]
    none = jnp.zeros((block.sims.shape[0], block.prepass_sums.shape[1] - 1), jnp.int32)
    return (), [
        none.at[rows, _bins(block.sims, edges)].add(kind.astype(jnp.int32))
        for edges, kind in zip(block.prepass_sums, _kinds(block), strict=True)
    ]


def _find(block: Block) -> tuple[list[Int[Array, " t"]], tuple[()]]:
    """The columns of the drawn pairs whose anchors are in the block, by kind; 0 for the others."""
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


def uniform_histogram(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    num_bins: int = 100,
    pos_per_bin: int = 10,
    neg_per_bin: int = 10,
    block: Block,
    miner_state: tuple[Draws, Draws],
) -> Selection:
    """As many pairs of each distance: per_bin draws from every bin that is not empty, with replacement.

    num_bins bins of equal width between the smallest and the largest distance of the batch's pairs, for
    positives and negatives apart; a bin holds its lower end, the last its upper end, too. A pair weighs as
    often as it was drawn. Distribution as PML's.
    """
    del sims, num_bins, pos_per_bin, neg_per_bin

    def weights(mask: Mask, draws: Draws) -> Float[Array, "a n"]:
        place = draws.row - block.anchor_ids[0]
        inside = (place >= 0) & (place < mask.shape[0]) & draws.there
        place = jnp.where(inside, place, mask.shape[0])  # out of range: dropped
        return jnp.zeros(mask.shape).at[place, draws.column].add(1.0, mode="drop")

    return Selection(weights(pos, miner_state[0]), weights(neg, miner_state[1]))
