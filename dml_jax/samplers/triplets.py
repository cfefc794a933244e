"""Triplets drawn once and for all."""

import numpy as np
from jaxtyping import Int

from dml_jax.bound import Bound
from dml_jax.errors import UserError
from dml_jax.parameters import PositiveInt, checked
from dml_jax.sampling import Classes, EpochSampler, PlanInputs, Sampler, permutations


@checked("sampler")
def fixed_set_of_triplets(
    num_triplets: PositiveInt = 10_000, *, length: PositiveInt | None = None
) -> Sampler:
    """Plans batches of triplets (anchor, positive, negative), side by side, out of a set that the seed alone decides.

    For studies in which triplets are all that is known, with the miner `embeddings_already_packaged_as_triplets`. The
    classes of anchor and negative are two different ones, drawn uniformly; so are the images. The set is shuffled
    every epoch.

    Args:
      num_triplets: triplets in the set; 10,000 by default.
      length: images an epoch; None (the default) for 3 num_triplets.

    Raises:
      UserError: from `plan`: batch_size is not a multiple of 3; fewer than two classes; no class has two images.

    Example:
      >>> import numpy as np
      >>> from dml_jax import samplers
      >>> labels = np.array([0, 0, 0, 1, 1, 1])
      >>> plan = samplers.fixed_set_of_triplets(num_triplets=4).plan(labels, 6, seed=0, epoch=0)
      >>> anchors, positives, negatives = labels[plan].reshape(-1, 3).T
      >>> bool((anchors == positives).all()), bool((anchors != negatives).all())
      (True, True)

    `FixedSetOfTriplets` of PyTorch Metric Learning. There a class of one image gives anchors that are their own
    positives; here anchors come from classes of two or more.
    """
    return EpochSampler(
        name="fixed_set_of_triplets",
        length=3 * num_triplets if length is None else length,
        draw=Bound(_draw, num_triplets=num_triplets),
        refuse=_refuse,
        remark=_remark,
    )


def _refuse(classes: Classes, batch_size: int) -> None:
    if batch_size % 3:
        near = max(batch_size // 3, 1) * 3
        raise UserError(
            f"batch_size={batch_size} is not a multiple of 3, the images of a triplet; "
            f"{near} or {near + 3} would be accepted"
        )
    if len(classes.sizes) < 2 or classes.sizes.max() < 2:
        raise UserError(
            f"triplets need two classes, one of them with two images, and the set has {len(classes.sizes)} "
            f"of at most {classes.sizes.max()}"
        )


def _draw(inputs: PlanInputs, *, num_triplets: int) -> Int[np.ndarray, "steps batch"]:
    triplets = _draw_set(inputs.classes, inputs.set_generator(), num_triplets)
    count = inputs.steps * inputs.batch_size // 3
    order = permutations(inputs.generator(), num_triplets, count)
    plan: np.ndarray = triplets[order].reshape(inputs.steps, inputs.batch_size)
    return plan


def _draw_set(
    classes: Classes, rng: np.random.Generator, num_triplets: int
) -> Int[np.ndarray, "num_triplets 3"]:
    several = np.flatnonzero(classes.sizes > 1)
    anchor = several[rng.integers(0, len(several), num_triplets)]
    negative = rng.integers(0, len(classes.sizes) - 1, num_triplets)
    negative += negative >= anchor
    return np.concatenate([classes.draw(rng, anchor, 2), classes.draw(rng, negative, 1)], axis=1)


def _remark(classes: Classes, batch_size: int, parents: Int[np.ndarray, " n"] | None) -> list[str]:
    del batch_size, parents
    single = int((classes.sizes == 1).sum())
    if not single:
        return []
    return [f"{single} classes have a single image; they only give negatives"]
