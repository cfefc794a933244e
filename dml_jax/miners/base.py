"""What `miners.get` returns, and what a miner's call returns."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dml_jax import names, pairwise
from dml_jax.distances import Distance
from dml_jax.relations import SAME_LABEL
from dml_jax.selection import Listed, Selection, Within

# mine(sims [a, n], pos, neg, **hyper) -> Selection
Mining = Callable[..., Selection]


@dataclass(frozen=True)
class Miner:
    """A miner with its settings: which pairs or triplets of a batch a loss will see.

    Attributes:
      triplets: whether it chooses triplets (a, p, n) rather than pairs (a, p) and (a, n).
    """

    name: str
    mine: Mining
    hyper: tuple[tuple[str, Any], ...]
    distance: Distance
    triplets: bool

    def select(
        self,
        anchors: Array,
        refs: Array,
        pos: Array,
        neg: Array,
        keys: Array | None,
        *,
        loss_distance: Distance | None = None,
    ) -> Selection:
        """The selection on one block of anchors: `[a, d]`, `[n, d]`, masks `[a, n]`.

        `keys` are the anchors' own random keys, for miners that draw.
        """
        accepted = names.keywords(self.mine)
        given: dict[str, Any] = {
            "similarity": self.distance.similarity,
            "own_order": self.distance == loss_distance,
        }
        if "keys" in accepted:
            if keys is None:
                raise ValueError(f"miner {self.name!r} draws at random and needs a key")
            given["keys"] = keys
        given = {k: v for k, v in given.items() if k in accepted}
        return self.mine(self.distance(anchors, refs), pos, neg, **dict(self.hyper), **given)

    def __call__(
        self,
        embeddings: Float[Array, "b d"],
        labels: Array,
        *,
        ref_embeddings: Float[Array, "m d"] | None = None,
        ref_labels: Array | None = None,
        key: Array | None = None,
    ) -> "Mined":
        """Mines a whole batch, for looking and for tests (inside a loss, blocks do the same).

        Labels are integers `[B]`. With references no pair is left out as a sample with itself.
        """
        return Mined(
            self._whole(embeddings, labels, ref_embeddings, ref_labels, key), self.triplets
        )

    @partial(jax.jit, static_argnums=0)
    def _whole(self, embeddings, labels, ref_embeddings, ref_labels, key) -> Selection:
        ones = lambda x: jnp.ones(x.shape[0], bool)
        anchors = (embeddings, labels, ones(embeddings))
        refs = anchors
        if ref_embeddings is not None:
            refs = (ref_embeddings, ref_labels, ones(ref_embeddings))

        def one_block(ids, valid, anchors, refs, everywhere):
            _, kept = pairwise.select(
                ids,
                valid,
                anchors,
                refs,
                relation=SAME_LABEL,
                exclude_self=ref_embeddings is None,
                mine=self.select,
                key=key,
            )
            return (), kept

        return pairwise.map_anchors(one_block, anchors, refs)[1]


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
            rows = np.concatenate(
                [_triplets_of(a, pos[a], neg[a], chosen) for a in range(len(pos))]
                or [np.zeros((0, 3), int)]
            )
        rows = rows[np.lexsort(rows.T[::-1])]
        return tuple(rows.T)


def _repeated(weights: np.ndarray) -> tuple[np.ndarray, ...]:
    """Row and column of every entry, as often as its weight says."""
    where = np.nonzero(weights)
    return tuple(np.repeat(index, weights[where].astype(int)) for index in where)


def _triplets_of(a: int, pos: np.ndarray, neg: np.ndarray, within: Within | None) -> np.ndarray:
    """The triplets of one anchor, `[count, 3]`."""
    play = (pos > 0)[:, None] & (neg > 0)[None, :]
    if within is not None:
        order = np.asarray(within.order[a])
        gap = order[None, :] - order[:, None]
        play &= (gap > within.low) & (gap <= within.high)
    p, n = np.nonzero(play)
    return np.stack([np.full_like(p, a), p, n], 1)
