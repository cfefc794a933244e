"""The training step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from dml_jax import trees
from dml_jax.errors import UserError
from dml_jax.losses import Loss
from dml_jax.mesh import constrain, data_devices, rows
from dml_jax.models import Model
from dml_jax.sharded import Layout
from dml_jax.training.state import State

Metrics = dict[str, jax.Array]
Step = Callable[[State, dict[str, jax.Array]], tuple[State, Metrics]]


def make_train_step(
    model: Model,
    loss: Loss,
    tx: optax.GradientTransformation,
    *,
    micro_batch: int | None = None,
    block: int | None = None,
    references: Layout = "replicated",
    ema: float | None = None,
    trained: Callable[[str], bool] | None = None,
    shardings: Any = None,
) -> Step:
    """Makes the function step(state, batch) -> (state, metrics), which is compiled once and donates the old state.

    It is a function of global arrays: the batch is split over the mesh in context (`jax.set_mesh`), the state lies as
    `shardings` says, and the result is that of one device.

    With `micro_batch` = n the backbone sees n images at a time, and the gradient is still the whole batch's: the
    forward pass keeps no activations, the loss is differentiated with respect to all embeddings, and the backward pass
    runs the backbone again, n images after n images (GradCache: Gao et al., RepL4NLP 2021). That is what the derivative
    of a loop with a rematerialised body does. Each of the n images draws from its own key in both passes. State that
    the model updates (running statistics) becomes the average over the micro-batches.

    Args:
      model: what `dml_jax.models.get` returns.
      loss: what `dml_jax.losses.get` returns.
      tx: the optimizer of `{"model": ..., "loss": ...}`.
      micro_batch: images that go through the backbone at a time; None: all at once.
      block: anchors (or classes) that the loss looks at at a time; None: all at once.
      references: how what the loss compares with lies on the devices, "replicated" or "sharded" (`Loss.apply`).
      ema: decay of the average of the model's variables in `state["ema"]`; None where the state has none.
      trained: says of a parameter's path, as in "model/head/kernel", whether it is ever trained. Only such ones have
        gradients: what lies below the lowest of them costs no backward pass and keeps no activations. None: all.
      shardings: of the arrays of the state, which has them before and after the step; None: all are whole everywhere.

    Returns:
      The step. Its batch is `{"image": uint8 [B, H, W, C], "label": [B, ...]}`; where it also has `id`, the embeddings
      of its images go into these rows of `state["storage"]`, for a sampler that plans from them. The metrics are
      scalars: `loss`, `finite`, `grad_norm`, `param_norm` (before the step) and `update_norm`, each of these also for
      `/backbone`, `/head` and `/loss`, and what the loss wants logged. A state with `first_bad` (`state.watch`) keeps
      there which step was the first that was not finite, so that nobody has to look at every step.
    """
    owned = None if shardings is None else shardings["params"]["model"]

    def forward(params: Any, state: Any, images: jax.Array, key: jax.Array) -> tuple[Any, Any]:
        if owned is not None:
            params = jax.tree.map(gathered, params, owned)
        return model.apply({"params": params, "state": state}, images, train=True, key=key)

    def embed(params: Any, state: Any, images: jax.Array, key: jax.Array) -> tuple[Any, Any]:
        if micro_batch is None or micro_batch == len(images):
            return forward(params, state, images, key)
        split, join = micro_batches(len(images), micro_batch)
        keys = jax.random.split(key, len(images) // micro_batch)
        body = jax.checkpoint(lambda x: forward(params, state, *x), prevent_cse=False)
        embeddings, states = jax.lax.map(body, (split(images), keys))
        return join(embeddings), jax.tree.map(lambda s: s.mean(0).astype(s.dtype), states)

    stays = P() if shardings is None else shardings

    @jax.jit(donate_argnums=0, out_shardings=(stays, P()))
    def step(state: State, batch: dict[str, jax.Array]) -> tuple[State, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state["key"]), state["step"])
        model_key, loss_key = jax.random.split(key)

        def objective(differentiated: Any) -> tuple[jax.Array, Any]:
            params = joined(differentiated, state["params"])
            embeddings, model_state = embed(
                params["model"], state["state"]["model"], batch["image"], model_key
            )
            variables = {"params": params["loss"], "state": state["state"]["loss"]}
            mean, loss_state = loss.apply(
                variables,
                embeddings,
                batch["label"],
                key=loss_key,
                block=block,
                references=references,
            )
            new_state = {"model": model_state, "loss": loss_state}
            return mean.compute(), (new_state, mean.stats, embeddings)

        (value, (new_state, stats, embeddings)), grads = jax.value_and_grad(
            objective, has_aux=True
        )(only(trained, state["params"]))
        grads = joined(grads, jax.tree.map(jnp.zeros_like, state["params"]))
        if shardings is not None:
            grads = jax.lax.with_sharding_constraint(grads, shardings["params"])
        updates, opt = tx.update(grads, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        metrics = {"loss": value, **norms("grad_norm", grads), **norms("update_norm", updates)}
        metrics |= norms("param_norm", state["params"]) | stats
        metrics["finite"] = jnp.isfinite(value) & jnp.isfinite(metrics["update_norm"])
        new = {"params": params, "state": new_state, "opt": opt, "step": state["step"] + 1}
        if ema is not None:
            model_now = {part: {"model": new[part]["model"]} for part in ("params", "state")}
            new["ema"] = averaged(state["ema"], model_now, state["step"], ema)
        if "first_bad" in state:
            new["first_bad"] = first_bad(state["first_bad"], new["step"], metrics)
            metrics["first_bad"] = new["first_bad"]
        if "id" in batch:
            new["storage"] = write_rows(state["storage"], batch["id"], embeddings)
        return {**state, **new}, metrics

    return step


def only(chosen: Callable[[str], bool] | None, params: Any) -> Any:
    """Returns the tree with None in the place of every parameter that is not chosen.

    Args:
      chosen: says it of a path; None: all are.
      params: nested dicts.

    >>> only(lambda path: path.startswith("a/"), {"a": {"x": 1}, "b": 2})
    {'a': {'x': 1}, 'b': None}
    """
    if chosen is None:
        return params
    return jax.tree_util.tree_map_with_path(
        lambda keys, x: x if chosen(trees.path_of(keys)) else None, params
    )


def joined(some: Any, others: Any) -> Any:
    """Returns `some`, with the arrays of `others` where it has None.

    >>> joined({"a": 1, "b": None}, {"a": 3, "b": 4})
    {'a': 1, 'b': 4}
    """
    return jax.tree.map(lambda x, y: y if x is None else x, some, others, is_leaf=_is_none)


def _is_none(x: Any) -> bool:
    return x is None


def gathered(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    """Returns a parameter whole on every device, for a computation that uses all of it; its gradient is sharded again.

    Args:
      x: the parameter, sharded.
      sharding: of the parameter.
    """
    if sharding.is_fully_replicated:
        return x

    @jax.custom_vjp
    def gather(x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, P())

    def backward(_: None, gradient: jax.Array) -> tuple[jax.Array]:
        return (jax.lax.with_sharding_constraint(gradient, sharding),)

    gather.defvjp(lambda x: (gather(x), None), backward)
    return gather(x)


def averaged(average: Any, new: Any, step: jax.Array, decay: float) -> Any:
    """Returns the exponential moving average of variables: d average + (1 - d) new, d = min(decay, (1 + t) / (10 + t)).

    The decay rises at first, so that the values that the run began with are soon forgotten. What is no float is the
    newest.

    Args:
      average: before the step.
      new: the variables after it.
      step: t, the steps before it.
      decay: the largest decay.

    >>> float(averaged(jnp.float32(1), jnp.float32(3), jnp.int32(2), 0.25))  # d = min(0.25, 3 / 12)
    2.5
    """
    d = jnp.minimum(decay, (1 + step) / (10 + step)).astype(jnp.float32)

    def one(old: jax.Array, new: jax.Array) -> jax.Array:
        if not jnp.issubdtype(new.dtype, jnp.floating):
            return new
        return (old + (1 - d) * (new - old)).astype(new.dtype)

    return jax.tree.map(one, average, new)


def first_bad(before: Metrics, step: jax.Array, metrics: Metrics) -> Metrics:
    """Returns what is known of the first step that was not finite: its number (-1: none so far), loss and norms.

    Args:
      before: what was known before the step.
      step: its number, counted from 1.
      metrics: of the step.
    """
    found = {"step": step} | {name: metrics[name] for name in before if name != "step"}
    is_first = ~metrics["finite"] & (before["step"] < 0)
    return {
        name: jnp.where(is_first, found[name], old).astype(old.dtype)
        for name, old in before.items()
    }


def write_rows(
    storage: Float[Array, "n d"], ids: Int[Array, " b"], embeddings: Float[Array, "b d"]
) -> Float[Array, "n d"]:
    """Returns the storage with these embeddings in the rows `ids`; of several for one row the last one stays.

    >>> write_rows(jnp.zeros((2, 1)), jnp.array([1, 1]), jnp.array([[3.0], [4.0]])).tolist()
    [[0.0], [4.0]]
    """
    # A scatter leaves open which of several values stays. Which place is the last, it does not.
    places = jnp.arange(len(ids), dtype=jnp.int32)
    last = jnp.zeros(len(storage), jnp.int32).at[ids].max(places)
    return storage.at[ids].set(embeddings[last[ids]].astype(storage.dtype))


def micro_batches(
    batch: int, size: int
) -> tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]:
    """Returns the functions from [batch, ...] to [batch / size, size, ...] and back.

    Every device holds a stretch of the batch and gives size / devices images of it to every micro-batch, so that none
    is idle and no image moves.

    Args:
      batch: images of a batch.
      size: images of a micro-batch.

    Raises:
      UserError: `size` does not divide the batch, or the devices do not divide `size`.

    >>> split, join = micro_batches(4, 2)
    >>> split(jnp.arange(4)).tolist(), join(split(jnp.arange(4))).tolist()
    ([[0, 1], [2, 3]], [0, 1, 2, 3])
    """
    devices = data_devices()
    if size < 1 or batch % size:
        near = [n for n in range(devices, batch + 1, devices) if batch % n == 0]
        raise UserError(
            f"train.micro_batch={size} does not divide the batch of {batch}; accepted: "
            f"{', '.join(map(str, near)) or 'none'}"
        )
    if size % devices:
        raise UserError(
            f"train.micro_batch={size} is not a multiple of the {devices} devices that share it"
        )
    count = batch // size

    def split(x: jax.Array) -> jax.Array:
        x = x.reshape(devices, count, size // devices, *x.shape[1:]).swapaxes(0, 1)
        return constrain(x.reshape(count, size, *x.shape[3:]), rows(1))

    def join(x: jax.Array) -> jax.Array:
        x = x.reshape(count, devices, size // devices, *x.shape[2:]).swapaxes(0, 1)
        return constrain(x.reshape(batch, *x.shape[3:]), rows())

    return split, join


def norms(name: str, tree: Any) -> Metrics:
    """Returns the L2 norm of `{"model": {"backbone", "head"}, "loss"}` and of each of its parts with parameters."""
    parts = {**tree["model"], "loss": tree["loss"]}
    return {name: optax.tree.norm(tree)} | {
        f"{name}/{part}": optax.tree.norm(sub)
        for part, sub in parts.items()
        if jax.tree.leaves(sub)
    }
