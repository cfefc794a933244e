"""Miners of the ICML 2020 study that draw over the whole batch rather than for each anchor.

Each has two parts: `..._before(whole_batch, ...)` draws for the whole batch, the same on every device, and the
miner looks up what of that belongs to its block of anchors.
"""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dml_jax.miners.batch import Mask, Sims
from dml_jax.miners.revisiting import Keys, check_distance, draw_by_distance, needs_batch
from dml_jax.pairwise import Block, WholeBatch
from dml_jax.selection import Listed, Selection, each_positive, first_place, pick


class Slots(NamedTuple):
    """Triplets by place in a list as long as the batch.

    Attributes:
      anchor: its position in the batch, `[b]`; negative in an empty slot.
      first, second: which of the anchor's candidates are the positive and the negative, counted from 0
        in the order of the references.
    """

    anchor: Int[Array, " b"]
    first: Int[Array, " b"]
    second: Int[Array, " b"]


def random_before(whole_batch: WholeBatch, *, key: Key[Array, ""]) -> Slots:
    """Distinct triplets. Slot by slot, one that an earlier slot has is drawn again, with a key of its own."""
    positives, negatives = _counts(whole_batch)
    weights = positives.astype(jnp.float32) * negatives
    places = jnp.arange(weights.shape[0])
    active = places < jnp.minimum(jnp.sum(whole_batch.anchors[2]), jnp.sum(weights))

    def propose(tries: Array) -> Slots:
        slots = _propose(key, tries, weights, positives, negatives)
        return slots._replace(anchor=jnp.where(active, slots.anchor, -1 - places))

    def wrong(slots: Slots) -> Bool[Array, " b"]:
        # Equal triplets are neighbours in this order, that of the first slot before the others. A triplet
        # once drawn stays in the list, if in an earlier slot, so that drawing all at once is the same.
        order = jnp.lexsort((places, *slots))
        ordered = [column[order] for column in slots]
        same = jnp.stack([column[1:] == column[:-1] for column in ordered]).all(0)
        repeated = jnp.zeros(active.shape, bool).at[order[1:]].set(same)
        return active & (repeated | (weights[slots.anchor] == 0))

    def turn(state: tuple[Array, Slots]) -> tuple[Array, Slots]:
        tries = state[0] + wrong(state[1])
        return tries, propose(tries)

    start = jnp.zeros_like(places)
    return jax.lax.while_loop(
        lambda state: jnp.any(wrong(state[1])), turn, (start, propose(start))
    )[1]


def random(sims: Sims, pos: Mask, neg: Mask, *, miner_state: Slots, block: Block) -> Selection:
    """As many triplets as there are samples, drawn uniformly from all without replacement.

    An anchor may have any number of them. All triplets, where the batch has fewer than samples (reference
    code: an error).
    """
    del sims
    return Selection(pos, neg, _look_up(miner_state, block, pos, neg, intra_class_negatives=False))


def intra_random_before(whole_batch: WholeBatch, *, key: Key[Array, ""]) -> Slots:
    """A class, uniformly, and its anchor, for each slot."""
    if (
        not whole_batch.refs_include_batch
        or whole_batch.refs[0].shape != whole_batch.anchors[0].shape
    ):
        raise needs_batch("intra_random")
    positives, _ = _counts(whole_batch)
    valid = whole_batch.anchors[2]
    size = positives + 1
    slots = _propose(key, jnp.zeros_like(size), valid / size, size, size)
    active = jnp.arange(size.shape[0]) < jnp.sum(valid)
    return slots._replace(anchor=jnp.where(active, slots.anchor, -1))


def intra_random(
    sims: Sims, pos: Mask, neg: Mask, *, miner_state: Slots, block: Block
) -> Selection:
    """As many triplets as there are samples, each of samples of one class (Roth et al., ICML 2020).

    For each a class, uniformly, and a, p and n uniformly from it, with replacement: they may coincide.
    Takes no references other than the batch.
    """
    del sims
    own = block.anchor_ids[:, None] == jnp.arange(pos.shape[1])[None, :]
    mates = (pos > 0) | (own & block.anchor_valid[:, None])
    return Selection(
        pos, neg, _look_up(miner_state, block, mates, mates, intra_class_negatives=True)
    )


def random_distance_before(whole_batch: WholeBatch, *, key: Key[Array, ""]) -> Int[Array, " b"]:
    """The labels of the samples that are there, permuted; the others keep theirs."""
    if (
        not whole_batch.refs_include_batch
        or whole_batch.refs[0].shape != whole_batch.anchors[0].shape
    ):
        raise needs_batch("random_distance")
    _, labels, valid = whole_batch.anchors
    if labels.ndim != 1:
        raise ValueError(
            f"miner 'random_distance' permutes labels and has labels of shape {labels.shape}; accepted: one "
            "for each sample (relation 'label')"
        )
    each = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i)))
    order = jnp.argsort(jnp.where(valid, each(jnp.arange(labels.shape[0])), jnp.inf))
    return jnp.where(valid, labels[order][jnp.cumsum(valid) - 1], labels)


def random_distance(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    lower_cutoff: float = 0.5,
    similarity: bool = False,
    miner_state: Int[Array, " b"],
    block: Block,
    keys: Keys,
) -> Selection:
    """`distance` with the batch's labels permuted at random, a control (Roth et al., ICML 2020).

    An anchor that is alone with its new label is left out. Takes no references other than the batch.
    """
    check_distance("random_distance", similarity)
    related = (pos > 0) | (neg > 0)
    same = (
        miner_state[jnp.minimum(block.anchor_ids, miner_state.shape[0] - 1)][:, None]
        == miner_state[None, :]
    )
    dim = block.anchors.shape[-1]
    drawn = draw_by_distance(keys, sims, related & same, related & ~same, dim, lower_cutoff)
    return Selection(pos, neg, replace(drawn, intra_class_negatives=True))


def _counts(whole_batch: WholeBatch) -> tuple[Int[Array, " b"], Int[Array, " b"]]:
    """How many positives and how many negatives each anchor has."""
    count = lambda mask: jnp.sum(mask > 0, -1)
    return whole_batch.map_blocks(
        lambda block: ((), (count(block.related.pos), count(block.related.neg)))
    )[1]


def _propose(
    key: Key[Array, ""],
    tries: Int[Array, " b"],
    weights: Float[Array, " b"],
    firsts: Int[Array, " b"],
    seconds: Int[Array, " b"],
) -> Slots:
    """An anchor for each slot with a probability ~ weights, and which of its candidates, uniformly."""
    edges = jnp.cumsum(weights)

    def one(place: Array, attempt: Array) -> Slots:
        slot = jax.random.fold_in(jax.random.fold_in(key, place), attempt)
        where, first, second = jax.random.split(slot, 3)
        at = jax.random.uniform(where) * edges[-1]
        anchor = jnp.minimum(jnp.searchsorted(edges, at, side="right"), edges.shape[0] - 1)
        upto = lambda key, most: jax.random.randint(key, (), 0, jnp.maximum(most[anchor], 1))
        return Slots(anchor, upto(first, firsts), upto(second, seconds))

    return jax.vmap(one)(jnp.arange(weights.shape[0]), tries)


def _look_up(
    slots: Slots, block: Block, firsts: Mask, seconds: Mask, *, intra_class_negatives: bool
) -> Listed:
    """The triplets of the block's anchors: slot j is column j of its anchor's row."""
    mine = slots.anchor[None, :] == block.anchor_ids[:, None]
    ranks = (jnp.cumsum(firsts > 0, -1), jnp.cumsum(seconds > 0, -1))

    def column(one: Array, rank: Array, which: Array, old: Array) -> Array:
        at = first_place(rank > pick(one, which[None, :])[:, None])
        return jnp.where(one, at[:, None], old)

    def one_each(one: Array, weight: Array, old: tuple[Array, Array]) -> tuple[Array, Array]:
        del weight
        return (
            column(one, ranks[0], slots.first, old[0]),
            column(one, ranks[1], slots.second, old[1]),
        )

    empty = jnp.zeros(mine.shape, jnp.int32)
    positive, negative = each_positive(one_each, mine, (empty, empty))
    return Listed(
        positive, negative, mine.astype(jnp.float32), intra_class_negatives=intra_class_negatives
    )
