"""Groups of parameters, each with its own optimizer, rate, schedule and decay.

They are put together by `optax.partition` (formerly `optax.multi_transform`). A parameter is in exactly one group,
by its path.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from dml_jax import names, trees
from dml_jax.config import plain
from dml_jax.errors import UserError
from dml_jax.parameters import Interval, NonNegativeFloat, NonNegativeInt, check
from dml_jax.training import optimizers, schedules
from dml_jax.training.schedules import RunLength, Schedule

FROZEN = "frozen"
LayerDecay = Annotated[float, Interval(0, 1, closed_high=True)]


@dataclass(frozen=True)
class Group:
    """A group of parameters, and how they are optimized.

    Attributes:
      pattern: a regular expression that matches the paths of its parameters, such as 'model/head/.*'.
      lr: the learning rate; 0 where the group is frozen.
      name: of the optimizer.
      optimizer: without the learning rate.
      schedule: the factor of the rate.
      weight_decay: of the optimizer, for the table of the groups.
      warmup_steps: steps over which the rate rises to that of the schedule.
      start_step: the steps before which the group is frozen.
      last_blocks: how many of the model's last blocks are trained, with what follows them; None: all.
      layer_decay: the factor of the rate from each layer of the model to the one before.
    """

    pattern: str
    lr: float
    name: str
    optimizer: optax.GradientTransformation
    schedule: Schedule
    weight_decay: float = 0.0
    warmup_steps: int = 0
    start_step: int = 0
    last_blocks: int | None = None
    layer_decay: float = 1.0

    def rate(self, step: ArrayLike, length: RunLength) -> ArrayLike:
        """Returns the rate of the last layer at a step.

        It is lr times the schedule's factor times min(1, (n + 1) / warmup_steps), n steps after start_step; 0 before.
        """
        rate = self.lr * self.schedule(step, length)
        since: Any = step - self.start_step
        if self.warmup_steps:
            rate = rate * jnp.minimum(1.0, (since + 1) / self.warmup_steps)
        return jnp.where(since < 0, 0.0, rate) if self.start_step else rate

    def transformation(
        self, length: RunLength, layers: Mapping[str, int] | None = None
    ) -> optax.GradientTransformation:
        """Returns the optimizer with its rates in a training of that length.

        Args:
          length: of the training.
          layers: of the model's parameters by path, for layer_decay.
        """
        if not self.lr:
            return optax.set_to_zero()
        optimizer = self.optimizer
        if self.start_step:
            started = lambda step: step >= self.start_step
            optimizer = optax.conditionally_mask(optimizer, started)
        rates = optax.scale_by_learning_rate(lambda step: self.rate(step, length))
        if self.layer_decay == 1:
            return optax.chain(optimizer, rates)
        return optax.chain(optimizer, rates, _by_layer(self.layer_decay, layers or {}))

    def freezes(self, path: str, layers: Mapping[str, int]) -> bool:
        """Returns True for a parameter of the group that is never trained.

        Args:
          path: of the parameter.
          layers: of the model's parameters by path.
        """
        if not self.lr:
            return True
        if self.last_blocks is None or path not in layers:
            return False
        return layers[path] < max(layers.values()) - self.last_blocks


def _by_layer(decay: float, layers: Mapping[str, int]) -> optax.GradientTransformation:
    """Multiplies the updates of layer i of n by decay^(n - i)."""
    last = max(layers.values(), default=0)

    def update(updates: Any, params: Any = None) -> Any:
        def one(keys: tuple[Any, ...], u: jax.Array) -> jax.Array:
            return u * decay ** (last - layers.get(trees.path_of(keys), last))

        return jax.tree_util.tree_map_with_path(one, updates)

    return optax.stateless(update)


# The fields of a group that are no hyper-parameters of its optimizer.
_GROUP_FIELDS = (
    "match",
    "name",
    "lr",
    "schedule",
    "warmup_steps",
    "start_step",
    "last_blocks",
    "layer_decay",
    "freeze",
    "sparse",
)


def group(name: str, spec: Mapping[str, Any]) -> Group:
    """Returns a group of the section `optim`.

    Args:
      name: what the group is called in errors.
      spec: `match` (the group's pattern), `name` of the optimizer, `lr`, the optimizer's hyper-parameters
        (`weight_decay`, `momentum`, ...), and where wanted `schedule` (its `name` and hyper-parameters), `freeze`,
        `sparse` (`optimizers.by_rows`) and the other fields of `Group`. lr=0 freezes, too. A `weight_decay` of 0 is
        accepted for every optimizer.

    Raises:
      UserError: an unknown name or hyper-parameter, a negative or missing rate, a group without a pattern.

    Example:
      >>> head = group("head", {"match": "model/head/.*", "name": "sgd", "lr": 0.5, "warmup_steps": 4})
      >>> [float(head.rate(step, RunLength(10, 5))) for step in (0, 1, 9)]
      [0.125, 0.25, 0.5]
    """
    spec = plain(spec)

    def field(key: str, annotation: Any, default: Any) -> Any:
        return check(f"optim.{name}.{key}", annotation, spec.get(key, default))

    if not spec.get("match"):
        raise UserError(f"optim.{name} has no match: a pattern such as 'model/head/.*' is accepted")
    lr = field("lr", NonNegativeFloat, None)
    frozen = field("freeze", bool, False)
    schedule = spec.get("schedule") or "constant"
    schedule = {"name": schedule} if isinstance(schedule, str) else schedule
    hyper = {k: v for k, v in spec.items() if k not in _GROUP_FIELDS}
    try:
        if not hyper.get("weight_decay") and not _decays(spec.get("name", "")):
            hyper.pop("weight_decay", None)
        optimizer = optimizers.get(spec.get("name", ""), **hyper)
        return Group(
            pattern=field("match", str, None),
            lr=0.0 if frozen else lr,
            name=spec.get("name", ""),
            optimizer=optimizers.by_rows(optimizer) if field("sparse", bool, False) else optimizer,
            schedule=schedules.get(**schedule),
            weight_decay=hyper.get("weight_decay", 0.0),
            warmup_steps=field("warmup_steps", NonNegativeInt, 0),
            start_step=field("start_step", NonNegativeInt, 0),
            last_blocks=field("last_blocks", NonNegativeInt | None, None),
            layer_decay=field("layer_decay", LayerDecay, 1.0),
        )
    except UserError as error:
        raise UserError(f"optim.{name}: {error}") from error


def _decays(name: str) -> bool:
    """Returns True for an optimizer with a hyper-parameter `weight_decay`."""
    factory = names.resolve("optimizer", optimizers.OPTIMIZERS, name)
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
    groups: Mapping[str, Group],
    length: RunLength,
    clip: float | None = None,
    layers: Mapping[str, int] | None = None,
) -> optax.GradientTransformation:
    """Returns the optimizer of all parameters `{"model": {"backbone", "head"}, "loss"}`.

    With `clip` the gradient g of all groups together is scaled first, by min(1, clip / |g|).

    Args:
      groups: by name.
      length: of the training, for schedules.
      clip: the largest global norm of the gradient; None: it is left as it is.
      layers: of the model's parameters by path (`Model.layers`), for groups with `last_blocks` or `layer_decay`.

    Raises:
      UserError: a group that needs layers where there are none; from `init`: a parameter that is in no group, or in
        more than one.
    """
    for name, group in groups.items():
        if not layers and (group.last_blocks is not None or group.layer_decay != 1):
            raise UserError(
                f"optim.{name} has last_blocks={group.last_blocks} and layer_decay={group.layer_decay:g}, and the "
                "model has no blocks; accepted: None and 1"
            )
        blocks = max((layers or {}).values(), default=1) - 1
        if group.last_blocks is not None and group.last_blocks > blocks:
            raise UserError(
                f"optim.{name}.last_blocks={group.last_blocks}; the model has {blocks} blocks: 0 to {blocks} are "
                "accepted, and None for all and what comes before them"
            )
    transformations = {name: group.transformation(length, layers) for name, group in groups.items()}
    transformations[FROZEN] = optax.set_to_zero()
    optimizer = optax.partition(transformations, lambda params: labels(params, groups, layers))
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


def labels(
    params: Any, groups: Mapping[str, Group], layers: Mapping[str, int] | None = None
) -> Any:
    """Returns a tree with the group of every parameter, the one whose pattern matches the whole of its path.

    Of parameters that are never trained it has "frozen".

    Args:
      params: a pytree.
      groups: by name.
      layers: of the model's parameters by path, for groups with `last_blocks`.

    Raises:
      UserError: a parameter that no pattern matches, or more than one.

    Example:
      >>> spec = {"name": "sgd", "lr": 0.1}
      >>> groups = groups_of({"model": {"match": "model/.*", **spec}, "loss": {"match": "loss/.*", **spec, "lr": 0}})
      >>> labels({"model": {"a": 0}, "loss": {"weights": 0}}, groups)
      {'loss': {'weights': 'frozen'}, 'model': {'a': 'model'}}
    """

    def label(keys: tuple[Any, ...], _: Any) -> str:
        path = trees.path_of(keys)
        name = group_of(path, groups)
        return FROZEN if groups[name].freezes(path, layers or {}) else name

    return jax.tree_util.tree_map_with_path(label, params)


def group_of(path: str, groups: Mapping[str, Group]) -> str:
    """Returns the name of the group that a parameter is in.

    Args:
      path: of the parameter.
      groups: by name.

    Raises:
      UserError: no group's pattern matches it, or more than one.
    """
    found = [name for name, group in groups.items() if re.fullmatch(group.pattern, path)]
    if len(found) != 1:
        raise UserError(
            f"parameter {path} is matched by {len(found)} groups of optim"
            f"{' (' + ', '.join(found) + ')' if found else ''}; exactly one is accepted, "
            f"their patterns are {', '.join(repr(group.pattern) for group in groups.values())}"
        )
    return found[0]


def trained(
    groups: Mapping[str, Group], layers: Mapping[str, int] | None = None
) -> Callable[[str], bool]:
    """Returns the function that says of a parameter's path whether it is ever trained.

    Args:
      groups: by name.
      layers: of the model's parameters by path.
    """
    return lambda path: not groups[group_of(path, groups)].freezes(path, layers or {})


def summary(
    params: Any, groups: Mapping[str, Group], layers: Mapping[str, int] | None = None
) -> list[list[str]]:
    """Returns a table of what is trained and how: a header, and a row for each group that has parameters.

    Args:
      params: all parameters, or their shapes.
      groups: by name.
      layers: of the model's parameters by path.

    Raises:
      UserError: a parameter that no pattern matches, or more than one.

    Example:
      >>> groups = groups_of({"all": {"match": ".*", "name": "sgd", "lr": 0.5}})
      >>> for row in summary({"loss": {"weights": np.zeros((3, 2))}}, groups):
      ...     print(*row, sep=", ")
      group, arrays, parameters, optimizer, rate, weight decay
      all, 1, 6, sgd, 0.5, 0
    """
    found: dict[str, list[tuple[bool, int]]] = {name: [] for name in groups}
    for path, leaf in trees.leaves_by_path(params).items():
        name = group_of(path, groups)
        found[name].append((groups[name].freezes(path, layers or {}), int(np.prod(leaf.shape))))
    rows = [["group", "arrays", "parameters", "optimizer", "rate", "weight decay"]]
    for name, leaves in found.items():
        group = groups[name]
        for frozen in (False, True):
            sizes = [size for is_frozen, size in leaves if is_frozen == frozen]
            if not sizes:
                continue
            how = ["frozen", "", ""] if frozen else _how(group)
            rows.append([name, str(len(sizes)), f"{sum(sizes):,}", *how])
    return rows


def _how(group: Group) -> list[str]:
    rate = f"{group.lr:g}"
    if group.layer_decay != 1:
        rate += f", times {group.layer_decay:g} for each layer before the last"
    if group.start_step:
        rate += f", from step {group.start_step} on"
    return [group.name, rate, f"{group.weight_decay:g}"]


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
