"""What `losses.get` returns: a kernel with its distance, miner, reducer and relation."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dml_jax import classwise, names
from dml_jax import pairwise as driver
from dml_jax.distances import Distance
from dml_jax.miners.base import Miner
from dml_jax.reducers import Reducer
from dml_jax.relations import SAME_LABEL, Relation
from dml_jax.selection import Selection
from dml_jax.types import Mean

Variables = dict[str, Any]


@dataclass(frozen=True)
class Loss(ABC):
    """A loss with its settings: pure functions `init` and `apply`, hashable, free of arrays.

    Attributes:
      pairwise: whether it compares samples with samples, so that it needs the whole batch at once.
      reads_labels: whether the labels matter.
      takes_block: whether it can be evaluated in blocks.
    """

    name: str
    kernel: Callable[..., Any]
    hyper: tuple[tuple[str, Any], ...]
    distance: Distance
    reducer: Reducer
    relation: Relation
    miner: Miner | None

    pairwise = True
    reads_labels = True
    takes_block = True

    def init(self, key: Array, num_classes: int, dim: int) -> Variables:
        """{"params": learned arrays, "state": arrays that steps update}; {} for a stateless loss."""
        del key, num_classes, dim
        return {}

    def apply(
        self,
        variables: Variables,
        embeddings: Float[Array, "b d"],
        labels: Array,
        *,
        ref_embeddings: Float[Array, "m d"] | None = None,
        ref_labels: Array | None = None,
        valid: Bool[Array, " b"] | None = None,
        key: Array | None = None,
        block: int | None = None,
    ) -> tuple[Mean, dict[str, Array]]:
        """The loss of a batch, over the `data` axis of the mesh in context, and the new state.

        Args:
          variables: what `init` made.
          embeddings: `[B, D]`, not normalised (the distance does that), any float type.
          labels: `[B]` integers, or what the relation takes (`[B, M]` for "matrix").
          ref_embeddings, ref_labels: compare the batch with these instead of with itself; then no
            pair is left out as a sample with itself.
          valid: False for rows that are padding: as if they were not there.
          key: for miners that draw.
          block: anchors (for a loss against class weights: classes) at a time; None: all at once. The
            value and the gradient are the same.

        Raises:
          ValueError: shapes that do not belong together, references where the loss takes none.
        """
        check_batch(self, embeddings, labels, ref_embeddings, ref_labels, valid)
        driver.check_block(block)
        if block is not None and not self.takes_block:
            raise ValueError(f"loss {self.name!r} has no form in blocks; accepted: block=None")
        if valid is None:
            valid = jnp.ones(embeddings.shape[0], bool)
        refs = None if ref_embeddings is None else (ref_embeddings, ref_labels)
        return self._apply(variables, embeddings, labels, refs, valid, key, block)

    # Compiled once per loss, shapes and mesh: eager calls cost what a jitted one costs.
    @partial(jax.jit, static_argnums=(0, 7))
    def _apply(self, variables, embeddings, labels, refs, valid, key, block):
        dtype = jnp.promote_types(embeddings.dtype, jnp.float32)
        embeddings = embeddings.astype(dtype)
        if refs is not None:
            refs = (refs[0].astype(dtype), refs[1])
        return self._step(variables, (embeddings, labels, valid), refs, key, block)

    def _step(self, variables, anchors, refs, key, block) -> tuple[Mean, dict[str, Array]]:
        """`_mean` and the new state, for losses that have one."""
        return self._mean(variables, anchors, refs, key, block), variables.get("state", {})

    @abstractmethod
    def _mean(self, variables, anchors, refs, key, block) -> Mean:
        """The loss of anchors (embeddings, labels, valid) against refs (embeddings, labels)."""

    def _keywords(self, kernel: Callable[..., Any], derived: dict[str, Any]) -> dict[str, Any]:
        """What a kernel of this loss is called with: hyper-parameters, and what it asks for of the rest."""
        accepted = names.keywords(kernel)
        settings = {
            "similarity": self.distance.similarity,
            "farthest": self.distance.farthest,
            "low": self.reducer.low,
            "high": self.reducer.high,
            **dict(self.hyper),
            **derived,
        }
        return {k: v for k, v in settings.items() if k in accepted}

    def _mine(self) -> driver.Mine | None:
        return (
            None if self.miner is None else partial(self.miner.select, loss_distance=self.distance)
        )


def check_batch(loss, embeddings, labels, ref_embeddings, ref_labels, valid) -> None:
    """One-line errors for arrays that do not belong together."""
    if embeddings.ndim != 2:
        raise ValueError(f"embeddings have shape {embeddings.shape}; accepted: [batch, dim]")
    if not jnp.issubdtype(embeddings.dtype, jnp.floating):
        raise ValueError(f"embeddings are {embeddings.dtype}; accepted: a float type")
    batch, rank = embeddings.shape[0], loss.relation.rank
    columns = batch if ref_embeddings is None else ref_embeddings.shape[0]
    wanted = (batch,) if rank == 1 else (batch, columns)
    if loss.reads_labels and tuple(labels.shape) != wanted:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}; relation {loss.relation.name!r} takes {wanted} "
            f"for {batch} embeddings"
        )
    if valid is not None and tuple(valid.shape) != (batch,):
        raise ValueError(f"valid has shape {tuple(valid.shape)}; accepted: {(batch,)}")
    if ref_embeddings is None:
        if ref_labels is not None:
            raise ValueError("ref_labels were given without ref_embeddings")
        return
    if not loss.takes_references:
        raise ValueError(
            f"loss {loss.name!r} takes no ref_embeddings: it compares with class weights"
        )
    if ref_embeddings.ndim != 2 or ref_embeddings.shape[1] != embeddings.shape[1]:
        raise ValueError(
            f"ref_embeddings have shape {ref_embeddings.shape}; accepted: [m, {embeddings.shape[1]}]"
        )
    if not loss.reads_labels or rank != 1:
        return
    if ref_labels is None or tuple(ref_labels.shape) != (columns,):
        shape = None if ref_labels is None else tuple(ref_labels.shape)
        raise ValueError(f"ref_labels have shape {shape}; accepted: {(columns,)}")


@dataclass(frozen=True)
class PairLoss(Loss):
    """A loss whose kernel reads pairs: `rows(sims, pos, neg, ...)`.

    Beside its hyper-parameters a kernel gets what its keywords name: `similarity`; `low` and `high` of the
    reducer; `farthest`, the largest distance there is; `triplets` of the selection; `unmined`, the masks
    before mining; `own`, the similarity of each anchor to itself, None where the references are not the
    batch; `sums` and `columns` of the first phase; `vectors`, the anchors and references;
    `partner(one, references)`, the similarities `[a, n]` of one reference a row to all; and arrays that
    belong to the anchors, by their names in `extra`.

    Attributes:
      needs_negatives: whether the loss is 0 where no negative is in play in the whole batch.
      first: `first(sims, pos, neg, ...) -> (sums, rows)`, evaluated over all anchors beforehand.
      takes_references: whether references other than the batch make sense.
    """

    needs_negatives: bool = False
    first: Callable[..., Any] | None = None
    takes_references: bool = True

    def _pairs(self, kept: Selection) -> tuple[Array, Array]:
        return kept.pairs()

    def _call(self, kernel: Callable[..., Any], seen: driver.Block) -> Any:
        derived = {
            "triplets": seen.kept.triplets,
            "unmined": (seen.related.pos, seen.related.neg),
            "own": seen.own,
            "sums": seen.sums,
            "columns": seen.columns,
            "vectors": (seen.anchors, seen.refs),
            "partner": partial(_partner, self.distance),
            **seen.extra,
        }
        return kernel(seen.sims, *self._pairs(seen.kept), **self._keywords(kernel, derived))

    def _terms(self, seen: driver.Block) -> dict[str, tuple[Array, ...]]:
        result = self._call(self.kernel, seen)
        return result if isinstance(result, dict) else {self.name: result}

    def _extra(self, variables: Variables, labels: Array) -> dict[str, Array]:
        """Arrays of the anchors that the kernel asks for, `[B, ...]`."""
        del variables, labels
        return {}

    def _setup(self, variables, anchors, refs, key, block) -> tuple[Any, dict[str, Any]]:
        """(references, how the driver is called)."""
        if refs is None:
            others = anchors if self.relation.rank == 1 else (anchors[0], None, anchors[2])
        else:
            others = (*refs, jnp.ones(refs[0].shape[0], bool))
        return others, dict(
            distance=self.distance,
            relation=self.relation,
            exclude_self=refs is None,
            mine=self._mine(),
            key=key,
            block=block,
            extra=self._extra(variables, anchors[1]),
        )

    def _first_sums(self, anchors, others, how: dict[str, Any]) -> Any:
        """What the first phase adds up over all anchors."""
        assert self.first is not None  # set for the entries of losses.LOSSES that come here
        return driver.first_phase(partial(self._call, self.first), anchors, others, **how)[0]

    def _mean(self, variables, anchors, refs, key, block) -> Mean:
        others, how = self._setup(variables, anchors, refs, key, block)
        return driver.pairwise(
            self._terms,
            anchors,
            others,
            reducer=self.reducer,
            needs_negatives=self.needs_negatives,
            first=None if self.first is None else partial(self._call, self.first),
            **how,
        )


def _partner(distance: Distance, one: Array, refs: Array) -> Array:
    """The similarities of one reference of each row (under its mask, `[a, n]`) to all, `[a, n]`."""
    return distance(jnp.matmul(one.astype(refs.dtype), refs, precision="highest"), refs)


@dataclass(frozen=True)
class TripletLoss(PairLoss):
    """A loss whose kernel reads triplets: `rows(sims, pos, neg, triplets=..., ...)`."""

    def _pairs(self, kept: Selection) -> tuple[Array, Array]:
        return kept.pos, kept.neg


@dataclass(frozen=True)
class ListLoss(PairLoss):
    """A loss on whole rankings: a miner leaves them whole and makes the samples weigh, as in PML."""

    def _setup(self, variables, anchors, refs, key, block) -> tuple[Any, dict[str, Any]]:
        others, how = super()._setup(variables, anchors, refs, key, block)
        if how["mine"] is not None:
            how["extra"] = how["extra"] | {
                "sample_weight": driver.sample_weights(
                    anchors,
                    None if refs is None else others,
                    relation=self.relation,
                    mine=how["mine"],
                    key=key,
                    block=block,
                )
            }
        return others, how | {"mine": None}

    def _terms(self, seen: driver.Block) -> dict[str, tuple[Array, ...]]:
        terms = super()._terms(seen)
        factor = seen.extra.get("sample_weight")
        if factor is None:
            return terms
        return {
            name: (values * (factor if values.ndim == 1 else factor[:, None]), *rest)
            for name, (values, *rest) in terms.items()
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

    def _step(self, variables, anchors, refs, key, block) -> tuple[Mean, dict[str, Array]]:
        others, how = self._setup(variables, anchors, refs, key, block)
        sums = self._first_sums(anchors, others, how)
        assert self.update is not None
        keywords = self._keywords(self.update, {})
        state = jax.lax.stop_gradient(self.update(variables["state"], sums, **keywords))
        mean = driver.pairwise(
            self._terms, anchors, others, reducer=self.reducer, sums=state, **how
        )
        return mean, state


@dataclass(frozen=True)
class ClassLoss(Loss):
    """A loss with learned vectors of the classes, `params["weights"]` `[num_classes, dim]`."""

    init_weights: Callable[[Array, int, int], Array] | None = None
    takes_references = False

    def init(self, key: Array, num_classes: int, dim: int) -> Variables:
        """{"params": {"weights": [num_classes, dim]}}, float32."""
        assert self.init_weights is not None  # set for every entry of losses.LOSSES
        return {"params": {"weights": self.init_weights(key, num_classes, dim)}}

    def _sample_weights(self, anchors, key, block) -> Array:
        """What a miner makes each sample weigh; 1 without one. Padding weighs 0."""
        embeddings, _, valid = anchors
        weights = valid.astype(embeddings.dtype)
        mine = self._mine()
        if mine is None:
            return weights
        return weights * driver.sample_weights(
            anchors, relation=self.relation, mine=mine, key=key, block=block
        )


@dataclass(frozen=True)
class SoftmaxLoss(ClassLoss):
    """Cross entropy over logits of all classes; the kernel makes the logits of a chunk."""

    pairwise = False

    def _mean(self, variables, anchors, refs, key, block) -> Mean:
        embeddings, labels, valid = anchors
        weights = variables["params"]["weights"].astype(embeddings.dtype)

        def logits(embeddings: Array, weights: Array, target: Array) -> Array:
            sims = self.distance(embeddings, weights)
            return self.kernel(sims, target, **self._keywords(self.kernel, {}))

        values = classwise.cross_entropy(
            logits, embeddings, weights, jnp.where(valid, labels, 0), block=block
        )
        values = values * self._sample_weights(anchors, key, block)
        sums = self.reducer.sums(values, valid, None, labels)
        return Mean(*driver.combine({self.name: sums}, self.reducer))


@dataclass(frozen=True)
class ProxyLoss(ClassLoss):
    """A loss whose sums run over the batch: proxies are the anchors of the pairwise driver."""

    pairwise = True

    def _mean(self, variables, anchors, refs, key, block) -> Mean:
        embeddings, labels, valid = anchors
        proxies = variables["params"]["weights"].astype(embeddings.dtype)
        classes = jnp.arange(proxies.shape[0], dtype=labels.dtype)
        weights = valid if self.miner is None else self._sample_weights(anchors, key, None)

        def kernel(seen: driver.Block) -> dict[str, tuple[Array, ...]]:
            pos, neg = seen.kept.pos, seen.kept.neg
            return self.kernel(seen.sims, pos, neg, **self._keywords(self.kernel, {}))

        mean = driver.pairwise(
            kernel,
            (proxies, classes, jnp.ones(classes.shape, bool)),
            (embeddings, labels, weights),
            distance=self.distance,
            relation=SAME_LABEL,
            reducer=self.reducer,
            exclude_self=False,
            block=block,
        )
        return Mean(mean.total, mean.weight)


@dataclass(frozen=True)
class ViewsLoss(Loss):
    """A loss that compares two views of a batch, row by row: `kernel(first, second, valid, ...)`.

    The references are the second view. Labels are not read. It needs no blocks: its memory is that of the
    embeddings, and sums over the batch are shared out by the compiler.
    """

    reads_labels = False
    takes_references = True

    def _mean(self, variables, anchors, refs, key, block) -> Mean:
        embeddings, _, valid = anchors
        if refs is None or refs[0].shape != embeddings.shape:
            shape = None if refs is None else refs[0].shape
            raise ValueError(
                f"loss {self.name!r} has ref_embeddings of shape {shape}; accepted: {embeddings.shape}, "
                "the second view of the batch"
            )
        value = self.kernel(embeddings, refs[0], valid, **self._keywords(self.kernel, {}))
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
        proxies = names.keywords(self.kernel)["K"]
        proxies = dict(self.hyper).get("K", proxies)
        return {"params": {"weights": jax.random.normal(key, (proxies, dim))}}

    def _mean(self, variables, anchors, refs, key, block) -> Mean:
        embeddings, labels, valid = anchors
        proxies = variables["params"]["weights"].astype(embeddings.dtype)
        points = jnp.concatenate([embeddings, proxies])
        value = self.kernel(
            self.distance(points, points), labels, valid, **self._keywords(self.kernel, {})
        )
        return Mean(value, jnp.any(valid).astype(value.dtype))
