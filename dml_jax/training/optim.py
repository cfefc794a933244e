"""Optimizers with a group of parameters each: backbone, head and loss have their own rate, schedule and decay.

Every optimizer follows the definition and the defaults of its PyTorch namesake, so that published settings carry over.
The groups are put together by `optax.partition` (formerly `optax.multi_transform`).

An optimizer is a function of its hyper-parameters that returns an `optax.GradientTransformation` without the learning
rate, which is applied after it. A schedule is a function of its hyper-parameters that returns a function of the step
and the `RunLength`: the factor that the rate of the group is multiplied with. Those of one's own are named
"package.module:name" in a config:

    def halving(every: int = 1000):
        return lambda step, length: 0.5 ** (step // every)

"optax:scale_by_lion" and its likes are optimizers in this sense, too.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from dml_jax import names, trees
from dml_jax.config import plain
from dml_jax.errors import UserError
from dml_jax.parameters import (
    Fraction,
    Interval,
    NonNegativeFloat,
    NonNegativeInt,
    check,
    checked,
    make,
)

Decay = Annotated[float, Interval(0, 1, closed_low=True)]


class RunLength(NamedTuple):
    """How long a training is, for schedules that depend on it.

    Attributes:
      total_steps: the steps of the whole training.
      epoch_steps: the steps of an epoch.
    """

    total_steps: int
    epoch_steps: int


Schedule = Callable[[ArrayLike, RunLength], ArrayLike]


@checked("optimizer")
def adam(
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegativeFloat = 1e-8,
    weight_decay: NonNegativeFloat = 0.0,
) -> optax.GradientTransformation:
    """Makes Adam as `torch.optim.Adam` has it (Kingma and Ba, ICLR 2015), without the learning rate.

        g <- g + weight_decay p;  m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2
        step = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)

    Weight decay is coupled: an L2 term in the gradient that the moments see.

    Args:
      b1: decay of the mean of gradients, at least 0 and below 1; the default is the paper's.
      b2: decay of the mean of squared gradients, likewise.
      eps: added to the root, from 0 on; the default is the paper's.
      weight_decay: factor of the parameters in the gradient, from 0 on; torch's default is none.

    Raises:
      UserError: a value out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = adam()
      >>> step, _ = optimizer.update(jnp.array([2.0, -3.0]), optimizer.init(jnp.zeros(2)), jnp.zeros(2))
      >>> print(", ".join(f"{float(x):.3f}" for x in step))
      1.000, -1.000
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
    )


@checked("optimizer")
def adamw(
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegativeFloat = 1e-8,
    weight_decay: NonNegativeFloat = 0.01,
) -> optax.GradientTransformation:
    """Makes AdamW as `torch.optim.AdamW` has it (Loshchilov and Hutter, ICLR 2019), without the learning rate.

        step = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay p

    Weight decay is decoupled: learning rate times weight_decay times the parameter, beside the step of Adam.

    Args:
      b1: decay of the mean of gradients, at least 0 and below 1; the default is torch's.
      b2: decay of the mean of squared gradients, likewise.
      eps: added to the root, from 0 on; the default is torch's.
      weight_decay: factor of the parameters beside the step, from 0 on; the default is torch's.

    Raises:
      UserError: a value out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer, p = adamw(weight_decay=0.5), jnp.array([4.0])
      >>> step, _ = optimizer.update(jnp.array([2.0]), optimizer.init(p), p)
      >>> print(f"{float(step[0]):.3f}")
      3.000
    """
    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps), optax.add_decayed_weights(weight_decay)
    )


@checked("optimizer")
def sgd(
    momentum: Decay = 0.0, nesterov: bool = False, weight_decay: NonNegativeFloat = 0.0
) -> optax.GradientTransformation:
    """Makes stochastic gradient descent as `torch.optim.SGD` has it without dampening, without the learning rate.

        g <- g + weight_decay p;  buffer <- momentum buffer + g
        step = g + momentum buffer  with nesterov, else  buffer

    The buffer holds gradients and the rate is applied after it: a new rate takes hold of the old momentum, too.

    Args:
      momentum: decay of the buffer, at least 0 and below 1; torch's default is none.
      nesterov: True to look ahead.
      weight_decay: factor of the parameters in the gradient, from 0 on; torch's default is none.

    Raises:
      UserError: a value out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer, p = sgd(momentum=0.5), jnp.zeros(1)
      >>> step, state = optimizer.update(jnp.array([2.0]), optimizer.init(p), p)
      >>> optimizer.update(jnp.array([1.0]), state, p)[0].tolist()
      [2.0]
    """
    trace = optax.trace(momentum, nesterov=nesterov) if momentum else optax.identity()
    return optax.chain(optax.add_decayed_weights(weight_decay), trace)


@checked("optimizer")
def rmsprop(
    alpha: Decay = 0.99,
    eps: NonNegativeFloat = 1e-8,
    momentum: Decay = 0.0,
    weight_decay: NonNegativeFloat = 0.0,
) -> optax.GradientTransformation:
    """Makes RMSprop as `torch.optim.RMSprop` has it, not centred, without the learning rate.

        g <- g + weight_decay p;  v <- alpha v + (1 - alpha) g^2
        buffer <- momentum buffer + g / (sqrt(v) + eps);  step = buffer

    eps stands outside of the root, and the rate is applied after the buffer.

    Args:
      alpha: decay of the mean of squared gradients, at least 0 and below 1; the default is torch's.
      eps: added to the root, from 0 on; the default is torch's.
      momentum: decay of the buffer, at least 0 and below 1; torch's default is none.
      weight_decay: factor of the parameters in the gradient, from 0 on; torch's default is none.

    Raises:
      UserError: a value out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer, p = rmsprop(alpha=0.75), jnp.zeros(1)
      >>> step, _ = optimizer.update(jnp.array([3.0]), optimizer.init(p), p)
      >>> print(f"{float(step[0]):.3f}")
      2.000
    """
    trace = optax.trace(momentum) if momentum else optax.identity()
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_rms(decay=alpha, eps=eps, eps_in_sqrt=False),
        trace,
    )


@checked("schedule")
def constant() -> Schedule:
    """Makes the schedule of the same rate throughout.

    Example:
      >>> constant()(3, RunLength(total_steps=4, epoch_steps=2))
      1.0
    """
    return lambda step, length: 1.0


@checked("schedule")
def cosine(final: Fraction = 0.0) -> Schedule:
    """Makes half a cosine, from the full rate at the first step to `final` of it after the last.

        final + (1 - final) (1 + cos(pi step / total_steps)) / 2

    It is SGDR's (Loshchilov and Hutter, ICLR 2017) without restarts, by steps and not by epochs.

    Args:
      final: the factor after the last step, from 0 to 1; the paper's is 0.

    Raises:
      UserError: a value out of range.

    Example:
      >>> [round(float(cosine()(step, RunLength(4, 2))), 3) for step in (0, 2, 4)]
      [1.0, 0.5, 0.0]
    """
    return lambda step, length: optax.cosine_decay_schedule(
        1.0, max(length.total_steps, 1), alpha=final
    )(step)


@checked("schedule")
def step(milestones: tuple[NonNegativeInt, ...] = (), gamma: NonNegativeFloat = 0.1) -> Schedule:
    """Makes the schedule of `torch.optim.lr_scheduler.MultiStepLR`: gamma ^ (milestones passed).

    Args:
      milestones: the epochs from whose beginning on the rate is multiplied once more; none by default.
      gamma: the factor at each of them, from 0 on; the default is torch's.

    Raises:
      UserError: a value out of range.

    Example:
      >>> [round(float(step(milestones=(1, 2))(n, RunLength(6, 2))), 3) for n in (0, 2, 4)]
      [1.0, 0.1, 0.01]
    """

    def factor(count: ArrayLike, length: RunLength) -> ArrayLike:
        bounds = np.asarray([m * length.epoch_steps for m in milestones], np.int32)
        return gamma ** jnp.sum(jnp.asarray(count) >= bounds)

    return factor


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": adam,
    "adamw": adamw,
    "rmsprop": rmsprop,
    "sgd": sgd,
}
SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "cosine": cosine,
    "step": step,
}


def get(name: str, **hyper: Any) -> optax.GradientTransformation:
    """Returns the optimizer of that name, without the learning rate.

    Args:
      name: a key of `OPTIMIZERS`, or "package.module:name" for one of one's own.
      **hyper: its hyper-parameters.

    Raises:
      UserError: an unknown name, or hyper-parameters that it does not take.

    Example:
      >>> optimizer = get("sgd", momentum=0.9)
    """
    return make("optimizer", OPTIMIZERS, optax.GradientTransformation, name, hyper)


def get_schedule(name: str, **hyper: Any) -> Schedule:
    """Returns the schedule of that name.

    Args:
      name: a key of `SCHEDULES`, or "package.module:name" for one of one's own.
      **hyper: its hyper-parameters.

    Raises:
      UserError: an unknown name, or hyper-parameters that it does not take.

    Example:
      >>> schedule = get_schedule("cosine", final=0.1)
    """
    made = make("schedule", SCHEDULES, object, name, hyper)
    if not callable(made):
        raise UserError(
            f"schedule {name!r} returned {made!r}; accepted: a function that returns a function of the step and the "
            "length"
        )
    return made


def available() -> tuple[str, ...]:
    """Returns the names of the optimizers.

    Example:
      >>> available()
      ('adam', 'adamw', 'rmsprop', 'sgd')
    """
    return tuple(OPTIMIZERS)


def available_schedules() -> tuple[str, ...]:
    """Returns the names of the schedules.

    Example:
      >>> available_schedules()
      ('constant', 'cosine', 'step')
    """
    return tuple(SCHEDULES)


@dataclass(frozen=True)
class Group:
    """A group of parameters, and how they are optimized.

    Attributes:
      pattern: a regular expression that matches the paths of its parameters, such as 'model/head/.*'.
      lr: the learning rate; 0 where the group is frozen.
      optimizer: without the learning rate.
      schedule: the factor of the rate.
      warmup_steps: steps over which the rate rises to that of the schedule.
    """

    pattern: str
    lr: float
    optimizer: optax.GradientTransformation
    schedule: Schedule
    warmup_steps: int = 0

    def rate(self, step: ArrayLike, length: RunLength) -> ArrayLike:
        """Returns the rate at a step: lr times the schedule's factor times min(1, (step + 1) / warmup_steps)."""
        rate = self.lr * self.schedule(step, length)
        if self.warmup_steps:
            rate = rate * jnp.minimum(1.0, (step + 1) / self.warmup_steps)
        return rate

    def transformation(self, length: RunLength) -> optax.GradientTransformation:
        """Returns the optimizer with its rates in a training of that length."""
        if not self.lr:
            return optax.set_to_zero()
        rates = optax.scale_by_learning_rate(lambda step: self.rate(step, length))
        return optax.chain(self.optimizer, rates)


# The fields of a group that are no hyper-parameters of its optimizer.
_GROUP_FIELDS = ("match", "name", "lr", "schedule", "warmup_steps", "freeze", "sparse")


def group(name: str, spec: Mapping[str, Any]) -> Group:
    """Returns a group of the section `optim`.

    Args:
      name: what the group is called in errors.
      spec: `match` (the group's pattern), `name` of the optimizer, `lr`, the optimizer's hyper-parameters
        (`weight_decay`, `momentum`, ...), and where wanted `schedule` (its `name` and hyper-parameters),
        `warmup_steps`, `freeze` and `sparse` (`by_rows`). lr=0 freezes, too. A `weight_decay` of 0 is accepted for
        every optimizer.

    Raises:
      UserError: an unknown name or hyper-parameter, a negative or missing rate, a group without a pattern.

    Example:
      >>> head = group("head", {"match": "model/head/.*", "name": "sgd", "lr": 0.5, "warmup_steps": 4})
      >>> [float(head.rate(step, RunLength(10, 5))) for step in (0, 1, 9)]
      [0.125, 0.25, 0.5]
    """
    spec = plain(spec)

    def field(key: str, annotation: Any, value: Any) -> Any:
        return check(f"optim.{name}.{key}", annotation, value)

    if not spec.get("match"):
        raise UserError(f"optim.{name} has no match: a pattern such as 'model/head/.*' is accepted")
    lr = field("lr", NonNegativeFloat, spec.get("lr"))
    frozen = field("freeze", bool, spec.get("freeze", False))
    schedule = spec.get("schedule") or "constant"
    schedule = {"name": schedule} if isinstance(schedule, str) else schedule
    hyper = {k: v for k, v in spec.items() if k not in _GROUP_FIELDS}
    try:
        if not hyper.get("weight_decay") and not _decays(spec.get("name", "")):
            hyper.pop("weight_decay", None)
        optimizer, sparse = get(spec.get("name", ""), **hyper), spec.get("sparse", False)
        return Group(
            pattern=field("match", str, spec["match"]),
            lr=0.0 if frozen else lr,
            optimizer=by_rows(optimizer) if field("sparse", bool, sparse) else optimizer,
            schedule=get_schedule(**schedule),
            warmup_steps=field("warmup_steps", NonNegativeInt, spec.get("warmup_steps", 0)),
        )
    except UserError as error:
        raise UserError(f"optim.{name}: {error}") from error


def by_rows(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns the optimizer for arrays of which a step has the gradient of some rows alone, such as sampled classes.

    A row without any gradient stays as it is, and so do its moments: it neither decays nor moves on by momentum. What
    is counted for all rows (the steps of Adam's bias correction) goes on. As `torch.optim.SparseAdam`.

    Args:
      optimizer: of all rows.

    Example:
      >>> import jax.numpy as jnp
      >>> tx, p = by_rows(sgd(momentum=0.5)), jnp.zeros((2, 1))
      >>> _, state = tx.update(jnp.ones((2, 1)), tx.init(p), p)
      >>> updates, _ = tx.update(jnp.array([[1.0], [0.0]]), state, p)
      >>> updates.tolist()
      [[1.5], [0.0]]
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def with_gradient(g: jax.Array) -> jax.Array:
            return jnp.any(g != 0, axis=tuple(range(1, g.ndim)), keepdims=True) | (g.ndim == 0)

        rows = jax.tree.map(with_gradient, updates)
        moved, new = optimizer.update(updates, state, params)
        moved = jax.tree.map(lambda u, r: jnp.where(r, u, 0), moved, rows)
        # Of the state what belongs to a parameter; the rest, such as a count, is taken as it is.
        moments = optax.tree.map_params(
            optimizer, lambda _, r: r, new, rows, transform_non_params=lambda _: jnp.bool_(True)
        )
        kept = jax.tree.map(lambda n, old, r: jnp.where(r, n, old), new, state, moments)
        return moved, kept

    return optax.GradientTransformation(optimizer.init, update)


def _decays(name: str) -> bool:
    """Returns True for an optimizer with a hyper-parameter `weight_decay`."""
    factory = names.resolve("optimizer", OPTIMIZERS, name)
    return callable(factory) and "weight_decay" in inspect.signature(factory).parameters


def groups_of(section: Mapping[str, Mapping[str, Any]]) -> dict[str, Group]:
    """Returns the groups of the section `optim` by name.

    Args:
      section: what `group` takes, by the name of the group.

    Raises:
      UserError: a group that `group` does not take.

    Example:
      >>> groups_of({"all": {"match": ".*", "name": "sgd", "lr": 0.5}})["all"].lr
      0.5
    """
    return {name: group(name, spec) for name, spec in plain(section).items()}


def partition(
    groups: Mapping[str, Group], length: RunLength, clip: float | None = None
) -> optax.GradientTransformation:
    """Returns the optimizer of all parameters `{"model": {"backbone", "head"}, "loss"}`.

    With `clip` the gradient g of all groups together is scaled first, by min(1, clip / |g|).

    Args:
      groups: by name.
      length: of the training, for schedules.
      clip: the largest global norm of the gradient; None: it is left as it is.

    Raises:
      UserError: from `init`: a parameter that is in no group, or in more than one.
    """
    transformations = {name: group.transformation(length) for name, group in groups.items()}
    patterns = {name: group.pattern for name, group in groups.items()}
    optimizer = optax.partition(transformations, lambda params: group_labels(params, patterns))
    return optimizer if clip is None else optax.chain(optax.clip_by_global_norm(clip), optimizer)


def build(
    section: Mapping[str, Mapping[str, Any]], *, total_steps: int, epoch_steps: int
) -> optax.GradientTransformation:
    """Returns the optimizer of a section `optim`; `groups_of` and `partition` in one.

    Args:
      section: the groups by name, what `group` takes.
      total_steps: the steps of the whole training, for schedules.
      epoch_steps: the steps of an epoch, for milestones.

    Raises:
      UserError: what the groups do not take.

    Example:
      >>> import jax.numpy as jnp
      >>> section = {"all": {"match": ".*", "name": "sgd", "lr": 0.5}}
      >>> tx, params = build(section, total_steps=10, epoch_steps=5), {"loss": {"weights": jnp.ones(2)}}
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> updates["loss"]["weights"].tolist()
      [-0.5, -0.5]
    """
    return partition(groups_of(section), RunLength(total_steps, epoch_steps))


def group_labels(params: Any, patterns: Mapping[str, str]) -> Any:
    """Returns a tree with the group of every parameter: the one whose pattern matches the whole of its path.

    Args:
      params: a pytree.
      patterns: regular expressions by group.

    Raises:
      UserError: a parameter that no pattern matches, or more than one.

    Example:
      >>> group_labels({"loss": {"weights": 0}}, {"model": "model/.*", "loss": "loss/.*"})
      {'loss': {'weights': 'loss'}}
    """

    def label(keys: tuple[Any, ...], _: Any) -> str:
        leaf = trees.path_of(keys)
        found = [name for name, pattern in patterns.items() if re.fullmatch(pattern, leaf)]
        if len(found) != 1:
            raise UserError(
                f"parameter {leaf} is matched by {len(found)} groups of optim"
                f"{' (' + ', '.join(found) + ')' if found else ''}; exactly one is accepted, "
                f"their patterns are {', '.join(map(repr, patterns.values()))}"
            )
        return found[0]

    return jax.tree_util.tree_map_with_path(label, params)


def check_length(groups: Mapping[str, Group], before: RunLength, now: RunLength) -> None:
    """Checks that a run that goes on with another length keeps the rates that it began with.

    A rate that depends on the length (a cosine's) would jump where the run goes on, and the result would be that of
    neither length.

    Args:
      groups: by name.
      before: the length of the run so far.
      now: the length with which it is to go on.

    Raises:
      UserError: a group whose rates differ.

    Example:
      >>> groups = groups_of({"all": {"match": ".*", "name": "sgd", "lr": 0.5}})
      >>> check_length(groups, RunLength(10, 5), RunLength(20, 5))  # a constant rate is that of any length
    """
    common = min(before.total_steps, now.total_steps)
    steps = np.unique(np.linspace(0, common, 257).astype(np.int32))
    for name, group in groups.items():
        there, here = _rates(group, before, steps), _rates(group, now, steps)
        difference = np.abs(there - here)
        if difference.max(initial=0) > 1e-6 * np.abs(there).max(initial=0):
            worst = int(difference.argmax())
            raise UserError(
                f"the schedule of optim.{name} depends on train.epochs: in {now.total_steps} steps the rate at step "
                f"{steps[worst]} is {here[worst]:.3g}, and in the {before.total_steps} that this run began with it is "
                f"{there[worst]:.3g}; accepted: the number of epochs that it began with, or another --workdir"
            )


def _rates(group: Group, length: RunLength, steps: np.ndarray) -> np.ndarray:
    return np.asarray(jax.vmap(lambda step: jnp.float32(group.rate(step, length)))(steps))
