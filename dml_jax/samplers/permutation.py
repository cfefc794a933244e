"""Samplers that do not look at classes: every image once an epoch."""

import numpy as np
from jaxtyping import Int

from dml_jax.parameters import PositiveInt, checked
from dml_jax.sampling import EpochSampler, PlanInputs, Sampler, permutations


@checked("sampler")
def random(*, length: PositiveInt | None = None) -> Sampler:
    """Plans permutations of the set, cut into whole batches.

    An epoch longer than the set is one permutation after another.

    Args:
      length: images an epoch; None (the default) for the size of the set.

    Raises:
      UserError: an epoch has no whole batch.

    Example:
      >>> from dml_jax import samplers
      >>> plan = samplers.random().plan([0, 0, 1, 1, 2], 2, seed=0, epoch=0)
      >>> plan.shape, len(set(plan.ravel().tolist()))
      ((2, 2), 4)
    """
    return EpochSampler(name="random", draw=_draw_random, length=length)


def _draw_random(inputs: PlanInputs) -> Int[np.ndarray, "steps batch"]:
    count = inputs.steps * inputs.batch_size
    order = permutations(inputs.generator(), inputs.images, count)
    return order.reshape(inputs.steps, inputs.batch_size)


@checked("sampler")
def sequential(*, length: PositiveInt | None = None) -> Sampler:
    """Plans the images in their order, the same in all epochs.

    An epoch longer than the set begins again.

    Args:
      length: images an epoch; None (the default) for the size of the set.

    Raises:
      UserError: an epoch has no whole batch.

    Example:
      >>> from dml_jax import samplers
      >>> samplers.sequential(length=6).plan([0, 0, 1, 1], 3, seed=0, epoch=0).tolist()
      [[0, 1, 2], [3, 0, 1]]
    """
    return EpochSampler(name="sequential", draw=_draw_sequential, length=length)


def _draw_sequential(inputs: PlanInputs) -> Int[np.ndarray, "steps batch"]:
    order = np.arange(inputs.steps * inputs.batch_size) % inputs.images
    return order.reshape(inputs.steps, inputs.batch_size)
