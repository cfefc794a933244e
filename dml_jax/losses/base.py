"""What `losses.get` returns: a kernel with its distance, miner, reducer and relation."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dml_jax import classwise, names
from dml_jax import pairwise as driver
from dml_jax.distances import Distance, normalize, norms
from dml_jax.mean import Mean
from dml_jax.miners.base import Miner
from dml_jax.reducers import Reducer
from dml_jax.regularizers import Regularizer
from dml_jax.relations import SAME_LABEL, Relation
from dml_jax.selection import Selection, rows_at

Variables = dict[str, Any]


class References(NamedTuple):
    """What a batch is compared with instead of itself.

    Attributes:
      valid: False for references that are not there.
      refs_include_batch: whether the first of them are the batch, in order: then a sample is not compared with the
        reference of its own position.
    """

    vectors: Array
    labels: Array | None
    valid: Array
    refs_include_batch: bool = False


@dataclass(frozen=True)
class Loss(ABC):
    """A loss with its settings: pure functions `init` and `apply`, hashable, free of arrays.

    Attributes:
      relation: what makes two samples positives; it says which labels `apply` takes.
      pairwise: whether it compares samples with samples, so that it needs the whole batch at once.
      takes_references: whether references other than the batch make sense.
      reads_labels: whether the labels matter.
      takes_block: whether it can be evaluated in blocks.
    """

    name: str
    relation: Relation

    pairwise = True
    takes_references = True
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
          labels: `[B]` integers, or what the relation takes: `[B, levels]` for "hierarchy", `[B, L]` for
            "overlap", `[B, M]` for "matrix".
          ref_embeddings, ref_labels: compare the batch with these instead of with itself; then no
            pair is left out as a sample with itself.
          valid: False for rows that are padding: as if they were not there.
          key: for miners that draw.
          block: anchors (for a loss against class weights: classes) at a time; None: all at once. The
            value and the gradient are the same.

        The loss is NaN where an embedding or a reference is not finite, whatever a miner would leave of it.

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
            refs = References(refs[0].astype(dtype), refs[1], jnp.ones(refs[0].shape[0], bool))
        mean, state = self.step(variables, (embeddings, labels, valid), refs, key, block)
        # A miner or a bound may leave out just the pairs that are NaN, and the rest would look sound.
        nothing = jnp.sum(0 * jax.lax.stop_gradient(jnp.where(valid[:, None], embeddings, 0)))
        if refs is not None:
            nothing += jnp.sum(0 * jax.lax.stop_gradient(refs.vectors))
        return replace(mean, total=mean.total + nothing, weight=mean.weight + nothing), state

    @abstractmethod
    def step(self, variables, anchors, refs, key, block) -> tuple[Mean, dict[str, Any]]:
        """The loss of anchors (embeddings, labels, valid) against References or None; the new state.

        What `apply` does, for arrays that were checked: other losses build on it.
        """


@dataclass(frozen=True)
class KernelLoss(Loss):
    """A kernel with its distance, reducer, miner and regularizers.

    Attributes:
      settings: hyper-parameters with their defaults that are the class's own, not the kernel's.
      needs_labels: whether it reads classes, so that a relation without them will not do.
    """

    kernel: Callable[..., Any]
    hyper: tuple[tuple[str, Any], ...]
    distance: Distance
    reducer: Reducer
    miner: Miner | None
    regularizers: tuple[Regularizer, ...]

    settings: ClassVar[Mapping[str, Any]] = {}

    @property
    def needs_labels(self) -> bool:
        return False

    def setting(self, name: str) -> Any:
        """The value of a hyper-parameter, given or default."""
        return dict(self.hyper).get(name, {**names.keywords(self.kernel), **self.settings}[name])

    def step(self, variables, anchors, refs, key, block) -> tuple[Mean, dict[str, Any]]:
        """The loss with its regularizers; the state as it was."""
        loss: KernelLoss = self
        if self.needs_labels:
            embeddings, labels, valid = anchors
            anchors = (embeddings, self.relation.classes(labels), valid)
            if refs is not None:
                refs = refs._replace(labels=self.relation.classes(refs.labels))
            loss = replace(self, relation=SAME_LABEL)
        mean = loss._mean(variables, anchors, refs, key, block)
        return self._regularized(mean, variables, anchors, block), variables.get("state", {})

    def _regularized(self, mean: Mean, variables, anchors, block) -> Mean:
        """The loss with its regularizers."""
        for regularizer in self.regularizers:
            embeddings, _, valid = anchors
            if regularizer.of == "weights":
                weights = variables["params"]["weights"].astype(embeddings.dtype)
                value = regularizer(weights, block=block)
            else:
                value = regularizer(embeddings, valid, block=block)
            total = mean.compute() + regularizer.weight * value
            stats = {**mean.stats, f"regularizer/{regularizer.name}": value}
            mean = Mean(total, jnp.ones_like(total), stats)
        return mean

    @abstractmethod
    def _mean(self, variables, anchors, refs, key, block) -> Mean:
        """The loss of anchors (embeddings, labels, valid) against References or None."""

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

    def _mine(self) -> driver.Mining | None:
        return None if self.miner is None else self.miner.mining(self.distance)


def check_batch(loss, embeddings, labels, ref_embeddings, ref_labels, valid) -> None:
    """One-line errors for arrays that do not belong together."""
    if embeddings.ndim != 2:
        raise ValueError(f"embeddings have shape {embeddings.shape}; accepted: [batch, dim]")
    if not jnp.issubdtype(embeddings.dtype, jnp.floating):
        raise ValueError(f"embeddings are {embeddings.dtype}; accepted: a float type")
    batch = embeddings.shape[0]
    if valid is not None and tuple(valid.shape) != (batch,):
        raise ValueError(f"valid has shape {tuple(valid.shape)}; accepted: {(batch,)}")
    if ref_embeddings is None:
        if ref_labels is not None:
            raise ValueError("ref_labels were given without ref_embeddings")
        if loss.reads_labels:
            loss.relation.check(labels, None, batch, None)
        return
    if not loss.takes_references:
        reason = "compares the batch with itself" if isinstance(loss, PairLoss) else "has its own"
        raise ValueError(f"loss {loss.name!r} takes no ref_embeddings: it {reason}")
    if ref_embeddings.ndim != 2 or ref_embeddings.shape[1] != embeddings.shape[1]:
        raise ValueError(
            f"ref_embeddings have shape {ref_embeddings.shape}; accepted: [m, {embeddings.shape[1]}]"
        )
    if loss.reads_labels:
        loss.relation.check(labels, ref_labels, batch, ref_embeddings.shape[0])


@dataclass(frozen=True)
class PairLoss(KernelLoss):
    """A loss whose kernel reads pairs: `rows(sims, pos, neg, ...)`.

    Beside its hyper-parameters a kernel gets what its keywords name: `similarity`; `low` and `high` of the
    reducer; `farthest`, the largest distance there is; `triplets` of the selection; `unmined`, the masks
    before mining; `own`, the similarity of each anchor to itself, None where the references are not the
    batch; `sums` and `columns` of the first phase; `vectors`, the anchors and references, and `units`, the same
    as a similarity multiplies them; `partner(one, references)`, the similarities `[a, n]` of one reference a
    row to all; `ref_labels`; `keys`, the anchors' own random keys; `levels`, how many levels of a hierarchy the
    pairs share and how many there are; and arrays that belong to the anchors, by their names in `extra`.

    Attributes:
      needs_negatives: whether the loss is 0 where no negative is in play in the whole batch.
      first: `first(sims, pos, neg, ...) -> (sums, rows)`, evaluated over all anchors beforehand.
      takes_references: whether references other than the batch make sense.
      weighs_samples: whether a miner does not choose pairs but weighs the anchors' values by how often
        it chose them.
    """

    needs_negatives: bool = False
    first: Callable[..., Any] | None = None
    takes_references: bool = True
    weighs_samples: bool = False

    def _pairs(self, kept: Selection) -> tuple[Array, Array]:
        return kept.pairs()

    def _call(self, kernel: Callable[..., Any], block: driver.Block) -> Any:
        derived = {
            "triplets": block.selection.triplets,
            "unmined": (block.related.pos, block.related.neg),
            "own": block.self_sims,
            "sums": block.prepass_sums,
            "columns": block.ref_values,
            "vectors": (block.anchors, block.refs),
            "partner": partial(_partner, self.distance),
            "ref_labels": block.ref_labels,
            "keys": block.keys,
            **block.anchor_args,
        }
        if "units" in names.keywords(kernel):
            derived["units"] = self.distance.units(block.anchors), self.distance.units(block.refs)
        if "levels" in names.keywords(kernel):
            derived["levels"] = self.relation.shared_levels(block.anchor_labels, block.ref_labels)
        return kernel(block.sims, *self._pairs(block.selection), **self._keywords(kernel, derived))

    def _terms(self, block: driver.Block) -> dict[str, tuple[Array, ...]]:
        result = self._call(self.kernel, block)
        terms = result if isinstance(result, dict) else {self.name: result}
        if "sample_weights" not in block.anchor_args:
            return terms
        weights = block.anchor_args["sample_weights"]
        weigh = lambda values: values * (weights if values.ndim == 1 else weights[:, None])
        return {name: (weigh(values), *rest) for name, (values, *rest) in terms.items()}

    def _extra(self, variables: Variables, labels: Array) -> dict[str, Array]:
        """Arrays of the anchors that the kernel asks for, `[B, ...]`."""
        del variables, labels
        return {}

    def _setup(self, variables, anchors, refs, key, block) -> tuple[Any, dict[str, Any]]:
        """(references, how the driver is called)."""
        if refs is None:
            others = anchors if self.relation.kind.of_samples else (anchors[0], None, anchors[2])
        else:
            others = (refs.vectors, refs.labels, refs.valid)
        how: dict[str, Any] = dict(
            relation=self.relation,
            exclude_self=refs is None or refs.refs_include_batch,
            key=key,
            block=block,
        )
        # Here rather than in each evaluation of pairs, of which a loss may have two.
        how["mine"] = driver.run_prepare(self._mine(), anchors, others, **how)
        extra = self._extra(variables, anchors[1])
        if self.weighs_samples and how["mine"] is not None:
            weights = driver.sample_weights(anchors, others, partners=refs is None, **how)
            extra["sample_weights"], how["mine"] = weights, None
        return others, dict(distance=self.distance, anchor_args=extra, **how)

    def _first_sums(self, anchors, others, how: dict[str, Any]) -> Any:
        """What the first phase adds up over all anchors."""
        assert self.first is not None  # set for the entries of losses.LOSSES that come here
        return driver.map_blocks(partial(self._call, self.first), anchors, others, **how)[0]

    def _mean(self, variables, anchors, refs, key, block) -> Mean:
        others, how = self._setup(variables, anchors, refs, key, block)
        if self.first is not None:
            prepass = partial(self._call, self.first)
            sums, values = driver.map_blocks(prepass, anchors, others, **how)
            how |= {"prepass_sums": sums, "ref_values": values}
        return driver.pairwise(
            self._terms,
            anchors,
            others,
            reducer=self.reducer,
            needs_negatives=self.needs_negatives,
            **how,
        )


def _partner(distance: Distance, one: Array, refs: Array) -> Array:
    """The similarities of one reference of each row (under its mask, `[a, n]`) to all, `[a, n]`."""
    return distance(rows_at(one, refs), refs)


@dataclass(frozen=True)
class ClassLoss(KernelLoss):
    """A loss with learned vectors of the classes, `params["weights"]` `[num_classes, dim]`.

    Attributes:
      init_weights: `(key, rows, dim) -> [rows, dim]`.
      centers: the hyper-parameter that says how many vectors a class has; then the weights are
        `[num_classes, centers, dim]`.
      weigh_partners: whether a sample weighs more for every pair that a miner chose it for as a positive
        or negative, too, or only as an anchor.
    """

    init_weights: Callable[[Array, int, int], Array] | None = None
    centers: str = ""
    weigh_partners: bool = True
    takes_references = False

    @property
    def needs_labels(self) -> bool:
        return True

    def init(self, key: Array, num_classes: int, dim: int) -> Variables:
        """{"params": {"weights": [num_classes, dim] or [num_classes, centers, dim]}}, float32."""
        assert self.init_weights is not None  # set for every entry of losses.LOSSES
        if not self.centers:
            return {"params": {"weights": self.init_weights(key, num_classes, dim)}}
        count = self.setting(self.centers)
        weights = self.init_weights(key, num_classes * count, dim)
        return {"params": {"weights": weights.reshape(num_classes, count, dim)}}

    def _sample_weights(self, anchors, key, block) -> Array:
        """What a miner makes each sample weigh; 1 without one. Padding weighs 0."""
        embeddings, _, valid = anchors
        weights = valid.astype(embeddings.dtype)
        mine = self._mine()
        if mine is None:
            return weights
        return weights * driver.sample_weights(
            anchors,
            anchors,
            relation=self.relation,
            exclude_self=True,
            mine=mine,
            key=key,
            block=block,
            partners=self.weigh_partners,
        )


@dataclass(frozen=True)
class SoftmaxLoss(ClassLoss):
    """Cross entropy over logits of all classes; the kernel makes the logits of a chunk.

    The kernel sees `sims` `[b, c]`, or `[b, centers * c]` with the first centers of all classes before
    the second ones (sums over the centers of a class are then sums of long rows), and where its keywords name `norms`
    those of the embeddings `[b, 1]` and of the weights `[1, centers * c]`.

    Attributes:
      over_classes: how the kernel's values of all classes become one of a sample (`classwise`).
      unit_weights: whether class weights count as unit vectors, whatever the distance does.
    """

    over_classes: Callable[..., Array] = classwise.cross_entropy
    unit_weights: bool = False
    pairwise = False

    def _values(self, embeddings: Array, weights: Array, labels: Array, block) -> Array:
        """The value of every sample."""

        def logits(embeddings: Array, weights: Array, target: Array) -> Array:
            if self.centers:
                weights = weights.swapaxes(0, 1)
            weights = weights.reshape(-1, weights.shape[-1])
            weights = normalize(weights) if self.unit_weights else weights
            sims = self.distance(embeddings, weights)
            derived = {"norms": (norms(embeddings)[:, None], norms(weights)[None, :])}
            return self.kernel(sims, target, **self._keywords(self.kernel, derived))

        return self.over_classes(logits, embeddings, weights, labels, block=block)

    def _mean(self, variables, anchors, refs, key, block) -> Mean:
        embeddings, labels, valid = anchors
        weights = variables["params"]["weights"].astype(embeddings.dtype)
        values = self._values(embeddings, weights, jnp.where(valid, labels, 0), block)
        values = values * self._sample_weights(anchors, key, block)
        sums = self.reducer.of(self.name).sums(values, valid, None, labels)
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

        def kernel(block: driver.Block) -> dict[str, tuple[Array, ...]]:
            pos, neg = block.selection.pos, block.selection.neg
            return self.kernel(block.sims, pos, neg, **self._keywords(self.kernel, {}))

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
