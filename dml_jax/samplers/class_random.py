"""The two samplers with replacement of the ICML 2020 study (Roth et al.)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from dml_jax.samplers.base import (
    Classes,
    PerClass,
    Sampler,
    Task,
    check_pairs,
    generator,
    groups_of,
)


@dataclass(frozen=True, kw_only=True)
class ClassRandom(PerClass):
    """batch_size / m times a class, and m images of it, all drawn uniformly with replacement.

    A class can be in a batch several times (of g draws among C classes C (1 - (1 - 1/C)^g) are expected to differ),
    and an image can be its own positive under another crop, in a share 1 / n_c of the pairs. This is the
    default of the ICML 2020 system, on which its published figures rest; `m_per_class` draws without
    replacement.
    """

    def draw(self, task: Task) -> Int[np.ndarray, "steps batch"]:
        rng = generator(task.seed, task.epoch)
        groups = task.steps * groups_of(task.size, self.m)
        return with_replacement(rng, task.classes, groups, self.m).reshape(task.steps, task.size)


@dataclass(frozen=True, kw_only=True)
class FullRandom(Sampler):
    """Every image of a class drawn uniformly, with replacement; the last one shares the class of another.

    The last image of a batch is any image of the class of a random one before it, so that there is a positive pair.
    The ICML 2020 system's `full_random`.

    Refused: batch_size below 2; no class has two images.
    """

    def check(self, classes: Classes, batch_size: int) -> None:
        if batch_size < 2:
            raise ValueError(
                f"batch_size={batch_size} has no place for two images of a class; at least 2 is accepted"
            )
        check_pairs(classes, 2)

    def draw(self, task: Task) -> Int[np.ndarray, "steps batch"]:
        rng = generator(task.seed, task.epoch)
        free = with_replacement(rng, task.classes, task.steps * (task.size - 1), 1)
        free = free.reshape(task.steps, task.size - 1)
        partner = free[np.arange(task.steps), rng.integers(0, task.size - 1, task.steps)]
        classes = task.classes.of_image[partner]
        ranks = rng.integers(0, task.classes.sizes[classes])
        return np.concatenate([free, task.classes.images(classes, ranks[:, None])], axis=1)


def with_replacement(
    rng: np.random.Generator, classes: Classes, groups: int, m: int
) -> Int[np.ndarray, "groups m"]:
    """So many times a class and m of its images, uniformly with replacement."""
    drawn = rng.integers(0, len(classes.sizes), groups)
    return classes.images(drawn, rng.integers(0, classes.sizes[drawn][:, None], (groups, m)))
