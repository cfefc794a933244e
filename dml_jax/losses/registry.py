"""Every loss by name: its class, its kernel and what it is made with."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dml_jax import classwise, distances, names
from dml_jax.losses import (
    classification,
    distribution,
    lifted,
    margin,
    neighbour,
    pair,
    proxy,
    ranking,
    revisiting,
    triplet,
    tuplet,
)
from dml_jax.losses.base import KernelLoss, PairLoss, ProxyLoss, SoftmaxLoss
from dml_jax.losses.own import (
    GraphLoss,
    MarginLoss,
    NPairsLoss,
    RunningLoss,
    SigmoidLoss,
    SumsLoss,
    TripletLoss,
    ViewsLoss,
)
from dml_jax.losses.revisiting_own import (
    OnePositiveLoss,
    PredictorLoss,
    QuadrupletLoss,
    SoftTripleLoss,
    SummedMarginLoss,
)
from dml_jax.losses.wrappers import WRAPPERS

# Fields of losses, beside the kernel, whose keywords are hyper-parameters, too.
PHASES = ("first", "begin", "update")
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
    "units",
    "levels",
    "norms",
    "ref_labels",
    "keys",
    "learned",
    "log_sums",
)


@dataclass(frozen=True)
class Entry:
    """How a named loss is put together: its class, kernel and PML's defaults.

    Attributes:
      distance: its default, a name or a dict with a name.
      distances: the names it may be used with; () for any.
      more: further fields of the class.
      unit: whether it is defined for normalised vectors alone.
      without: settings that it has no use for, so that giving one is an error.
      regularizer: its default, as `regularizers.build` takes it; () for none.
    """

    cls: type[KernelLoss]
    kernel: Any
    distance: Any
    reducer: Any
    distances: tuple[str, ...] = ()
    more: tuple[tuple[str, Any], ...] = ()
    unit: bool = False
    without: tuple[str, ...] = ()
    regularizer: Any = ()

    def hyper_parameters(self) -> dict[str, Any]:
        """The settings of the class and the keywords of the kernel and its phases, with their defaults."""
        accepted = dict(self.cls.settings)
        for function in (self.kernel, *(dict(self.more).get(phase) for phase in PHASES)):
            accepted |= {} if function is None else names.keywords(function, without=DERIVED)
        return accepted


NORMAL = (("init_weights", classification.normal_weights),)
SQUARED = {"name": "lp", "power": 2}
SIMILARITIES = distances.SIMILARITIES
RAW = {"normalize_embeddings": False}
RAW_DOT = {"name": "dot_product", **RAW}
NORMS = {"name": "lp", "weight": 0.005}
LOSSES: Mapping[str, Entry] = {
    "arc_face": Entry(
        SoftmaxLoss, classification.arc_face_logits, "cosine", "mean", ("cosine",), NORMAL
    ),
    "contrastive": Entry(PairLoss, pair.contrastive_rows, "lp", "avg_non_zero"),
    "cos_face": Entry(
        SoftmaxLoss, classification.cos_face_logits, "cosine", "mean", ("cosine",), NORMAL
    ),
    "multi_similarity": Entry(PairLoss, pair.multi_similarity_rows, "cosine", "mean"),
    "normalized_softmax": Entry(
        SoftmaxLoss, classification.normalized_softmax_logits, "dot_product", "mean", (), NORMAL
    ),
    "nt_xent": Entry(PairLoss, pair.nt_xent_rows, "cosine", "mean"),
    "proxy_anchor": Entry(
        ProxyLoss,
        proxy.proxy_anchor_rows,
        "cosine",
        "divisor",
        (),
        (("init_weights", proxy.fan_out_proxies),),
    ),
    "sup_con": Entry(
        PairLoss, pair.sup_con_rows, "cosine", "avg_non_zero", (), (("needs_negatives", True),)
    ),
    "threshold_consistent_margin": Entry(
        PairLoss, pair.threshold_consistent_margin_rows, "cosine", "mean", ("cosine",)
    ),
    "triplet_margin": Entry(TripletLoss, triplet.triplet_margin_rows, "lp", "avg_non_zero"),
    "circle": Entry(PairLoss, pair.circle_rows, "cosine", "avg_non_zero", ("cosine",)),
    "generalized_lifted_structure": Entry(
        PairLoss, lifted.generalized_lifted_structure_rows, "lp", "mean"
    ),
    "instance": Entry(
        PairLoss,
        neighbour.instance_rows,
        "cosine",
        "mean",
        ("cosine",),
        (("takes_references", False),),
    ),
    "intra_pair_variance": Entry(
        PairLoss,
        tuplet.intra_pair_variance_rows,
        "cosine",
        "mean",
        (),
        (("first", tuplet.intra_pair_sums),),
    ),
    "lifted_structure": Entry(
        PairLoss,
        lifted.lifted_structure_rows,
        "lp",
        "mean",
        (),
        (("first", lifted.lifted_structure_columns), ("takes_references", False)),
    ),
    "margin": Entry(MarginLoss, margin.margin_rows, "lp", "divisor"),
    "n_pairs": Entry(
        NPairsLoss,
        neighbour.n_pairs_rows,
        "dot_product",
        "mean",
        (),
        (("takes_references", False),),
    ),
    "nca": Entry(PairLoss, neighbour.nca_rows, SQUARED, "mean", (), (("weighs_samples", True),)),
    "signal_to_noise_ratio_contrastive": Entry(
        PairLoss, pair.contrastive_rows, "snr", "avg_non_zero", ("snr",)
    ),
    "tuplet_margin": Entry(PairLoss, tuplet.tuplet_margin_rows, "cosine", "mean", ("cosine",)),
    "large_margin_softmax": Entry(
        SoftmaxLoss,
        classification.large_margin_softmax_logits,
        "cosine",
        "mean",
        ("cosine",),
        NORMAL,
    ),
    "p2s_grad": Entry(
        SoftmaxLoss,
        classification.p2s_grad_terms,
        "cosine",
        "mean",
        ("cosine",),
        (("init_weights", classification.unit_weights), ("over_classes", classwise.mean)),
    ),
    "proxy_nca": Entry(
        SoftmaxLoss,
        classification.proxy_nca_logits,
        SQUARED,
        "mean",
        (),
        (*NORMAL, ("weigh_partners", False)),
    ),
    "proxy_nca_pp": Entry(
        SoftmaxLoss,
        classification.proxy_nca_pp_logits,
        SQUARED,
        "mean",
        (),
        (("init_weights", classification.small_weights),),
    ),
    "sigmoid": Entry(SigmoidLoss, pair.sigmoid_rows, "cosine", "mean", SIMILARITIES),
    "soft_triple": Entry(
        SoftmaxLoss,
        classification.soft_triple_logits,
        "cosine",
        "mean",
        SIMILARITIES,
        (("init_weights", classification.fan_in_centers), ("centers", "centers_per_class")),
    ),
    "sphere_face": Entry(
        SoftmaxLoss, classification.sphere_face_logits, "cosine", "mean", ("cosine",), NORMAL
    ),
    "sub_center_arc_face": Entry(
        SoftmaxLoss,
        classification.sub_center_arc_face_logits,
        "cosine",
        "mean",
        ("cosine",),
        (*NORMAL, ("centers", "sub_centers")),
    ),
    # Rankings and distributions.
    "angular": Entry(PairLoss, ranking.angular_rows, "cosine", "mean", ("cosine",)),
    "dynamic_soft_margin": Entry(
        RunningLoss,
        distribution.dynamic_soft_margin_rows,
        "lp",
        "mean",
        ("lp",),
        (
            ("first", distribution.dynamic_soft_margin_sums),
            ("begin", distribution.dynamic_soft_margin_state),
            ("update", distribution.dynamic_soft_margin_update),
        ),
        unit=True,
    ),
    "fast_ap": Entry(
        PairLoss,
        ranking.fast_ap_rows,
        SQUARED,
        "mean",
        ("lp",),
        (("weighs_samples", True),),
        unit=True,
    ),
    "happier": Entry(
        PairLoss, ranking.happier_rows, "cosine", "mean", ("cosine",), (("weighs_samples", True),)
    ),
    "histogram": Entry(
        SumsLoss,
        distribution.histogram_value,
        "cosine",
        "mean",
        ("cosine",),
        (("first", distribution.histogram_sums),),
        without=("reducer",),
    ),
    "manifold": Entry(
        GraphLoss,
        distribution.manifold_graph,
        "cosine",
        "mean",
        ("cosine",),
        without=("miner", "reducer"),
    ),
    "pnp": Entry(PairLoss, ranking.pnp_rows, "cosine", "mean", ("cosine",)),
    "ranked_list": Entry(PairLoss, ranking.ranked_list_rows, "lp", "mean", ("lp", "snr")),
    "recall_at_k": Entry(
        PairLoss,
        ranking.recall_at_k_rows,
        "cosine",
        "mean",
        ("cosine",),
        (("weighs_samples", True),),
    ),
    "roadmap": Entry(
        PairLoss, ranking.roadmap_rows, "cosine", "mean", ("cosine",), (("weighs_samples", True),)
    ),
    "smooth_ap": Entry(
        PairLoss, ranking.smooth_ap_rows, "cosine", "mean", ("cosine",), (("weighs_samples", True),)
    ),
    "vic_reg": Entry(
        ViewsLoss,
        distribution.vic_reg_views,
        "lp",
        "mean",
        without=("distance", "miner", "reducer", "relation"),
    ),
    # As the ICML 2020 system computes them.
    "revisiting_adversarial_separation": Entry(
        PredictorLoss,
        revisiting.revisiting_adversarial_separation_views,
        "lp",
        "mean",
        without=("distance", "miner", "reducer", "relation"),
    ),
    "revisiting_angular": Entry(
        OnePositiveLoss,
        revisiting.revisiting_angular_rows,
        RAW_DOT,
        "mean",
        ("dot_product",),
        regularizer=NORMS,
    ),
    "revisiting_arc_face": Entry(
        SoftmaxLoss,
        revisiting.revisiting_arc_face_logits,
        "cosine",
        "mean",
        ("cosine",),
        (("init_weights", classification.fan_in_weights),),
    ),
    "revisiting_generalized_lifted_structure": Entry(
        PairLoss,
        revisiting.revisiting_generalized_lifted_structure_rows,
        {"name": "lp", "eps": 1e-6, **RAW},
        "mean",
        ("lp",),
        regularizer=NORMS,
    ),
    "revisiting_histogram": Entry(
        SumsLoss,
        distribution.histogram_value,
        "cosine",
        "mean",
        ("cosine",),
        (("first", revisiting.revisiting_histogram_sums),),
        without=("reducer",),
    ),
    "revisiting_margin": Entry(
        SummedMarginLoss, revisiting.revisiting_margin_rows, "lp", "divisor", ("lp",)
    ),
    "revisiting_multi_similarity": Entry(
        PairLoss, revisiting.revisiting_multi_similarity_rows, "cosine", "mean"
    ),
    "revisiting_n_pair": Entry(
        OnePositiveLoss, revisiting.revisiting_n_pair_rows, RAW_DOT, "mean", regularizer=NORMS
    ),
    "revisiting_proxy_nca": Entry(
        SoftmaxLoss,
        revisiting.revisiting_proxy_nca_logits,
        SQUARED,
        "mean",
        (),
        (
            ("init_weights", classification.small_weights),
            ("over_classes", classwise.other_classes),
            ("weigh_partners", False),
        ),
    ),
    "revisiting_quadruplet": Entry(
        QuadrupletLoss, revisiting.revisiting_quadruplet_rows, "lp", "mean", ("lp",)
    ),
    "revisiting_snr": Entry(
        TripletLoss,
        revisiting.revisiting_snr_rows,
        {"name": "snr", **RAW},
        {"name": "multiple", "default": "avg_non_zero", "mean": "mean"},
        ("snr",),
    ),
    "revisiting_soft_triple": Entry(
        SoftTripleLoss,
        revisiting.revisiting_soft_triple_logits,
        "cosine",
        "mean",
        ("cosine",),
        (("init_weights", classification.fan_in_centers), ("centers", "centers_per_class")),
    ),
    "revisiting_softmax": Entry(
        SoftmaxLoss,
        classification.normalized_softmax_logits,
        RAW_DOT,
        "mean",
        SIMILARITIES,
        (("init_weights", classification.fan_in_weights), ("unit_weights", True)),
    ),
}
# Losses whose kernel is the user's, and losses made of losses.
GENERIC = "generic_pair"


def available() -> list[str]:
    """The names that `get` takes."""
    return sorted([*LOSSES, *WRAPPERS, GENERIC])


def hyper_parameters(name: str) -> dict[str, Any]:
    """What `get(name, ...)` takes beside the settings of every loss, with the defaults.

    `inspect.Parameter.empty` stands for one that is required. Raises ValueError for an unknown name.
    """
    if name in WRAPPERS:
        return names.keywords(WRAPPERS[name])
    if name == GENERIC:
        return {"rows": inspect.Parameter.empty}
    return names.resolve("loss", LOSSES, name).hyper_parameters()
