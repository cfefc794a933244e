"""A function of blocks of anchors against all references, evaluated one block after the other and over the devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from dml_jax import mesh
from dml_jax.errors import UserError
from dml_jax.sharded import is_sharded


def pad_rows(tree: Any, rows: int) -> Any:
    """Adds `rows` rows of zeros to the end of every array of the tree."""
    if rows == 0:
        return tree
    return jax.tree.map(lambda x: jnp.pad(x, [(0, rows)] + [(0, 0)] * (x.ndim - 1)), tree)


def check_block(block: int | None) -> None:
    """Raises `UserError` unless `block` is None or a positive int."""
    if block is not None and (isinstance(block, bool) or not isinstance(block, int) or block < 1):
        raise UserError(
            f"block is {block!r}; accepted: a positive integer, or None for all at once"
        )


def map_anchors(
    fn: Callable[[Array, Array, Any, Any, Any], tuple[Any, Any]],
    anchors: Any,
    refs: Any,
    *,
    broadcast_args: Any = None,
    block: int | None = None,
) -> tuple[Any, Any]:
    """Evaluates `fn` on blocks of anchors against all references.

    Each device of the mesh in context owns a share of the anchors and gathers the references once, but for those that
    stay on their devices (`sharded.kept`); a block is recomputed in the backward pass, so memory is O(block x M).

    Args:
      fn: `fn(ids [a], valid [a], anchors [a, ...], refs [M, ...], broadcast_args) -> (sums, rows)`: the tree `sums`
        is added up over blocks and devices, the tree `rows` (leading axis a) is put together again. `ids` are the
        positions of the anchors in the whole batch, `valid` is False where rows were added to fill a block.
      anchors: a tree of arrays `[B, ...]`.
      refs: a tree of arrays `[M, ...]`.
      broadcast_args: what every block gets whole.
      block: anchors at a time; None: a device's whole share at once.

    Returns:
      (the summed results, the results by row).
    """
    check_block(block)
    total = jax.tree.leaves(anchors)[0].shape[0]
    ref_total = jax.tree.leaves(refs)[0].shape[0]
    devices, axes = mesh.data_devices(), mesh.batch_axes()
    share = -(-total // devices)
    size = share if block is None else min(block, share)
    share = -(-share // size) * size
    anchors = pad_rows(anchors, share * devices - total)
    ids = jnp.arange(share * devices)

    def one_block(ids: Array, anchors: Any, refs: Any, broadcast_args: Any) -> tuple[Any, Any]:
        return fn(ids, ids < total, anchors, refs, broadcast_args)

    if devices == 1:
        sums, rows = _in_blocks(one_block, size, ids, anchors, refs, broadcast_args)
    else:

        def one_share(ids: Array, anchors: Any, refs: Any, broadcast_args: Any) -> tuple[Any, Any]:
            # The transpose of this gather is a reduce-scatter: each device gets the gradient of its rows.
            def gather(x: Any) -> Any:
                return x if is_sharded(x) else jax.lax.all_gather(x, axes, tiled=True)[:ref_total]

            refs = jax.tree.map(gather, refs, is_leaf=is_sharded)
            sums, rows = _in_blocks(one_block, size, ids, anchors, refs, broadcast_args)
            return jax.lax.psum(sums, axes), rows

        # Gradients are taken outside of this shard_map, where they are exact with or without check_vma
        # (which custom_vjp in a loop does not support). Inside they would not be.
        sums, rows = jax.shard_map(
            one_share,
            in_specs=(P(axes), P(axes), P(axes), P()),
            out_specs=(P(), P(axes)),
            check_vma=False,
        )(ids, anchors, pad_rows(refs, -ref_total % devices), broadcast_args)
    return sums, jax.tree.map(lambda x: x[:total], rows)


def _in_blocks(
    fn: Callable[..., tuple[Any, Any]],
    size: int,
    ids: Int[Array, " share"],
    anchors: Any,
    refs: Any,
    broadcast_args: Any,
) -> tuple[Any, Any]:
    """Evaluates `fn(ids, anchors, refs, broadcast_args) -> (sums, rows)` on one device, `size` anchors at a time."""
    share = ids.shape[0]
    if size == share:
        return fn(ids, anchors, refs, broadcast_args)
    columns = _columns_of(anchors, refs)
    first = jax.eval_shape(lambda *x: jax.tree.map(lambda x: x[:size], x), ids, anchors)
    # What the function holds becomes an argument: the derivative below knows no other.
    fn, held = jax.closure_convert(fn, *first, refs, broadcast_args)

    def all_blocks(
        ids: Array, anchors: Any, refs: Any, broadcast_args: Any, held: list[Array]
    ) -> tuple[Any, Any]:
        whole = jax.tree.leaves(refs)

        def one_block(ids: Array, anchors: Any) -> tuple[Any, Any]:
            leaves, tree = jax.tree.flatten(anchors)
            for i, column in columns.items():
                leaves[i] = _slice_of(leaves[i], whole[column], ids[0])
            return fn(ids, jax.tree.unflatten(tree, leaves), refs, broadcast_args, *held)

        shapes = jax.eval_shape(one_block, *first)[0]
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        blocks = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), (ids, anchors))
        # Inside a scan the recomputation cannot be merged with the forward pass anyway.
        again = jax.checkpoint(one_block, prevent_cse=False)

        def step(sums: Any, x: Any) -> tuple[Any, Any]:
            more, rows = again(*x)
            return jax.tree.map(jnp.add, sums, more), rows

        sums, rows = jax.lax.scan(step, zeros, blocks)
        return sums, jax.tree.map(lambda x: x.reshape(share, *x.shape[2:]), rows)

    # In the forward pass of a gradient JAX takes out of a loop all that is the same in every turn: transposed
    # references, and constants `[size, M]`, which then lie in memory side by side. With a derivative of its own the
    # loop of the value is left as it is. The derivative's own values are read by nobody, and XLA drops them.
    value = jax.custom_jvp(all_blocks)
    value.defjvp(lambda x, dot: (value(*x), jax.jvp(all_blocks, x, dot)[1]))
    return value(ids, anchors, refs, broadcast_args, held)


def _columns_of(anchors: Any, refs: Any) -> dict[int, int]:
    """Returns which float arrays of the anchors are arrays of the references, by their places in the two trees."""
    places = {id(x): i for i, x in enumerate(jax.tree.leaves(refs))}
    return {
        i: places[id(x)]
        for i, x in enumerate(jax.tree.leaves(anchors))
        if id(x) in places and jnp.issubdtype(x.dtype, jnp.floating)
    }


@jax.custom_jvp
def _slice_of(
    block: Float[Array, "a d"], whole: Float[Array, "n d"], start: Array
) -> Float[Array, "a d"]:
    """Returns `block`, which is what `whole` holds from `start` on.

    It is read there, so that a loop over the blocks of an array that it holds anyway needs no copy of it. The gradient
    is the block's alone: as a part of the gradient of `whole` it would be added to all of that in every turn.
    """
    return jax.lax.dynamic_slice_in_dim(whole, start, block.shape[0])


@_slice_of.defjvp
def _slice_of_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    return _slice_of(*primals), tangents[0]
