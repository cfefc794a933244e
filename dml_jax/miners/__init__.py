"""Miners: which pairs or triplets of a batch a loss will see.

A miner is made by a function of its own, `batch_hard()`, or by name, `get("batch_hard")`. A loss takes either:
`losses.contrastive(miner=miners.batch_hard())`. Called on embeddings and labels a miner shows what it chooses.
"""

from collections.abc import Callable
from typing import Any

from dml_jax import parameters
from dml_jax.miners.counting import hdc, uniform_histogram
from dml_jax.miners.distance_weighted import distance_weighted
from dml_jax.miners.pairs import batch_easy_hard, multi_similarity, pair_margin
from dml_jax.miners.triplets import (
    angular,
    batch_hard,
    embeddings_already_packaged_as_triplets,
    triplet_margin,
)
from dml_jax.mining import Mined, Miner, custom, from_rows
from dml_jax.revisiting.miners import (
    distance,
    lifted,
    n_pair,
    parametric,
    rho_distance,
    semihard,
    softhard,
)
from dml_jax.revisiting.whole_batch import intra_random, random, random_distance

__all__ = [
    "MINERS",
    "Mined",
    "Miner",
    "angular",
    "available",
    "batch_easy_hard",
    "batch_hard",
    "custom",
    "distance",
    "distance_weighted",
    "embeddings_already_packaged_as_triplets",
    "from_rows",
    "get",
    "hdc",
    "intra_random",
    "lifted",
    "multi_similarity",
    "n_pair",
    "pair_margin",
    "parametric",
    "random",
    "random_distance",
    "rho_distance",
    "semihard",
    "softhard",
    "triplet_margin",
    "uniform_histogram",
]

MINERS: dict[str, Callable[..., Miner]] = {
    "angular": angular,
    "batch_easy_hard": batch_easy_hard,
    "batch_hard": batch_hard,
    "distance_weighted": distance_weighted,
    "embeddings_already_packaged_as_triplets": embeddings_already_packaged_as_triplets,
    "hdc": hdc,
    "multi_similarity": multi_similarity,
    "pair_margin": pair_margin,
    "triplet_margin": triplet_margin,
    "uniform_histogram": uniform_histogram,
    # Of the ICML 2020 study.
    "distance": distance,
    "intra_random": intra_random,
    "lifted": lifted,
    "n_pair": n_pair,
    "parametric": parametric,
    "random": random,
    "random_distance": random_distance,
    "rho_distance": rho_distance,
    "semihard": semihard,
    "softhard": softhard,
}


def available() -> list[str]:
    """Returns the names that `get` accepts.

    >>> available()[:2]
    ['angular', 'batch_easy_hard']
    """
    return sorted(MINERS)


def get(name: str, **hyper: Any) -> Miner:
    """Returns the miner of that name.

    Args:
      name: one of `available()`, or "package.module:name" for a factory of the user's own.
      **hyper: the keywords of its factory; `distance` is one of every miner's.

    Raises:
      UserError: an unknown name or hyper-parameter (with the near misses), a value of another type or out of range.

    >>> get("triplet_margin", margin=0.1) == triplet_margin(0.1)
    True
    """
    return parameters.make("miner", MINERS, Miner, name, hyper)
