"""Batches of P classes with m images of each."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from dml_jax.samplers.base import (
    Classes,
    PerClass,
    Task,
    check_distinct,
    generator,
    groups_of,
)


@dataclass(frozen=True, kw_only=True)
class MPerClass(PerClass):
    """Every batch holds batch_size / m classes, all different, and m images of each, side by side.

    The m images are drawn without replacement, and with replacement where the class has fewer than m. Classes
    are drawn afresh for every batch, so that a class with few images is seen as often as one with many, and
    some are not seen in an epoch. This is `MPerClassSampler` of PyTorch Metric Learning with its `batch_size`
    given; there an epoch has 100,000 images by default, here as many as the set.

    With `cover` an epoch shows every image: the images of a class, in random order, are cut into groups of m (the
    last one is filled up from the beginning of that order), and every group is in one batch. What is missing
    from whole batches is filled with further groups. A class with more groups than there would be batches
    makes the epoch as long as it needs.

    m = 1 gives different classes, one image of each: a batch for losses against class weights.

    Refused: m does not divide batch_size; fewer classes than a batch needs; m > 1 where no class has two images.

    Attributes:
      m: images per class in a batch.
      cover: whether an epoch shows every image; its length is then given by the set.
    """

    m: int = 4
    cover: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cover and self.length is not None:
            raise ValueError(
                f"length={self.length} with cover=True, where the set gives the length; None is accepted"
            )

    def check(self, classes: Classes, batch_size: int) -> None:
        check_distinct(classes, batch_size, self.m)
        super().check(classes, batch_size)

    def count(self, classes: Classes, batch_size: int) -> int:
        if not self.cover:
            return super().count(classes, batch_size)
        groups = -(-classes.sizes // self.m)
        return int(max(-(-groups.sum() // groups_of(batch_size, self.m)), groups.max()))

    def draw(self, task: Task) -> Int[np.ndarray, "steps batch"]:
        rng = generator(task.seed, task.epoch)
        if self.cover:
            return self._covered(rng, task.classes, task.steps, task.size)
        groups, count = groups_of(task.size, self.m), len(task.classes.sizes)
        classes = np.stack([rng.choice(count, groups, replace=False) for _ in range(task.steps)])
        return task.classes.draw(rng, classes.ravel(), self.m).reshape(task.steps, task.size)

    def _covered(
        self, rng: np.random.Generator, classes: Classes, steps: int, size: int
    ) -> Int[np.ndarray, "steps batch"]:
        groups = -(-classes.sizes // self.m)
        # A class can be in as many batches as there are: those that are not in all of them fill the last ones.
        while missing := steps * groups_of(size, self.m) - groups.sum():
            more = rng.permutation(np.flatnonzero(groups < steps))[:missing]
            groups[more] += 1

        order = rng.permutation(len(groups))
        of_group = np.repeat(order, groups[order])
        number = np.arange(len(of_group)) - np.repeat(
            np.cumsum(groups[order]) - groups[order], groups[order]
        )
        shuffled = np.lexsort([rng.random(len(classes.of_image)), classes.of_image])
        ranks = number[:, None] * self.m + np.arange(self.m)
        ranks %= classes.sizes[of_group][:, None]
        images = shuffled[classes.first[of_group][:, None] + ranks]
        # Groups of a class follow each other and are dealt to batches in turn: no batch gets two of them.
        plan = images.reshape(-1, steps, self.m).swapaxes(0, 1).reshape(steps, size)
        return rng.permutation(plan)

    def notes(
        self, labels: Int[np.ndarray, " n"], batch_size: int, *, parents: np.ndarray | None = None
    ) -> list[str]:
        classes = Classes.of(labels)
        notes = super().notes(labels, batch_size)
        if self.cover:
            steps, shown = self.count(classes, batch_size), len(classes.of_image)
            notes.append(
                f"an epoch that covers the set has {steps} batches, {steps * batch_size} images, and "
                f"{steps * batch_size - shown} of these for the second time or more"
            )
        return notes
