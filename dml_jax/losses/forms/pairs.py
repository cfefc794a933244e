"""Losses on pairs: of a kernel that sees blocks of anchors against all references, or of sums over all pairs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from dml_jax import pairwise as driver
from dml_jax import sharded
from dml_jax.bound import Bound
from dml_jax.distances import Distance
from dml_jax.losses.base import (
    Loss,
    Parts,
    References,
    State,
    Variables,
    add_regularizers,
    with_classes,
)
from dml_jax.mean import Mean
from dml_jax.mining import Miner
from dml_jax.pairwise import Block, Samples, WholeBatch
from dml_jax.reducers import Reducer
from dml_jax.regularizers import Regularizer
from dml_jax.relations import SAME_LABEL
from dml_jax.selection import Selection, rows_at

# kernel(block) -> (values, weights), or a dict of these by term; a third entry is the row's part of a divisor
BlockKernel = Callable[[Block], Any]


def from_rows(rows: Callable[..., Any], **hyper: Any) -> Bound[Any]:
    """Makes a kernel of a block from a row kernel `rows(sims, pos, neg, *, hyper)`.

    `pos` and `neg` are the pairs in play; in a choice of triplets a pair weighs as many as hold it.

    Args:
      rows: the row kernel.
      **hyper: its keywords.
    """
    return Bound(_call_rows, rows=Bound(rows, **hyper))


def _call_rows(block: Block, *, rows: Callable[..., Any]) -> Any:
    return rows(block.sims, *block.selection.pairs())


def prepass(rows: Callable[..., Any], **hyper: Any) -> Bound[Any]:
    """Makes a `prepare` that evaluates `rows(sims, pos, neg, *, hyper) -> (sums, rows)` on all blocks.

    The kernel finds what it gave in `block.prepass_sums` and `block.ref_values`.

    Args:
      rows: a function like a row kernel.
      **hyper: its keywords.
    """
    return Bound(_map_rows, fn=from_rows(rows, **hyper))


def _map_rows(whole_batch: WholeBatch, *, fn: Callable[[Block], Any]) -> Any:
    return whole_batch.map_blocks(fn)


def partner_sims(one: Array, refs: Array, *, distance: Distance) -> Array:
    """Returns the similarities of one reference of each row (under its mask, `[a, n]`) to all, `[a, n]`."""
    return distance(rows_at(one, refs), refs)


def on_pairs(name: str, parts: Parts, kernel: BlockKernel, **more: Any) -> "PairLoss":
    """Makes a loss on pairs of its parts.

    Args:
      name: of the loss.
      parts: what `build_parts` made.
      kernel: of a block.
      **more: further fields of `PairLoss`.
    """
    fields = dict(label_values=_class_weights(parts.reducer)) | more
    return PairLoss(name=name, kernel=kernel, **parts._asdict(), **fields)


def _class_weights(reducer: Reducer) -> str:
    every = (reducer, *dict(reducer.terms).values())
    return "numbers of classes" if any(r.class_weights for r in every) else ""


@dataclass(frozen=True, kw_only=True)
class PairLoss(Loss):
    """A loss whose kernel sees blocks of anchors against all references.

    Attributes:
      kernel: `kernel(block) -> (values, weights)` by row or by pair, or a dict of these by term.
      distance: of `block.sims`.
      reducer: makes one number of the values.
      miner: narrows the pairs or triplets.
      regularizers: penalties that are added.
      init_variables: `init_variables(key, num_classes, dim) -> variables`; None for a loss without.
      prepare: `prepare(whole_batch) -> (sums, rows)`, evaluated beforehand: `block.prepass_sums` and `ref_values`.
      update: `update(state, sums) -> state` for a loss with a state: the kernel's `block.prepass_sums` is the new
        state, a constant.
      anchor_args: `anchor_args(params, labels) -> {name: [B, ...]}`, which the kernel finds in `block.anchor_args`.
      draw: `draw(block, keys) -> Selection` for a loss that chooses at random where it has no miner.
      choose: `choose(whole_batch) -> (anchors, references)` for a loss of chosen pairs instead of all.
      needs_negatives: True makes the loss 0 where no negative is in play in the whole batch.
      weighs_samples: True where a miner does not choose pairs but weighs the anchors' values by how often
        it chose them.
    """

    kernel: BlockKernel
    distance: Distance
    reducer: Reducer
    miner: Miner | None = None
    regularizers: tuple[Regularizer, ...] = ()
    init_variables: Callable[[Array, int, int], Variables] | None = None
    prepare: Callable[[WholeBatch], tuple[Any, Any]] | None = None
    update: Callable[[State, Any], State] | None = None
    anchor_args: Callable[[Any, Array], dict[str, Array]] | None = None
    draw: Callable[[Block, Array | None], Selection] | None = None
    choose: Callable[[WholeBatch], tuple[Samples, Samples]] | None = None
    needs_negatives: bool = False
    weighs_samples: bool = False

    def _init(self, key: Array, num_classes: int, dim: int) -> Variables:
        """Makes the variables; {} for a loss without."""
        return {} if self.init_variables is None else self.init_variables(key, num_classes, dim)

    def step(
        self,
        variables: Variables,
        anchors: Samples,
        refs: References | None,
        key: Array | None,
        block: int | None,
    ) -> tuple[Mean, State]:
        """Computes the loss with its regularizers, and the new state."""
        relation, batch = self.relation, anchors
        if self.reads_classes:
            relation, anchors, refs = with_classes(relation, anchors, refs)
        others = Samples(*anchors)
        if refs is not None:
            others = Samples(refs.vectors, refs.labels, refs.valid)
        elif not relation.of_samples:
            others = others._replace(labels=None)
        how: dict[str, Any] = dict(
            relation=relation,
            exclude_self=refs is None or refs.refs_include_batch,
            key=key,
            block=block,
        )
        # Here rather than in each evaluation of pairs, of which a loss may have several.
        how["mine"] = driver.run_prepare(self._mining(), anchors, others, **how)
        args: dict[str, Array] = {}
        if self.anchor_args is not None:
            args = self.anchor_args(variables.get("params", {}), anchors.labels)
        if self.weighs_samples and how["mine"] is not None:
            weights = driver.sample_weights(anchors, others, partners=refs is None, **how)
            args["sample_weights"], how["mine"] = weights, None
        how |= dict(distance=self.distance, anchor_args=args)
        state = variables.get("state", {})
        if self.prepare is not None:
            sums, rows = self.prepare(whole_batch(anchors, others, **how))
            if self.update is not None:
                sums = state = jax.lax.stop_gradient(self.update(state, sums))
            how |= dict(prepass_sums=sums, ref_values=rows)
        if self.choose is not None:
            sharded.refuse(
                f"loss {self.name!r} looks rows up in the whole batch, which no device has"
            )
            anchors, others = self.choose(whole_batch(anchors, others, **how))
            how |= dict(relation=SAME_LABEL, exclude_self=False, mine=None, anchor_args={})
        mean = driver.pairwise(
            self._terms,
            anchors,
            others,
            reducer=self.reducer,
            needs_negatives=self.needs_negatives,
            **how,
        )
        if self.choose is not None:
            mean = Mean(mean.total, mean.weight)  # the fractions are those of the chosen pairs
        return add_regularizers(mean, self.regularizers, variables, batch, block), state

    def _terms(self, block: Block) -> dict[str, tuple[Array, ...]]:
        result = self.kernel(block)
        terms = result if isinstance(result, dict) else {self.name: result}
        if "sample_weights" not in block.anchor_args:
            return terms
        weights = block.anchor_args["sample_weights"]
        weigh = lambda values: values * (weights if values.ndim == 1 else weights[:, None])
        return {name: (weigh(values), *rest) for name, (values, *rest) in terms.items()}

    def _mining(self) -> driver.Mining | None:
        if self.miner is not None:
            return self.miner.mining(self.distance)
        draw = self.draw
        if draw is None:
            return None
        return driver.Mining(lambda block, keys, miner_state: draw(block, keys))


def whole_batch(anchors: Samples, refs: Samples, *, distance: Distance, **how: Any) -> WholeBatch:
    """Returns the whole batch as a loss sees it: after mining, with the distance of the loss."""
    default = distance

    def mapped(fn: Any, sums: Any = None, distance: Distance | None = None) -> tuple[Any, Any]:
        more = dict(prepass_sums=sums, distance=default if distance is None else distance)
        return driver.map_blocks(fn, anchors, refs, **how | more)

    return WholeBatch(anchors, refs, how["key"], mapped, how["exclude_self"])


@dataclass(frozen=True, kw_only=True)
class SumsLoss(Loss):
    """A loss that is a function of sums over all pairs.

    Attributes:
      sums: `sums(block) -> (sums, ())`, evaluated on all blocks.
      kernel: `kernel(sums) -> scalar`.
      distance: of `block.sims`.
      miner: narrows the pairs.
      regularizers: penalties that are added.
    """

    sums: Callable[[Block], tuple[Any, Any]]
    kernel: Callable[[Any], Array]
    distance: Distance
    miner: Miner | None = None
    regularizers: tuple[Regularizer, ...] = ()

    def _init(self, key: Array, num_classes: int, dim: int) -> Variables:
        """Makes no variables."""
        del key, num_classes, dim
        return {}

    def step(
        self,
        variables: Variables,
        anchors: Samples,
        refs: References | None,
        key: Array | None,
        block: int | None,
    ) -> tuple[Mean, State]:
        """Computes the loss with its regularizers."""
        others = anchors if self.relation.of_samples else anchors._replace(labels=None)
        if refs is not None:
            others = Samples(refs.vectors, refs.labels, refs.valid)
        sums, _ = driver.map_blocks(
            self.sums,
            anchors,
            others,
            distance=self.distance,
            relation=self.relation,
            exclude_self=refs is None or refs.refs_include_batch,
            mine=None if self.miner is None else self.miner.mining(self.distance),
            key=key,
            block=block,
        )
        value = self.kernel(sums)
        mean = Mean(value, jnp.ones_like(value))
        return add_regularizers(mean, self.regularizers, variables, anchors, block), {}
