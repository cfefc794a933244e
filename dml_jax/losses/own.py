"""Losses that do more than call their kernel: they draw triplets, learn a margin, choose pairs."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from dml_jax import pairwise as driver
from dml_jax import reducers
from dml_jax.losses.base import PairLoss, Variables
from dml_jax.relations import SAME_LABEL
from dml_jax.selection import Selection, draw_triplets
from dml_jax.types import Mean


@dataclass(frozen=True)
class TripletLoss(PairLoss):
    """A loss whose kernel reads triplets: `rows(sims, pos, neg, triplets=..., ...)`.

    `triplets_per_anchor` is "all", or how many to draw for each anchor (by `apply`'s key and the anchor's
    position in the batch) where there is no miner.
    """

    settings: ClassVar = {"triplets_per_anchor": "all"}

    def __post_init__(self) -> None:
        count = self.setting("triplets_per_anchor")
        if count != "all" and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise ValueError(
                f"triplets_per_anchor of loss {self.name!r} is {count!r}; accepted: 'all', or a "
                "positive integer"
            )

    def _pairs(self, kept: Selection) -> tuple[Array, Array]:
        return kept.pos, kept.neg

    def _mine(self) -> driver.Mine | None:
        count = self.setting("triplets_per_anchor")
        if self.miner is not None or count == "all":
            return super()._mine()

        def mine(anchors, refs, pos, neg, keys) -> Selection:
            del anchors, refs
            if keys is None:
                raise ValueError(
                    f"loss {self.name!r} draws triplets_per_anchor={count} at random and needs a key"
                )
            return draw_triplets(pos, neg, keys, count)

        return mine


@dataclass(frozen=True)
class MarginLoss(TripletLoss):
    """Margin loss, whose boundary beta may be learned: one, or with `per_class` one for each class.

    PML has a beta for each class where it is given `num_classes`; here `init` is told their number. A label
    outside of them has no beta: its value is NaN.
    """

    settings: ClassVar = {**TripletLoss.settings, "per_class": False}

    @property
    def needs_labels(self) -> bool:
        return bool(self.setting("learn_beta") and self.setting("per_class"))

    def init(self, key: Array, num_classes: int, dim: int) -> Variables:
        """{"params": {"beta": [] or [num_classes]}}, float32; {} where beta is not learned."""
        del key, dim
        if not self.setting("learn_beta"):
            return {}
        shape = (num_classes,) if self.setting("per_class") else ()
        return {"params": {"beta": jnp.full(shape, self.setting("beta"), jnp.float32)}}

    def _extra(self, variables: Variables, labels: Array) -> dict[str, Array]:
        if not self.setting("learn_beta"):
            return {}
        beta = variables["params"]["beta"]
        if not self.needs_labels:
            return {"beta": jnp.broadcast_to(beta, labels.shape[:1])}
        known = (labels >= 0) & (labels < beta.shape[0])
        return {"beta": jnp.where(known, beta[labels], jnp.nan)}

    def _mean(self, variables, anchors, refs, key, block) -> Mean:
        loss: Any = self
        # nu times the one beta is added as it is, whatever the reducer.
        if self.setting("learn_beta") and self.setting("nu") and not self.needs_labels:
            terms = (*self.reducer.terms, ("beta", reducers.mean()))
            loss = replace(self, reducer=replace(self.reducer, terms=terms))
        return TripletLoss._mean(loss, variables, anchors, refs, key, block)


@dataclass(frozen=True)
class NPairsLoss(PairLoss):
    """N-pairs loss: one pair of each class, chosen by position; pairs are anchors and references."""

    @property
    def needs_labels(self) -> bool:
        return True

    def _mean(self, variables, anchors, refs, key, block) -> Mean:
        embeddings, labels, _ = anchors

        def first_positive(ids, valid, anchors, refs, everywhere) -> tuple[tuple[()], Any]:
            _, kept = driver.select(
                ids,
                valid,
                anchors,
                refs,
                relation=self.relation,
                exclude_self=True,
                mine=self._mine(),
                key=key,
            )
            positive = kept.pairs()[0] > 0
            return (), (jnp.any(positive, -1), jnp.argmax(positive, -1))

        _, (some, partner) = driver.map_anchors(first_positive, anchors, anchors, block=block)
        chosen = first_of_each(labels, some)
        mean = driver.pairwise(
            self._terms,
            (embeddings, labels, chosen),
            (embeddings[partner], labels[partner], chosen),
            distance=self.distance,
            relation=SAME_LABEL,
            reducer=self.reducer,
            exclude_self=False,
            block=block,
        )
        return Mean(mean.total, mean.weight)


def first_of_each(labels: Int[Array, " b"], some: Bool[Array, " b"]) -> Bool[Array, " b"]:
    """Marks the first sample of each label among those with `some`."""
    order = jnp.lexsort((~some, labels))  # stable: those with `some` first, by position
    ranked = labels[order]
    head = jnp.concatenate([jnp.ones(1, bool), ranked[1:] != ranked[:-1]])
    return some & jnp.zeros_like(some).at[order].set(head)
