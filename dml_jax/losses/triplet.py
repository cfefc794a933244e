"""Losses on triplets, reduced to one value a row; never an `[a, n, n]` array."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dml_jax.losses.pair import Mask, Rows, Sims
from dml_jax.selection import Listed, Within, pick, sum_over_positives

# Up to this many positives in the fullest row, streaming over them beats sorting the row.
STREAM_LIMIT = 64


def triplet_margin_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    margin: float = 0.05,
    similarity: bool = False,
    triplets: Within | Listed | None = None,
    low: float = 0.0,
    high: float = math.inf,
) -> Rows:
    """Triplet margin loss of each anchor: (mean over its triplets, how many were averaged).

    l_apn = [d_ap - d_an + margin]+      (`similarity=True`: [s_an - s_ap + margin]+)

    averaged over the triplets with low < l_apn < high: by default those that violate the margin (Schroff
    et al., CVPR 2015; PML's avg_non_zero); low = -inf averages over all. `triplets` narrows them
    further (see `selection`). An anchor without a counted triplet is (0, 0).

    Evaluated in closed form: one sort of the row's negatives, with prefix sums, gives the value and the
    gradient in O(n log n); a row block whose anchors have few positives streams over these instead.
    Same values up to rounding. Differs from PML in nothing but memory (PML lists all triplets).
    """
    d = -sims if similarity else sims
    if isinstance(triplets, Listed):
        gather = partial(jnp.take_along_axis, axis=-1)
        loss = jax.nn.relu(gather(d, triplets.positive) - gather(d, triplets.negative) + margin)
        counted = jnp.where((loss > low) & (loss < high), triplets.weight, 0)
        total, count = jnp.sum(jnp.where(counted > 0, loss, 0) * counted, -1), jnp.sum(counted, -1)
    else:
        stream = partial(_streamed, margin=margin, low=low, high=high)
        if triplets is None or triplets.own_order:
            closed = partial(_sorted, margin=margin, low=low, high=high)
            most = jnp.max(jnp.sum(pos > 0, -1))
            total, count = jax.lax.cond(most <= STREAM_LIMIT, stream, closed, d, pos, neg, triplets)
        else:
            total, count = stream(d, pos, neg, triplets)
    some = count > 0
    return jnp.where(some, total / jnp.where(some, count, 1), 0), count


def _streamed(
    d: Sims,
    pos: Mask,
    neg: Mask,
    triplets: Within | None,
    *,
    margin: float,
    low: float,
    high: float,
) -> Rows:
    """(sum, count) of the hinges in (low, high), one positive of every row at a time."""

    def term(one: Array, d: Array, rest: tuple) -> Rows:
        neg, triplets = rest
        if triplets is not None:
            neg = triplets.negatives(pick(one, triplets.order), neg)
        loss = jax.nn.relu(pick(one, d)[:, None] - d + margin)
        counted = jnp.where((loss > low) & (loss < high), neg, 0)
        return jnp.sum(jnp.where(counted > 0, loss, 0) * counted, -1), jnp.sum(counted, -1)

    return sum_over_positives(term, d, (neg.astype(d.dtype), triplets), pos)


def _sorted(
    d: Sims,
    pos: Mask,
    neg: Mask,
    triplets: Within | None,
    *,
    margin: float,
    low: float,
    high: float,
) -> Rows:
    """(sum, count) of the hinges in (low, high), from the row's sorted negatives.

    The negatives that form a counted triplet with a positive are an interval of the sorted row:
    l > low and l < high bound d_an by d_ap + margin - low from above and d_ap + margin - high from
    below, and a miner's interval of d_an - d_ap narrows it. Counts and sums over it are differences of
    prefix sums.
    """
    weight = neg.astype(d.dtype)
    keep = weight > 0
    # Distances are taken from the row's mean negative: prefix sums of small numbers lose fewer digits.
    center = jax.lax.stop_gradient(
        jnp.sum(jnp.where(keep, d, 0) * weight, -1) / jnp.maximum(jnp.sum(weight, -1), 1)
    )[:, None]
    order, weight = jax.lax.sort((jnp.where(keep, d, jnp.inf), weight), num_keys=1)
    zero = jnp.zeros_like(center)
    sums = jnp.where(weight > 0, order - center, 0) * weight
    counts = jnp.concatenate([zero, jnp.cumsum(weight, -1)], -1)
    sums = jnp.concatenate([zero, jnp.cumsum(sums, -1)], -1)

    fixed, rank = jax.lax.stop_gradient(d), jax.lax.stop_gradient(order)
    below = jax.vmap(partial(jnp.searchsorted, side="left"))  # how many are < x
    upto = jax.vmap(partial(jnp.searchsorted, side="right"))  # how many are <= x
    first = upto(rank, fixed + (margin - high))
    last = jnp.full_like(first, d.shape[-1])
    # A hinge that is clipped to 0 adds nothing to the sum but is counted where low < 0.
    end_sum = below(rank, fixed + (margin - max(low, 0.0)))
    end_count = end_sum if low >= 0 else last
    if triplets is not None:
        first = jnp.maximum(first, upto(rank, fixed + triplets.low))
        end_sum, end_count = (
            jnp.minimum(end, upto(rank, fixed + triplets.high)) for end in (end_sum, end_count)
        )
    at = partial(jnp.take_along_axis, axis=-1)

    def between(prefix: Array, end: Array) -> Float[Array, "a n"]:
        return at(prefix, jnp.maximum(first, end)) - at(prefix, first)

    hinge = between(counts, end_sum) * (d + margin - center) - between(sums, end_sum)
    share = pos.astype(d.dtype)
    return (
        jnp.sum(jnp.where(share > 0, hinge, 0) * share, -1),
        jnp.sum(jnp.where(share > 0, between(counts, end_count), 0) * share, -1),
    )
