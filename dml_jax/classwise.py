"""The driver of losses against class weights: cross entropy over any number of classes.

The counterpart of `pairwise` where the references are one vector (or more) a class. Each device of the
mesh's `data` axis owns a share of the classes and sees the whole batch (which is small beside
`[batch, classes]`); the partial log-sum-exps of a row are joined over chunks and devices. Class weights
may be replicated or sharded by class: the value and the gradient are the same.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from dml_jax.pairwise import AXIS, check_block, data_devices, pad_rows

# logits(embeddings [b, d], weights [c, d], target [b, c]) -> [b, c]
Logits = Callable[[Array, Array, Array], Array]


def cross_entropy(
    logits: Logits,
    embeddings: Float[Array, "b d"],
    weights: Float[Array, "c d"],
    labels: Int[Array, " b"],
    *,
    block: int | None = None,
) -> Float[Array, " b"]:
    """-log softmax(logits)[label] of every sample, over all classes.

    `block` classes at a time (None: all of a device's), recomputed in the backward pass: memory is
    O(b x block). A label outside 0..c-1 has no logit of its own: its value is NaN rather than a
    plausible number.
    """
    check_block(block)
    classes, devices = weights.shape[0], data_devices()
    share = -(-classes // devices)
    block = share if block is None else min(block, share)
    share = -(-share // block) * block
    ids = jnp.arange(share * devices)

    def one_device(ids: Array, weights: Array, embeddings: Array, labels: Array) -> Array:
        """(log-sum-exp, target logit), `[2, b]`, of the classes of this device."""

        def one_chunk(ids: Array, weights: Array) -> Array:
            target = labels[:, None] == ids[None, :]
            values = logits(embeddings, weights, target)
            real = (ids < classes)[None, :]
            log_sum = jax.nn.logsumexp(jnp.where(real, values, -jnp.inf), axis=1)
            own = jnp.sum(jnp.where(target & real, values, 0), axis=1)
            return jnp.stack([log_sum, own])

        if block == share:
            return one_chunk(ids, weights)
        chunks = jax.tree.map(lambda x: x.reshape(-1, block, *x.shape[1:]), (ids, weights))

        def step(so_far: Array, chunk: tuple[Array, Array]) -> tuple[Array, None]:
            more = jax.checkpoint(one_chunk, prevent_cse=False)(*chunk)
            return jnp.stack([jnp.logaddexp(so_far[0], more[0]), so_far[1] + more[1]]), None

        nothing = jnp.stack([jnp.full(labels.shape, -jnp.inf), jnp.zeros(labels.shape)])
        return jax.lax.scan(step, nothing.astype(embeddings.dtype), chunks)[0]

    weights = pad_rows(weights, share * devices - classes)
    if devices == 1:
        log_sum, own = one_device(ids, weights, embeddings, labels)
    else:
        batch = embeddings.shape[0]

        def one_share(ids: Array, weights: Array, embeddings: Array, labels: Array) -> Array:
            gather = lambda x: jax.lax.all_gather(x, AXIS, tiled=True)[:batch]
            part = one_device(ids, weights, gather(embeddings), gather(labels))
            log_sums = jax.lax.all_gather(part[0], AXIS)
            return jnp.stack([jax.nn.logsumexp(log_sums, axis=0), jax.lax.psum(part[1], AXIS)])

        extra = -batch % devices
        log_sum, own = jax.shard_map(one_share, in_specs=P(AXIS), out_specs=P(), check_vma=False)(
            ids, weights, pad_rows(embeddings, extra), pad_rows(labels, extra)
        )
    known = (labels >= 0) & (labels < classes)
    return jnp.where(known, log_sum - own, jnp.nan)
