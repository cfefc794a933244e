"""The one driver of losses that compare samples with samples.

A loss is a row kernel: a pure function of one block of anchors against all references. The driver
evaluates it densely, in blocks of anchors, and over the mesh in context. Only sums
leave a block or a device, so all of these give the value and the gradient of the dense loss.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dml_jax import sharded
from dml_jax.blocks import map_anchors
from dml_jax.distances import Distance, normalize
from dml_jax.mean import Mean
from dml_jax.names import unknown
from dml_jax.reducers import Reducer, Sums
from dml_jax.relations import Relation
from dml_jax.selection import Listed, Selection

# The position whose key is for draws over the whole batch; no anchor has it.
NO_ANCHOR = 2**32 - 1
# This number sets the keys of a loss's own draws apart from those of its miner.
LOSS_STREAM = 2020


class Samples(NamedTuple):
    """The anchors of a batch, or its references.

    Attributes:
      vectors: the embeddings, `[b, d]`.
      labels: what the relation takes for them; None for references of a relation on pairs.
      valid: False for padding, `[b]`; of references also the weights that their pairs have.
    """

    vectors: Float[Array, "b d"]
    labels: Any
    valid: Array


@dataclass(frozen=True)
class Block:
    """Some anchors against all references: what a kernel or a miner may look at.

    Attributes:
      anchors: vectors of the anchors, `[a, d]`.
      refs: vectors of the references, `[n, d]`; or `sharded.Sharded`, which no one can read.
      anchor_ids: positions of the anchors in the whole batch, `[a]`.
      anchor_labels: labels of the anchors, as the relation takes them.
      ref_labels: labels of the references, as the relation takes them.
      anchor_valid: False for anchors that are padding, `[a]`.
      sims: what the distance gives for anchors and references, `[a, n]`; None where no distance was asked for.
      selection: the pairs and triplets in play after mining.
      related: the pairs that the relation allows, before mining.
      self_sims: what the distance gives for each anchor and itself, `[a]`; None where the references are not
        the batch.
      anchor_args: arrays `[a, ...]` that belong to the anchors, by name (the margin of their class, say).
      prepass_sums: what the prepass added up over all anchors; None without a prepass.
      ref_values: what the prepass gave for each reference as an anchor, `[n, ...]`; None without a prepass.
      keys: the anchors' own random keys `[a]` for what the loss draws (a miner gets others); None where `apply`
        got no key.
      refs_include_batch: True where reference i is the batch's sample i, which then is no partner of itself.
      units: anchors and references as distances normalise them, by the p of the norm.
    """

    anchors: Float[Array, "a d"]
    refs: Float[Array, "n d"]
    anchor_ids: Int[Array, " a"]
    anchor_labels: Array
    ref_labels: Any
    anchor_valid: Bool[Array, " a"]
    sims: Any
    selection: Selection
    related: Selection
    self_sims: Float[Array, " a"] | None
    anchor_args: dict[str, Array]
    prepass_sums: Any = None
    ref_values: Any = None
    keys: Array | None = None
    refs_include_batch: bool = False
    units: Mapping[float | None, tuple[Any, Any]] = field(default_factory=dict)


# kernel(block) -> {term: (values, weights) or (values, weights, divisor)}
Kernel = Callable[[Block], dict[str, tuple[Array, ...]]]
# fn(block) -> (sums over all anchors, one value or more for each anchor)
BlockFn = Callable[[Block], tuple[Any, Any]]


@dataclass(frozen=True)
class WholeBatch:
    """The whole batch, for what a miner or a loss has to know before it sees any block.

    Attributes:
      anchors: the anchors.
      refs: the references.
      key: the key for draws over the whole batch; None where `apply` got none.
      map_blocks: `map_blocks(fn, sums=None, distance=None) -> (sums, rows)` evaluates `fn(block) -> (sums, rows)`
        on all blocks. It may be called several times; `sums` comes to `fn` as `block.prepass_sums`.
      refs_include_batch: True where reference i is the batch's sample i.
    """

    anchors: Samples
    refs: Samples
    key: Array | None
    map_blocks: Callable[..., tuple[Any, Any]]
    refs_include_batch: bool


@dataclass(frozen=True)
class Mining:
    """How a miner chooses: once for the whole batch, then block by block.

    Attributes:
      distance: what `block.sims` are for `select`; None: it gets none.
      select: `select(block, keys, miner_state) -> Selection`; `keys` are the anchors' own random keys `[a]`, or None.
      prepare: `prepare(whole_batch) -> miner_state`, a tree of arrays that every block gets whole.
      miner_state: what `prepare` gave.
    """

    select: Callable[[Block, Array | None, Any], Selection]
    prepare: Callable[[WholeBatch], Any] | None = None
    distance: Distance | None = None
    miner_state: Any = ()


def similarities(distance: Distance, block: Block) -> Float[Array, "a n"]:
    """Returns what a distance gives for a block's anchors and references, wherever these lie.

    Args:
      distance: the distance.
      block: which has the vectors.
    """
    if distance.unit_norm in block.units:
        return sharded.matrix(distance.of_units, *block.units[distance.unit_norm])
    return sharded.matrix(distance, block.anchors, block.refs)


def units_of(
    distances: Sequence[Distance | None], anchors: Array, refs: Array
) -> dict[float | None, tuple[Array, Array]]:
    """Returns anchors and references normalised as distances do it, by the norm; once, and not in every block.

    Args:
      distances: of a loss and its miner.
      anchors: vectors.
      refs: vectors; where they are the very array of the anchors, so are the normalised ones.
    """
    units: dict[float | None, tuple[Array, Array]] = {}
    for p in {distance.unit_norm for distance in distances if distance is not None}:
        if p is None:
            continue
        # Computed again in the backward pass: nothing of the size of the vectors is kept for it.
        of = jax.checkpoint(partial(_normalize, p=p))
        unit = of(anchors)
        units[p] = unit, unit if refs is anchors else of(refs)
    return units


def _normalize(x: Array, p: float) -> Array:
    return normalize(x.astype(jnp.promote_types(x.dtype, jnp.float32)), p)


def run_prepare(
    mine: Mining | None, anchors: Samples, refs: Samples, *, key: Array | None, **how: Any
) -> Mining | None:
    """Runs the miner's `prepare` on the whole batch, if it has one that has not run yet.

    Args:
      mine: the miner, or None.
      anchors: the anchors of the batch.
      refs: the references.
      key: the key of `apply`.
      **how: what `map_blocks` takes beside these.
    """
    if mine is None or mine.prepare is None:
        return mine
    anchors, refs = jax.lax.stop_gradient((Samples(*anchors), Samples(*refs)))

    def mapped(fn: BlockFn, sums: Any = None, distance: Distance | None = None) -> tuple[Any, Any]:
        return map_blocks(fn, anchors, refs, distance=distance, prepass_sums=sums, **how)

    batch_key = None if key is None else jax.random.fold_in(key, NO_ANCHOR)
    whole_batch = WholeBatch(anchors, refs, batch_key, mapped, how["exclude_self"])
    state = jax.lax.stop_gradient(mine.prepare(whole_batch))
    return replace(mine, prepare=None, miner_state=state)


def map_blocks(
    fn: BlockFn,
    anchors: Samples,
    refs: Samples,
    *,
    relation: Relation,
    exclude_self: bool,
    distance: Distance | None = None,
    mine: Mining | None = None,
    key: Array | None = None,
    block: int | None = None,
    anchor_args: dict[str, Array] | None = None,
    prepass_sums: Any = None,
    ref_values: Any = None,
) -> tuple[Any, Any]:
    """Evaluates `fn(block) -> (sums, rows)` on all blocks of anchors.

    Every evaluation of pairs comes through here: the miner is prepared in one place, and it chooses the same in
    all of them.

    Args:
      fn: gets a `Block`; the tree `sums` is added up, the tree `rows` has one row for each anchor.
      anchors: the anchors, a `Samples` or a tuple like one.
      refs: the references.
      relation: which references are positives and which negatives.
      exclude_self: takes the pair of an anchor with the reference of its own position out.
      distance: of `block.sims`; None leaves them out.
      mine: narrows the pairs.
      key: for the draws of miner and loss.
      block: anchors at a time; None: all at once.
      anchor_args: arrays `[b, ...]` of the anchors, by name.
      prepass_sums: what every block gets whole.
      ref_values: arrays `[m, ...]` of the references.

    Returns:
      (the sums over all anchors, the rows of all anchors).
    """
    mine = run_prepare(
        mine, anchors, refs, relation=relation, exclude_self=exclude_self, key=key, block=block
    )

    def one_block(
        ids: Array, valid: Array, anchors: Any, refs: Any, broadcast_args: Any
    ) -> tuple[Any, Any]:
        ((a, labels, real), args, a_units), ((r, r_labels, r_weight), ref_values, r_units) = (
            anchors,
            refs,
        )
        sums, miner_state, key = broadcast_args
        real = valid & real
        pos, neg = relation(labels, r_labels)
        there = real[:, None] & (r_weight > 0)[None, :]
        if exclude_self:
            there &= ids[:, None] != jnp.arange(r_weight.shape[0])[None, :]
        pos, neg = pos & there, neg & there
        if r_weight.dtype != bool:
            pos, neg = pos * r_weight[None, :], neg * r_weight[None, :]
        related = Selection(pos, neg)
        # The key of a draw is (key, position in the whole batch): no block or device changes it.
        keys = None if key is None else jax.vmap(lambda i: jax.random.fold_in(key, i))(ids)
        loss_keys = (
            None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, LOSS_STREAM)
        )
        shown = Block(
            anchors=a,
            refs=r,
            anchor_ids=ids,
            anchor_labels=labels,
            ref_labels=r_labels,
            anchor_valid=real,
            sims=None,
            selection=related,
            related=related,
            self_sims=None,
            anchor_args=args,
            prepass_sums=sums,
            ref_values=ref_values,
            keys=loss_keys,
            refs_include_batch=exclude_self,
            units={p: (a_units[p], r_units[p]) for p in a_units},
        )
        sims = None if distance is None else similarities(distance, shown)
        if mine is not None:
            vectors, units = jax.lax.stop_gradient(((a, r), shown.units))
            fixed = replace(shown, anchors=vectors[0], refs=vectors[1], units=units)
            # Of one distance once: XLA would not merge two exchanges between devices.
            if mine.distance == distance:
                fixed = replace(fixed, sims=jax.lax.stop_gradient(sims))
            elif mine.distance is not None:
                fixed = replace(fixed, sims=similarities(mine.distance, fixed))
            chosen = jax.lax.stop_gradient(mine.select(fixed, keys, miner_state))
            shown = replace(shown, selection=chosen)
        if distance is not None:
            self_sims = None
            if exclude_self:
                p = distance.unit_norm
                alone, mine_alone = (distance, a) if p is None else (distance.of_units, a_units[p])
                self_sims = jax.vmap(lambda x: alone(x[None], x[None])[0, 0])(mine_alone)
            shown = replace(shown, sims=sims, self_sims=self_sims)
        return fn(shown)

    vectors, *of_refs = refs
    units = units_of((distance, None if mine is None else mine.distance), anchors[0], vectors)
    return map_anchors(
        one_block,
        (tuple(anchors), anchor_args or {}, {p: a for p, (a, _) in units.items()}),
        (
            (sharded.kept(vectors), *of_refs),
            ref_values,
            {p: sharded.kept(r) for p, (_, r) in units.items()},
        ),
        broadcast_args=(prepass_sums, () if mine is None else mine.miner_state, key),
        block=block,
    )


def in_play(related: Selection, selection: Selection) -> dict[str, Array]:
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
    counts = {"before": before, "after": before if selection is related else count(selection)}
    listed = selection.triplets
    if isinstance(listed, Listed) and listed.intra_class_negatives:
        allowed = jnp.take_along_axis(related.neg > 0, listed.negative, -1)
        intra_class = jnp.where(allowed, 0, listed.weight)
        sums = [jnp.sum(intra_class), jnp.sum(listed.weight)]
        counts["intra_class_negatives"] = jnp.stack(sums)
    return counts


def fractions(counts: dict[str, Array]) -> dict[str, Array]:
    """Returns the share of anchors, of both kinds of pairs and of triplets that mining left in play; 0 of none is 0.

    A pair counts once however often it was chosen, a triplet as often as it was. Where a miner gives triplets whose
    negative is of the anchor's class, their share is returned, too.
    """
    shares = counts["after"] / jnp.maximum(counts["before"], 1)
    kinds = ("anchors", "positives", "negatives", "triplets")
    named = {f"in_play/{kind}": share for kind, share in zip(kinds, shares, strict=True)}
    if "intra_class_negatives" in counts:
        intra_class, triplets = counts["intra_class_negatives"]
        named["in_play/push_triplets"] = intra_class / jnp.maximum(triplets, 1)
    return named


def combine(terms: dict[str, Sums], reducer: Reducer) -> tuple[Array, Array]:
    """Returns (total, weight) of a loss; where it has several terms, each is divided and the means add up."""
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
    anchors: Samples,
    refs: Samples,
    *,
    reducer: Reducer,
    needs_negatives: bool = False,
    **how: Any,
) -> Mean:
    """Computes the loss of a batch of anchors against references.

    Sums are in float32 or wider, whatever the embeddings are in.

    Args:
      kernel: gives a block's values and weights, by term.
      anchors: the anchors, a `Samples` or a tuple like one.
      refs: the references.
      reducer: adds the values up and divides.
      needs_negatives: makes the loss 0 where no negative is in play in the whole batch.
      **how: what `map_blocks` takes beside these.
    """

    def one_block(block: Block) -> tuple[Any, tuple[()]]:
        parts = {}
        real = block.anchor_valid
        for name, (values, weights, *divisor) in kernel(block).items():
            mask = real if values.ndim == 1 else real[:, None]
            rows = jnp.where(real, divisor[0], 0) if divisor else None
            weights = jnp.where(mask, weights, 0)
            classes = how["relation"].classes(block.anchor_labels)
            parts[name] = reducer.of(name).sums(values, weights, rows, classes, real)
        return (parts, in_play(block.related, block.selection)), ()

    (terms, counts), _ = map_blocks(one_block, anchors, refs, **how)
    total, weight = combine(terms, reducer)
    if needs_negatives:
        total = jnp.where(counts["after"][2] > 0, total, 0)
    return Mean(total, weight, fractions(counts))


def sample_weights(
    anchors: Samples, refs: Samples, *, partners: bool = True, **how: Any
) -> Float[Array, " b"]:
    """Returns how often each anchor occurs in what a miner chose, over the largest such count.

    This is how a loss against class weights uses a miner (PML's `convert_to_weights`). A sample that was
    not chosen weighs 0. Differs from PML where nothing at all was chosen: all weights are 0, and so is
    the loss (PML: all are 1).

    Args:
      anchors: the anchors.
      refs: the references.
      partners: True counts an anchor as a positive or negative of others, too (the references are the batch then).
      **how: what `map_blocks` takes beside these.
    """

    def one_block(block: Block) -> tuple[Array, Array]:
        pos, neg = (x.astype(anchors[0].dtype) for x in block.selection.pairs())
        as_anchor = jnp.sum(pos, -1)  # a triplet names its anchor once, two pairs name it twice
        if block.selection.triplets is None:
            as_anchor += jnp.sum(neg, -1)
        return jnp.sum(pos + neg, 0), as_anchor

    as_partner, as_anchor = map_blocks(one_block, anchors, refs, **how)
    counts = as_partner + as_anchor if partners else as_anchor
    return counts / jnp.maximum(jnp.max(counts), 1)
