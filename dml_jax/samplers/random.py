"""Samplers that do not look at classes: every image once an epoch."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from dml_jax.samplers.base import Sampler, Task, generator


@dataclass(frozen=True, kw_only=True)
class Random(Sampler):
    """Permutations of the set, cut into whole batches; a longer epoch is one permutation after another."""

    def draw(self, task: Task) -> Int[np.ndarray, "steps batch"]:
        return permutations(
            generator(task.seed, task.epoch), len(task.classes.of_image), task.steps * task.size
        ).reshape(task.steps, task.size)


@dataclass(frozen=True, kw_only=True)
class Sequential(Sampler):
    """The images in their order, the same in all epochs; a longer epoch begins again."""

    def draw(self, task: Task) -> Int[np.ndarray, "steps batch"]:
        order = np.arange(task.steps * task.size) % len(task.classes.of_image)
        return order.reshape(task.steps, task.size)


def permutations(rng: np.random.Generator, size: int, count: int) -> Int[np.ndarray, " count"]:
    """The first `count` numbers of one permutation of 0..size-1 after another."""
    return np.concatenate([rng.permutation(size) for _ in range(-(-count // size))])[:count]
