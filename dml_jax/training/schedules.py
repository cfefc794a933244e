"""Schedules: the factor of a learning rate as training goes on.

A schedule is a function of its hyper-parameters that returns a function of the step and the `RunLength`. One of one's
own is named "package.module:name" in a config:

    def halving(every: int = 1000):
        return lambda step, length: 0.5 ** (step // every)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from dml_jax.errors import UserError
from dml_jax.parameters import Fraction, NonNegativeFloat, NonNegativeInt, checked, make


class RunLength(NamedTuple):
    """How long a training is, for schedules that depend on it.

    Attributes:
      total_steps: the steps of the whole training.
      epoch_steps: the steps of an epoch.
    """

    total_steps: int
    epoch_steps: int


Schedule = Callable[[ArrayLike, RunLength], ArrayLike]


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


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "cosine": cosine,
    "step": step,
}


def get(name: str, **hyper: Any) -> Schedule:
    """Returns the schedule of that name.

    Args:
      name: a key of `SCHEDULES`, or "package.module:name" for one of one's own.
      **hyper: its hyper-parameters.

    Raises:
      UserError: an unknown name, or hyper-parameters that it does not take.

    Example:
      >>> schedule = get("cosine", final=0.1)
    """
    made = make("schedule", SCHEDULES, object, name, hyper)
    if not callable(made):
        raise UserError(
            f"schedule {name!r} returned {made!r}; accepted: a function that returns a function of the step and the "
            "length"
        )
    return made


def available() -> tuple[str, ...]:
    """Returns the names of the schedules.

    Example:
      >>> available()
      ('constant', 'cosine', 'step')
    """
    return tuple(SCHEDULES)
