"""Losses that do more than call their kernel.

They draw triplets, learn a margin or a scale, choose pairs, keep a statistic, compare two views, or
need the whole graph of a batch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from dml_jax import pairwise as driver
from dml_jax import reducers
from dml_jax.losses.base import ClassLoss, KernelLoss, PairLoss, Variables
from dml_jax.mean import Mean
from dml_jax.relations import SAME_LABEL
from dml_jax.selection import Selection, draw_triplets, first_place


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

    def _mine(self) -> driver.Mining | None:
        count = self.setting("triplets_per_anchor")
        if self.miner is not None or count == "all":
            return super()._mine()

        def select(block: driver.Block, keys: Array | None, miner_state: Any) -> Selection:
            del miner_state
            if keys is None:
                raise ValueError(
                    f"loss {self.name!r} draws triplets_per_anchor={count} at random and needs a key"
                )
            return draw_triplets(block.related.pos, block.related.neg, keys, count)

        return driver.Mining(select)


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

    def _beta_reducer(self) -> reducers.Reducer | None:
        """How nu beta is reduced; None: as the hinges are."""
        # nu times the one beta is added as it is, whatever the reducer.
        return None if self.needs_labels else reducers.mean()

    def _mean(self, variables, anchors, refs, key, block) -> Mean:
        loss: Any = self
        of_beta = self._beta_reducer()
        if self.setting("learn_beta") and self.setting("nu") and of_beta is not None:
            terms = (*self.reducer.terms, ("beta", of_beta))
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

        def first_positive(block: driver.Block) -> tuple[tuple[()], Any]:
            positive = block.selection.pairs()[0] > 0
            return (), first_place(positive)

        _, partner = driver.map_blocks(
            first_positive,
            anchors,
            anchors,
            relation=self.relation,
            exclude_self=True,
            mine=self._mine(),
            key=key,
            block=block,
        )
        chosen = first_of_each(labels, partner < labels.shape[0])
        # A class that has a pair has two samples or more: half of the batch holds all that were chosen.
        place = jnp.argsort(~chosen)[: max(labels.shape[0] // 2, 1)]
        partner = jnp.where(chosen, partner, 0)[place]
        mean = driver.pairwise(
            self._terms,
            (embeddings[place], labels[place], chosen[place]),
            (embeddings[partner], labels[partner], chosen[place]),
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


@dataclass(frozen=True)
class SigmoidLoss(PairLoss):
    """A loss on pairs whose kernel has a learned `scale` and `bias`, scalars.

    `params` holds "log_scale" and "bias"; the hyper-parameters are what they start from.
    """

    def init(self, key: Array, num_classes: int, dim: int) -> Variables:
        """{"params": {"log_scale": scalar, "bias": scalar}}."""
        del key, num_classes, dim
        return {
            "params": {
                "log_scale": jnp.full((), math.log(self.setting("scale"))),
                "bias": jnp.full((), float(self.setting("bias"))),
            }
        }

    def _extra(self, variables: Variables, labels: Array) -> dict[str, Array]:
        learned = variables["params"]
        rows = labels.shape[:1]
        return {
            "scale": jnp.broadcast_to(jnp.exp(learned["log_scale"]), rows),
            "bias": jnp.broadcast_to(learned["bias"], rows),
        }


@dataclass(frozen=True)
class SumsLoss(PairLoss):
    """A loss that is a function of sums over all pairs: `kernel(sums)` of what `first` adds up."""

    def _mean(self, variables, anchors, refs, key, block) -> Mean:
        others, how = self._setup(variables, anchors, refs, key, block)
        sums = self._first_sums(anchors, others, how)
        value = self.kernel(sums, **self._keywords(self.kernel, {}))
        return Mean(value, jnp.ones_like(value))


@dataclass(frozen=True)
class RunningLoss(TripletLoss):
    """A loss whose kernel reads a statistic that steps update from the sums of the first phase.

    Attributes:
      begin: `begin(...) -> state`, a dict of arrays, before the first step.
      update: `update(state, sums, ...) -> state`. The kernel's `sums` is the new state, a constant.
    """

    begin: Callable[..., dict[str, Array]] | None = None
    update: Callable[..., dict[str, Array]] | None = None

    def init(self, key: Array, num_classes: int, dim: int) -> Variables:
        """{"state": the statistic before the first step}."""
        del key, num_classes, dim
        assert self.begin is not None  # set for every entry of losses.LOSSES
        return {"state": self.begin(**self._keywords(self.begin, {}))}

    def step(self, variables, anchors, refs, key, block) -> tuple[Mean, dict[str, Any]]:
        """The loss by the new statistic, with its regularizers; the new statistic."""
        others, how = self._setup(variables, anchors, refs, key, block)
        sums = self._first_sums(anchors, others, how)
        assert self.update is not None
        keywords = self._keywords(self.update, {})
        state = jax.lax.stop_gradient(self.update(variables["state"], sums, **keywords))
        mean = driver.pairwise(
            self._terms, anchors, others, reducer=self.reducer, prepass_sums=state, **how
        )
        return self._regularized(mean, variables, anchors, block), state


@dataclass(frozen=True)
class ViewsLoss(KernelLoss):
    """A loss that compares two views of a batch, row by row: `kernel(first, second, valid, ...)`.

    The references are the second view. Labels are not read. A kernel with a keyword `learned` gets the parameters.
    It needs no blocks: its memory is that of the embeddings, and sums over the batch are shared out by the compiler.
    """

    reads_labels = False

    def _mean(self, variables, anchors, refs, key, block) -> Mean:
        embeddings, _, valid = anchors
        if refs is None or refs.vectors.shape != embeddings.shape:
            shape = None if refs is None else refs.vectors.shape
            raise ValueError(
                f"loss {self.name!r} has ref_embeddings of shape {shape}; accepted: {embeddings.shape}, "
                "the second view of the batch"
            )
        derived = {"learned": variables.get("params")}
        value = self.kernel(
            embeddings, refs.vectors, valid & refs.valid, **self._keywords(self.kernel, derived)
        )
        return Mean(value, jnp.ones_like(value))


@dataclass(frozen=True)
class GraphLoss(ClassLoss):
    """A loss on the graph of the whole batch and K proxies: `kernel(sims, labels, valid, ...)`.

    `sims` are the similarities of samples and proxies, in that order, to one another. It has no form by
    rows, so that blocks are refused and every device does the whole of it.
    """

    takes_block = False

    def init(self, key: Array, num_classes: int, dim: int) -> Variables:
        """{"params": {"weights": [K, dim]}}, from N(0, 1)."""
        del num_classes
        return {"params": {"weights": jax.random.normal(key, (self.setting("K"), dim))}}

    def _mean(self, variables, anchors, refs, key, block) -> Mean:
        embeddings, labels, valid = anchors
        proxies = variables["params"]["weights"].astype(embeddings.dtype)
        points = jnp.concatenate([embeddings, proxies])
        value = self.kernel(
            self.distance(points, points), labels, valid, **self._keywords(self.kernel, {})
        )
        return Mean(value, jnp.any(valid).astype(value.dtype))
