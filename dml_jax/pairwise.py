"""The one driver of losses that compare samples with samples.

A loss is a row kernel: a pure function of one block of anchors against all references. The driver
evaluates it densely, in blocks of anchors, and over the `data` axis of the mesh in context. Only sums
leave a block or a device, so all of these give the value and the gradient of the dense loss.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from dml_jax.distances import Distance
from dml_jax.names import unknown
from dml_jax.reducers import Reducer, Sums
from dml_jax.relations import Relation
from dml_jax.selection import Listed, Selection
from dml_jax.types import Mean

AXIS = "data"

# kernel(block) -> {term: (values, weights) or (values, weights, divisor)}
Kernel = Callable[["Block"], dict[str, tuple[Array, ...]]]
# first(block) -> (sums over all anchors, one value or more for each anchor)
First = Callable[["Block"], tuple[Any, Any]]
Anchors = tuple[Float[Array, "b d"], Array, Array]
References = tuple[Float[Array, "m d"], Array | None, Array]

# The position whose key is for draws over the whole batch; no anchor has it.
NOWHERE = 2**32 - 1
# What sets the keys of a loss's own draws apart from those of its miner.
OF_LOSS = 2020


@dataclass(frozen=True)
class Block:
    """What a kernel or a miner may look at: some anchors against all references.

    Attributes:
      anchors, refs: vectors `[a, d]`, `[n, d]`.
      ids: positions of the anchors in the whole batch, `[a]`.
      labels, ref_labels: of the anchors and of the references, as the relation takes them.
      real: False for anchors that are padding, `[a]`.
      sims: what the distance gives for them, `[a, n]`; None where none was asked for.
      kept: the pairs and triplets in play.
      related: what the relation allows of them, before mining.
      own: what the distance gives for each anchor and itself, `[a]`; None where the references are not
        the batch.
      extra: arrays `[a, ...]` that belong to the anchors, by name (a margin of their class, say).
      sums: what the first phase added up over all anchors; None without one.
      columns: what the first phase gave for each reference as an anchor, `[n, ...]`; None without one.
      keys: the anchors' own random keys `[a]` for what the loss draws (a miner has others); None where there is
        no key.
      hold_batch: whether reference i is the batch's sample i, which then is no partner of itself.
    """

    anchors: Array
    refs: Array
    ids: Array
    labels: Array
    ref_labels: Any
    real: Array
    sims: Any
    kept: Selection
    related: Selection
    own: Array | None
    extra: dict[str, Array]
    sums: Any = None
    columns: Any = None
    keys: Array | None = None
    hold_batch: bool = False


@dataclass(frozen=True)
class Survey:
    """The whole batch, for what a miner finds out before it mines any block.

    Attributes:
      anchors, refs: (vectors, labels, valid) of all.
      key: for draws over the whole batch; None where there is none.
      over: `over(fn, sums=None, distance=None) -> (sums, rows)` evaluates `fn(block) -> (sums, rows)` on all
        blocks, as `map_blocks`, before any mining. A prepare may call it several times.
      hold_batch: whether reference i is the batch's sample i.
    """

    anchors: Anchors
    refs: References
    key: Array | None
    over: Callable[..., tuple[Any, Any]]
    hold_batch: bool


@dataclass(frozen=True)
class Mine:
    """How a miner chooses: once for the whole batch, then block by block.

    Attributes:
      select: `select(block, keys, found) -> Selection`. The block has no `sims`; `keys` are the anchors' own
        random keys `[a]`, or None.
      prepare: `prepare(survey) -> found`, a tree of arrays that every block gets whole.
      found: what it gave.
    """

    select: Callable[[Block, Array | None, Any], Selection]
    prepare: Callable[[Survey], Any] | None = None
    found: Any = ()


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


def prepared(
    mine: Mine | None, anchors: Anchors, refs: References, *, key: Array | None, **how: Any
) -> Mine | None:
    """The miner after its look at the whole batch; as it is where it needs none or had it already."""
    if mine is None or mine.prepare is None:
        return mine
    anchors, refs = jax.lax.stop_gradient((anchors, refs))

    def over(fn: First, sums: Any = None, distance: Distance | None = None) -> tuple[Any, Any]:
        return map_blocks(fn, anchors, refs, distance=distance, sums=sums, **how)

    own_key = None if key is None else jax.random.fold_in(key, NOWHERE)
    survey = Survey(anchors, refs, own_key, over, how["exclude_self"])
    found = jax.lax.stop_gradient(mine.prepare(survey))
    return replace(mine, prepare=None, found=found)


def map_blocks(
    fn: First,
    anchors: Anchors,
    refs: References,
    *,
    relation: Relation,
    exclude_self: bool,
    distance: Distance | None = None,
    mine: Mine | None = None,
    key: Array | None = None,
    block: int | None = None,
    extra: dict[str, Array] | None = None,
    sums: Any = None,
    columns: Any = None,
) -> tuple[Any, Any]:
    """`map_anchors` of `fn(block) -> (sums, rows)`: (sums over all anchors, values of each anchor).

    Every evaluation of pairs comes through here: the miner is prepared, and its choice is the same in
    all of them.
    """
    mine = prepared(
        mine, anchors, refs, relation=relation, exclude_self=exclude_self, key=key, block=block
    )

    def one_block(ids, valid, anchors, refs, everywhere) -> tuple[Any, Any]:
        ((a, labels, real), extra), ((r, r_labels, r_weight), columns) = anchors, refs
        sums, found = everywhere
        real = valid & real
        pos, neg = relation(labels, r_labels)
        there = real[:, None] & (r_weight > 0)[None, :]
        if exclude_self:
            there &= ids[:, None] != jnp.arange(r.shape[0])[None, :]
        pos, neg = pos & there, neg & there
        if r_weight.dtype != bool:
            pos, neg = pos * r_weight[None, :], neg * r_weight[None, :]
        related = Selection(pos, neg)
        # The key of a draw is (key, position in the whole batch): no block or device changes it.
        keys = None if key is None else jax.vmap(lambda i: jax.random.fold_in(key, i))(ids)
        own_keys = None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, OF_LOSS)
        which = (a, r, ids, labels, r_labels, real)
        seen = Block(
            *which, None, related, related, None, extra, sums, columns, own_keys, exclude_self
        )
        if mine is not None:
            plain = replace(seen, anchors=jax.lax.stop_gradient(a), refs=jax.lax.stop_gradient(r))
            kept = jax.lax.stop_gradient(mine.select(plain, keys, found))
            seen = replace(seen, kept=kept)
        if distance is not None:
            own = None
            if exclude_self:
                own = jax.vmap(lambda x: distance(x[None], x[None])[0, 0])(a)
            seen = replace(seen, sims=distance(a, r), own=own)
        return fn(seen)

    return map_anchors(
        one_block,
        (anchors, extra or {}),
        (refs, columns),
        everywhere=(sums, () if mine is None else mine.found),
        block=block,
    )


def in_play(related: Selection, kept: Selection) -> dict[str, Array]:
    """Counts over a block, before and after mining: anchors with both kinds of pairs, pairs, triplets."""

    def count(selection: Selection) -> Array:
        pos, neg = (x.astype(jnp.float32) for x in selection.pairs())
        # In a choice of triplets a pair weighs as many as hold it.
        triplets = jnp.sum(pos, -1)
        if selection.triplets is None:
            triplets *= jnp.sum(neg, -1)
        both = jnp.any(pos > 0, -1) & jnp.any(neg > 0, -1)
        counts = (both, pos > 0, neg > 0, triplets)
        return jnp.stack([jnp.sum(x, dtype=jnp.float32) for x in counts])

    before = count(related)
    counts = {"before": before, "after": before if kept is related else count(kept)}
    listed = kept.triplets
    if isinstance(listed, Listed) and listed.pushes:
        allowed = jnp.take_along_axis(related.neg > 0, listed.negative, -1)
        pushed = jnp.where(allowed, 0, listed.weight)
        counts["pushes"] = jnp.stack([jnp.sum(pushed), jnp.sum(listed.weight)])
    return counts


def fractions(counts: dict[str, Array]) -> dict[str, Array]:
    """The share of anchors, of both kinds of pairs and of triplets that mining left in play; 0 of none is 0.

    A pair counts once however often it was chosen, a triplet as often as it was. Where a miner pushes samples of a
    class apart, also the share of triplets that do.
    """
    shares = counts["after"] / jnp.maximum(counts["before"], 1)
    kinds = ("anchors", "positives", "negatives", "triplets")
    named = {f"in_play/{kind}": share for kind, share in zip(kinds, shares, strict=True)}
    if "pushes" in counts:
        pushed, triplets = counts["pushes"]
        named["in_play/push_triplets"] = pushed / jnp.maximum(triplets, 1)
    return named


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
    anchors: Anchors,
    refs: References,
    *,
    reducer: Reducer,
    needs_negatives: bool = False,
    first: First | None = None,
    sums: Any = None,
    **how: Any,
) -> Mean:
    """The loss of a batch of anchors against references.

    `anchors` are (vectors, labels, valid), `refs` (vectors, labels, valid or weight); `how` is what
    `map_blocks` takes: `exclude_self` removes the pair of an anchor with the reference of the same
    position. `needs_negatives` makes the loss 0 where no negative is in play in the whole batch. `first` is
    evaluated over all anchors before the kernel sees any; `sums` are given instead where the caller has
    them. Sums are in float32 or wider, whatever the embeddings are in.
    """
    columns = None
    if first is not None:
        sums, columns = map_blocks(first, anchors, refs, **how)

    def one_block(seen: Block) -> tuple[Any, tuple[()]]:
        parts = {}
        for name, (values, weights, *divisor) in kernel(seen).items():
            mask = seen.real if values.ndim == 1 else seen.real[:, None]
            rows = jnp.where(seen.real, divisor[0], 0) if divisor else None
            weights = jnp.where(mask, weights, 0)
            classes = how["relation"].classes(seen.labels)
            parts[name] = reducer.of(name).sums(values, weights, rows, classes, seen.real)
        return (parts, in_play(seen.related, seen.kept)), ()

    (terms, counts), _ = map_blocks(one_block, anchors, refs, sums=sums, columns=columns, **how)
    total, weight = combine(terms, reducer)
    if needs_negatives:
        total = jnp.where(counts["after"][2] > 0, total, 0)
    return Mean(total, weight, fractions(counts))


def sample_weights(
    anchors: Anchors, refs: References, *, partners: bool = True, **how: Any
) -> Float[Array, " b"]:
    """How often each anchor occurs in what a miner chose, over the largest such count.

    `partners` says whether it counts as a positive or negative of others, too (the references are the
    batch then), or only as an anchor; `how` is what `map_blocks` takes.

    This is how a loss against class weights uses a miner (PML's `convert_to_weights`). A sample that was
    not chosen weighs 0. Differs from PML where nothing at all was chosen: all weights are 0, and so is
    the loss (PML: all are 1).
    """

    def one_block(seen: Block) -> tuple[Array, Array]:
        pos, neg = (x.astype(anchors[0].dtype) for x in seen.kept.pairs())
        as_anchor = jnp.sum(pos, -1)  # a triplet names its anchor once, two pairs name it twice
        if seen.kept.triplets is None:
            as_anchor += jnp.sum(neg, -1)
        return jnp.sum(pos + neg, 0), as_anchor

    as_partner, as_anchor = map_blocks(one_block, anchors, refs, **how)
    counts = as_partner + as_anchor if partners else as_anchor
    return counts / jnp.maximum(jnp.max(counts), 1)
