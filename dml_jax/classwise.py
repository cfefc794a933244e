"""The driver of losses against class weights: log-softmax and sums over any number of classes.

The counterpart of `pairwise` where the references are one vector (or several) a class. Each device of the
mesh owns a share of the classes and sees the whole batch (which is small beside
`[batch, classes]`); what the chunks and devices make of a row is joined at the end. Class weights
may be replicated or sharded by class: the value and the gradient are the same.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from dml_jax import mesh, sharded
from dml_jax.blocks import check_block, pad_rows

# values(samples, weights [c, d] or [c, k, d], target [b, c]) -> [b, c]; the samples are the embeddings
# `[b, d]`, or any tree of arrays `[b, ...]`.
Values = Callable[[Any, Array, Array], Array]


class Sampled(NamedTuple):
    """The weights of some classes, in place of those of all: a sample of classes, and the classes of the batch.

    Labels are then positions in `own`.

    Attributes:
      weights: of the sample.
      counted: False for a class of the sample that is one of the batch, too.
      own: the weights of the class of each image of the batch.
      own_counted: True for the first image of a class.
    """

    weights: Float[Array, "n *k d"]
    counted: Bool[Array, " n"]
    own: Float[Array, "b *k d"]
    own_counted: Bool[Array, " b"]


ClassWeights = Float[Array, "c *k d"] | Sampled


def cross_entropy(
    logits: Values,
    samples: Any,
    weights: ClassWeights,
    labels: Int[Array, " b"],
    *,
    block: int | None = None,
    own_in_sum: bool = True,
) -> Float[Array, " b"]:
    """Returns -log softmax(logits)[label] of every sample, over all classes.

    `block` classes at a time (as few as half of that where these divide a device's share evenly; None: all
    of it), recomputed in the backward pass: memory is O(b x block). A label outside 0..c-1 has no logit of
    its own: its value is NaN rather than a plausible number. `own_in_sum=False` leaves the sample's own class
    out of the sum: log sum_{c != y} e^{l_c} - l_y (-l_y with a single class).
    """

    def part(values: Array, target: Array, real: Array) -> Array:
        counted = real if own_in_sum else real & ~target
        log_sum = _log_sum_exp(jnp.where(counted, values, -jnp.inf), axis=1)
        own = jnp.sum(jnp.where(target & real, values, 0), axis=1)
        return jnp.stack([log_sum, own])

    def join(parts: Array) -> Array:
        return jnp.stack([_log_sum_exp(parts[:, 0], axis=0), jnp.sum(parts[:, 1], axis=0)])

    log_sum, own = _over_classes(logits, part, join, samples, weights, labels, block)
    if not own_in_sum:
        log_sum = jnp.where(_count(weights) == 1, 0, log_sum)
    return _where_known(labels, weights, log_sum - own)


other_classes = partial(cross_entropy, own_in_sum=False)


def mean(
    terms: Values,
    samples: Any,
    weights: ClassWeights,
    labels: Int[Array, " b"],
    *,
    block: int | None = None,
) -> Float[Array, " b"]:
    """Returns the mean of `terms` over all classes, for every sample; memory and labels as `cross_entropy`."""

    def part(values: Array, target: Array, real: Array) -> Array:
        del target
        return jnp.sum(jnp.where(real, values, 0), axis=1)

    total = _over_classes(
        terms, part, lambda parts: jnp.sum(parts, axis=0), samples, weights, labels, block
    )
    return _where_known(labels, weights, total / _count(weights))


def log_sum_exp(
    values: Callable[[Any, Array, Array], Float[Array, "b k c"]],
    samples: Any,
    weights: ClassWeights,
    labels: Int[Array, " b"],
    *,
    block: int | None = None,
) -> Float[Array, "b k"]:
    """Returns log sum_c exp(values) over all classes, for every sample; memory as `cross_entropy`."""

    def part(values: Array, target: Array, real: Array) -> Array:
        del target
        return _log_sum_exp(jnp.where(real[:, None, :], values, -jnp.inf), axis=2)

    join = lambda parts: _log_sum_exp(parts, axis=0)
    return _over_classes(values, part, join, samples, weights, labels, block)


def _log_sum_exp(x: Array, axis: int) -> Array:
    """Returns log sum exp(x) along an axis; -inf where all are.

    XLA computes x anew for the maximum and for the sum, with other roundings: of logits of 1e9 the two differ by far
    more than the exponent of any float. No exponent is above 0, and no sum under the 1 of the largest, whatever they
    say (`jax.nn.logsumexp` overflows there, in optimised code only).
    """
    largest = jnp.max(x, axis=axis, keepdims=True)
    top = jax.lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0))
    gap = x - top
    gap = jnp.where(gap > 0, gap - jax.lax.stop_gradient(gap), gap)
    total = jnp.sum(jnp.exp(gap), axis=axis)
    some = jnp.squeeze(jnp.isfinite(largest), axis)
    total = jnp.where(some & (total < 1), 1 + total - jax.lax.stop_gradient(total), total)
    none = total == 0
    return jnp.where(none, -jnp.inf, jnp.squeeze(top, axis) + jnp.log(jnp.where(none, 1, total)))


def even_block(rows: int, block: int) -> int:
    """Returns the largest divisor of `rows` from block / 2 to block; without any, block (at most rows).

    Blocks that fill the rows evenly need no padded copy of the weights, nor one of their gradient.
    """
    block = min(block, rows)
    return next((b for b in range(block, (block - 1) // 2, -1) if rows % b == 0), block)


def _count(weights: ClassWeights) -> Any:
    """Returns how many classes there are."""
    if isinstance(weights, Sampled):
        return jnp.sum(weights.counted) + jnp.sum(weights.own_counted)
    return weights.shape[0]


def _where_known(labels: Array, weights: ClassWeights, values: Array) -> Array:
    """Returns the values, NaN for labels that are no class."""
    classes = weights.own.shape[0] if isinstance(weights, Sampled) else weights.shape[0]
    return jnp.where((labels >= 0) & (labels < classes), values, jnp.nan)


def _over_classes(
    values: Values,
    part: Callable[[Array, Array, Array], Array],
    join: Callable[[Array], Array],
    samples: Any,
    weights: ClassWeights,
    labels: Array,
    block: int | None,
    counted: Array | None = None,
) -> Array:
    """Returns what `join` makes of the parts of all chunks and devices.

    `part(values [b, c], target [b, c], real [1, c])` sees one chunk, and `real` is False for classes that
    only fill it up; `join` takes parts along a new first axis, and what it returns is a part again.
    """
    check_block(block)
    sharded.refuse(
        "a loss against class weights needs the whole batch on every device, which none has"
    )
    if isinstance(weights, Sampled):
        parts = [
            _over_classes(values, part, join, samples, chosen, of_labels, block, real)
            for chosen, of_labels, real in (
                (weights.weights, jnp.full_like(labels, -1), weights.counted),
                (weights.own, labels, weights.own_counted),
            )
        ]
        return join(jnp.stack(parts))
    classes, devices, axes = weights.shape[0], mesh.data_devices(), mesh.batch_axes()
    share = -(-classes // devices)
    size = share if block is None else even_block(share, block)
    share = -(-share // size) * size
    ids = jnp.arange(share * devices)
    if counted is not None:
        counted = pad_rows(counted, share * devices - classes)

    def one_device(rows: Any, weights: Array, samples: Any, labels: Array) -> Array:
        def one_chunk(rows: Any, weights: Array) -> Array:
            ids, counted = rows
            target = labels[:, None] == ids[None, :]
            real = ids < classes if counted is None else (ids < classes) & counted
            return part(values(samples, weights, target), target, real[None, :])

        if size == share:
            return one_chunk(rows, weights)
        chunks = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), (rows, weights))
        again = jax.checkpoint(one_chunk, prevent_cse=False)
        return join(jax.lax.map(lambda chunk: again(*chunk), chunks))

    filled = pad_rows(weights, share * devices - classes)
    if devices == 1:
        return one_device((ids, counted), filled, samples, labels)
    batch = labels.shape[0]

    def one_share(rows: Any, weights: Array, samples: Any, labels: Array) -> Array:
        gather = lambda x: jax.lax.all_gather(x, axes, tiled=True)[:batch]
        mine = one_device(rows, weights, jax.tree.map(gather, samples), gather(labels))
        return join(jax.lax.all_gather(mine, axes))

    extra = -batch % devices
    return jax.shard_map(one_share, in_specs=P(axes), out_specs=P(), check_vma=False)(
        (ids, counted), filled, pad_rows(samples, extra), pad_rows(labels, extra)
    )
