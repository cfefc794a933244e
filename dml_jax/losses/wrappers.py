"""Losses made of other losses: several at once, views of the same samples, a memory of batches."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from dml_jax import miners, names
from dml_jax.errors import UserError
from dml_jax.losses.base import Loss, MinerSpec, References, State, Variables
from dml_jax.losses.forms import ViewsLoss, with_miner
from dml_jax.mean import Mean
from dml_jax.pairwise import Samples
from dml_jax.parameters import Interval, PositiveInt, check, checked
from dml_jax.relations import SAME_LABEL

LossSpec = Loss | str | Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Multiple(Loss):
    """A weighted sum of losses; see `multiple`.

    Attributes:
      losses: the losses, with their names.
      weights: one for each.
      columns: the first column of the embeddings that each of them sees and the one after the last; None: all.
    """

    losses: tuple[tuple[str, Loss], ...]
    weights: tuple[float, ...]
    columns: tuple[tuple[int, int] | None, ...]

    def _init(self, key: Array, num_classes: int, dim: int) -> Variables:
        """Makes {"params": {name: ...}, "state": {name: ...}}, of the losses that have any."""
        keys = jax.random.split(key, len(self.losses))
        made = {
            name: loss.init(k, num_classes, dim if seen is None else self._width(name, seen, dim))
            for (name, loss), k, seen in zip(self.losses, keys, self.columns, strict=True)
        }
        parts = {
            part: {name: variables[part] for name, variables in made.items() if part in variables}
            for part in ("params", "state")
        }
        return {part: tree for part, tree in parts.items() if tree}

    def _width(self, name: str, seen: tuple[int, int], dim: int) -> int:
        if not 0 <= seen[0] < seen[1] <= dim:
            raise UserError(
                f"columns of loss 'multiple' are {seen} for {name!r}; the embeddings have {dim}: "
                f"(first, after the last) within 0 to {dim} is accepted"
            )
        return seen[1] - seen[0]

    def step(
        self,
        variables: Variables,
        anchors: Samples,
        refs: References | None,
        key: Array | None,
        block: int | None,
    ) -> tuple[Mean, State]:
        """Computes the weighted sum, the new state of every loss that has one, and stats as name/stat."""
        total = jnp.zeros((), anchors.vectors.dtype)
        stats: dict[str, Array] = {}
        state: State = {}
        for i, (name, loss) in enumerate(self.losses):
            own = {part: tree[name] for part, tree in variables.items() if name in tree}
            own_key = None if key is None else jax.random.fold_in(key, i)
            mean, new = loss.step(own, *self._seen(i, anchors, refs), own_key, block)
            total += self.weights[i] * mean.compute()
            stats |= {f"{name}/{stat}": value for stat, value in mean.stats.items()}
            if new:
                state[name] = new
        return Mean(total, jnp.ones_like(total), stats), state

    def _seen(
        self, i: int, anchors: Samples, refs: References | None
    ) -> tuple[Samples, References | None]:
        """Returns the columns of anchors and references that loss i sees."""
        seen = self.columns[i]
        if seen is None:
            return anchors, refs
        self._width(self.losses[i][0], seen, anchors.vectors.shape[1])
        part = slice(*seen)
        mine = anchors._replace(vectors=anchors.vectors[:, part])
        return mine, refs and refs._replace(vectors=refs.vectors[:, part])


@dataclass(frozen=True, kw_only=True)
class SelfSupervised(Loss):
    """A loss whose positives are the other views of the same sample; see `self_supervised`.

    Attributes:
      loss: what is given the samples as labels.
      views: how many views of each sample a batch holds.
      symmetric: True compares every view with all.
    """

    loss: Loss
    views: int
    symmetric: bool
    takes_references: bool = False
    reads_labels: bool = False
    needs_positives: bool = False  # the views of a sample are each other's

    def _init(self, key: Array, num_classes: int, dim: int) -> Variables:
        """Makes the variables of the loss inside."""
        return self.loss.init(key, num_classes, dim)

    def step(
        self,
        variables: Variables,
        anchors: Samples,
        refs: References | None,
        key: Array | None,
        block: int | None,
    ) -> tuple[Mean, State]:
        """Computes the loss with the samples as labels."""
        embeddings, _, valid = anchors
        batch = embeddings.shape[0]
        if batch % self.views:
            raise UserError(
                f"loss 'self_supervised' has {batch} embeddings of {self.views} views; accepted: a multiple"
            )
        count = batch // self.views
        ids = jnp.tile(jnp.arange(count, dtype=jnp.int32), self.views)
        if self.symmetric:
            return self.loss.step(variables, Samples(embeddings, ids, valid), None, key, block)
        first = Samples(embeddings[:count], ids[:count], valid[:count])
        others = References(embeddings[count:], ids[count:], valid[count:])
        return self.loss.step(variables, first, others, key, block)


@dataclass(frozen=True, kw_only=True)
class CrossBatchMemory(Loss):
    """A loss of the batch against a queue of earlier embeddings; see `cross_batch_memory`.

    Attributes:
      loss: what compares the batch with the queue.
      memory_size: how many samples the queue holds.
      label_size: the length of a label where labels are rows; None where they are numbers.
    """

    loss: Loss
    memory_size: int
    label_size: int | None
    takes_references: bool = False
    label_values: str = "the labels of its queue"
    needs_positives: bool = False  # an image meets itself in later epochs

    def _init(self, key: Array, num_classes: int, dim: int) -> Variables:
        """Makes the variables of the loss inside, and an empty queue."""
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

    def step(
        self,
        variables: Variables,
        anchors: Samples,
        refs: References | None,
        key: Array | None,
        block: int | None,
    ) -> tuple[Mean, State]:
        """Computes the loss against the queue, and puts the batch in the place of its oldest."""
        embeddings, labels, valid = anchors
        state, size = variables["state"], self.memory_size
        if embeddings.shape[0] > size:
            raise UserError(
                f"loss 'cross_batch_memory' has memory_size={size}; accepted: at least the batch of "
                f"{embeddings.shape[0]}"
            )
        if labels.shape[1:] != state["labels"].shape[1:]:
            raise UserError(
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


def build(name: str, spec: Any) -> Loss:
    """Makes the loss inside the loss `name` of what a user wrote for it."""
    from dml_jax.losses import get  # that table lists the losses of this file

    if spec is None:
        raise UserError(f"loss {name!r} needs a loss inside it; None is not accepted")
    made: Loss = names.build("loss", get, Loss, spec)
    return made


def check_wrapped(name: str, loss: Loss, accepted: tuple[str, ...]) -> None:
    """Checks that `loss` compares samples with references by one of the relations.

    Raises:
      UserError: it does not.
    """
    known = loss.relation.name in accepted
    if not loss.takes_references or not known:
        raise UserError(
            f"loss {name!r} is of loss {loss.name!r} with relation {loss.relation.name!r}; accepted: a loss "
            f"that takes references, with relation {' or '.join(map(repr, accepted))}"
        )


def mined(name: str, loss: Loss, spec: MinerSpec) -> Loss:
    """Returns the loss inside another one with a miner, where one is given.

    Args:
      name: of the loss around it.
      loss: the loss.
      spec: the miner; None: what the loss has.

    Raises:
      UserError: the loss has a miner already.
    """
    miner = names.build("miner", miners.get, miners.Miner, spec)
    if miner is None:
        return loss
    found = with_miner(loss, miner)
    if found is None:
        raise UserError(f"loss {name!r} takes the miner in the loss inside it, not twice")
    return found


@checked("loss")
def multiple(losses: Any, weights: Any = None, columns: Any = None) -> Loss:
    """Makes a weighted sum of losses: sum_i weight_i * loss_i. Every loss has its own miner and draws from its own key.

    `params` and `state` hold those of the losses, by name. Differs from PML (MultipleLosses): references are taken
    where all the losses take them.

    Args:
      losses: a dict, or a list of losses, which are then called "0", "1", ...; each as an object, a name, or a dict
        with a name.
      weights: one number a loss, as a dict or a list; None: 1 for each.
      columns: by the name of a loss the first column of the embeddings that it sees and the one after the last, as in
        `{"shape": (0, 64)}`, for a model with several heads; a loss that is not named sees all.

    Raises:
      UserError: no loss, another number of weights than of losses, losses of several relations, columns that are no
        such pair or of no loss.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(multiple(["contrastive", "triplet_margin"], weights=[1, 0.5])(x, [0, 1, 0, 1])), 3)
      2.067
    """
    if isinstance(losses, (str, Loss)) or not isinstance(losses, Iterable):
        raise UserError(f"loss 'multiple' has losses={losses!r}; accepted: a list or a dict")
    if not hasattr(losses, "keys"):
        losses = {str(i): spec for i, spec in enumerate(losses)}
    parts = tuple((part, build("multiple", losses[part])) for part in losses)
    weights = (1.0,) * len(parts) if weights is None else weights
    if hasattr(weights, "keys"):
        if sorted(weights) != sorted(name for name, _ in parts):
            raise UserError(
                f"loss 'multiple' has weights for {', '.join(sorted(weights))}; accepted: one for each of "
                f"{', '.join(sorted(name for name, _ in parts))}"
            )
        weights = [weights[name] for name, _ in parts]
    if not parts or len(weights) != len(parts):
        raise UserError(
            f"loss 'multiple' has {len(parts)} losses and {len(weights)} weights; accepted: one loss or "
            "more, and a weight for each"
        )
    numbers = all(isinstance(w, (int, float)) and not isinstance(w, bool) for w in weights)
    if not numbers:
        raise UserError(f"loss 'multiple' has weights={weights!r}; accepted: a number for each")
    seen = {
        name: check(f"columns of loss 'multiple' for {name!r}", tuple[int, int], pair)
        for name, pair in dict(columns or {}).items()
    }
    for name in seen:
        names.resolve("loss of columns:", dict(parts), name)
    reading = [loss for _, loss in parts if loss.reads_labels]
    relations = {loss.relation.name for loss in reading}
    if len(relations) > 1:
        raise UserError(
            f"loss 'multiple' has losses of relations {', '.join(sorted(relations))}, which take other labels; "
            "accepted: one relation for all"
        )
    return Multiple(
        name="multiple",
        relation=reading[0].relation if reading else SAME_LABEL,
        losses=parts,
        weights=tuple(float(w) for w in weights),
        columns=tuple(seen.get(name) for name, _ in parts),
        pairwise=any(loss.pairwise for _, loss in parts),
        takes_references=all(loss.takes_references for _, loss in parts),
        reads_labels=bool(reading),
        label_values=next((loss.label_values for loss in reading if loss.label_values), ""),
        takes_block=all(loss.takes_block for _, loss in parts),
        needs_positives=any(loss.needs_positives for _, loss in parts),
        paired_references=any(loss.paired_references for _, loss in parts),
    )


@checked("loss")
def self_supervised(
    loss: Any,
    views: Annotated[int, Interval(2, closed_low=True)] = 2,
    symmetric: bool = True,
    *,
    miner: MinerSpec = None,
) -> Loss:
    """Makes a loss whose positives are the other views of the same sample. Labels are not read.

    A batch of B embeddings is `views` views of B / views samples, view after view: rows i, i + B / views,
    ... show the same one. Equals PML (SelfSupervisedLoss), which takes two views, for views=2.

    Args:
      loss: a loss on pairs, as an object, a name, or a dict with a name.
      views: of every sample, 2 or more.
      symmetric: True compares every view with all; False the first view (anchors) with the others. PML's default.
      miner: that of the loss inside, where it has none.

    Raises:
      UserError: a loss that takes no references, two miners.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(self_supervised("nt_xent")(x, [0, 1, 0, 1])), 3)
      11.457
    """
    inner = build("self_supervised", loss)
    check_wrapped("self_supervised", inner, ("label",))
    if isinstance(inner, ViewsLoss) and (symmetric or views != 2):
        raise UserError(
            f"loss 'self_supervised' of loss {inner.name!r}, which compares the first view with the second, has "
            f"symmetric={symmetric} and views={views}; accepted: symmetric=False, views=2"
        )
    inner = mined("self_supervised", inner, miner)
    return SelfSupervised(
        name="self_supervised",
        relation=inner.relation,
        loss=inner,
        views=views,
        symmetric=symmetric,
        takes_block=inner.takes_block,
    )


@checked("loss")
def cross_batch_memory(
    loss: Any,
    memory_size: PositiveInt = 1024,
    label_size: PositiveInt | None = None,
    *,
    miner: MinerSpec = None,
) -> Loss:
    """Makes a loss of the batch against the last `memory_size` embeddings (Wang et al., CVPR 2020).

    The batch enters the queue first, without gradient, so its copies are references too; a sample is not
    compared with its own copy. Any loss that takes references, with any miner: the miner sees the queue.
    Rows that are padding do not enter.

    `state`: "memory" [memory_size, dim], "labels" [memory_size], or [memory_size, label_size] where labels
    are rows, "index" (where the next sample goes), "filled" (how many slots hold one), and "loss" where the
    inner loss has a state. It is the same on any number of devices (PML loses the index when saved, and queues of
    processes differ). Labels must keep their values from batch to batch, so that those beyond 32 bits are refused.
    Differs from PML with a miner: own copies are out before it chooses, not after.

    Args:
      loss: a loss that takes references, as an object, a name, or a dict with a name.
      memory_size: how many embeddings the queue holds, at least a batch; PML's default.
      label_size: the length of a label where labels are rows (relations "overlap" and "hierarchy"); else None.
      miner: that of the loss inside, where it has none.

    Raises:
      UserError: a loss that takes no references, two miners, a label_size that the relation has no use for.

    Example:
      >>> loss = cross_batch_memory("contrastive", memory_size=6)
      >>> variables = loss.init(jax.random.key(0), num_classes=2, dim=2)
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> mean, state = loss.apply(variables, x, [0, 1, 0, 1])
      >>> round(float(mean.compute()), 3), int(state["filled"])
      (1.694, 4)
    """
    inner = build("cross_batch_memory", loss)
    check_wrapped("cross_batch_memory", inner, ("label", "hierarchy", "overlap"))
    rows = inner.relation.label_rank == 2
    if rows != (label_size is not None):
        raise UserError(
            f"loss 'cross_batch_memory' has label_size={label_size!r} for relation "
            f"{inner.relation.name!r}; accepted: {'a positive integer' if rows else 'None'}"
        )
    if inner.paired_references:
        raise UserError(
            f"loss 'cross_batch_memory' is of loss {inner.name!r}, which compares two views row by row; accepted: "
            "a loss on pairs"
        )
    inner = mined("cross_batch_memory", inner, miner)
    return CrossBatchMemory(
        name="cross_batch_memory",
        relation=inner.relation,
        loss=inner,
        memory_size=memory_size,
        label_size=label_size,
        takes_block=inner.takes_block,
    )
