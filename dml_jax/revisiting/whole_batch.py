"""Miners of the ICML 2020 study that draw over the whole batch rather than for each anchor.

Each has two parts: `prepare_...(whole_batch)` draws for the whole batch, the same on every device, and
`select_...(block, miner_state)` looks up what of that belongs to its block of anchors.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dml_jax import distances
from dml_jax.bound import Bound
from dml_jax.errors import UserError
from dml_jax.mining import Mask, Miner, needs_distance
from dml_jax.pairwise import Block, WholeBatch
from dml_jax.parameters import PositiveFloat, checked
from dml_jax.revisiting.miners import draw_by_distance, needs_batch
from dml_jax.selection import Listed, Selection, each_positive, first_place, pick


class Slots(NamedTuple):
    """Triplets by place in a list as long as the batch.

    Attributes:
      anchor: its position in the batch, `[b]`; negative in an empty slot.
      first: which of the anchor's candidates is the positive, counted from 0 in the order of the references.
      second: which of its candidates is the negative.
    """

    anchor: Int[Array, " b"]
    first: Int[Array, " b"]
    second: Int[Array, " b"]


@checked("miner")
def random(*, distance: Any = None) -> Miner:
    """Draws as many triplets as there are samples, uniformly from all without replacement (Roth et al., ICML 2020).

    An anchor may have any number of them. Where the batch has fewer triplets than samples it has all of them.

    Args:
      distance: is not used; every miner takes one.

    Example:
      >>> import jax
      >>> from dml_jax import miners
      >>> mined = miners.random()([[1.0], [2.0], [3.0]], [0, 0, 1], key=jax.random.key(0))
      >>> [i.tolist() for i in mined.indices()]
      [[0, 1], [1, 0], [2, 2]]

    Differs from the reference code, which ends in an error where there are fewer triplets than samples.
    """
    built = distances.build(distance, "lp")
    return Miner("random", select_random, built, triplets=True, prepare=prepare_random, draws=True)


def prepare_random(whole_batch: WholeBatch) -> Slots:
    """Draws distinct triplets. Slot by slot, one that an earlier slot has is drawn again, with a key of its own."""
    positives, negatives = _count_pairs(whole_batch)
    weights = positives.astype(jnp.float32) * negatives
    places = jnp.arange(weights.shape[0], dtype=jnp.int32)
    active = places < jnp.minimum(jnp.sum(whole_batch.anchors.valid), jnp.sum(weights))

    def propose(tries: Array) -> Slots:
        slots = _propose(whole_batch.key, tries, weights, positives, negatives)
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


def select_random(block: Block, slots: Slots) -> Selection:
    """Looks the triplets of `random` up."""
    pos, neg = block.related.pos, block.related.neg
    return Selection(pos, neg, _look_up(slots, block, pos, neg, intra_class_negatives=False))


@checked("miner")
def intra_random(*, distance: Any = None) -> Miner:
    """Draws as many triplets as there are samples, each of samples of one class (Roth et al., ICML 2020).

    For each a class, uniformly, and a, p and n uniformly from it, with replacement: they may coincide. It takes no
    references other than the batch.

    Args:
      distance: is not used; every miner takes one.

    Raises:
      UserError: references that are not the batch.

    Example:
      >>> import jax
      >>> from dml_jax import miners
      >>> labels = jax.numpy.asarray([0, 0, 1])
      >>> mined = miners.intra_random()([[1.0], [2.0], [3.0]], labels, key=jax.random.key(0))
      >>> a, p, n = mined.indices()
      >>> bool((labels[a] == labels[p]).all()), bool((labels[a] == labels[n]).all()), len(a)
      (True, True, 3)
    """
    return Miner(
        "intra_random",
        select_intra_random,
        distances.build(distance, "lp"),
        triplets=True,
        prepare=prepare_intra_random,
        draws=True,
    )


def prepare_intra_random(whole_batch: WholeBatch) -> Slots:
    """Draws a class, uniformly, and its anchor, for each slot."""
    _check_batch(whole_batch, "intra_random")
    positives, _ = _count_pairs(whole_batch)
    valid = whole_batch.anchors.valid
    size = positives + 1
    slots = _propose(whole_batch.key, jnp.zeros_like(size), valid / size, size, size)
    active = jnp.arange(size.shape[0]) < jnp.sum(valid)
    return slots._replace(anchor=jnp.where(active, slots.anchor, -1))


def select_intra_random(block: Block, slots: Slots) -> Selection:
    """Looks the triplets of `intra_random` up."""
    pos, neg = block.related.pos, block.related.neg
    self_index = block.anchor_ids[:, None] == jnp.arange(pos.shape[1])[None, :]
    mates = (pos > 0) | (self_index & block.anchor_valid[:, None])
    return Selection(pos, neg, _look_up(slots, block, mates, mates, intra_class_negatives=True))


@checked("miner")
def random_distance(lower_cutoff: PositiveFloat = 0.5, *, distance: Any = None) -> Miner:
    """Draws as `distance` does, with the batch's labels permuted at random: a control (Roth et al., ICML 2020).

    An anchor that is alone with its new label is left out. It takes no references other than the batch.

    Args:
      lower_cutoff: as in `distance`; 0.5 by default.
      distance: a name, a dict with a name, or a `Distance`, no similarity; Euclidean ("lp") by default.

    Raises:
      UserError: a similarity as its distance; references that are not the batch; labels that are no classes.

    Example:
      >>> import jax
      >>> from dml_jax import miners
      >>> x = [[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [-0.6, 0.8]]
      >>> mined = miners.random_distance()(x, [0, 0, 1, 1], key=jax.random.key(0))
      >>> [i.tolist() for i in mined.indices()]
      [[0, 1, 2, 3], [1, 0, 3, 2], [3, 2, 0, 0]]
    """
    built = distances.build(distance, "lp")
    needs_distance("random_distance", built)
    return Miner(
        "random_distance",
        Bound(select_random_distance, lower_cutoff=lower_cutoff),
        built,
        triplets=True,
        prepare=prepare_random_distance,
        draws=True,
    )


def prepare_random_distance(whole_batch: WholeBatch) -> Int[Array, " b"]:
    """Returns the labels of the samples that are there, permuted; the others keep theirs."""
    _check_batch(whole_batch, "random_distance")
    key, (_, labels, valid) = whole_batch.key, whole_batch.anchors
    assert key is not None
    if labels.ndim != 1:
        raise UserError(
            f"miner 'random_distance' permutes labels and has labels of shape {labels.shape}; accepted: one "
            "for each sample (relation 'label')"
        )
    draw = lambda i: jax.random.uniform(jax.random.fold_in(key, i), (), jnp.float32)
    chances = jax.vmap(draw)(jnp.arange(labels.shape[0]))
    order = jnp.argsort(jnp.where(valid, chances, jnp.inf))
    return jnp.where(valid, labels[order][jnp.cumsum(valid) - 1], labels)


def select_random_distance(
    block: Block, labels: Int[Array, " b"], *, lower_cutoff: float
) -> Selection:
    """Draws the triplets of `random_distance`."""
    pos, neg = block.related.pos, block.related.neg
    related = (pos > 0) | (neg > 0)
    own = labels[jnp.minimum(block.anchor_ids, labels.shape[0] - 1)]
    same = own[:, None] == labels[None, :]
    dim = block.anchors.shape[-1]
    drawn = draw_by_distance(
        block.keys, block.sims, related & same, related & ~same, dim, lower_cutoff
    )
    return Selection(pos, neg, replace(drawn, intra_class_negatives=True))


def _check_batch(whole_batch: WholeBatch, name: str) -> None:
    """Raises `UserError` unless the references are the batch and nothing else."""
    same_shape = whole_batch.refs.vectors.shape == whole_batch.anchors.vectors.shape
    if not (whole_batch.refs_include_batch and same_shape):
        raise needs_batch(name)


def _count_pairs(whole_batch: WholeBatch) -> tuple[Int[Array, " b"], Int[Array, " b"]]:
    """Counts the positives and the negatives of each anchor."""
    count = lambda mask: jnp.sum(mask > 0, -1, dtype=jnp.int32)
    rows = lambda block: ((), (count(block.related.pos), count(block.related.neg)))
    found: tuple[Array, Array] = whole_batch.map_blocks(rows)[1]
    return found


def _propose(
    key: Key[Array, ""] | None,
    tries: Int[Array, " b"],
    weights: Float[Array, " b"],
    firsts: Int[Array, " b"],
    seconds: Int[Array, " b"],
) -> Slots:
    """Draws an anchor for each slot with a probability ~ weights, and which of its candidates, uniformly.

    All draws are of 32 bits, so that no default type changes a choice.
    """
    assert key is not None
    edges = jnp.cumsum(weights.astype(jnp.float32))

    def one(place: Array, attempt: Array) -> Slots:
        slot = jax.random.fold_in(jax.random.fold_in(key, place), attempt)
        where, first, second = jax.random.split(slot, 3)
        at = jax.random.uniform(where, (), jnp.float32) * edges[-1]
        anchor = jnp.searchsorted(edges, at, side="right").astype(jnp.int32)
        anchor = jnp.minimum(anchor, edges.shape[0] - 1)
        upto = lambda key, most: jax.random.randint(
            key, (), 0, jnp.maximum(most[anchor], 1), jnp.int32
        )
        return Slots(anchor, upto(first, firsts), upto(second, seconds))

    return jax.vmap(one)(jnp.arange(weights.shape[0], dtype=jnp.int32), tries)


def _look_up(
    slots: Slots, block: Block, firsts: Mask, seconds: Mask, *, intra_class_negatives: bool
) -> Listed:
    """Returns the triplets of the block's anchors: slot j is column j of its anchor's row."""
    mine = slots.anchor[None, :] == block.anchor_ids[:, None]
    ranks = (jnp.cumsum(firsts > 0, -1), jnp.cumsum(seconds > 0, -1))

    def column(one: Array, rank: Array, which: Array, old: Array) -> Array:
        place = first_place(rank > pick(one, which[None, :])[:, None])
        return jnp.where(one, place[:, None].astype(old.dtype), old)

    def one_each(one: Array, weight: Array, old: tuple[Array, Array]) -> tuple[Array, Array]:
        del weight
        return (
            column(one, ranks[0], slots.first, old[0]),
            column(one, ranks[1], slots.second, old[1]),
        )

    empty = jnp.zeros(mine.shape, jnp.int32)
    positive, negative = each_positive(one_each, mine, (empty, empty))
    return Listed(
        positive,
        negative,
        mine.astype(jnp.float32),
        intra_class_negatives=intra_class_negatives,
    )
