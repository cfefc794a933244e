"""Losses: typed factories, the same by name, and the kernels that they are made of.

`losses.multi_similarity(beta=40)` is a `Loss`, and so is `losses.get("multi_similarity", beta=40)`. A row kernel such
as `multi_similarity_rows` is a pure function of similarities and masks, and can be copied into another code base.
"""

from collections.abc import Callable
from inspect import signature
from typing import Any

from dml_jax import parameters
from dml_jax.errors import UserError
from dml_jax.losses.angular import angular, angular_rows
from dml_jax.losses.average_precision import (
    fast_ap,
    fast_ap_rows,
    pnp,
    pnp_rows,
    smooth_ap,
    smooth_ap_rows,
)
from dml_jax.losses.base import Loss, References
from dml_jax.losses.centers import (
    Outliers,
    soft_triple,
    soft_triple_logits,
    sub_center_arc_face,
    sub_center_arc_face_logits,
    sub_center_outliers,
)
from dml_jax.losses.classification import (
    arc_face,
    arc_face_logits,
    cos_face,
    cos_face_logits,
    normalized_softmax,
    normalized_softmax_logits,
    p2s_grad,
    p2s_grad_terms,
)
from dml_jax.losses.custom import generic_pair, pair_loss
from dml_jax.losses.distribution import (
    dynamic_soft_margin,
    dynamic_soft_margin_rows,
    dynamic_soft_margin_sums,
    histogram,
    histogram_sums,
    histogram_value,
    manifold,
    manifold_graph,
    vic_reg,
    vic_reg_views,
)
from dml_jax.losses.forms import (
    ClassLoss,
    GraphLoss,
    PairLoss,
    ProxyLoss,
    SumsLoss,
    ViewsLoss,
    from_rows,
    has_class_weights,
    on_pairs,
)
from dml_jax.losses.lifted import (
    generalized_lifted_structure,
    generalized_lifted_structure_rows,
    lifted_structure,
    lifted_structure_prepass,
    lifted_structure_rows,
)
from dml_jax.losses.margins import margin, margin_rows
from dml_jax.losses.multiple_angle import (
    large_margin_softmax,
    large_margin_softmax_logits,
    sphere_face,
    sphere_face_logits,
)
from dml_jax.losses.neighbour import instance, instance_rows, n_pairs, n_pairs_rows, nca, nca_rows
from dml_jax.losses.pair import (
    circle,
    circle_rows,
    contrastive,
    contrastive_rows,
    multi_similarity,
    multi_similarity_rows,
    nt_xent,
    nt_xent_rows,
    sigmoid,
    sigmoid_rows,
    signal_to_noise_ratio_contrastive,
    sup_con,
    sup_con_rows,
    threshold_consistent_margin,
    threshold_consistent_margin_rows,
)
from dml_jax.losses.partial_fc import PartialFC, partial_fc
from dml_jax.losses.proxy import proxy_anchor, proxy_anchor_rows
from dml_jax.losses.proxy_nca import proxy_nca, proxy_nca_logits, proxy_nca_pp, proxy_nca_pp_logits
from dml_jax.losses.ranking import ranked_list, ranked_list_rows, recall_at_k, recall_at_k_rows
from dml_jax.losses.roadmap import happier, happier_rows, roadmap, roadmap_rows
from dml_jax.losses.triplet import triplet_margin, triplet_margin_rows
from dml_jax.losses.tuplet import (
    intra_pair_sums,
    intra_pair_variance,
    intra_pair_variance_rows,
    tuplet_margin,
    tuplet_margin_rows,
)
from dml_jax.losses.wrappers import (
    CrossBatchMemory,
    Multiple,
    SelfSupervised,
    cross_batch_memory,
    multiple,
    self_supervised,
)
from dml_jax.names import resolve
from dml_jax.revisiting.class_losses import (
    revisiting_arc_face,
    revisiting_arc_face_logits,
    revisiting_proxy_nca,
    revisiting_proxy_nca_logits,
    revisiting_soft_triple,
    revisiting_soft_triple_logits,
    revisiting_softmax,
)
from dml_jax.revisiting.pair_losses import (
    revisiting_angular,
    revisiting_angular_rows,
    revisiting_generalized_lifted_structure,
    revisiting_generalized_lifted_structure_rows,
    revisiting_histogram,
    revisiting_histogram_sums,
    revisiting_multi_similarity,
    revisiting_multi_similarity_rows,
    revisiting_n_pair,
    revisiting_n_pair_rows,
)
from dml_jax.revisiting.triplet_losses import (
    revisiting_margin,
    revisiting_margin_rows,
    revisiting_quadruplet,
    revisiting_quadruplet_rows,
    revisiting_snr,
    revisiting_snr_rows,
)
from dml_jax.revisiting.view_losses import (
    revisiting_adversarial_separation,
    revisiting_adversarial_separation_views,
)

__all__ = [
    "LOSSES",
    "ClassLoss",
    "CrossBatchMemory",
    "GraphLoss",
    "Loss",
    "Multiple",
    "Outliers",
    "PairLoss",
    "PartialFC",
    "ProxyLoss",
    "References",
    "SelfSupervised",
    "SumsLoss",
    "ViewsLoss",
    "angular",
    "angular_rows",
    "arc_face",
    "arc_face_logits",
    "available",
    "circle",
    "circle_rows",
    "contrastive",
    "contrastive_rows",
    "cos_face",
    "cos_face_logits",
    "cross_batch_memory",
    "dynamic_soft_margin",
    "dynamic_soft_margin_rows",
    "dynamic_soft_margin_sums",
    "fast_ap",
    "fast_ap_rows",
    "from_rows",
    "generalized_lifted_structure",
    "generalized_lifted_structure_rows",
    "generic_pair",
    "get",
    "happier",
    "happier_rows",
    "has_class_weights",
    "histogram",
    "histogram_sums",
    "histogram_value",
    "instance",
    "instance_rows",
    "intra_pair_sums",
    "intra_pair_variance",
    "intra_pair_variance_rows",
    "large_margin_softmax",
    "large_margin_softmax_logits",
    "lifted_structure",
    "lifted_structure_prepass",
    "lifted_structure_rows",
    "manifold",
    "manifold_graph",
    "margin",
    "margin_rows",
    "multi_similarity",
    "multi_similarity_rows",
    "multiple",
    "n_pairs",
    "n_pairs_rows",
    "nca",
    "nca_rows",
    "normalized_softmax",
    "normalized_softmax_logits",
    "nt_xent",
    "nt_xent_rows",
    "on_pairs",
    "p2s_grad",
    "p2s_grad_terms",
    "pair_loss",
    "partial_fc",
    "pnp",
    "pnp_rows",
    "proxy_anchor",
    "proxy_anchor_rows",
    "proxy_nca",
    "proxy_nca_logits",
    "proxy_nca_pp",
    "proxy_nca_pp_logits",
    "ranked_list",
    "ranked_list_rows",
    "recall_at_k",
    "recall_at_k_rows",
    "revisiting_adversarial_separation",
    "revisiting_adversarial_separation_views",
    "revisiting_angular",
    "revisiting_angular_rows",
    "revisiting_arc_face",
    "revisiting_arc_face_logits",
    "revisiting_generalized_lifted_structure",
    "revisiting_generalized_lifted_structure_rows",
    "revisiting_histogram",
    "revisiting_histogram_sums",
    "revisiting_margin",
    "revisiting_margin_rows",
    "revisiting_multi_similarity",
    "revisiting_multi_similarity_rows",
    "revisiting_n_pair",
    "revisiting_n_pair_rows",
    "revisiting_proxy_nca",
    "revisiting_proxy_nca_logits",
    "revisiting_quadruplet",
    "revisiting_quadruplet_rows",
    "revisiting_snr",
    "revisiting_snr_rows",
    "revisiting_soft_triple",
    "revisiting_soft_triple_logits",
    "revisiting_softmax",
    "roadmap",
    "roadmap_rows",
    "self_supervised",
    "sigmoid",
    "sigmoid_rows",
    "signal_to_noise_ratio_contrastive",
    "smooth_ap",
    "smooth_ap_rows",
    "soft_triple",
    "soft_triple_logits",
    "sphere_face",
    "sphere_face_logits",
    "sub_center_arc_face",
    "sub_center_arc_face_logits",
    "sub_center_outliers",
    "sup_con",
    "sup_con_rows",
    "threshold_consistent_margin",
    "threshold_consistent_margin_rows",
    "triplet_margin",
    "triplet_margin_rows",
    "tuplet_margin",
    "tuplet_margin_rows",
    "vic_reg",
    "vic_reg_views",
]

LOSSES: dict[str, Callable[..., Loss]] = {
    "angular": angular,
    "arc_face": arc_face,
    "circle": circle,
    "contrastive": contrastive,
    "cos_face": cos_face,
    "cross_batch_memory": cross_batch_memory,
    "dynamic_soft_margin": dynamic_soft_margin,
    "fast_ap": fast_ap,
    "generalized_lifted_structure": generalized_lifted_structure,
    "generic_pair": generic_pair,
    "happier": happier,
    "histogram": histogram,
    "instance": instance,
    "intra_pair_variance": intra_pair_variance,
    "large_margin_softmax": large_margin_softmax,
    "lifted_structure": lifted_structure,
    "manifold": manifold,
    "margin": margin,
    "multi_similarity": multi_similarity,
    "multiple": multiple,
    "n_pairs": n_pairs,
    "nca": nca,
    "normalized_softmax": normalized_softmax,
    "nt_xent": nt_xent,
    "p2s_grad": p2s_grad,
    "partial_fc": partial_fc,
    "pnp": pnp,
    "proxy_anchor": proxy_anchor,
    "proxy_nca": proxy_nca,
    "proxy_nca_pp": proxy_nca_pp,
    "ranked_list": ranked_list,
    "recall_at_k": recall_at_k,
    "roadmap": roadmap,
    "self_supervised": self_supervised,
    "sigmoid": sigmoid,
    "signal_to_noise_ratio_contrastive": signal_to_noise_ratio_contrastive,
    "smooth_ap": smooth_ap,
    "soft_triple": soft_triple,
    "sphere_face": sphere_face,
    "sub_center_arc_face": sub_center_arc_face,
    "sup_con": sup_con,
    "threshold_consistent_margin": threshold_consistent_margin,
    "triplet_margin": triplet_margin,
    "tuplet_margin": tuplet_margin,
    "vic_reg": vic_reg,
    # As the ICML 2020 system computes them.
    "revisiting_adversarial_separation": revisiting_adversarial_separation,
    "revisiting_angular": revisiting_angular,
    "revisiting_arc_face": revisiting_arc_face,
    "revisiting_generalized_lifted_structure": revisiting_generalized_lifted_structure,
    "revisiting_histogram": revisiting_histogram,
    "revisiting_margin": revisiting_margin,
    "revisiting_multi_similarity": revisiting_multi_similarity,
    "revisiting_n_pair": revisiting_n_pair,
    "revisiting_proxy_nca": revisiting_proxy_nca,
    "revisiting_quadruplet": revisiting_quadruplet,
    "revisiting_snr": revisiting_snr,
    "revisiting_soft_triple": revisiting_soft_triple,
    "revisiting_softmax": revisiting_softmax,
}
_PARTS = ("miner", "distance", "reducer", "regularizer", "relation")


def available() -> list[str]:
    """Lists the names that `get` takes.

    Example:
      >>> "multi_similarity" in available()
      True
    """
    return sorted(LOSSES)


def get(name: str, **given: Any) -> Loss:
    """Returns the loss called `name`, with PML's hyper-parameters and defaults.

    Args:
      name: one of `available()`, or "package.module:name" for a function of the user's own that returns a `Loss`
        (`pair_loss` makes one of a row kernel).
      **given: its hyper-parameters, and its parts: `miner`, `distance`, `reducer`, `regularizer` and `relation`, each a
        name, a dict with a name, or the object; those that are None are its defaults.

    Raises:
      UserError: names and hyper-parameters that do not exist, with near misses; values out of range; a part that the
        loss has no use for.

    >>> get("contrastive", neg_margin=0.5) == contrastive(neg_margin=0.5)
    True
    """
    factory = resolve("loss", LOSSES, name)
    if callable(factory):
        accepted = signature(factory).parameters
        for part in _PARTS:
            value = given.get(part)
            if part not in given or part in accepted:
                continue
            if value is not None and {"loss", "losses"} & accepted.keys():
                inside = "each of its losses" if "losses" in accepted else "the loss inside it"
                raise UserError(f"loss {name!r} takes the {part} in {inside}")
            if value is not None:
                raise UserError(
                    f"loss {name!r} has no use for a {part}, which is {value!r}; accepted: None"
                )
            given = {k: v for k, v in given.items() if k != part}
    return parameters.make("loss", LOSSES, Loss, name, given)  # type: ignore[type-abstract]
