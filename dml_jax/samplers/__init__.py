"""Samplers: from the labels of a set to the batches of an epoch, as one index array.

A sampler is made by a function of its own, `m_per_class(m=4)`, or by name, `get("m_per_class", m=4)`. Its
`plan(labels, batch_size, seed=, epoch=)` is int32 `[steps, batch]`, a pure function of its arguments. A sampler's
`needs` says whether it also takes `parents=` or `embeddings=` of the images.
"""

from collections.abc import Callable
from typing import Any

from dml_jax import parameters
from dml_jax.revisiting.samplers import (
    class_random,
    d2_coreset,
    disthist_batchmatch,
    fid_batchmatch,
    full_random,
    greedy_coreset,
)
from dml_jax.samplers.hard_classes import hard_classes
from dml_jax.samplers.hierarchical import hierarchical
from dml_jax.samplers.m_per_class import m_per_class
from dml_jax.samplers.permutation import random, sequential
from dml_jax.samplers.triplets import fixed_set_of_triplets
from dml_jax.samplers.weights import tuples_to_weights
from dml_jax.sampling import EpochSampler, PlanInputs, Rows, Sampler, StorageSampler, custom

__all__ = [
    "SAMPLERS",
    "EpochSampler",
    "PlanInputs",
    "Rows",
    "Sampler",
    "StorageSampler",
    "available",
    "class_random",
    "custom",
    "d2_coreset",
    "disthist_batchmatch",
    "fid_batchmatch",
    "fixed_set_of_triplets",
    "full_random",
    "get",
    "greedy_coreset",
    "hard_classes",
    "hierarchical",
    "m_per_class",
    "random",
    "sequential",
    "tuples_to_weights",
]

SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "class_random": class_random,
    "d2_coreset": d2_coreset,
    "disthist_batchmatch": disthist_batchmatch,
    "fid_batchmatch": fid_batchmatch,
    "fixed_set_of_triplets": fixed_set_of_triplets,
    "full_random": full_random,
    "greedy_coreset": greedy_coreset,
    "hard_classes": hard_classes,
    "hierarchical": hierarchical,
    "m_per_class": m_per_class,
    "random": random,
    "sequential": sequential,
    "tuples_to_weights": tuples_to_weights,
}


def available() -> list[str]:
    """Returns the names that `get` accepts.

    >>> available()[:2]
    ['class_random', 'd2_coreset']
    """
    return sorted(SAMPLERS)


def get(name: str, **hyper: Any) -> Sampler:
    """Returns the sampler of that name.

    Args:
      name: one of `available()`, or "package.module:name" for a factory of the user's own.
      **hyper: the keywords of its factory.

    Raises:
      UserError: an unknown name or hyper-parameter (with the near misses), a value of another type or out of range.

    >>> get("m_per_class", m=2) == m_per_class(m=2)
    True
    """
    return parameters.make("sampler", SAMPLERS, Sampler, name, hyper)  # type: ignore[type-abstract]
