"""The forms that losses have: on pairs, sums over all pairs, class weights, proxies, two views, a graph.

A factory gives its form functions (`init_variables`, `prepare`, `kernel`, `update`); no form is derived from. The
functions are plain ones of a module, or `Bound` with hyper-parameters, so that losses made equally are equal.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dml_jax import classwise
from dml_jax import pairwise as driver
from dml_jax.bound import Bound
from dml_jax.distances import Distance, normalize
from dml_jax.errors import UserError
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

    def init(self, key: Array, num_classes: int, dim: int) -> Variables:
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

    def init(self, key: Array, num_classes: int, dim: int) -> Variables:
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


@dataclass(frozen=True)
class ClassChunk:
    """A chunk of the classes, for a kernel that needs more than similarities.

    Attributes:
      embeddings: the batch, `[b, d]`.
      weights: the class weights, `[k c, d]`, the first centers of all classes before the second ones.
      sims: their similarities, `[b, k c]`.
      target: marks the class of each sample, `[b, c]`.
    """

    embeddings: Float[Array, "b d"]
    weights: Float[Array, "kc d"]
    sims: Float[Array, "b kc"]
    target: Array


def from_logits(logits: Callable[..., Any], **hyper: Any) -> Bound[Any]:
    """Makes a kernel of a chunk of the classes from a logit kernel `logits(sims, target, *, hyper)`.

    Args:
      logits: the logit kernel.
      **hyper: its keywords.
    """
    return Bound(_call_logits, logits=Bound(logits, **hyper))


def _call_logits(chunk: ClassChunk, *, logits: Callable[..., Any]) -> Array:
    return logits(chunk.sims, chunk.target)


def over_chunks(
    embeddings: Float[Array, "b d"],
    weights: classwise.ClassWeights,
    labels: Array,
    *,
    kernel: Callable[[ClassChunk], Array],
    distance: Distance,
    over_classes: Callable[..., Array] = classwise.cross_entropy,
    unit_weights: bool = False,
    block: int | None = None,
) -> Float[Array, " b"]:
    """Returns the value of every sample: what `over_classes` makes of the kernel's values of all classes.

    Args:
      embeddings: the batch.
      weights: the class weights, of all classes or of some.
      labels: the class of each sample.
      kernel: gives the values `[b, c]` of a chunk of classes.
      distance: of samples and class weights.
      over_classes: `classwise.cross_entropy`, or another function of that module.
      unit_weights: True counts class weights as unit vectors, whatever the distance does.
      block: classes at a time.
    """

    def values(embeddings: Array, weights: Array, target: Array) -> Array:
        if weights.ndim == 3:
            weights = weights.swapaxes(0, 1)
        weights = weights.reshape(-1, weights.shape[-1])
        weights = normalize(weights) if unit_weights else weights
        sims = distance(embeddings, weights)
        return kernel(ClassChunk(embeddings, weights, sims, target))

    return over_classes(values, embeddings, weights, labels, block=block)


def against_classes(
    name: str, parts: Parts, kernel: Callable[[ClassChunk], Array], **more: Any
) -> "ClassLoss":
    """Makes a loss against class weights of its parts.

    Args:
      name: of the loss.
      parts: what `build_parts` made.
      kernel: of a chunk of the classes.
      **more: further fields of `ClassLoss`, and keywords of `over_chunks`.
    """
    chunked = {k: more.pop(k) for k in ("over_classes", "unit_weights") if k in more}
    values = Bound(over_chunks, kernel=kernel, distance=parts.distance, **chunked)
    return ClassLoss(name=name, values=values, **parts._asdict(), **more)


@dataclass(frozen=True, kw_only=True)
class LearnsClasses(Loss):
    """A loss with learned vectors of the classes, which reads the number of each sample's class."""

    takes_references: bool = False
    reads_classes: bool = True
    label_values: str = "numbers of classes"
    needs_positives: bool = False


@dataclass(frozen=True, kw_only=True)
class ClassLoss(LearnsClasses):
    """A loss of samples against learned vectors of the classes.

    The vectors are `params["weights"]` `[num_classes, dim]`, or `[num_classes, centers, dim]`. A miner weighs the
    samples.

    Attributes:
      values: `values(embeddings, weights, labels, block=...) -> [b]`, the value of every sample.
      init_weights: `init_weights(key, rows, dim) -> [rows, dim]`.
      centers: how many vectors a class has; None for one, without an axis of its own.
      distance: of samples and class weights.
      reducer: makes one number of the values.
      miner: weighs the samples by how often it chose them.
      regularizers: penalties that are added.
      weigh_partners: True weighs a sample more for every pair that a miner chose it for as a positive
        or negative, too; False only as an anchor.
    """

    values: Callable[..., Array]
    init_weights: Callable[[Array, int, int], Array]
    centers: int | None = None
    distance: Distance
    reducer: Reducer
    miner: Miner | None = None
    regularizers: tuple[Regularizer, ...] = ()
    weigh_partners: bool = True
    pairwise: bool = False

    def init(self, key: Array, num_classes: int, dim: int) -> Variables:
        """Makes {"params": {"weights": [num_classes, dim] or [num_classes, centers, dim]}}, float32."""
        if self.centers is None:
            return {"params": {"weights": self.init_weights(key, num_classes, dim)}}
        weights = self.init_weights(key, num_classes * self.centers, dim)
        return {"params": {"weights": weights.reshape(num_classes, self.centers, dim)}}

    def step(
        self,
        variables: Variables,
        anchors: Samples,
        refs: References | None,
        key: Array | None,
        block: int | None,
    ) -> tuple[Mean, State]:
        """Computes the loss with its regularizers."""
        _, anchors, _ = with_classes(self.relation, anchors, refs)
        weights = variables["params"]["weights"].astype(anchors.vectors.dtype)
        mean = self.against(weights, anchors.labels, anchors, key, block)
        return add_regularizers(mean, self.regularizers, variables, anchors, block), {}

    def against(
        self,
        weights: classwise.ClassWeights,
        rows: Array,
        anchors: Samples,
        key: Array | None,
        block: int | None,
    ) -> Mean:
        """Computes the loss without its regularizers.

        Args:
          weights: of all classes, or of some.
          rows: which of them are those of the samples' classes.
          anchors: the samples, with the numbers of their classes.
          key: for draws of the miner.
          block: classes at a time.
        """
        embeddings, labels, valid = anchors
        values = self.values(embeddings, weights, jnp.where(valid, rows, 0), block=block)
        shares = mined_weights(self.miner, self.distance, anchors, key, block, self.weigh_partners)
        sums = self.reducer.of(self.name).sums(values * shares, valid, None, labels)
        return Mean(*driver.combine({self.name: sums}, self.reducer))


def mined_weights(
    miner: Miner | None,
    distance: Distance,
    anchors: Samples,
    key: Array | None,
    block: int | None,
    partners: bool,
) -> Float[Array, " b"]:
    """Returns what a miner makes each sample weigh; 1 without a miner. Padding weighs 0."""
    embeddings, _, valid = anchors
    weights = valid.astype(embeddings.dtype)
    if miner is None:
        return weights
    return weights * driver.sample_weights(
        anchors,
        anchors,
        relation=SAME_LABEL,
        exclude_self=True,
        mine=miner.mining(distance),
        key=key,
        block=block,
        partners=partners,
    )


@dataclass(frozen=True, kw_only=True)
class ProxyLoss(LearnsClasses):
    """A loss against learned vectors of the classes whose sums run over the batch.

    The proxies are the anchors of the pairwise driver, the batch its references.

    Attributes:
      kernel: `kernel(block) -> terms`.
      init_weights: `init_weights(key, num_classes, dim) -> [num_classes, dim]`.
      distance: of proxies and samples.
      reducer: makes one number of the values.
      miner: weighs the samples by how often it chose them.
      regularizers: penalties that are added.
    """

    kernel: BlockKernel
    init_weights: Callable[[Array, int, int], Array]
    distance: Distance
    reducer: Reducer
    miner: Miner | None = None
    regularizers: tuple[Regularizer, ...] = ()

    def init(self, key: Array, num_classes: int, dim: int) -> Variables:
        """Makes {"params": {"weights": [num_classes, dim]}}, float32."""
        return {"params": {"weights": self.init_weights(key, num_classes, dim)}}

    def step(
        self,
        variables: Variables,
        anchors: Samples,
        refs: References | None,
        key: Array | None,
        block: int | None,
    ) -> tuple[Mean, State]:
        """Computes the loss with its regularizers."""
        _, anchors, _ = with_classes(self.relation, anchors, refs)
        embeddings, labels, valid = anchors
        proxies = variables["params"]["weights"].astype(embeddings.dtype)
        classes = jnp.arange(proxies.shape[0], dtype=labels.dtype)
        weights = valid
        if self.miner is not None:
            weights = mined_weights(self.miner, self.distance, anchors, key, None, True)
        mean = driver.pairwise(
            self.kernel,
            Samples(proxies, classes, jnp.ones(classes.shape, bool)),
            Samples(embeddings, labels, weights),
            distance=self.distance,
            relation=SAME_LABEL,
            reducer=self.reducer,
            exclude_self=False,
            block=block,
        )
        # A label that is no class has no proxy, and its sample would be a negative of all of them.
        known = (labels >= 0) & (labels < proxies.shape[0])
        total = jnp.where(jnp.all(known | ~valid), mean.total, jnp.nan)
        mean = Mean(total, mean.weight)
        return add_regularizers(mean, self.regularizers, variables, anchors, block), {}


@dataclass(frozen=True, kw_only=True)
class ViewsLoss(Loss):
    """A loss that compares two views of a batch, row by row.

    The references are the second view. Labels are not read. It needs no blocks: its memory is that of the
    embeddings, and sums over the batch are shared out by the compiler.

    Attributes:
      kernel: `kernel(first, second, valid, params) -> scalar`; `params` is None for a loss without parameters.
      init_variables: `init_variables(key, num_classes, dim) -> variables`; None for a loss without.
      regularizers: penalties that are added.
    """

    kernel: Callable[[Array, Array, Array, Any], Array]
    init_variables: Callable[[Array, int, int], Variables] | None = None
    regularizers: tuple[Regularizer, ...] = ()
    reads_labels: bool = False
    needs_positives: bool = False
    paired_references: bool = True

    def init(self, key: Array, num_classes: int, dim: int) -> Variables:
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
        """Computes the loss with its regularizers."""
        embeddings, _, valid = anchors
        if refs is None or refs.vectors.shape != embeddings.shape:
            shape = None if refs is None else refs.vectors.shape
            raise UserError(
                f"loss {self.name!r} has ref_embeddings of shape {shape}; accepted: {embeddings.shape}, "
                "the second view of the batch"
            )
        valid = valid & refs.valid
        value = self.kernel(embeddings, refs.vectors, valid, variables.get("params"))
        mean = Mean(value, jnp.ones_like(value))
        return add_regularizers(mean, self.regularizers, variables, anchors, block), {}


@dataclass(frozen=True, kw_only=True)
class GraphLoss(Loss):
    """A loss on the graph of the whole batch and some proxies.

    It has no form by rows, so that blocks are refused and every device does the whole of it.

    Attributes:
      kernel: `kernel(sims, labels, valid) -> scalar`; `sims` are the similarities of samples and proxies, in that
        order, to one another.
      num_proxies: how many there are.
      distance: of samples and proxies.
      regularizers: penalties that are added.
    """

    kernel: Callable[[Array, Array, Array], Array]
    num_proxies: int
    distance: Distance
    regularizers: tuple[Regularizer, ...] = ()
    takes_references: bool = False
    reads_classes: bool = True
    label_values: str = "numbers, whose remainders name the proxies"
    takes_block: bool = False
    needs_positives: bool = False

    def init(self, key: Array, num_classes: int, dim: int) -> Variables:
        """Makes {"params": {"weights": [num_proxies, dim]}}, from N(0, 1)."""
        del num_classes
        return {"params": {"weights": jax.random.normal(key, (self.num_proxies, dim))}}

    def step(
        self,
        variables: Variables,
        anchors: Samples,
        refs: References | None,
        key: Array | None,
        block: int | None,
    ) -> tuple[Mean, State]:
        """Computes the loss with its regularizers."""
        _, anchors, _ = with_classes(self.relation, anchors, refs)
        embeddings, labels, valid = anchors
        proxies = variables["params"]["weights"].astype(embeddings.dtype)
        points = jnp.concatenate([embeddings, proxies])
        value = self.kernel(self.distance(points, points), labels, valid)
        mean = Mean(value, jnp.any(valid).astype(value.dtype))
        return add_regularizers(mean, self.regularizers, variables, anchors, block), {}


def has_class_weights(loss: Loss) -> bool:
    """Returns True for a loss that learns vectors, `params["weights"]`."""
    return isinstance(loss, (ClassLoss, ProxyLoss, GraphLoss))


def with_miner(loss: Any, miner: Miner) -> Loss | None:
    """Returns the loss with this miner; None where it has one already, or takes none."""
    if not isinstance(loss, (PairLoss, SumsLoss, ClassLoss, ProxyLoss)) or loss.miner is not None:
        return None
    return replace(loss, miner=miner)
