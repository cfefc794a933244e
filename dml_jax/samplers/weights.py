"""Images drawn by how often a miner chooses them among the whole set."""

from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dml_jax import miners, names, pairwise
from dml_jax.bound import Bound
from dml_jax.errors import UserError
from dml_jax.parameters import Interval, NonNegativeInt, PositiveInt, checked
from dml_jax.relations import SAME_LABEL
from dml_jax.sampling import Classes, PlanInputs, Rows, Sampler, StorageSampler


@checked("sampler")
def tuples_to_weights(
    miner: Any,
    *,
    subset: Annotated[int, Interval(2, closed_low=True)] | None = None,
    block: PositiveInt = 256,
    updates: bool = False,
    refresh: NonNegativeInt = 1,
    length: PositiveInt | None = None,
) -> Sampler:
    """Draws each image with replacement, in proportion to how often it is in the tuples that a miner chooses.

    `plan` needs `embeddings=` of all images. The miner sees those of all images, or of `subset` random ones, as one
    batch. Where it chooses nothing, these images are drawn uniformly. A class can have one image in a batch, so that
    losses on pairs may find none.

    Args:
      miner: a `Miner`, its name, or a dict with a name and hyper-parameters.
      subset: images that are mined, and the length of the epoch if `length` is None; None (the default) for all.
      block: anchors at a time in the miner; 256 by default.
      updates: True where the embeddings of a training step take the places of the stored ones; False by default.
      refresh: epochs between passes that embed all training images anew; 1 by default, 0 for only the one before
        training.
      length: images an epoch; None (the default) for those that are mined.

    Raises:
      UserError: no miner, or an unknown one. From `plan`: `subset` is larger than the set; embeddings are missing or
        not finite.

    Example:
      >>> import numpy as np
      >>> from dml_jax import samplers
      >>> angles = np.array([0.0, 1.0, 0.9, 2.9])  # the hardest triplets have 0, 1 and 2
      >>> embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1)
      >>> sampler = samplers.tuples_to_weights("batch_hard", length=400)
      >>> plan = sampler.plan([0, 0, 1, 2], 400, seed=0, epoch=0, embeddings=embeddings)
      >>> np.unique(plan).tolist()
      [0, 1, 2]

    `TuplesToWeightsSampler` of PyTorch Metric Learning, which embeds the images anew for every epoch: so does this one
    by default.
    """
    made = names.build("miner", miners.get, miners.Miner, miner)
    if made is None:
        raise UserError(
            "miner of sampler 'tuples_to_weights' is None; accepted: a name, a dict with a 'name', or a miner"
        )
    return StorageSampler(
        name="tuples_to_weights",
        length=subset if length is None else length,
        rows=Bound(_rows, miner=made, subset=subset, block=block),
        refuse=Bound(_refuse, subset=subset),
        updates=updates,
        refresh=refresh,
    )


def _refuse(classes: Classes, batch_size: int, *, subset: int | None) -> None:
    del batch_size
    size = len(classes.of_image)
    if subset is not None and subset > size:
        raise UserError(f"subset={subset} of a set of {size} images; up to {size} is accepted")


def _rows(inputs: PlanInputs, *, miner: miners.Miner, subset: int | None, block: int) -> Rows:
    mined = np.arange(inputs.images)
    if subset is not None:
        mined = np.sort(inputs.generator().choice(inputs.images, subset, replace=False))
    key = jax.random.fold_in(jax.random.key(inputs.seed), inputs.epoch)
    embeddings, labels = inputs.embeddings[mined], inputs.classes.of_image[mined]
    weights = np.asarray(_weights(miner, block, embeddings, labels, key), float)
    if not weights.any():
        weights = np.ones(len(mined))
    shares = np.cumsum(weights) / weights.sum()

    def row(step: int) -> Int[np.ndarray, " batch"]:
        drawn = inputs.step_generator(step).random(inputs.batch_size)
        return mined[np.searchsorted(shares[:-1], drawn, side="right")]

    return row


@partial(jax.jit, static_argnums=(0, 1))
def _weights(
    miner: miners.Miner, block: int, embeddings: Float[Array, "n d"], labels: Array, key: Array
) -> Float[Array, " n"]:
    refs = pairwise.Samples(embeddings, labels, jnp.ones(len(labels), bool))
    return pairwise.sample_weights(
        refs,
        refs,
        relation=SAME_LABEL,
        exclude_self=True,
        mine=miner.mining(),
        key=key,
        block=block,
    )
