"""Miners by name: which pairs or triplets of a batch a loss will see."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dml_jax import distances, names
from dml_jax.miners import batch, revisiting, whole_batch
from dml_jax.miners.base import DERIVED, Mined, Miner, Mining

__all__ = ["Mined", "Miner", "available", "get"]


class Entry(NamedTuple):
    """What `get` makes a miner from: `Miner`'s attributes, and keywords with a closed set of values."""

    mine: Mining
    distance: str
    triplets: bool
    choices: Mapping[str, tuple[str, ...]] = {}
    before: Callable[..., Any] | None = None


MINERS = {
    "multi_similarity": Entry(batch.multi_similarity, "cosine", False),
    "batch_hard": Entry(batch.batch_hard, "lp", True),
    "triplet_margin": Entry(batch.triplet_margin, "lp", True, {"type_of_triplets": batch.KINDS}),
    # Of the ICML 2020 study.
    "distance": Entry(revisiting.distance, "lp", True),
    "intra_random": Entry(
        whole_batch.intra_random, "lp", True, before=whole_batch.intra_random_before
    ),
    "lifted": Entry(revisiting.lifted, "lp", False),
    "n_pair": Entry(revisiting.n_pair, "lp", False),
    "parametric": Entry(revisiting.parametric, "lp", True, {"mode": revisiting.MODES}),
    "random": Entry(whole_batch.random, "lp", True, before=whole_batch.random_before),
    "random_distance": Entry(
        whole_batch.random_distance, "lp", True, before=whole_batch.random_distance_before
    ),
    "rho_distance": Entry(revisiting.rho_distance, "lp", True),
    "semihard": Entry(revisiting.semihard, "lp", True),
    "softhard": Entry(revisiting.softhard, "lp", True),
}


def available() -> list[str]:
    """The names that `get` takes."""
    return sorted(MINERS)


def get(name: str, *, distance: Any = None, **hyper: Any) -> Miner:
    """The miner called `name`, with PML's hyper-parameters and defaults.

    `distance` is a name, a dict with a name, or a Distance; by default PML's for that miner. Raises
    ValueError for an unknown name, hyper-parameter or choice.
    """
    entry = names.resolve("miner", MINERS, name)
    hyper = {k: tuple(v) if isinstance(v, list) else v for k, v in hyper.items()}
    names.check_hyper(f"miner {name!r}", names.keywords(entry.mine, without=DERIVED), hyper)
    for keyword, values in entry.choices.items():
        if keyword in hyper:
            names.resolve(f"{keyword} of miner {name!r}:", dict.fromkeys(values), hyper[keyword])
    spec = entry.distance if distance is None else distance
    built = names.build("distance", distances.get, distances.Distance, spec)
    return Miner(
        name, entry.mine, tuple(sorted(hyper.items())), built, entry.triplets, entry.before
    )
