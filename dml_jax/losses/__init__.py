"""Losses by name, and their row kernels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dml_jax import distances, miners, names, reducers, relations
from dml_jax.losses.base import (
    ClassLoss,
    GraphLoss,
    ListLoss,
    Loss,
    PairLoss,
    ProxyLoss,
    RunningLoss,
    SoftmaxLoss,
    SumsLoss,
    TripletLoss,
    ViewsLoss,
)
from dml_jax.losses.classification import (
    arc_face_logits,
    cos_face_logits,
    normal_weights,
    normalized_softmax_logits,
)
from dml_jax.losses.distribution import (
    dynamic_soft_margin_rows,
    dynamic_soft_margin_state,
    dynamic_soft_margin_sums,
    dynamic_soft_margin_update,
    histogram_sums,
    histogram_value,
    manifold_graph,
    vic_reg_views,
)
from dml_jax.losses.pair import (
    contrastive_rows,
    multi_similarity_rows,
    nt_xent_rows,
    sup_con_rows,
    threshold_consistent_margin_rows,
)
from dml_jax.losses.proxy import fan_out_proxies, proxy_anchor_rows
from dml_jax.losses.ranking import (
    angular_rows,
    fast_ap_rows,
    pnp_rows,
    ranked_list_rows,
    recall_at_k_rows,
    roadmap_rows,
    smooth_ap_rows,
)
from dml_jax.losses.triplet import triplet_margin_rows

__all__ = [
    "LOSSES",
    "Loss",
    "angular_rows",
    "arc_face_logits",
    "available",
    "contrastive_rows",
    "cos_face_logits",
    "dynamic_soft_margin_rows",
    "dynamic_soft_margin_sums",
    "fast_ap_rows",
    "get",
    "histogram_sums",
    "histogram_value",
    "manifold_graph",
    "multi_similarity_rows",
    "normalized_softmax_logits",
    "nt_xent_rows",
    "pnp_rows",
    "proxy_anchor_rows",
    "ranked_list_rows",
    "recall_at_k_rows",
    "roadmap_rows",
    "smooth_ap_rows",
    "sup_con_rows",
    "threshold_consistent_margin_rows",
    "triplet_margin_rows",
    "vic_reg_views",
]


@dataclass(frozen=True)
class Entry:
    """How a named loss is put together: its class, kernel and PML's defaults.

    Attributes:
      distances: the names it may be used with; () for any.
      more: further fields of the class.
      unit: whether it is defined for normalised vectors alone.
      without: settings that it has no use for, so that giving one is an error.
    """

    cls: type[Loss]
    kernel: Any
    distance: Any
    reducer: str
    distances: tuple[str, ...] = ()
    more: tuple[tuple[str, Any], ...] = ()
    unit: bool = False
    without: tuple[str, ...] = ()


NORMAL = (("init_weights", normal_weights),)
LOSSES: Mapping[str, Entry] = {
    "arc_face": Entry(SoftmaxLoss, arc_face_logits, "cosine", "mean", ("cosine",), NORMAL),
    "contrastive": Entry(PairLoss, contrastive_rows, "lp", "avg_non_zero"),
    "cos_face": Entry(SoftmaxLoss, cos_face_logits, "cosine", "mean", ("cosine",), NORMAL),
    "multi_similarity": Entry(PairLoss, multi_similarity_rows, "cosine", "mean"),
    "normalized_softmax": Entry(
        SoftmaxLoss, normalized_softmax_logits, "dot_product", "mean", (), NORMAL
    ),
    "nt_xent": Entry(PairLoss, nt_xent_rows, "cosine", "mean"),
    "proxy_anchor": Entry(
        ProxyLoss, proxy_anchor_rows, "cosine", "divisor", (), (("init_weights", fan_out_proxies),)
    ),
    "sup_con": Entry(
        PairLoss, sup_con_rows, "cosine", "avg_non_zero", (), (("needs_negatives", True),)
    ),
    "threshold_consistent_margin": Entry(
        PairLoss, threshold_consistent_margin_rows, "cosine", "mean", ("cosine",)
    ),
    "triplet_margin": Entry(TripletLoss, triplet_margin_rows, "lp", "avg_non_zero"),
    # Rankings and distributions.
    "angular": Entry(PairLoss, angular_rows, "cosine", "mean", ("cosine",)),
    "dynamic_soft_margin": Entry(
        RunningLoss,
        dynamic_soft_margin_rows,
        "lp",
        "mean",
        ("lp",),
        (
            ("first", dynamic_soft_margin_sums),
            ("begin", dynamic_soft_margin_state),
            ("update", dynamic_soft_margin_update),
        ),
        unit=True,
    ),
    "fast_ap": Entry(
        ListLoss, fast_ap_rows, {"name": "lp", "power": 2}, "mean", ("lp",), unit=True
    ),
    "histogram": Entry(
        SumsLoss,
        histogram_value,
        "cosine",
        "mean",
        ("cosine",),
        (("first", histogram_sums),),
        without=("reducer",),
    ),
    "manifold": Entry(
        GraphLoss, manifold_graph, "cosine", "mean", ("cosine",), without=("miner", "reducer")
    ),
    "pnp": Entry(PairLoss, pnp_rows, "cosine", "mean", ("cosine",)),
    "ranked_list": Entry(PairLoss, ranked_list_rows, "lp", "mean", ("lp", "snr")),
    "recall_at_k": Entry(ListLoss, recall_at_k_rows, "cosine", "mean", ("cosine",)),
    "roadmap": Entry(ListLoss, roadmap_rows, "cosine", "mean", ("cosine",)),
    "smooth_ap": Entry(ListLoss, smooth_ap_rows, "cosine", "mean", ("cosine",)),
    "vic_reg": Entry(
        ViewsLoss,
        vic_reg_views,
        "lp",
        "mean",
        without=("distance", "miner", "reducer", "relation"),
    ),
}
# Keywords of kernels that are no hyper-parameters: the library fills them in (losses.base.PairLoss).
DERIVED = (
    "similarity",
    "low",
    "high",
    "farthest",
    "triplets",
    "unmined",
    "own",
    "sums",
    "columns",
    "partner",
    "vectors",
)


def available() -> list[str]:
    """The names that `get` takes."""
    return sorted(LOSSES)


def get(
    name: str,
    *,
    miner: Any = None,
    distance: Any = None,
    reducer: Any = None,
    relation: Any = None,
    **hyper: Any,
) -> Loss:
    """The loss called `name`, with PML's hyper-parameters and defaults.

    Args:
      name: one of `available()`.
      miner: narrows the pairs or triplets; a loss against class weights takes it as sample weights.
      distance, reducer: PML's defaults for the loss where None; a few losses have no use for one.
      relation: what makes two samples positives; None: equal integer labels.
      **hyper: the keyword parameters of the loss's kernel.

    Each of miner, distance, reducer, relation is a name, a dict with a name and hyper-parameters, or
    the object. Raises ValueError, with near misses, for names and hyper-parameters that do not exist
    and for a distance that the loss is not defined for.
    """
    entry = names.resolve("loss", LOSSES, name)
    accepted: dict[str, Any] = {}
    for function in (entry.kernel, *(field for _, field in entry.more if callable(field))):
        accepted |= names.keywords(function, without=DERIVED)
    hyper = {k: tuple(v) if isinstance(v, list) else v for k, v in hyper.items()}
    names.check_hyper(f"loss {name!r}", accepted, hyper)
    given = {"distance": distance, "miner": miner, "reducer": reducer, "relation": relation}
    for setting in entry.without:
        if given[setting] is not None:
            raise ValueError(
                f"loss {name!r} has no use for a {setting}, which is {given[setting]!r}; accepted: None"
            )
    spec = entry.distance if distance is None else distance
    built = names.build("distance", distances.get, distances.Distance, spec)
    if entry.distances and built.name not in entry.distances:
        raise ValueError(
            f"loss {name!r} is not defined for distance {built.name!r}; accepted: "
            f"{', '.join(entry.distances)}"
        )
    if entry.unit and not built.normalized:
        raise ValueError(
            f"loss {name!r} is defined for normalised vectors; its distance {built.name!r} has "
            "normalize_embeddings=False"
        )
    related = names.build("relation", relations.get, relations.Relation, relation)
    if related is not None and related != relations.SAME_LABEL and issubclass(entry.cls, ClassLoss):
        raise ValueError(
            f"loss {name!r} compares samples with classes and takes relation 'label' alone, not "
            f"{related.name!r}"
        )
    chosen = reducers.build(reducer or entry.reducer)
    if chosen.by == "divisor" and entry.reducer != "divisor":
        accepted_reducers = [r for r in reducers.available() if r != "divisor"]
        raise ValueError(
            f"loss {name!r} supplies nothing to divide by for reducer {chosen.name!r}; accepted: "
            f"{', '.join(accepted_reducers)}"
        )
    return entry.cls(
        name,
        entry.kernel,
        tuple(sorted(hyper.items())),
        built,
        chosen,
        related or relations.SAME_LABEL,
        names.build("miner", miners.get, miners.Miner, miner),
        **dict(entry.more),
    )
