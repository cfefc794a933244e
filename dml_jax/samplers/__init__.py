"""Samplers: from the labels of a set to the batches of an epoch, as one index array.

`get(name, **hyper).plan(labels, batch_size, seed=, epoch=)` is int32 `[steps, batch]`, a pure function of its
arguments. `available()` lists the names.
"""

from typing import Any, Protocol

import numpy as np

from dml_jax import names
from dml_jax.samplers.m_per_class import MPerClass
from dml_jax.samplers.random import Random

__all__ = ["MPerClass", "Random", "Sampler", "available", "get"]


class Sampler(Protocol):
    """What every sampler offers: the plan of an epoch, and remarks on a set that a log should carry."""

    def plan(self, labels: np.ndarray, batch_size: int, *, seed: int, epoch: int) -> np.ndarray: ...

    def notes(self, labels: np.ndarray) -> list[str]: ...


_TABLE: dict[str, type[Any]] = {"m_per_class": MPerClass, "random": Random}


def available() -> list[str]:
    """The names that `get` accepts."""
    return sorted(_TABLE)


def get(name: str, **hyper: Any) -> Sampler:
    """The sampler of that name.

    Raises:
      ValueError: an unknown name or hyper-parameter (with the near misses), or a value out of range.
    """
    sampler = names.resolve("sampler", _TABLE, name)
    names.check_hyper(f"sampler {name!r}", names.keywords(sampler), hyper)
    return sampler(**hyper)
