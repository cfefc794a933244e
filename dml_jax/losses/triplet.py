"""Losses on triplets, reduced to one value a row; never an `[a, n, n]` array."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dml_jax.bound import Bound
from dml_jax.distances import Distance
from dml_jax.errors import UserError
from dml_jax.losses.base import (
    DistanceSpec,
    Loss,
    MinerSpec,
    ReducerSpec,
    RegularizerSpec,
    RelationSpec,
    build_parts,
)
from dml_jax.losses.forms import on_pairs, partner_sims
from dml_jax.losses.kernels import Mask, Rows, Sims
from dml_jax.pairwise import Block
from dml_jax.parameters import PositiveInt, checked
from dml_jax.selection import (
    STREAM_LIMIT,
    Listed,
    Selection,
    Triplets,
    Within,
    draw_triplets,
    pick,
    sum_over_positives,
)

# "all", or how many triplets to draw for each anchor.
TripletsPerAnchor = Literal["all"] | PositiveInt


def drawn(name: str, triplets_per_anchor: int | str) -> dict[str, Any]:
    """Returns the fields of a loss on triplets that draws some of them where it has no miner.

    Args:
      name: of the loss.
      triplets_per_anchor: "all", or how many to draw.
    """
    if triplets_per_anchor == "all":
        return {}
    return {"draw": Bound(_draw, name=name, count=triplets_per_anchor)}


def _draw(block: Block, keys: Array | None, *, name: str, count: int) -> Selection:
    if keys is None:
        raise UserError(
            f"loss {name!r} draws triplets_per_anchor={count} at random and needs a key"
        )
    return draw_triplets(block.related.pos, block.related.neg, keys, count)


def triplet_margin_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    margin: float,
    swap: bool,
    smooth_loss: bool,
    similarity: bool,
    triplets: Triplets | None = None,
    partner: Callable[[Array, Array], Array] | None = None,
    vectors: tuple[Array, Array] | None = None,
    low: float,
    high: float,
) -> Rows:
    """Returns (mean over its triplets, how many were averaged) of each anchor; see `triplet_margin`.

    `triplets` narrows them (see `selection`); with `swap` d_pn is `partner(one, vectors[1])`, the distances of the
    positive under `one` to all references. It is evaluated in closed form: one sort of the row's negatives, with prefix
    sums, gives the value and the gradient in O(n log n); a row block whose anchors have few positives streams over
    these instead, and so do `swap` and `smooth_loss`, which have no such form. Same values up to rounding.
    """
    sign = -1.0 if similarity else 1.0
    d = sign * sims
    hinge = jax.nn.softplus if smooth_loss else jax.nn.relu
    closer, refs = None, None
    if swap:
        if partner is None or vectors is None:
            raise ValueError("swap needs 'partner' and 'vectors', for the distances d_pn")
        closer, refs = (lambda one, refs: sign * partner(one, refs)), vectors[1]

    def stream(d: Sims, pos: Mask, neg: Mask, triplets: Triplets | None) -> Rows:
        value = lambda d_ap, d_an: hinge(d_ap - d_an + margin)
        bounds = dict(low=low, high=high)
        return sum_triplets(value, d, d, pos, neg, triplets, closer=closer, refs=refs, **bounds)

    own_order = triplets is None or (isinstance(triplets, Within) and triplets.own_order)
    if own_order and not (swap or smooth_loss):
        closed = partial(_sorted, margin=margin, low=low, high=high)
        most = jnp.max(jnp.sum(pos > 0, -1))
        total, count = jax.lax.cond(most <= STREAM_LIMIT, stream, closed, d, pos, neg, triplets)
    else:
        total, count = stream(d, pos, neg, triplets)
    some = count > 0
    return jnp.where(some, total / jnp.where(some, count, 1), 0), count


def _triplet_margin(
    block: Block,
    *,
    margin: float,
    swap: bool,
    smooth_loss: bool,
    distance: Distance,
    low: float,
    high: float,
) -> Rows:
    chosen = block.selection
    return triplet_margin_rows(
        block.sims,
        chosen.pos,
        chosen.neg,
        margin=margin,
        swap=swap,
        smooth_loss=smooth_loss,
        similarity=distance.similarity,
        triplets=chosen.triplets,
        partner=Bound(partner_sims, distance=distance),
        vectors=(block.anchors, block.refs),
        low=low,
        high=high,
    )


@checked("loss")
def triplet_margin(
    margin: float = 0.05,
    swap: bool = False,
    smooth_loss: bool = False,
    triplets_per_anchor: TripletsPerAnchor = "all",
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the triplet margin loss of each anchor.

    l_apn = [d_ap - d_an + margin]+      (similarities: [s_an - s_ap + margin]+)

    averaged over the triplets whose loss is within the bounds of the reducer: by default those that violate the margin
    (Schroff et al., CVPR 2015; PML's avg_non_zero). An anchor without a counted triplet has no part. Evaluated in
    closed form, without a list of triplets: O(n log n) a row. Differs from PML in memory (PML lists all triplets), and
    in that `swap` takes references.

    Args:
      margin: what a negative is to be farther than a positive; PML's default.
      swap: True puts min(d_an, d_pn) in the place of d_an (Balntas et al., BMVC 2016); PML's default.
      smooth_loss: True puts softplus in the place of [.]+; PML's default.
      triplets_per_anchor: "all", PML's default, or how many to draw for each anchor (by `apply`'s key and the anchor's
        position in the batch) where there is no miner.
      miner: narrows the triplets (`dml_jax.miners`): a name, a dict with a name, or the object; None: all triplets.
      distance: by default "lp", Euclidean between normalised vectors, as in PML (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "avg_non_zero", as in PML.
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a hyper-parameter of another type.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(triplet_margin(margin=0.2)(x, [0, 1, 0, 1])), 3)
      0.894
    """
    parts = build_parts(
        "triplet_margin",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        default_distance="lp",
        default_reducer="avg_non_zero",
    )
    # Several terms would have reducers of their own; this loss has one.
    kernel = Bound(
        _triplet_margin,
        margin=margin,
        swap=swap,
        smooth_loss=smooth_loss,
        distance=parts.distance,
        low=parts.reducer.low,
        high=parts.reducer.high,
    )
    return on_pairs("triplet_margin", parts, kernel, **drawn("triplet_margin", triplets_per_anchor))


def over_triplets(
    term: Callable[[Array, Array, Array, Any], tuple[Array, Array]],
    near: Sims,
    far: Sims,
    pos: Mask,
    neg: Mask,
    triplets: Triplets | None,
    rest: Any = (),
    *,
    closer: Callable[[Array, Any], Array] | None = None,
    refs: Any = None,
) -> tuple[Array, Array]:
    """Returns the sums of `term(near_ap, far_an, weights, rest) -> (value, count)` over the triplets of each row.

    One positive of every row at a time, O(a n) each: never an `[a, n, n]` array. `term` sums over the last
    axis of what it gets, `[a, m]` (near_ap may be `[a, 1]`), and holds no arrays of its own (they would have
    no derivative); `rest` are constants. With `closer`, far_an is the smaller of itself and
    closer(one, refs)_an, where `one` `[a, n]` marks the positive.
    """

    def reach(one: Array, far: Array, refs: Any) -> Array:
        return far if closer is None else jnp.minimum(far, closer(one, refs))

    if isinstance(triplets, Listed):
        at = partial(jnp.take_along_axis, axis=-1)
        columns = jnp.arange(near.shape[1])[None, :]

        def slot(indices: tuple[Array, Array]) -> Array:
            positive, negative = (x[:, None] for x in indices)
            return at(reach(positive == columns, far, refs), negative)[:, 0]

        if closer is None:
            beyond = at(far, triplets.negative)
        else:
            slots = (triplets.positive.T, triplets.negative.T)
            beyond = jax.lax.map(jax.checkpoint(slot), slots).T
        weight = triplets.weight.astype(near.dtype)
        return term(at(near, triplets.positive), beyond, weight, rest)

    def of_one(one: Array, operands: Any, others: Any) -> tuple[Array, Array]:
        (near, far, refs), (neg, triplets, rest) = operands, others
        if triplets is not None:
            neg = triplets.negatives(one, neg)
        return term(pick(one, near)[:, None], reach(one, far, refs), neg, rest)

    others = (neg.astype(near.dtype), triplets, rest)
    return sum_over_positives(of_one, (near, far, refs), others, pos)


def within(values: Array, weights: Array, low: float, high: float) -> Rows:
    """Returns (sum, count) by row of the values with low < value < high; NaN is counted, so that it shows."""
    weights = jnp.where((values <= low) | (values >= high), 0, weights)
    return jnp.sum(jnp.where(weights > 0, values, 0) * weights, -1), jnp.sum(weights, -1)


def sum_triplets(
    value: Callable[[Array, Array], Array], *triplets: Any, low: float, high: float, **reach: Any
) -> Rows:
    """Returns (sum, count) of value(near_ap, far_an) over the triplets of each row with low < value < high.

    `value` is elementwise; the rest as `over_triplets`.
    """

    def term(near_ap: Array, far_an: Array, weights: Array, rest: Any) -> Rows:
        return within(value(near_ap, far_an), weights, low, high)

    return over_triplets(term, *triplets, **reach)


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
    """Returns (sum, count) of the hinges in (low, high), from the row's sorted negatives.

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
