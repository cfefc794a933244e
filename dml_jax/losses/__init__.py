"""Losses by name, and their row kernels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dml_jax import distances, miners, names, reducers, relations
from dml_jax.losses.base import ClassLoss, Loss, PairLoss, ProxyLoss, SoftmaxLoss
from dml_jax.losses.classification import (
    arc_face_logits,
    cos_face_logits,
    normal_weights,
    normalized_softmax_logits,
)
from dml_jax.losses.lifted import (
    generalized_lifted_structure_rows,
    lifted_structure_columns,
    lifted_structure_rows,
)
from dml_jax.losses.margin import margin_rows
from dml_jax.losses.neighbour import instance_rows, n_pairs_rows, nca_rows
from dml_jax.losses.own import MarginLoss, NPairsLoss, TripletLoss
from dml_jax.losses.pair import (
    circle_rows,
    contrastive_rows,
    multi_similarity_rows,
    nt_xent_rows,
    sup_con_rows,
    threshold_consistent_margin_rows,
)
from dml_jax.losses.proxy import fan_out_proxies, proxy_anchor_rows
from dml_jax.losses.triplet import triplet_margin_rows
from dml_jax.losses.tuplet import intra_pair_sums, intra_pair_variance_rows, tuplet_margin_rows

__all__ = [
    "LOSSES",
    "ClassLoss",
    "Loss",
    "arc_face_logits",
    "available",
    "circle_rows",
    "contrastive_rows",
    "cos_face_logits",
    "generalized_lifted_structure_rows",
    "get",
    "instance_rows",
    "intra_pair_variance_rows",
    "lifted_structure_rows",
    "margin_rows",
    "multi_similarity_rows",
    "n_pairs_rows",
    "nca_rows",
    "normalized_softmax_logits",
    "nt_xent_rows",
    "proxy_anchor_rows",
    "sup_con_rows",
    "threshold_consistent_margin_rows",
    "triplet_margin_rows",
    "tuplet_margin_rows",
]


@dataclass(frozen=True)
class Entry:
    """How a named loss is put together: its class, kernel and PML's defaults.

    Attributes:
      distances: the names it may be used with; () for any.
      more: further fields of the class.
    """

    cls: type[Loss]
    kernel: Any
    distance: Any
    reducer: str
    distances: tuple[str, ...] = ()
    more: tuple[tuple[str, Any], ...] = ()


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
    "circle": Entry(PairLoss, circle_rows, "cosine", "avg_non_zero", ("cosine",)),
    "generalized_lifted_structure": Entry(
        PairLoss, generalized_lifted_structure_rows, "lp", "mean"
    ),
    "instance": Entry(
        PairLoss, instance_rows, "cosine", "mean", ("cosine",), (("takes_references", False),)
    ),
    "intra_pair_variance": Entry(
        PairLoss, intra_pair_variance_rows, "cosine", "mean", (), (("first", intra_pair_sums),)
    ),
    "lifted_structure": Entry(
        PairLoss,
        lifted_structure_rows,
        "lp",
        "mean",
        (),
        (("first", lifted_structure_columns), ("takes_references", False)),
    ),
    "margin": Entry(MarginLoss, margin_rows, "lp", "divisor"),
    "n_pairs": Entry(
        NPairsLoss, n_pairs_rows, "dot_product", "mean", (), (("takes_references", False),)
    ),
    "nca": Entry(
        PairLoss, nca_rows, {"name": "lp", "power": 2}, "mean", (), (("weighs_samples", True),)
    ),
    "signal_to_noise_ratio_contrastive": Entry(
        PairLoss, contrastive_rows, "snr", "avg_non_zero", ("snr",)
    ),
    "tuplet_margin": Entry(PairLoss, tuplet_margin_rows, "cosine", "mean", ("cosine",)),
}
# Keywords of kernels that are no hyper-parameters: the library fills them in (losses.base.PairLoss).
DERIVED = ("similarity", "low", "high", "triplets", "sums", "columns", "partner", "vectors")


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
      distance, reducer: PML's defaults for the loss where None.
      relation: what makes two samples positives; None: equal integer labels.
      **hyper: the keyword parameters of the loss's kernel.

    Each of miner, distance, reducer, relation is a name, a dict with a name and hyper-parameters, or
    the object. Raises ValueError, with near misses, for names and hyper-parameters that do not exist
    and for a distance that the loss is not defined for.
    """
    entry = names.resolve("loss", LOSSES, name)
    accepted = {**names.keywords(entry.kernel, without=DERIVED), **entry.cls.settings}
    names.check_hyper(f"loss {name!r}", accepted, hyper)
    spec = entry.distance if distance is None else distance
    built = names.build("distance", distances.get, distances.Distance, spec)
    if entry.distances and built.name not in entry.distances:
        raise ValueError(
            f"loss {name!r} is not defined for distance {built.name!r}; accepted: "
            f"{', '.join(entry.distances)}"
        )
    chosen = reducers.build(reducer or entry.reducer)
    if chosen.by == "divisor" and entry.reducer != "divisor":
        accepted_reducers = [r for r in reducers.available() if r != "divisor"]
        raise ValueError(
            f"loss {name!r} supplies nothing to divide by for reducer {chosen.name!r}; accepted: "
            f"{', '.join(accepted_reducers)}"
        )
    related = names.build("relation", relations.get, relations.Relation, relation)
    loss = entry.cls(
        name,
        entry.kernel,
        tuple(sorted(hyper.items())),
        built,
        chosen,
        related or relations.SAME_LABEL,
        names.build("miner", miners.get, miners.Miner, miner),
        **dict(entry.more),
    )
    if loss.needs_labels and loss.relation != relations.SAME_LABEL:
        raise ValueError(
            f"loss {name!r} reads the classes of samples and takes relation 'label' alone, not "
            f"{loss.relation.name!r}"
        )
    return loss
