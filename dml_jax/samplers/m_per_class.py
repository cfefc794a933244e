"""Batches of P classes with m images of each."""

import numpy as np
from jaxtyping import Int

from dml_jax.bound import Bound
from dml_jax.errors import UserError
from dml_jax.parameters import PositiveInt, checked
from dml_jax.sampling import (
    Classes,
    EpochSampler,
    PlanInputs,
    Sampler,
    check_distinct_classes,
    groups_of,
    remark_small_classes,
)


@checked("sampler")
def m_per_class(
    m: PositiveInt = 4, *, length: PositiveInt | None = None, cover: bool = False
) -> Sampler:
    """Plans batches of batch_size / m classes, all different, with m images of each, side by side.

    The m images are drawn without replacement, and with replacement where the class has fewer than m. Classes are
    drawn afresh for every batch, so that a class with few images is seen as often as one with many, and some are not
    seen in an epoch. m = 1 gives different classes, one image of each: a batch for losses against class weights.

    With `cover` an epoch shows every image: the images of a class, in random order, are cut into groups of m (the
    last one is filled up from the beginning of that order), and every group is in one batch. What is missing from
    whole batches is filled with further groups. A class with more groups than there would be batches makes the epoch
    as long as it needs.

    Args:
      m: images per class in a batch; 4 by default.
      length: images an epoch; None (the default) for the size of the set, and with `cover`.
      cover: True where an epoch shows every image; its length is then given by the set. False by default.

    Raises:
      UserError: `length` with `cover`. From `plan`: m does not divide batch_size; fewer classes than a batch needs;
        m > 1 where no class has two images.

    Example:
      >>> import numpy as np
      >>> from dml_jax import samplers
      >>> labels = np.array([0, 0, 0, 1, 1, 2, 2])
      >>> plan = samplers.m_per_class(m=2).plan(labels, 4, seed=0, epoch=0)
      >>> labels[plan].tolist()
      [[0, 0, 2, 2]]

    `MPerClassSampler` of PyTorch Metric Learning with its `batch_size` given. The default length differs: there an
    epoch has 100,000 images, here as many as the set. `cover` is not there.
    """
    if cover and length is not None:
        raise UserError(
            f"length={length} with cover=True, where the set gives the length; None is accepted"
        )
    return EpochSampler(
        name="m_per_class",
        length=length,
        draw=Bound(_draw_covering if cover else _draw, m=m),
        refuse=Bound(check_distinct_classes, m=m),
        count_steps=Bound(_covering_steps, m=m) if cover else None,
        remark=Bound(_remark_covering if cover else remark_small_classes, m=m),
    )


def _draw(inputs: PlanInputs, *, m: int) -> Int[np.ndarray, "steps batch"]:
    rng = inputs.generator()
    groups, count = groups_of(inputs.batch_size, m), len(inputs.classes.sizes)
    classes = np.stack([rng.choice(count, groups, replace=False) for _ in range(inputs.steps)])
    images = inputs.classes.draw(rng, classes.ravel(), m)
    return images.reshape(inputs.steps, inputs.batch_size)


def _covering_steps(classes: Classes, batch_size: int, *, m: int) -> int:
    """Returns how many batches hold all groups of m, those of the largest class in different batches."""
    groups = -(-classes.sizes // m)
    return int(max(-(-groups.sum() // groups_of(batch_size, m)), groups.max()))


def _draw_covering(inputs: PlanInputs, *, m: int) -> Int[np.ndarray, "steps batch"]:
    rng, classes, steps = inputs.generator(), inputs.classes, inputs.steps
    groups = -(-classes.sizes // m)
    # A class can be in as many batches as there are: those that are not in all of them fill the last ones.
    while missing := steps * groups_of(inputs.batch_size, m) - groups.sum():
        more = rng.permutation(np.flatnonzero(groups < steps))[:missing]
        groups[more] += 1

    order = rng.permutation(len(groups))
    of_group = np.repeat(order, groups[order])
    number = np.arange(len(of_group)) - np.repeat(
        np.cumsum(groups[order]) - groups[order], groups[order]
    )
    shuffled = np.lexsort([rng.random(inputs.images), classes.of_image])
    ranks = number[:, None] * m + np.arange(m)
    ranks %= classes.sizes[of_group][:, None]
    images = shuffled[classes.first[of_group][:, None] + ranks]
    # Groups of a class follow each other and are dealt to batches in turn: no batch gets two of them.
    plan = images.reshape(-1, steps, m).swapaxes(0, 1).reshape(steps, inputs.batch_size)
    return rng.permutation(plan)


def _remark_covering(
    classes: Classes, batch_size: int, parents: Int[np.ndarray, " n"] | None, *, m: int
) -> list[str]:
    steps, shown = _covering_steps(classes, batch_size, m=m), len(classes.of_image)
    return [
        *remark_small_classes(classes, batch_size, parents, m=m),
        f"an epoch that covers the set has {steps} batches, {steps * batch_size} images, and "
        f"{steps * batch_size - shown} of these for the second time or more",
    ]
