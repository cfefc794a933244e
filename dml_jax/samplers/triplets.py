"""Triplets drawn once and for all."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from dml_jax.samplers.base import Classes, Sampler, Task, generator, of_set
from dml_jax.samplers.random import permutations


@dataclass(frozen=True, kw_only=True)
class FixedSetOfTriplets(Sampler):
    """Batches of triplets (anchor, positive, negative), side by side, out of a set that the seed alone decides.

    For studies in which triplets are all that is known, with the miner `embeddings_already_packaged_as_triplets`.
    The classes of anchor and negative are two different ones, drawn uniformly; so are the images. The set is
    shuffled every epoch. `FixedSetOfTriplets` of PyTorch Metric Learning; there a class of one image gives anchors
    that are their own positives, here anchors come from classes of two or more.

    Refused: batch_size is not a multiple of 3; fewer than two classes; no class has two images.

    Attributes:
      num_triplets: of the set. `length` is 3 num_triplets if None.
    """

    num_triplets: int = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "num_triplets", "in the set;")

    def check(self, classes: Classes, batch_size: int) -> None:
        if batch_size % 3:
            near = max(batch_size // 3, 1) * 3
            raise ValueError(
                f"batch_size={batch_size} is not a multiple of 3, the images of a triplet; "
                f"{near} or {near + 3} would be accepted"
            )
        if len(classes.sizes) < 2 or classes.sizes.max() < 2:
            raise ValueError(
                f"triplets need two classes, one of them with two images, and the set has {len(classes.sizes)} "
                f"of at most {classes.sizes.max()}"
            )

    def images(self, size: int) -> int:
        return 3 * self.num_triplets if self.length is None else self.length

    def draw(self, task: Task) -> Int[np.ndarray, "steps batch"]:
        triplets = self._triplets(task.classes, of_set(task.seed))
        count = task.steps * task.size // 3
        order = permutations(generator(task.seed, task.epoch), self.num_triplets, count)
        return triplets[order].reshape(task.steps, task.size)

    def _triplets(
        self, classes: Classes, rng: np.random.Generator
    ) -> Int[np.ndarray, "num_triplets 3"]:
        able = np.flatnonzero(classes.sizes > 1)
        anchor = able[rng.integers(0, len(able), self.num_triplets)]
        negative = rng.integers(0, len(classes.sizes) - 1, self.num_triplets)
        negative += negative >= anchor
        return np.concatenate(
            [classes.draw(rng, anchor, 2), classes.draw(rng, negative, 1)], axis=1
        )

    def notes(
        self, labels: Int[np.ndarray, " n"], batch_size: int, *, parents: np.ndarray | None = None
    ) -> list[str]:
        single = int((Classes.of(labels).sizes == 1).sum())
        if not single:
            return []
        return [f"{single} classes have a single image; they only give negatives"]
