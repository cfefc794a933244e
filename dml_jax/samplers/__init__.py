"""Samplers: from the labels of a set to the batches of an epoch, as one index array.

`get(name, **hyper).plan(labels, batch_size, seed=, epoch=)` is int32 `[steps, batch]`, a pure function of its
arguments. A sampler's `needs` says whether it also takes `parents=` or `embeddings=` of the images.
`available()` lists the names.
"""

from typing import Any

from dml_jax import names
from dml_jax.samplers.base import Rows, Sampler, StorageSampler
from dml_jax.samplers.batchmatch import DisthistBatchmatch, FidBatchmatch
from dml_jax.samplers.class_random import ClassRandom, FullRandom
from dml_jax.samplers.coreset import D2Coreset, GreedyCoreset
from dml_jax.samplers.hard_classes import HardClasses
from dml_jax.samplers.hierarchical import Hierarchical
from dml_jax.samplers.m_per_class import MPerClass
from dml_jax.samplers.random import Random, Sequential
from dml_jax.samplers.triplets import FixedSetOfTriplets
from dml_jax.samplers.weights import TuplesToWeights

__all__ = ["MPerClass", "Random", "Rows", "Sampler", "StorageSampler", "available", "get"]

_TABLE: dict[str, type[Sampler]] = {
    "class_random": ClassRandom,
    "d2_coreset": D2Coreset,
    "disthist_batchmatch": DisthistBatchmatch,
    "fid_batchmatch": FidBatchmatch,
    "fixed_set_of_triplets": FixedSetOfTriplets,
    "full_random": FullRandom,
    "greedy_coreset": GreedyCoreset,
    "hard_classes": HardClasses,
    "hierarchical": Hierarchical,
    "m_per_class": MPerClass,
    "random": Random,
    "sequential": Sequential,
    "tuples_to_weights": TuplesToWeights,
}


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
