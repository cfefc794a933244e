"""Miners by name: which pairs or triplets of a batch a loss will see."""

from typing import Any

from dml_jax import distances, names
from dml_jax.miners import batch
from dml_jax.miners.base import Mined, Miner

__all__ = ["Mined", "Miner", "available", "get"]

# name: (function, default distance, chooses triplets, keywords with a closed set of values)
MINERS: dict[str, tuple[Any, str, bool, dict[str, tuple[str, ...]]]] = {
    "multi_similarity": (batch.multi_similarity, "cosine", False, {}),
    "batch_hard": (batch.batch_hard, "lp", True, {}),
    "triplet_margin": (batch.triplet_margin, "lp", True, {"type_of_triplets": batch.KINDS}),
}


def available() -> list[str]:
    """The names that `get` takes."""
    return sorted(MINERS)


def get(name: str, *, distance: Any = None, **hyper: Any) -> Miner:
    """The miner called `name`, with PML's hyper-parameters and defaults.

    `distance` is a name, a dict with a name, or a Distance; by default PML's for that miner. Raises
    ValueError for an unknown name, hyper-parameter or choice.
    """
    function, default, triplets, choices = names.resolve("miner", MINERS, name)
    accepted = names.keywords(function, without=("similarity", "own_order", "keys"))
    names.check_hyper(f"miner {name!r}", accepted, hyper)
    for keyword, values in choices.items():
        if keyword in hyper:
            names.resolve(f"{keyword} of miner {name!r}:", dict.fromkeys(values), hyper[keyword])
    spec = default if distance is None else distance
    built = names.build("distance", distances.get, distances.Distance, spec)
    return Miner(name, function, tuple(sorted(hyper.items())), built, triplets)
