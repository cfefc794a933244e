"""What `miners.get` returns, and what a miner's call returns."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dml_jax import names, pairwise, relations
from dml_jax.distances import Distance
from dml_jax.relations import Relation
from dml_jax.selection import Listed, Selection, Streamed, Within

# mine(sims [a, n], pos, neg, **hyper) -> Selection
Mining = Callable[..., Selection]
# Keywords of a miner that are not hyper-parameters.
DERIVED = ("similarity", "own_order", "keys", "block", "miner_state")


@dataclass(frozen=True)
class Miner:
    """A miner with its settings: which pairs or triplets of a batch a loss will see.

    `mine(sims [a, n], pos, neg, ...)` chooses on one block of anchors, `sims` by the miner's own distance.
    Beside its hyper-parameters it gets what its keywords name: `similarity`; `own_order`, whether the loss
    has the same distance; `keys`, the anchors' own random keys; `block`, the whole `pairwise.Block` with these
    `sims`; and `miner_state`, what `before` gave.

    Attributes:
      triplets: whether it chooses triplets (a, p, n) rather than pairs (a, p) and (a, n).
      before: `before(whole_batch, ...) -> miner_state`, called once for the whole batch, with the hyper-parameters that
        its keywords name, `similarity` and `key`. `whole_batch.map_blocks(fn, sums)` evaluates `fn(block) -> (sums,
        rows)` over all blocks, with `block.sims` by the miner's distance, as often as it is called.
    """

    name: str
    mine: Mining
    hyper: tuple[tuple[str, Any], ...]
    distance: Distance
    triplets: bool
    before: Callable[..., Any] | None = None

    def mining(self, loss_distance: Distance | None = None) -> pairwise.Mining:
        """The miner as the driver takes it."""
        if self.before is None:
            return pairwise.Mining(partial(self._select, loss_distance=loss_distance))
        return pairwise.Mining(partial(self._select, loss_distance=loss_distance), self._prepare)

    def _prepare(self, whole_batch: pairwise.WholeBatch) -> Any:
        assert self.before is not None
        whole_batch = replace(
            whole_batch, map_blocks=partial(whole_batch.map_blocks, distance=self.distance)
        )
        return self.before(whole_batch, **self._keywords(self.before, {"key": whole_batch.key}))

    def _select(
        self,
        block: pairwise.Block,
        keys: Array | None,
        miner_state: Any,
        *,
        loss_distance: Distance | None,
    ) -> Selection:
        """The selection on one block of anchors."""
        sims = self.distance(block.anchors, block.refs)
        derived = {
            "own_order": self.distance == loss_distance,
            "keys": keys,
            "block": replace(block, sims=sims),
            "miner_state": miner_state,
        }
        given = self._keywords(self.mine, derived)
        return self.mine(sims, block.related.pos, block.related.neg, **given)

    def _keywords(self, fn: Callable[..., Any], derived: dict[str, Any]) -> dict[str, Any]:
        """What a function of this miner is called with: hyper-parameters, and what it asks for of the rest."""
        accepted = names.keywords(fn)
        if any(name in accepted and derived.get(name, ()) is None for name in ("keys", "key")):
            raise ValueError(f"miner {self.name!r} draws at random and needs a key")
        defaults = {k: v for k, v in names.keywords(self.mine).items() if k not in DERIVED}
        given = {**defaults, "similarity": self.distance.similarity, **dict(self.hyper), **derived}
        return {k: v for k, v in given.items() if k in accepted}

    def __call__(
        self,
        embeddings: Float[Array, "b d"],
        labels: Array,
        *,
        ref_embeddings: Float[Array, "m d"] | None = None,
        ref_labels: Array | None = None,
        relation: Any = None,
        key: Array | None = None,
        block: int | None = None,
    ) -> "Mined":
        """Mines a whole batch, for looking and for tests (inside a loss, blocks do the same).

        Labels are integers `[B]`, or what `relation` (a name, a dict with a name, or the object) takes; inside
        a loss its relation holds. With references no pair is left out as a sample with itself.
        """
        related = relations.build(relation)
        refs = (ref_embeddings, ref_labels)
        ref_rows = None if ref_embeddings is None else ref_embeddings.shape[0]
        related.check(labels, ref_labels, embeddings.shape[0], ref_rows)
        chosen = self._whole(related, embeddings, labels, *refs, key, block)
        return Mined(chosen, self.triplets)

    @partial(jax.jit, static_argnums=(0, 1, 7))
    def _whole(
        self, relation: Relation, embeddings, labels, ref_embeddings, ref_labels, key, block
    ) -> Selection:
        ones = lambda x: jnp.ones(x.shape[0], bool)
        anchors = (embeddings, labels, ones(embeddings))
        refs = anchors if relation.kind.of_samples else (embeddings, None, anchors[2])
        if ref_embeddings is not None:
            refs = (ref_embeddings, ref_labels, ones(ref_embeddings))

        def rows(block: pairwise.Block) -> tuple[tuple[()], Selection]:
            return (), _with_refs(block.selection, None)

        _, selection = pairwise.map_blocks(
            rows,
            anchors,
            refs,
            relation=relation,
            exclude_self=ref_embeddings is None,
            mine=self.mining(),
            key=key,
            block=block,
        )
        return _with_refs(selection, refs[0])


def _with_refs(selection: Selection, refs: Array | None) -> Selection:
    """The selection with these references, the one part of it that has no rows of anchors."""
    if not isinstance(selection.triplets, Streamed):
        return selection
    return replace(selection, triplets=replace(selection.triplets, refs=refs))


@dataclass(frozen=True)
class Mined:
    """What a miner chose from a batch: `selection` has rows for all anchors."""

    selection: Selection
    triplets: bool

    def indices(self) -> tuple[np.ndarray, ...]:
        """The choice as sorted index arrays on the host, repeated as often as it was made.

        (anchor, positive, negative) of a triplet miner, (anchor, positive, anchor, negative) of a pair
        miner.
        """
        pos, neg = np.asarray(self.selection.pos), np.asarray(self.selection.neg)
        if not self.triplets:
            return (*_repeated(pos), *_repeated(neg))
        chosen = self.selection.triplets
        if isinstance(chosen, Listed):
            weight = np.asarray(chosen.weight).astype(int)
            anchor = np.broadcast_to(np.arange(len(weight))[:, None], weight.shape)
            columns = (anchor, np.asarray(chosen.positive), np.asarray(chosen.negative))
            rows = np.repeat(np.stack([c.ravel() for c in columns], 1), weight.ravel(), axis=0)
        else:
            rows = _triplets(pos, neg, chosen)
        rows = rows[np.lexsort(rows.T[::-1])]
        return tuple(rows.T)


def _repeated(weights: np.ndarray) -> tuple[np.ndarray, ...]:
    """Row and column of every entry, as often as its weight says."""
    where = np.nonzero(weights)
    return tuple(np.repeat(index, weights[where].astype(int)) for index in where)


def _triplets(pos: np.ndarray, neg: np.ndarray, chosen: Within | Streamed | None) -> np.ndarray:
    """All triplets, `[count, 3]`."""
    rows = [np.zeros((0, 3), int)]
    rank = np.cumsum(pos > 0, axis=1) - 1
    for k in range(rank.max(initial=-1) + 1):
        one = (pos > 0) & (rank == k)
        partners = neg
        if chosen is not None:
            partners = np.asarray(chosen.negatives(jnp.asarray(one), jnp.asarray(neg)))
        a, n = np.nonzero((partners > 0) & one.any(1, keepdims=True))
        rows.append(np.stack([a, one.argmax(1)[a], n], 1))
    return np.concatenate(rows)
