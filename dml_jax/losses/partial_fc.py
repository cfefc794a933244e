"""Losses against the weights of some classes in each step, for millions of them."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from dml_jax import classwise, mesh
from dml_jax.errors import UserError
from dml_jax.losses.base import (
    Loss,
    MinerSpec,
    References,
    State,
    Variables,
    add_regularizers,
    with_classes,
)
from dml_jax.losses.forms import ClassLoss, LearnsClasses
from dml_jax.losses.wrappers import build, mined
from dml_jax.mean import Mean
from dml_jax.pairwise import Samples
from dml_jax.parameters import PositiveInt, checked


@dataclass(frozen=True, kw_only=True)
class PartialFC(LearnsClasses):
    """A loss against the weights of the batch's classes and a sample of the others; see `partial_fc`.

    Attributes:
      loss: the loss against class weights.
      one_of: of so many classes in a row one is drawn.
    """

    loss: ClassLoss
    one_of: int
    pairwise: bool = False

    def _init(self, key: Array, num_classes: int, dim: int) -> Variables:
        """Makes the variables of the loss inside: the weights of all classes."""
        return self.loss.init(key, num_classes, dim)

    def step(
        self,
        variables: Variables,
        anchors: Samples,
        refs: References | None,
        key: Array | None,
        block: int | None,
    ) -> tuple[Mean, State]:
        """Computes the loss with its regularizers, of which those of class weights are of the drawn ones."""
        if self.one_of == 1:
            return self.loss.step(variables, anchors, refs, key, block)
        if key is None:
            raise UserError(
                "loss 'partial_fc' draws classes, and apply has no key; accepted: key=jax.random.key(step)"
            )
        _, anchors, _ = with_classes(self.relation, anchors, refs)
        embeddings, labels, valid = anchors
        weights = variables["params"]["weights"]
        classes = weights.shape[0]
        ids, drawn = draw(jax.random.fold_in(key, 0), weights, self.one_of)
        own = weights[jnp.clip(labels, 0, classes - 1)]
        known = (labels >= 0) & (labels < classes)
        there = jnp.where(valid & known, labels, classes)
        first = first_places(there)
        some = classwise.Sampled(
            drawn.astype(embeddings.dtype),
            ~in_batch(ids, there),
            own.astype(embeddings.dtype),
            (there < classes) & (first == jnp.arange(len(labels))),
        )
        rows = jnp.where(known, first, -1)
        mean = self.loss.against(some, rows, anchors, jax.random.fold_in(key, 1), block)
        of_drawn = {"params": {"weights": drawn}}
        regularizers = self.loss.regularizers
        return add_regularizers(mean, regularizers, of_drawn, anchors, block), {}


def draw(
    key: Array, weights: Float[Array, "c *k d"], one_of: int
) -> tuple[Int[Array, " n"], Float[Array, "n *k d"]]:
    """Draws one of every `one_of` classes in a row, n = ceil(c / one_of); returns their numbers and weights.

    Which ones, depends on the key alone. Each device draws from its own share of the weights where devices times one_of
    divides the classes; otherwise the drawn rows are gathered from all devices.

    Args:
      key: of the draw.
      weights: of all classes.
      one_of: classes of which one is drawn.

    >>> ids, rows = draw(jax.random.key(0), jnp.arange(10.0).reshape(5, 2), 2)
    >>> (ids // 2).tolist(), bool((rows == jnp.arange(10.0).reshape(5, 2)[ids]).all())
    ([0, 1, 2], True)
    """
    classes = weights.shape[0]
    starts = jnp.arange(-(-classes // one_of), dtype=jnp.int32) * one_of
    sizes = jnp.minimum(one_of, classes - starts)
    places = jax.random.uniform(key, starts.shape)
    offsets = jnp.minimum((places * sizes).astype(jnp.int32), sizes - 1)
    ids = starts + offsets
    axes = mesh.batch_axes()
    if not axes or classes % (mesh.data_devices() * one_of):
        return ids, weights[ids]

    def own(weights: Array, offsets: Array) -> Array:
        runs = weights.reshape(-1, one_of, *weights.shape[1:])
        return runs[jnp.arange(len(offsets)), offsets]

    # Left alone the compiler would gather the rows of all devices on each of them.
    rows = jax.shard_map(own, in_specs=P(axes), out_specs=P(axes), check_vma=False)
    return ids, rows(weights, offsets)


def first_places(labels: Int[Array, " b"]) -> Int[Array, " b"]:
    """Returns for each label the place at which it comes first.

    Args:
      labels: of the batch.

    >>> first_places(jnp.array([3, 5, 3, 5, 0])).tolist()
    [0, 1, 0, 1, 4]
    """
    order = jnp.argsort(labels, stable=True)
    return order[jnp.searchsorted(labels[order], labels)].astype(jnp.int32)


def in_batch(ids: Int[Array, " n"], labels: Int[Array, " b"]) -> Bool[Array, " n"]:
    """Returns which classes of a sample are classes of the batch.

    Args:
      ids: the classes of the sample.
      labels: of the batch.

    >>> in_batch(jnp.array([0, 3, 4]), jnp.array([3, 9, 3])).tolist()
    [False, True, False]
    """
    ordered = jnp.sort(labels)
    found = jnp.minimum(jnp.searchsorted(ordered, ids), len(labels) - 1)
    return ordered[found] == ids


@checked("loss")
def partial_fc(loss: Any, one_of: PositiveInt = 10, *, miner: MinerSpec = None) -> Loss:
    """Makes a loss against the classes of the batch and a sample of the others (An et al., CVPR 2022, Partial FC).

        the loss over the classes  {y_i} + S,  S: one class, drawn anew in each step, of every `one_of` in a row

    It learns `params["weights"]`, [num_classes, dim] or [num_classes, centers, dim], as the loss inside does. S has
    ceil(num_classes / one_of) classes; those of the batch are not counted twice. A batch in which all classes occur has
    the loss inside as it is, a label that is no class makes the loss NaN inside of `jit` and is an error outside.

    The classes of the batch are always in, each once. All of `S` are weighed as they are: the sum over the other
    classes is not scaled up, as in the paper. With one_of=1 it is the loss itself. The sample depends on `apply`'s key
    alone, so that value and gradient are the same on any number of devices. Only rows that take part have a gradient:
    `optim.loss.sparse=True` leaves the moments of the others as they are.

    It differs from the authors' code, where each device draws of its own classes, as many as fill its share, positives
    first, so that the sample depends on the number of devices.

    Args:
      loss: a loss against class weights, such as `cos_face` or `normalized_softmax`: a name, a dict with a name, or the
        object.
      one_of: classes of which one is drawn; 10 is the paper's rate of 0.1.
      miner: that of the loss inside, where it has none.

    Raises:
      UserError: another loss, or two miners; from `apply`, no key.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.0, 1.0]])
      >>> variables = {"params": {"weights": jnp.eye(20, 2)}}
      >>> loss = partial_fc("normalized_softmax", one_of=5)
      >>> mean, _ = loss.apply(variables, x, [0, 1], key=jax.random.key(0))
      >>> bool(mean.compute() < 3.0)  # log of 20 classes
      True
    """
    made = mined("partial_fc", build("partial_fc", loss), miner)
    if not isinstance(made, ClassLoss):
        raise UserError(
            f"loss 'partial_fc' has loss={made.name!r}; accepted: a loss against class weights, such as 'cos_face', "
            "'arc_face' or 'normalized_softmax'"
        )
    return PartialFC(name="partial_fc", relation=made.relation, loss=made, one_of=one_of)
