"""Images drawn by how often a miner chooses them among the whole set."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dml_jax import miners, names, pairwise
from dml_jax.relations import SAME_LABEL
from dml_jax.samplers.base import (
    Classes,
    Rows,
    StorageSampler,
    Task,
    generator,
    of_step,
)


@dataclass(frozen=True, kw_only=True)
class TuplesToWeights(StorageSampler):
    """Each image with replacement, in proportion to how often it is in the pairs or triplets that a miner chooses.

    The miner sees the stored embeddings of all images, or of `subset` random ones, as one batch, `block` anchors at a
    time. Where it chooses nothing, these images are drawn uniformly. `TuplesToWeightsSampler` of PyTorch Metric
    Learning, which embeds the images anew for every epoch: so does this one by default. A class can have one image
    in a batch, so that losses on pairs may find none.

    Refused: subset larger than the set.

    Attributes:
      miner: a name, or a dict with a name and hyper-parameters.
      subset: images that are mined, and the length of the epoch if `length` is None; None: all.
      block: anchors at a time in the miner.
    """

    miner: Any
    subset: int | None = None
    block: int = 256
    updates: bool = False
    refresh: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "block", "anchors;")
        if self.subset is not None:
            self._at_least(2, "subset", "images; None (all) or")
        names.build("miner", miners.get, miners.Miner, self.miner)

    def check(self, classes: Classes, batch_size: int) -> None:
        size = len(classes.of_image)
        if self.subset is not None and self.subset > size:
            raise ValueError(
                f"subset={self.subset} of a set of {size} images; up to {size} is accepted"
            )

    def images(self, size: int) -> int:
        return super().images(size if self.subset is None else self.subset)

    def rows(self, task: Task) -> Rows:
        count = len(task.classes.of_image)
        mined = np.arange(count)
        if self.subset is not None:
            rng = generator(task.seed, task.epoch)
            mined = np.sort(rng.choice(count, self.subset, replace=False))
        key = jax.random.fold_in(jax.random.key(task.seed), task.epoch)
        miner = names.build("miner", miners.get, miners.Miner, self.miner)
        weights = np.asarray(
            _weights(miner, self.block, task.given[mined], task.classes.of_image[mined], key), float
        )
        if not weights.any():
            weights = np.ones(len(mined))
        shares = np.cumsum(weights) / weights.sum()

        def row(step: int) -> Int[np.ndarray, " batch"]:
            drawn = of_step(task.seed, task.epoch, step).random(task.size)
            return mined[np.searchsorted(shares[:-1], drawn, side="right")]

        return row


@partial(jax.jit, static_argnums=(0, 1))
def _weights(
    miner: miners.Miner, block: int, embeddings: Float[Array, "n d"], labels: Array, key: Array
) -> Float[Array, " n"]:
    refs = (embeddings, labels, jnp.ones(len(labels), bool))
    return pairwise.sample_weights(
        refs,
        refs,
        relation=SAME_LABEL,
        exclude_self=True,
        mine=miner.mining(),
        key=key,
        block=block,
    )
