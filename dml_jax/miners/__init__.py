"""Miners by name: which pairs or triplets of a batch a loss will see."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dml_jax import distances, names
from dml_jax.miners import batch, counting, revisiting, whole_batch
from dml_jax.miners.base import DERIVED, Mined, Miner, Mining
from dml_jax.miners.distance_weighted import distance_weighted

__all__ = ["Mined", "Miner", "available", "get"]


class Entry(NamedTuple):
    """What `get` makes a miner from.

    Attributes:
      mine, triplets, before: `Miner`'s.
      distance: the default.
      choices: keywords with a closed set of values.
      check: raises ValueError for hyper-parameters that make no sense.
      euclidean: whether it takes no other distance than its default.
    """

    mine: Mining
    distance: str
    triplets: bool
    choices: Mapping[str, tuple[str, ...]] = {}
    before: Callable[..., Any] | None = None
    check: Callable[..., None] | None = None
    euclidean: bool = False


MINERS = {
    "angular": Entry(batch.angular, "lp", True, check=batch.check_angle, euclidean=True),
    "batch_easy_hard": Entry(
        batch.batch_easy_hard,
        "lp",
        False,
        {"pos_strategy": batch.STRATEGIES, "neg_strategy": batch.STRATEGIES},
        check=batch.check_strategies,
    ),
    "batch_hard": Entry(batch.batch_hard, "lp", True),
    "distance_weighted": Entry(distance_weighted, "lp", True, euclidean=True),
    "embeddings_already_packaged_as_triplets": Entry(
        batch.embeddings_already_packaged_as_triplets, "lp", True, before=batch.packaged_before
    ),
    "hdc": Entry(
        counting.hdc, "lp", False, before=counting.hdc_before, check=counting.check_filter
    ),
    "multi_similarity": Entry(batch.multi_similarity, "cosine", False),
    "pair_margin": Entry(batch.pair_margin, "lp", False),
    "triplet_margin": Entry(batch.triplet_margin, "lp", True, {"type_of_triplets": batch.KINDS}),
    "uniform_histogram": Entry(
        counting.uniform_histogram,
        "lp",
        False,
        before=counting.uniform_histogram_before,
        check=counting.check_bins,
    ),
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
    if entry.check is not None:
        entry.check(**hyper)
    spec = entry.distance if distance is None else distance
    built = names.build("distance", distances.get, distances.Distance, spec)
    if entry.euclidean and built != distances.get(entry.distance):
        raise ValueError(
            f"miner {name!r} has distance {spec!r}; accepted: {entry.distance!r} as it is, Euclidean between "
            "normalised embeddings"
        )
    return Miner(
        name, entry.mine, tuple(sorted(hyper.items())), built, entry.triplets, entry.before
    )
