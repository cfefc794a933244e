"""Batches of classes that are near each other: hard negatives by design, for sets of many classes."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from dml_jax.samplers.base import (
    Classes,
    PerClass,
    Rows,
    StorageSampler,
    Task,
    check_distinct,
    generator,
    groups_of,
    of_step,
)
from dml_jax.samplers.random import permutations


@dataclass(frozen=True, kw_only=True)
class HardClasses(PerClass, StorageSampler):
    """Every batch holds batch_size / m classes, all different: some seeds, and the classes nearest to each.

    A class lies at the mean of its images' L2-normalised embeddings, normalised again; near is a large cosine (of
    equally near classes the first). The seeds of an epoch are permutations of the classes, so that every class is a
    seed equally often up to one; each seed in turn takes the `group` - 1 nearest of the classes that are not in the
    batch yet, and the last one what is missing. Images are drawn as by `m_per_class`.

    With `updates=False` the stored embeddings, and with them the neighbours, stay as they are between refreshes. A
    batch costs one product of its seeds with all centres; the C x C matrix is never made.

    Refused: as `m_per_class`.

    Attributes:
      m: images per class in a batch.
      group: classes that are near each other; 1 is `m_per_class`.
    """

    m: int = 4
    group: int = 4
    updates: bool = False
    refresh: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "group", "classes;")

    def check(self, classes: Classes, batch_size: int) -> None:
        check_distinct(classes, batch_size, self.m)
        super().check(classes, batch_size)

    def rows(self, task: Task) -> Rows:
        centres = class_centres(task.given, task.classes)
        wanted = groups_of(task.size, self.m)
        seeds = -(-wanted // self.group)
        order = permutations(generator(task.seed, task.epoch), len(centres), task.steps * seeds)
        order = order.reshape(task.steps, seeds)

        def row(step: int) -> Int[np.ndarray, " batch"]:
            chosen = self._nearest(centres, list(dict.fromkeys(order[step])), wanted)
            return task.classes.draw(of_step(task.seed, task.epoch, step), chosen, self.m).ravel()

        return row

    def _nearest(
        self, centres: Float[np.ndarray, "c d"], seeds: list[int], wanted: int
    ) -> Int[np.ndarray, " wanted"]:
        similar = centres[seeds] @ centres.T
        similar[:, seeds] = -np.inf
        members = list(seeds)
        for seed, mine in enumerate(similar, 1):
            # A batch that spans two permutations may name a seed twice: the last one takes what is missing.
            missing = wanted - len(members)
            for _ in range(missing if seed == len(seeds) else min(self.group - 1, missing)):
                near = int(mine.argmax())
                members.append(near)
                similar[:, near] = -np.inf
        return np.array(members)


def class_centres(
    embeddings: Float[np.ndarray, "n d"], classes: Classes
) -> Float[np.ndarray, "c d"]:
    """The normalised mean of the normalised embeddings of each class; 0 where that is 0."""
    unit = _normalised(np.asarray(embeddings, np.float32))
    return _normalised(np.add.reduceat(unit[classes.members], classes.first))


def _normalised(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norms > 0, norms, 1)
