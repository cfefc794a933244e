"""The one driver of losses that compare samples with samples.

A loss is a row kernel: a pure function of one block of anchors against all references. The driver
evaluates it densely, in blocks of anchors, and over the `data` axis of the mesh in context. Only sums
leave a block or a device, so all of these give the value and the gradient of the dense loss.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from dml_jax.distances import Distance
from dml_jax.names import unknown
from dml_jax.reducers import Reducer, Sums
from dml_jax.relations import Relation
from dml_jax.selection import Selection
from dml_jax.types import Mean

AXIS = "data"

# kernel(block) -> {term: (values, weights) or (values, weights, divisor)}
Kernel = Callable[["Block"], dict[str, tuple[Array, ...]]]
# first(block) -> (sums over all anchors, one value or more for each anchor)
First = Callable[["Block"], tuple[Any, Any]]
# mine(anchors, refs, pos, neg, keys) -> Selection
Mine = Callable[[Array, Array, Array, Array, Array | None], Selection]


@dataclass(frozen=True)
class Block:
    """What a kernel may look at: some anchors against all references.

    Attributes:
      anchors, refs: vectors `[a, d]`, `[n, d]`.
      sims: what the distance gives for them, `[a, n]`.
      kept: the pairs and triplets in play.
      related: what the relation allows of them, before mining.
      own: what the distance gives for each anchor and itself, `[a]`; None where the references are not
        the batch.
      extra: arrays `[a, ...]` that belong to the anchors, by name (a margin of their class, say).
      sums: what the first phase added up over all anchors; None without one.
      columns: what the first phase gave for each reference as an anchor, `[n, ...]`; None without one.
    """

    anchors: Array
    refs: Array
    sims: Array
    kept: Selection
    related: Selection
    own: Array | None
    extra: dict[str, Array]
    sums: Any = None
    columns: Any = None


def data_devices() -> int:
    """How many devices the `data` axis of the mesh in context has; 1 where there is none."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[AXIS] if AXIS in mesh.axis_names else 1


def pad_rows(tree: Any, rows: int) -> Any:
    """Every array of the tree with `rows` rows of zeros after its last."""
    if rows == 0:
        return tree
    return jax.tree.map(lambda x: jnp.pad(x, [(0, rows)] + [(0, 0)] * (x.ndim - 1)), tree)


def check_block(block: int | None) -> None:
    """ValueError unless `block` is None or a positive int."""
    if block is not None and (isinstance(block, bool) or not isinstance(block, int) or block < 1):
        raise ValueError(
            f"block is {block!r}; accepted: a positive integer, or None for all at once"
        )


def map_anchors(
    fn: Callable[[Array, Array, Any, Any, Any], tuple[Any, Any]],
    anchors: Any,
    refs: Any,
    *,
    everywhere: Any = None,
    block: int | None = None,
) -> tuple[Any, Any]:
    """Evaluates `fn` on blocks of anchors against all references: (summed results, results by row).

    `fn(ids [a], valid [a], anchors [a, ...], refs [M, ...], everywhere) -> (sums, rows)`: the tree `sums`
    is added up over blocks and devices, the tree `rows` (leading axis a) is put together again. `ids` are
    the positions of the anchors in the whole batch, `valid` is False where rows were added to fill a
    block, and `everywhere` is what every block gets whole. Each device of the mesh's `data` axis owns a
    share of the anchors and gathers the references once; a block is recomputed in the backward pass, so
    memory is O(block x M).
    """
    check_block(block)
    total = jax.tree.leaves(anchors)[0].shape[0]
    ref_total = jax.tree.leaves(refs)[0].shape[0]
    devices = data_devices()
    share = -(-total // devices)
    block = share if block is None else min(block, share)
    share = -(-share // block) * block
    anchors = pad_rows(anchors, share * devices - total)
    ids = jnp.arange(share * devices)

    def one_device(ids: Array, anchors: Any, refs: Any, everywhere: Any) -> tuple[Any, Any]:
        def one_block(ids: Array, anchors: Any) -> tuple[Any, Any]:
            return fn(ids, ids < total, anchors, refs, everywhere)

        if block == share:
            return one_block(ids, anchors)
        blocks = jax.tree.map(lambda x: x.reshape(-1, block, *x.shape[1:]), (ids, anchors))
        # Inside a scan the recomputation cannot be merged with the forward pass anyway.
        again = jax.checkpoint(one_block, prevent_cse=False)
        first = jax.tree.map(lambda x: x[0], blocks)
        shapes = jax.eval_shape(one_block, *first)[0]
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def step(sums: Any, x: Any) -> tuple[Any, Any]:
            more, rows = again(*x)
            return jax.tree.map(jnp.add, sums, more), rows

        sums, rows = jax.lax.scan(step, zeros, blocks)
        return sums, jax.tree.map(lambda x: x.reshape(share, *x.shape[2:]), rows)

    if devices == 1:
        sums, rows = one_device(ids, anchors, refs, everywhere)
    else:

        def one_share(ids: Array, anchors: Any, refs: Any, everywhere: Any) -> tuple[Any, Any]:
            # The transpose of this gather is a reduce-scatter: each device gets the gradient of its rows.
            gather = lambda x: jax.lax.all_gather(x, AXIS, tiled=True)[:ref_total]
            sums, rows = one_device(ids, anchors, jax.tree.map(gather, refs), everywhere)
            return jax.lax.psum(sums, AXIS), rows

        # Gradients are taken outside of this shard_map, where they are exact with or without check_vma
        # (which custom_vjp in a loop does not support). Inside they would not be.
        sums, rows = jax.shard_map(
            one_share,
            in_specs=(P(AXIS), P(AXIS), P(AXIS), P()),
            out_specs=(P(), P(AXIS)),
            check_vma=False,
        )(ids, anchors, pad_rows(refs, -ref_total % devices), everywhere)
    return sums, jax.tree.map(lambda x: x[:total], rows)


def select(
    ids: Array,
    valid: Array,
    anchors: tuple[Array, Array, Array],
    refs: tuple[Array, Array | None, Array],
    *,
    relation: Relation,
    exclude_self: bool,
    mine: Mine | None,
    key: Array | None,
) -> tuple[Selection, Selection]:
    """(what the relation allows, what the miner kept of it) on one block of anchors."""
    (a, a_labels, a_valid), (r, r_labels, r_weight) = anchors, refs
    pos, neg = relation(a_labels, r_labels)
    real = (valid & a_valid)[:, None] & (r_weight > 0)[None, :]
    if exclude_self:
        real &= ids[:, None] != jnp.arange(r.shape[0])[None, :]
    pos, neg = pos & real, neg & real
    if r_weight.dtype != bool:
        pos, neg = pos * r_weight[None, :], neg * r_weight[None, :]
    related = Selection(pos, neg)
    if mine is None:
        return related, related
    # The key of a draw is (key, position in the whole batch): no block or device changes the choice.
    keys = None if key is None else jax.vmap(lambda i: jax.random.fold_in(key, i))(ids)
    return related, jax.lax.stop_gradient(
        mine(jax.lax.stop_gradient(a), jax.lax.stop_gradient(r), pos, neg, keys)
    )


def _look(
    ids,
    valid,
    anchors,
    refs,
    *,
    distance,
    relation,
    exclude_self,
    mine,
    key,
    sums=None,
    columns=None,
) -> Block:
    """The block that a kernel sees."""
    vectors, extra = anchors
    related, kept = select(
        ids,
        valid,
        vectors,
        refs,
        relation=relation,
        exclude_self=exclude_self,
        mine=mine,
        key=key,
    )
    own = None
    if exclude_self:
        own = jax.vmap(lambda x: distance(x[None], x[None])[0, 0])(vectors[0])
    sims = distance(vectors[0], refs[0])
    return Block(vectors[0], refs[0], sims, kept, related, own, extra, sums, columns)


def first_phase(
    first: First,
    anchors: tuple[Float[Array, "b d"], Array, Array],
    refs: tuple[Float[Array, "m d"], Array | None, Array],
    *,
    distance: Distance,
    relation: Relation,
    exclude_self: bool,
    mine: Mine | None = None,
    key: Array | None = None,
    block: int | None = None,
    extra: dict[str, Array] | None = None,
) -> tuple[Any, Any]:
    """(sums over all anchors, values of each anchor) of what `first` gives by block, as in `pairwise`."""

    def one_block(ids, valid, anchors, refs, everywhere):
        return first(
            _look(
                ids,
                valid,
                anchors,
                refs,
                distance=distance,
                relation=relation,
                exclude_self=exclude_self,
                mine=mine,
                key=key,
            )
        )

    return map_anchors(one_block, (anchors, extra or {}), refs, block=block)


def in_play(related: Selection, kept: Selection) -> dict[str, Array]:
    """Counts over a block, before and after mining: anchors with both kinds of pairs, pairs."""

    def count(pos: Array, neg: Array) -> Array:
        pos, neg = pos > 0, neg > 0
        both = jnp.any(pos, -1) & jnp.any(neg, -1)
        return jnp.stack([jnp.sum(both), jnp.sum(pos), jnp.sum(neg)]).astype(jnp.float32)

    before = count(related.pos, related.neg)
    return {"before": before, "after": before if kept is related else count(*kept.pairs())}


def fractions(counts: dict[str, Array]) -> dict[str, Array]:
    """The share of anchors, positive and negative pairs that mining left in play; 0 of none is 0."""
    shares = counts["after"] / jnp.maximum(counts["before"], 1)
    names = ("in_play/anchors", "in_play/positives", "in_play/negatives")
    return dict(zip(names, shares, strict=True))


def combine(terms: dict[str, Sums], reducer: Reducer) -> tuple[Array, Array]:
    """(total, weight) of a loss; where it has several terms, each is divided and the means add up."""
    for name, _ in reducer.terms:
        if name not in terms:
            raise unknown(f"term of the loss for reducer {reducer.name!r}:", name, terms)
    if len(terms) == 1:
        ((name, sums),) = terms.items()
        return sums.total, reducer.of(name).denominator(sums)
    means = [
        Mean(sums.total, reducer.of(name).denominator(sums)).compute()
        for name, sums in terms.items()
    ]
    return sum(means[1:], means[0]), jnp.ones_like(means[0])


def pairwise(
    kernel: Kernel,
    anchors: tuple[Float[Array, "b d"], Array, Array],
    refs: tuple[Float[Array, "m d"], Array | None, Array],
    *,
    distance: Distance,
    relation: Relation,
    reducer: Reducer,
    exclude_self: bool,
    mine: Mine | None = None,
    key: Array | None = None,
    block: int | None = None,
    needs_negatives: bool = False,
    extra: dict[str, Array] | None = None,
    first: First | None = None,
    sums: Any = None,
) -> Mean:
    """The loss of a batch of anchors against references.

    `anchors` are (vectors, labels, valid), `refs` (vectors, labels, valid or weight). `exclude_self`
    removes the pair of an anchor with the reference of the same position. `needs_negatives` makes the
    loss 0 where no negative is in play in the whole batch. `first` is evaluated over all anchors before
    the kernel sees any; `sums` are given instead where the caller has them. Sums are in float32 or
    wider, whatever the embeddings are in.
    """
    extra = extra or {}
    how: dict[str, Any] = dict(
        distance=distance, relation=relation, exclude_self=exclude_self, mine=mine, key=key
    )
    columns = None
    if first is not None:
        sums, columns = first_phase(first, anchors, refs, block=block, extra=extra, **how)

    def one_block(ids, valid, anchors, refs, sums):
        refs, columns = refs
        seen = _look(ids, valid, anchors, refs, sums=sums, columns=columns, **how)
        _, labels, real = anchors[0]
        real &= valid
        parts = {}
        for name, (values, weights, *divisor) in kernel(seen).items():
            mask = real if values.ndim == 1 else real[:, None]
            rows = jnp.where(real, divisor[0], 0) if divisor else None
            weights = jnp.where(mask, weights, 0)
            parts[name] = reducer.of(name).sums(values, weights, rows, labels, real)
        return (parts, in_play(seen.related, seen.kept)), ()

    (terms, counts), _ = map_anchors(
        one_block, (anchors, extra), (refs, columns), everywhere=sums, block=block
    )
    total, weight = combine(terms, reducer)
    if needs_negatives:
        total = jnp.where(counts["after"][2] > 0, total, 0)
    return Mean(total, weight, fractions(counts))


def sample_weights(
    anchors: tuple[Float[Array, "b d"], Array, Array],
    refs: tuple[Float[Array, "m d"], Array | None, Array],
    *,
    relation: Relation,
    exclude_self: bool,
    mine: Mine,
    key: Array | None = None,
    block: int | None = None,
    partners: bool = True,
) -> Float[Array, " b"]:
    """How often each anchor occurs in what a miner chose, over the largest such count.

    `partners` says whether it counts as a positive or negative of others, too (the references are the
    batch then), or only as an anchor.

    This is how a loss against class weights uses a miner (PML's `convert_to_weights`). A sample that was
    not chosen weighs 0. Differs from PML where nothing at all was chosen: all weights are 0, and so is
    the loss (PML: all are 1).
    """

    def one_block(ids, valid, anchors, refs, everywhere) -> tuple[Array, Array]:
        _, kept = select(
            ids,
            valid,
            anchors,
            refs,
            relation=relation,
            exclude_self=exclude_self,
            mine=mine,
            key=key,
        )
        pos, neg = (x.astype(anchors[0].dtype) for x in kept.pairs())
        as_anchor = jnp.sum(pos, -1)  # a triplet names its anchor once, two pairs name it twice
        if kept.triplets is None:
            as_anchor += jnp.sum(neg, -1)
        return jnp.sum(pos + neg, 0), as_anchor

    as_partner, as_anchor = map_anchors(one_block, anchors, refs, block=block)
    counts = as_partner + as_anchor if partners else as_anchor
    return counts / jnp.maximum(jnp.max(counts), 1)
