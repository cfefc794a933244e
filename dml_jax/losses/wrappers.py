"""Losses made of other losses: several at once, views of the same samples, a memory of batches."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from dml_jax.losses.base import KernelLoss, Loss, References, Variables
from dml_jax.losses.own import ViewsLoss
from dml_jax.mean import Mean
from dml_jax.miners.base import Miner


@dataclass(frozen=True)
class Multiple(Loss):
    """sum_i weight_i * loss_i. Every loss has its own miner and draws from its own key.

    `params` and `state` hold those of the losses, by name. Differs from PML: references are taken where
    all the losses take them.
    """

    losses: tuple[tuple[str, Loss], ...]
    weights: tuple[float, ...]
    pairwise: bool = True
    takes_references: bool = True
    takes_block: bool = True

    def init(self, key: Array, num_classes: int, dim: int) -> Variables:
        """{"params": {name: ...}, "state": {name: ...}}, of the losses that have any."""
        keys = jax.random.split(key, len(self.losses))
        made = {
            name: loss.init(k, num_classes, dim)
            for (name, loss), k in zip(self.losses, keys, strict=True)
        }
        parts = {
            part: {name: variables[part] for name, variables in made.items() if part in variables}
            for part in ("params", "state")
        }
        return {part: tree for part, tree in parts.items() if tree}

    def step(self, variables, anchors, refs, key, block) -> tuple[Mean, dict[str, Any]]:
        """The weighted sum; the new state of every loss that has one; stats as name/stat."""
        total = jnp.zeros((), anchors[0].dtype)
        stats: dict[str, Array] = {}
        state: dict[str, Any] = {}
        for i, (name, loss) in enumerate(self.losses):
            own = {part: tree[name] for part, tree in variables.items() if name in tree}
            own_key = None if key is None else jax.random.fold_in(key, i)
            mean, new = loss.step(own, anchors, refs, own_key, block)
            total += self.weights[i] * mean.compute()
            stats |= {f"{name}/{stat}": value for stat, value in mean.stats.items()}
            if new:
                state[name] = new
        return Mean(total, jnp.ones_like(total), stats), state


def multiple(*, losses: Any, weights: Any = None) -> Multiple:
    """`losses` are (name, Loss) pairs; `weights` one number a loss, by default 1."""
    weights = (1.0,) * len(losses) if weights is None else weights
    if isinstance(weights, Mapping):
        if sorted(weights) != sorted(name for name, _ in losses):
            raise ValueError(
                f"loss 'multiple' has weights for {', '.join(sorted(weights))}; accepted: one for each of "
                f"{', '.join(sorted(name for name, _ in losses))}"
            )
        weights = [weights[name] for name, _ in losses]
    if not losses or len(weights) != len(losses):
        raise ValueError(
            f"loss 'multiple' has {len(losses)} losses and {len(weights)} weights; accepted: one loss or "
            "more, and a weight for each"
        )
    reading = [loss for _, loss in losses if loss.reads_labels]
    relations = {loss.relation.name for loss in reading}
    if len(relations) > 1:
        raise ValueError(
            f"loss 'multiple' has losses of relations {', '.join(sorted(relations))}, which take other labels; "
            "accepted: one relation for all"
        )
    return Multiple(
        "multiple",
        (reading[0] if reading else losses[0][1]).relation,
        tuple(losses),
        tuple(float(w) for w in weights),
        any(loss.pairwise for _, loss in losses),
        all(loss.takes_references for _, loss in losses),
        all(loss.takes_block for _, loss in losses),
    )


@dataclass(frozen=True)
class Wrapped(Loss):
    """A loss on pairs of samples that is given other labels or references."""

    loss: Loss

    takes_references = False


def check_wrapped(name: str, loss: Any, accepted: tuple[str, ...]) -> None:
    """ValueError unless `loss` compares samples with references by one of the relations."""
    known = loss.relation.name in accepted
    if isinstance(loss, Wrapped) or not loss.takes_references or not known:
        raise ValueError(
            f"loss {name!r} is of loss {loss.name!r} with relation {loss.relation.name!r}; accepted: a loss "
            f"that takes references, with relation {' or '.join(map(repr, accepted))}"
        )


@dataclass(frozen=True)
class SelfSupervised(Wrapped):
    """A loss whose positives are the other views of the same sample.

    A batch of B embeddings is `views` views of B / views samples, view after view: rows i, i + B / views,
    ... show the same one. `labels` are not read. `symmetric`: every view is compared with all; otherwise
    the first view (anchors) with the others. Equals PML, which takes two views, for views=2.
    """

    views: int = 2
    symmetric: bool = True
    reads_labels = False

    def init(self, key: Array, num_classes: int, dim: int) -> Variables:
        """Those of the loss."""
        return self.loss.init(key, num_classes, dim)

    def step(self, variables, anchors, refs, key, block) -> tuple[Mean, dict[str, Any]]:
        """The loss with the samples as labels."""
        embeddings, _, valid = anchors
        batch = embeddings.shape[0]
        if batch % self.views:
            raise ValueError(
                f"loss 'self_supervised' has {batch} embeddings of {self.views} views; accepted: a multiple"
            )
        count = batch // self.views
        ids = jnp.tile(jnp.arange(count, dtype=jnp.int32), self.views)
        if self.symmetric:
            return self.loss.step(variables, (embeddings, ids, valid), None, key, block)
        first = (embeddings[:count], ids[:count], valid[:count])
        others = References(embeddings[count:], ids[count:], valid[count:])
        return self.loss.step(variables, first, others, key, block)


def self_supervised(*, loss: Any, views: int = 2, symmetric: bool = True) -> SelfSupervised:
    """`loss` is a Loss on pairs; `views` of every sample."""
    check_wrapped("self_supervised", loss, ("label",))
    if not isinstance(views, int) or views < 2:
        raise ValueError(f"loss 'self_supervised' has views={views!r}; accepted: an integer from 2")
    if isinstance(loss, ViewsLoss) and (symmetric or views != 2):
        raise ValueError(
            f"loss 'self_supervised' of loss {loss.name!r}, which compares the first view with the second, has "
            f"symmetric={symmetric} and views={views}; accepted: symmetric=False, views=2"
        )
    return SelfSupervised("self_supervised", loss.relation, loss, views, symmetric)


@dataclass(frozen=True)
class CrossBatchMemory(Wrapped):
    """A loss of the batch against the last `memory_size` embeddings (Wang et al., CVPR 2020).

    The batch enters the queue first, without gradient, so its copies are references too; a sample is not
    compared with its own copy. Any loss that takes references, with any miner: the miner sees the queue.
    Rows that are padding do not enter.

    `state`: "memory" [memory_size, dim], "labels" [memory_size], or [memory_size, label_size] where labels
    are rows, "index" (where the next sample goes), "filled" (how many slots hold one), and "loss" where the
    inner loss has a state. All of it is in the
    state, and the same on any number of devices (PML loses the index when saved, and queues of processes
    differ). Differs from PML with a miner: own copies are out before it chooses, not after.
    """

    memory_size: int = 1024
    label_size: int | None = None

    def init(self, key: Array, num_classes: int, dim: int) -> Variables:
        """The parameters of the loss, and an empty queue."""
        made = self.loss.init(key, num_classes, dim)
        columns = () if self.label_size is None else (self.label_size,)
        state = {
            "memory": jnp.zeros((self.memory_size, dim)),
            "labels": jnp.zeros((self.memory_size, *columns), jnp.int32),
            "index": jnp.zeros((), jnp.int32),
            "filled": jnp.zeros((), jnp.int32),
        }
        if "state" in made:
            state["loss"] = made["state"]
        return {**made, "state": state}

    def step(self, variables, anchors, refs, key, block) -> tuple[Mean, dict[str, Any]]:
        """The loss against the queue; the queue with the batch in place of its oldest."""
        embeddings, labels, valid = anchors
        state, size = variables["state"], self.memory_size
        if embeddings.shape[0] > size:
            raise ValueError(
                f"loss 'cross_batch_memory' has memory_size={size}; accepted: at least the batch of "
                f"{embeddings.shape[0]}"
            )
        if labels.shape[1:] != state["labels"].shape[1:]:
            raise ValueError(
                f"loss 'cross_batch_memory' has label_size={self.label_size}, and labels of shape "
                f"{labels.shape}; accepted: {(labels.shape[0], *state['labels'].shape[1:])}"
            )
        copies = jax.lax.stop_gradient(embeddings)
        slots = (state["index"] + jnp.cumsum(valid) - 1) % size
        slots = jnp.where(valid, slots, size)  # out of range: dropped
        # The copies come first among the references, so that "its own position" means the own copy.
        stay = (jnp.arange(size) < state["filled"]).at[slots].set(False, mode="drop")
        queue = References(
            jnp.concatenate([copies, state["memory"].astype(copies.dtype)]),
            jnp.concatenate([labels.astype(jnp.int32), state["labels"]]),
            jnp.concatenate([valid, stay]),
            refs_include_batch=True,
        )
        inner = {part: tree for part, tree in variables.items() if part != "state"}
        if "loss" in state:
            inner["state"] = state["loss"]
        mean, new = self.loss.step(inner, anchors, queue, key, block)
        count = jnp.sum(valid, dtype=jnp.int32)

        def put(old: Array, rows: Array) -> Array:
            return old.at[slots].set(rows.astype(old.dtype), mode="drop")

        after = {
            "memory": put(state["memory"], copies),
            "labels": put(state["labels"], labels),
            "index": (state["index"] + count) % size,
            "filled": jnp.minimum(state["filled"] + count, size),
        }
        return mean, {**after, "loss": new} if "loss" in state else after


def cross_batch_memory(
    *, loss: Any, memory_size: int = 1024, label_size: int | None = None
) -> CrossBatchMemory:
    """`loss` is a Loss that takes references, with its miner.

    `label_size` is the length of a label where labels are rows (relations "overlap" and "hierarchy").
    """
    check_wrapped("cross_batch_memory", loss, ("label", "hierarchy", "overlap"))
    rows = loss.relation.kind.rank == 2
    if rows != (isinstance(label_size, int) and label_size > 0):
        raise ValueError(
            f"loss 'cross_batch_memory' has label_size={label_size!r} for relation "
            f"{loss.relation.name!r}; accepted: {'a positive integer' if rows else 'None'}"
        )
    if isinstance(loss, ViewsLoss):
        raise ValueError(
            f"loss 'cross_batch_memory' is of loss {loss.name!r}, which compares two views row by row; accepted: "
            "a loss on pairs"
        )
    if not isinstance(memory_size, int) or memory_size < 1:
        raise ValueError(
            f"loss 'cross_batch_memory' has memory_size={memory_size!r}; accepted: a positive integer"
        )
    return CrossBatchMemory("cross_batch_memory", loss.relation, loss, memory_size, label_size)


def with_miner(name: str, loss: Any, miner: Miner | None) -> Any:
    """The loss with this miner; ValueError where it has one already, or several losses inside."""
    if miner is None:
        return loss
    if not isinstance(loss, KernelLoss) or loss.miner is not None:
        raise ValueError(f"loss {name!r} takes the miner in the loss inside it, not twice")
    return replace(loss, miner=miner)


WRAPPERS: dict[str, Callable[..., Loss]] = {
    "cross_batch_memory": cross_batch_memory,
    "multiple": multiple,
    "self_supervised": self_supervised,
}
