"""Batches of classes that are near each other: hard negatives by design, for sets of many classes."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from dml_jax import distances
from dml_jax.bound import Bound
from dml_jax.parameters import NonNegativeInt, PositiveInt, checked
from dml_jax.sampling import (
    Classes,
    PlanInputs,
    Rows,
    Sampler,
    StorageSampler,
    check_distinct_classes,
    groups_of,
    permutations,
    remark_small_classes,
)


@checked("sampler")
def hard_classes(
    m: PositiveInt = 4,
    group: PositiveInt = 4,
    *,
    updates: bool = False,
    refresh: NonNegativeInt = 1,
    length: PositiveInt | None = None,
) -> Sampler:
    """Plans batches of batch_size / m classes, all different: some seed classes, and those nearest to each.

    `plan` needs `embeddings=` of all images. A class lies at the mean of its images' L2-normalised embeddings,
    normalised again; near is a large cosine (of equally near classes the first). The seeds of an epoch are permutations
    of the classes, so that every class is a seed equally often up to one; each seed in turn takes the `group` - 1
    nearest of the classes that are not in the batch yet, and the last one what is missing. Images are drawn as by
    `m_per_class`. A batch costs one product of its seeds with all centres; the C x C matrix is never made.

    Args:
      m: images per class in a batch; 4 by default.
      group: classes that are near each other; 4 by default, 1 is `m_per_class`.
      updates: True where the embeddings of a training step take the places of the stored ones. With False (the default)
        the stored embeddings, and with them the neighbours, stay as they are between refreshes.
      refresh: epochs between passes that embed all training images anew; 1 by default, 0 for only the one before
        training.
      length: images an epoch; None (the default) for the size of the set.

    Raises:
      UserError: from `plan`: as `m_per_class`; embeddings are missing or not finite.

    Example:
      >>> import numpy as np
      >>> from dml_jax import samplers
      >>> labels = np.repeat(np.arange(4), 2)
      >>> angles = np.array([0.0, 3.0, 0.1, 3.1])[labels]  # classes 0 and 2 are near, 1 and 3 are
      >>> embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1)
      >>> sampler = samplers.hard_classes(m=2, group=2)
      >>> plan = sampler.plan(labels, 4, seed=0, epoch=0, embeddings=embeddings)
      >>> np.sort(labels[plan]).tolist()
      [[1, 1, 3, 3], [0, 0, 2, 2]]
    """
    return StorageSampler(
        name="hard_classes",
        length=length,
        rows=Bound(_rows, m=m, group=group),
        refuse=Bound(check_distinct_classes, m=m),
        remark=Bound(remark_small_classes, m=m),
        updates=updates,
        refresh=refresh,
    )


def _rows(inputs: PlanInputs, *, m: int, group: int) -> Rows:
    centers = class_centers(inputs.embeddings, inputs.classes)
    wanted = groups_of(inputs.batch_size, m)
    seeds = -(-wanted // group)
    order = permutations(inputs.generator(), len(centers), inputs.steps * seeds)
    order = order.reshape(inputs.steps, seeds)

    def row(step: int) -> Int[np.ndarray, " batch"]:
        chosen = nearest_classes(centers, list(dict.fromkeys(order[step])), wanted, group)
        return inputs.classes.draw(inputs.step_generator(step), chosen, m).ravel()

    return row


def nearest_classes(
    centers: Float[np.ndarray, "c d"], seeds: list[int], wanted: int, group: int
) -> Int[np.ndarray, " wanted"]:
    """Returns the seeds, then the classes that each takes in turn, `wanted` in all."""
    similar = centers[seeds] @ centers.T
    similar[:, seeds] = -np.inf
    members = list(seeds)
    for seed, similarities in enumerate(similar, 1):
        # A batch that spans two permutations may name a seed twice: the last one takes what is missing.
        missing = wanted - len(members)
        for _ in range(missing if seed == len(seeds) else min(group - 1, missing)):
            near = int(similarities.argmax())
            members.append(near)
            similar[:, near] = -np.inf
    return np.array(members)


def class_centers(
    embeddings: Float[np.ndarray, "n d"], classes: Classes
) -> Float[np.ndarray, "c d"]:
    """Returns the normalised mean of the normalised embeddings of each class; 0 where that is 0."""
    unit = np.asarray(distances.normalize(jnp.asarray(embeddings, jnp.float32)))
    sums = np.add.reduceat(unit[classes.members], classes.first)
    return np.asarray(distances.normalize(jnp.asarray(sums)))
