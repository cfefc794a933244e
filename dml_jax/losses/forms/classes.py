"""Losses against learned vectors of the classes: by chunks of classes, or with sums over the batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from dml_jax import classwise
from dml_jax import pairwise as driver
from dml_jax.bound import Bound
from dml_jax.distances import Distance, normalize
from dml_jax.losses.base import (
    Loss,
    Parts,
    References,
    State,
    Variables,
    add_regularizers,
    with_classes,
)
from dml_jax.losses.forms.pairs import BlockKernel
from dml_jax.mean import Mean
from dml_jax.mining import Miner
from dml_jax.pairwise import Samples
from dml_jax.reducers import Reducer
from dml_jax.regularizers import Regularizer
from dml_jax.relations import SAME_LABEL


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

    def _init(self, key: Array, num_classes: int, dim: int) -> Variables:
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

    def _init(self, key: Array, num_classes: int, dim: int) -> Variables:
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
            weights = mined_weights(self.miner, self.distance, anchors, key, block, True)
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
