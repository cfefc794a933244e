"""Batches from few parent classes, so that their classes are hard to tell apart."""

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
    check_groups,
    remark_small_classes,
)


@checked("sampler")
def hierarchical(
    samples_per_class: PositiveInt = 4,
    batches_per_super_tuple: PositiveInt = 4,
    super_classes_per_batch: PositiveInt = 2,
    *,
    length: PositiveInt | None = None,
) -> Sampler:
    """Plans batches of some parent classes, equally many classes of each, and m images of each class.

    `plan` needs `parents=`, the parent class of each image. Combinations of parent classes are drawn uniformly, the
    classes of a parent without replacement; where a parent has too few classes, all of them are taken before one is
    taken again. The batches of an epoch are shuffled.

    Args:
      samples_per_class: images of a class, m; 4 by default, as in PML.
      batches_per_super_tuple: batches drawn from a combination of parent classes before the next one is drawn; 4 by
        default, as in PML.
      super_classes_per_batch: parent classes in a batch; 2 by default, as in PML.
      length: images an epoch; None (the default) for the size of the set.

    Raises:
      UserError: from `plan`: batch_size is not a multiple of parent classes x m; fewer parent classes than a batch
        needs; m > 1 where no class has two images; images of one class with different parents.

    Example:
      >>> import numpy as np
      >>> from dml_jax import samplers
      >>> labels, parents = np.repeat(np.arange(4), 3), np.repeat([0, 1], 6)
      >>> sampler = samplers.hierarchical(samples_per_class=2)
      >>> plan = sampler.plan(labels, 8, seed=0, epoch=0, parents=parents)
      >>> parents[plan].tolist()
      [[1, 1, 1, 1, 0, 0, 0, 0]]

    `HierarchicalSampler` of PyTorch Metric Learning. There an epoch goes through all combinations of parent classes,
    which it lists (1.2 billion for six of a hundred); here an epoch has `length` images. There a batch comes out short
    where a parent class has too few classes. There `samples_per_class` may be "all", for batches of various sizes; here
    it is a number.
    """
    m, wanted = samples_per_class, super_classes_per_batch
    return EpochSampler(
        name="hierarchical",
        length=length,
        needs="parents",
        draw=Bound(_draw, m=m, wanted=wanted, batches=batches_per_super_tuple),
        refuse=Bound(_refuse, m=m, wanted=wanted),
        remark=Bound(_remark, m=m, wanted=wanted),
    )


def _refuse(classes: Classes, batch_size: int, *, m: int, wanted: int) -> None:
    whole = wanted * m
    if batch_size % whole:
        near = max(batch_size // whole, 1) * whole
        raise UserError(
            f"batch_size={batch_size} is not a multiple of super_classes_per_batch={wanted} times m={m} images per "
            f"class; {near} or {near + whole} would be accepted"
        )
    check_groups(classes, batch_size // wanted, m=m)


def _draw(
    inputs: PlanInputs, *, m: int, wanted: int, batches: int
) -> Int[np.ndarray, "steps batch"]:
    rng = inputs.generator()
    of_class, parents = _parents_of_classes(inputs.classes, inputs.parents)
    if wanted > parents:
        raise UserError(
            f"super_classes_per_batch={wanted} and the set has {parents} parent classes; "
            f"up to {parents} is accepted"
        )
    groups = inputs.batch_size // wanted // m
    children = [np.flatnonzero(of_class == p) for p in range(parents)]
    rows = []
    for step in range(inputs.steps):
        if step % batches == 0:
            chosen = rng.choice(parents, wanted, replace=False)
        for p in chosen:
            rounds = -(-groups // len(children[p]))
            turns = [rng.permutation(children[p]) for _ in range(rounds)]
            rows.append(np.concatenate(turns)[:groups])
    images = inputs.classes.draw(rng, np.concatenate(rows), m)
    return rng.permutation(images.reshape(inputs.steps, inputs.batch_size))


def _remark(
    classes: Classes,
    batch_size: int,
    parents: Int[np.ndarray, " n"] | None,
    *,
    m: int,
    wanted: int,
) -> list[str]:
    notes = remark_small_classes(classes, batch_size, parents, m=m)
    assert parents is not None
    of_class, count = _parents_of_classes(classes, parents)
    groups = batch_size // wanted // m
    few = int((np.bincount(of_class, minlength=count) < groups).sum())
    if few:
        notes.append(
            f"{few} of {count} parent classes have fewer than {groups} classes; theirs are in a batch "
            "more than once"
        )
    return notes


def _parents_of_classes(
    classes: Classes, parents: Int[np.ndarray, " n"]
) -> tuple[Int[np.ndarray, " c"], int]:
    """Returns the parent 0..P-1 of each class, and P."""
    found, of_image = np.unique(parents, return_inverse=True)
    of_class = of_image[classes.members[classes.first]]
    if (of_class[classes.of_image] != of_image).any():
        raise UserError(
            "images of one class have different parent labels; one parent for each class is accepted"
        )
    return of_class, len(found)
