"""Optimizers with a group of parameters each: backbone, head and loss have their own rate, schedule and decay.

Every optimizer follows the definition and the defaults of its PyTorch namesake, so that published settings carry
over. The groups are put together by `optax.partition` (formerly `optax.multi_transform`).
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dml_jax import names

Schedule = Callable[[Any], Any]


def path(keys: tuple[Any, ...]) -> str:
    """The name of a leaf: its keys with slashes between them, as `model/backbone/conv/kernel`."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def adam(
    *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """`torch.optim.Adam`: weight decay is coupled, an L2 term in the gradient that the moments see."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
    )


def adamw(
    *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.01
) -> optax.GradientTransformation:
    """`torch.optim.AdamW`: weight decay is decoupled, lr * weight_decay * parameter beside the Adam step."""
    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps), optax.add_decayed_weights(weight_decay)
    )


def sgd(
    *, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """`torch.optim.SGD` without dampening: the buffer holds gradients, the rate is applied after it."""
    trace = optax.trace(momentum, nesterov=nesterov) if momentum else optax.identity()
    return optax.chain(optax.add_decayed_weights(weight_decay), trace)


def rmsprop(
    *, alpha: float = 0.99, eps: float = 1e-8, momentum: float = 0.0, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """`torch.optim.RMSprop`, not centred: eps outside the root, the rate after the momentum buffer."""
    trace = optax.trace(momentum) if momentum else optax.identity()
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_rms(decay=alpha, eps=eps, eps_in_sqrt=False),
        trace,
    )


def constant(lr: float, *, total_steps: int, epoch_steps: int) -> Schedule:
    """The same rate throughout."""
    del total_steps, epoch_steps
    return optax.constant_schedule(lr)


def cosine(lr: float, *, total_steps: int, epoch_steps: int, final: float = 0.0) -> Schedule:
    """Half a cosine from lr at the first step to lr * final after the last."""
    del epoch_steps
    return optax.cosine_decay_schedule(lr, max(total_steps, 1), alpha=final)


def step(
    lr: float,
    *,
    total_steps: int,
    epoch_steps: int,
    milestones: tuple[int, ...] = (),
    gamma: float = 0.1,
) -> Schedule:
    """lr * gamma^(milestones passed), milestones in epochs, as `torch.optim.lr_scheduler.MultiStepLR`."""
    del total_steps
    bounds = np.asarray([m * epoch_steps for m in milestones], np.int32)
    return lambda count: lr * gamma ** jnp.sum(count >= bounds)


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
_OF_GROUP = ("match", "name", "lr", "schedule", "warmup_steps", "freeze")


def schedule(
    spec: Mapping[str, Any], lr: float, warmup_steps: int, *, total_steps: int, epoch_steps: int
) -> Schedule:
    """The rate at step 0, 1, ...: a schedule by name times min(1, (step + 1) / warmup_steps)."""
    spec = dict(spec)
    fn = names.resolve("schedule", SCHEDULES, spec.pop("name", "constant"))
    accepted = names.keywords(fn, without=("total_steps", "epoch_steps"))
    names.check_hyper(f"schedule {fn.__name__!r}", accepted, spec)
    base = fn(lr, total_steps=total_steps, epoch_steps=epoch_steps, **spec)
    if not warmup_steps:
        return base
    return lambda count: base(count) * jnp.minimum(1.0, (count + 1) / warmup_steps)


def group(
    name: str, spec: Mapping[str, Any], *, total_steps: int, epoch_steps: int
) -> optax.GradientTransformation:
    """One group's transformation.

    Args:
      name: what the group is called in errors.
      spec: `name` of the optimizer, `lr`, its hyper-parameters (`weight_decay`, `momentum`, ...), and where
        wanted `schedule` (its `name` and hyper-parameters), `warmup_steps` and `freeze`. lr=0 freezes, too.

    Raises:
      ValueError: an unknown name or hyper-parameter, a negative or missing rate.
    """
    kind = names.resolve("optimizer", OPTIMIZERS, spec.get("name", ""))
    hyper = {k: v for k, v in spec.items() if k not in _OF_GROUP}
    accepted = names.keywords(kind)
    for field in hyper:
        if field not in accepted:
            raise names.unknown(f"field of optim.{name}:", field, [*accepted, *_OF_GROUP])
    lr = spec.get("lr")
    if lr is None or lr < 0:
        raise ValueError(f"optim.{name}.lr={lr}; a rate from 0 on is accepted")
    if lr == 0 or spec.get("freeze", False):
        return optax.set_to_zero()
    rate = schedule(
        spec.get("schedule") or {},
        lr,
        spec.get("warmup_steps", 0),
        total_steps=total_steps,
        epoch_steps=epoch_steps,
    )
    return optax.chain(kind(**hyper), optax.scale_by_learning_rate(rate))


def labels(params: Any, patterns: Mapping[str, str]) -> Any:
    """The group of every leaf: the one whose pattern matches the whole of its `path`.

    Raises:
      ValueError: a leaf that no pattern matches, or more than one.
    """

    def of(keys: tuple[Any, ...], _: Any) -> str:
        leaf = path(keys)
        found = [name for name, pattern in patterns.items() if re.fullmatch(pattern, leaf)]
        if len(found) != 1:
            raise ValueError(
                f"parameter {leaf} is matched by {len(found)} groups of optim"
                f"{' (' + ', '.join(found) + ')' if found else ''}; exactly one is accepted, "
                f"their patterns are {', '.join(map(repr, patterns.values()))}"
            )
        return found[0]

    return jax.tree_util.tree_map_with_path(of, params)


def build(
    groups: Mapping[str, Mapping[str, Any]], *, total_steps: int, epoch_steps: int
) -> optax.GradientTransformation:
    """The optimizer of all parameters `{"model": {"backbone", "head"}, "loss"}`.

    Args:
      groups: by name, what `group` takes and `match`, the regular expression for the paths of its leaves.
      total_steps: the steps of the whole training, for schedules.
      epoch_steps: the steps of an epoch, for milestones.
    """
    transforms = {
        name: group(name, spec, total_steps=total_steps, epoch_steps=epoch_steps)
        for name, spec in groups.items()
    }
    missing = [name for name, spec in groups.items() if not spec.get("match")]
    if missing:
        raise ValueError(f"optim.{missing[0]} has no match: a pattern such as 'model/head/.*'")
    patterns = {name: spec["match"] for name, spec in groups.items()}
    return optax.partition(transforms, lambda params: labels(params, patterns))
