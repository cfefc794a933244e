"""Losses by name, and their row kernels."""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dml_jax import classwise, distances, miners, names, reducers, regularizers, relations
from dml_jax.losses.base import (
    ClassLoss,
    KernelLoss,
    Loss,
    PairLoss,
    ProxyLoss,
    SoftmaxLoss,
)
from dml_jax.losses.classification import (
    arc_face_logits,
    cos_face_logits,
    fan_in_centers,
    fan_in_weights,
    large_margin_softmax_logits,
    normal_weights,
    normalized_softmax_logits,
    p2s_grad_terms,
    proxy_nca_logits,
    proxy_nca_pp_logits,
    small_weights,
    soft_triple_logits,
    sphere_face_logits,
    sub_center_arc_face_logits,
    sub_center_outliers,
    unit_weights,
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
from dml_jax.losses.lifted import (
    generalized_lifted_structure_rows,
    lifted_structure_columns,
    lifted_structure_rows,
)
from dml_jax.losses.margin import margin_rows
from dml_jax.losses.neighbour import instance_rows, n_pairs_rows, nca_rows
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
from dml_jax.losses.pair import (
    circle_rows,
    contrastive_rows,
    multi_similarity_rows,
    nt_xent_rows,
    sigmoid_rows,
    sup_con_rows,
    threshold_consistent_margin_rows,
)
from dml_jax.losses.proxy import fan_out_proxies, proxy_anchor_rows
from dml_jax.losses.ranking import (
    angular_rows,
    fast_ap_rows,
    happier_rows,
    pnp_rows,
    ranked_list_rows,
    recall_at_k_rows,
    roadmap_rows,
    smooth_ap_rows,
)
from dml_jax.losses.revisiting import (
    revisiting_adversarial_separation_views,
    revisiting_angular_rows,
    revisiting_arc_face_logits,
    revisiting_generalized_lifted_structure_rows,
    revisiting_histogram_sums,
    revisiting_margin_rows,
    revisiting_multi_similarity_rows,
    revisiting_n_pair_rows,
    revisiting_proxy_nca_logits,
    revisiting_quadruplet_rows,
    revisiting_snr_rows,
    revisiting_soft_triple_logits,
)
from dml_jax.losses.revisiting_own import (
    OnePositiveLoss,
    PredictorLoss,
    QuadrupletLoss,
    SoftTripleLoss,
    SummedMarginLoss,
)
from dml_jax.losses.triplet import triplet_margin_rows
from dml_jax.losses.tuplet import intra_pair_sums, intra_pair_variance_rows, tuplet_margin_rows
from dml_jax.losses.wrappers import WRAPPERS, with_miner

__all__ = [
    "LOSSES",
    "ClassLoss",
    "Loss",
    "angular_rows",
    "arc_face_logits",
    "available",
    "circle_rows",
    "contrastive_rows",
    "cos_face_logits",
    "dynamic_soft_margin_rows",
    "dynamic_soft_margin_sums",
    "fast_ap_rows",
    "generalized_lifted_structure_rows",
    "get",
    "happier_rows",
    "histogram_sums",
    "histogram_value",
    "hyper_parameters",
    "instance_rows",
    "intra_pair_variance_rows",
    "large_margin_softmax_logits",
    "lifted_structure_rows",
    "manifold_graph",
    "margin_rows",
    "multi_similarity_rows",
    "n_pairs_rows",
    "nca_rows",
    "normalized_softmax_logits",
    "nt_xent_rows",
    "p2s_grad_terms",
    "pnp_rows",
    "proxy_anchor_rows",
    "proxy_nca_logits",
    "proxy_nca_pp_logits",
    "ranked_list_rows",
    "recall_at_k_rows",
    "revisiting_adversarial_separation_views",
    "revisiting_angular_rows",
    "revisiting_arc_face_logits",
    "revisiting_generalized_lifted_structure_rows",
    "revisiting_histogram_sums",
    "revisiting_margin_rows",
    "revisiting_multi_similarity_rows",
    "revisiting_n_pair_rows",
    "revisiting_proxy_nca_logits",
    "revisiting_quadruplet_rows",
    "revisiting_snr_rows",
    "revisiting_soft_triple_logits",
    "roadmap_rows",
    "sigmoid_rows",
    "smooth_ap_rows",
    "soft_triple_logits",
    "sphere_face_logits",
    "sub_center_arc_face_logits",
    "sub_center_outliers",
    "sup_con_rows",
    "threshold_consistent_margin_rows",
    "triplet_margin_rows",
    "tuplet_margin_rows",
    "vic_reg_views",
]


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


NORMAL = (("init_weights", normal_weights),)
SQUARED = {"name": "lp", "power": 2}
SIMILARITIES = distances.SIMILARITIES
RAW = {"normalize_embeddings": False}
RAW_DOT = {"name": "dot_product", **RAW}
NORMS = {"name": "lp", "weight": 0.005}
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
    "nca": Entry(PairLoss, nca_rows, SQUARED, "mean", (), (("weighs_samples", True),)),
    "signal_to_noise_ratio_contrastive": Entry(
        PairLoss, contrastive_rows, "snr", "avg_non_zero", ("snr",)
    ),
    "tuplet_margin": Entry(PairLoss, tuplet_margin_rows, "cosine", "mean", ("cosine",)),
    "large_margin_softmax": Entry(
        SoftmaxLoss, large_margin_softmax_logits, "cosine", "mean", ("cosine",), NORMAL
    ),
    "p2s_grad": Entry(
        SoftmaxLoss,
        p2s_grad_terms,
        "cosine",
        "mean",
        ("cosine",),
        (("init_weights", unit_weights), ("over_classes", classwise.mean)),
    ),
    "proxy_nca": Entry(
        SoftmaxLoss,
        proxy_nca_logits,
        SQUARED,
        "mean",
        (),
        (*NORMAL, ("weigh_partners", False)),
    ),
    "proxy_nca_pp": Entry(
        SoftmaxLoss, proxy_nca_pp_logits, SQUARED, "mean", (), (("init_weights", small_weights),)
    ),
    "sigmoid": Entry(SigmoidLoss, sigmoid_rows, "cosine", "mean", SIMILARITIES),
    "soft_triple": Entry(
        SoftmaxLoss,
        soft_triple_logits,
        "cosine",
        "mean",
        SIMILARITIES,
        (("init_weights", fan_in_centers), ("centers", "centers_per_class")),
    ),
    "sphere_face": Entry(SoftmaxLoss, sphere_face_logits, "cosine", "mean", ("cosine",), NORMAL),
    "sub_center_arc_face": Entry(
        SoftmaxLoss,
        sub_center_arc_face_logits,
        "cosine",
        "mean",
        ("cosine",),
        (*NORMAL, ("centers", "sub_centers")),
    ),
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
        PairLoss, fast_ap_rows, SQUARED, "mean", ("lp",), (("weighs_samples", True),), unit=True
    ),
    "happier": Entry(
        PairLoss, happier_rows, "cosine", "mean", ("cosine",), (("weighs_samples", True),)
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
    "recall_at_k": Entry(
        PairLoss, recall_at_k_rows, "cosine", "mean", ("cosine",), (("weighs_samples", True),)
    ),
    "roadmap": Entry(
        PairLoss, roadmap_rows, "cosine", "mean", ("cosine",), (("weighs_samples", True),)
    ),
    "smooth_ap": Entry(
        PairLoss, smooth_ap_rows, "cosine", "mean", ("cosine",), (("weighs_samples", True),)
    ),
    "vic_reg": Entry(
        ViewsLoss,
        vic_reg_views,
        "lp",
        "mean",
        without=("distance", "miner", "reducer", "relation"),
    ),
    # As the ICML 2020 system computes them.
    "revisiting_adversarial_separation": Entry(
        PredictorLoss,
        revisiting_adversarial_separation_views,
        "lp",
        "mean",
        without=("distance", "miner", "reducer", "relation"),
    ),
    "revisiting_angular": Entry(
        OnePositiveLoss,
        revisiting_angular_rows,
        RAW_DOT,
        "mean",
        ("dot_product",),
        regularizer=NORMS,
    ),
    "revisiting_arc_face": Entry(
        SoftmaxLoss,
        revisiting_arc_face_logits,
        "cosine",
        "mean",
        ("cosine",),
        (("init_weights", fan_in_weights),),
    ),
    "revisiting_generalized_lifted_structure": Entry(
        PairLoss,
        revisiting_generalized_lifted_structure_rows,
        {"name": "lp", "eps": 1e-6, **RAW},
        "mean",
        ("lp",),
        regularizer=NORMS,
    ),
    "revisiting_histogram": Entry(
        SumsLoss,
        histogram_value,
        "cosine",
        "mean",
        ("cosine",),
        (("first", revisiting_histogram_sums),),
        without=("reducer",),
    ),
    "revisiting_margin": Entry(SummedMarginLoss, revisiting_margin_rows, "lp", "divisor", ("lp",)),
    "revisiting_multi_similarity": Entry(
        PairLoss, revisiting_multi_similarity_rows, "cosine", "mean"
    ),
    "revisiting_n_pair": Entry(
        OnePositiveLoss, revisiting_n_pair_rows, RAW_DOT, "mean", regularizer=NORMS
    ),
    "revisiting_proxy_nca": Entry(
        SoftmaxLoss,
        revisiting_proxy_nca_logits,
        SQUARED,
        "mean",
        (),
        (
            ("init_weights", small_weights),
            ("over_classes", classwise.other_classes),
            ("weigh_partners", False),
        ),
    ),
    "revisiting_quadruplet": Entry(
        QuadrupletLoss, revisiting_quadruplet_rows, "lp", "mean", ("lp",)
    ),
    "revisiting_snr": Entry(
        TripletLoss,
        revisiting_snr_rows,
        {"name": "snr", **RAW},
        {"name": "multiple", "default": "avg_non_zero", "mean": "mean"},
        ("snr",),
    ),
    "revisiting_soft_triple": Entry(
        SoftTripleLoss,
        revisiting_soft_triple_logits,
        "cosine",
        "mean",
        ("cosine",),
        (("init_weights", fan_in_centers), ("centers", "centers_per_class")),
    ),
    "revisiting_softmax": Entry(
        SoftmaxLoss,
        normalized_softmax_logits,
        RAW_DOT,
        "mean",
        SIMILARITIES,
        (("init_weights", fan_in_weights), ("unit_weights", True)),
    ),
}
# Losses whose kernel is the user's, and losses made of losses.
GENERIC = "generic_pair"
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
    "levels",
    "norms",
    "ref_labels",
    "keys",
    "learned",
    "log_sums",
)


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
    return _hyper_parameters(names.resolve("loss", LOSSES, name))


def _hyper_parameters(entry: Entry) -> dict[str, Any]:
    accepted = dict(entry.cls.settings)
    for function in (entry.kernel, *(dict(entry.more).get(phase) for phase in PHASES)):
        accepted |= {} if function is None else names.keywords(function, without=DERIVED)
    return accepted


def get(
    name: str,
    *,
    miner: Any = None,
    distance: Any = None,
    reducer: Any = None,
    relation: Any = None,
    regularizer: Any = None,
    **hyper: Any,
) -> Loss:
    """The loss called `name`, with PML's hyper-parameters and defaults.

    Args:
      name: one of `available()`.
      miner: narrows the pairs or triplets; a loss against class weights takes it as sample weights.
      distance, reducer: the loss's defaults (PML's) where None; a few losses have no use for one.
      relation: what makes two samples positives (`relations.get`); None: equal integer labels.
      regularizer: penalties that are added, see `regularizers.get`; several as a list. None: the loss's own,
        which few have; (): none.
      **hyper: the keyword parameters of the loss's kernel.

    Each of miner, distance, reducer, relation, regularizer is a name, a dict with a name and
    hyper-parameters, or the object. Raises ValueError, with near misses, for names and hyper-parameters
    that do not exist and for a distance that the loss is not defined for.

    "generic_pair" takes `rows`, a row kernel of the user's own, `(sims [a, n], pos, neg, *, ...) ->
    (values, weights)` (docs/design.md), and its keyword parameters. "multiple" takes `losses` (a dict, or a
    list of losses, which are then called "0", "1", ...) and `weights`; "self_supervised" and
    "cross_batch_memory" take a `loss`: as names, dicts with a name, or objects.
    """
    if name in WRAPPERS:
        given = {"distance": distance, "reducer": reducer, "relation": relation}
        for keyword, value in (given | {"regularizer": regularizer}).items():
            if value is not None:
                raise ValueError(f"loss {name!r} takes the {keyword} in the loss inside it")
        return _wrapper(name, miner, hyper)
    if name == GENERIC:
        entry = _generic(hyper.pop("rows", None))
    else:
        entry = names.resolve("loss", {**LOSSES, **dict.fromkeys((*WRAPPERS, GENERIC))}, name)
    accepted = _hyper_parameters(entry)
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
    chosen = reducers.build(reducer or entry.reducer)
    if chosen.by == "divisor" and entry.reducer != "divisor":
        accepted_reducers = [r for r in reducers.available() if r != "divisor"]
        raise ValueError(
            f"loss {name!r} supplies nothing to divide by for reducer {chosen.name!r}; accepted: "
            f"{', '.join(accepted_reducers)}"
        )
    related = relations.build(relation)
    by_class = any(r.class_weights for r in (chosen, *dict(chosen.terms).values()))
    if by_class and not related.kind.has_classes:
        raise ValueError(
            f"reducer 'class_weighted' needs the anchors' classes, which relation {related.name!r} does not "
            f"give; accepted: relation {relations.WITH_CLASSES}"
        )
    loss = entry.cls(
        name=name,
        relation=related,
        kernel=entry.kernel,
        hyper=tuple(sorted(hyper.items())),
        distance=built,
        reducer=chosen,
        miner=names.build("miner", miners.get, miners.Miner, miner),
        regularizers=_regularizers(name, entry, regularizer),
        **dict(entry.more),
    )
    graded = "levels" in names.keywords(entry.kernel)
    if (loss.needs_labels or graded) and not related.kind.has_classes:
        raise ValueError(
            f"loss {name!r} reads the classes of samples and takes relation {relations.WITH_CLASSES}, not "
            f"{related.name!r}"
        )
    return loss


def _regularizers(name: str, entry: Entry, spec: Any) -> tuple[regularizers.Regularizer, ...]:
    """The regularizers of a loss, which must have the weights that they are of."""
    built = regularizers.build(entry.regularizer if spec is None else spec)
    for one in built:
        if one.of == "weights" and not issubclass(entry.cls, ClassLoss):
            raise ValueError(
                f"loss {name!r} has no class weights for regularizer {one.name!r} of 'weights'; accepted: "
                "of='embeddings', or a loss against class weights"
            )
        if one.name == "sparse_centers" and "centers" not in dict(entry.more):
            several = sorted(n for n, e in LOSSES.items() if "centers" in dict(e.more))
            raise ValueError(
                f"loss {name!r} has one center a class, and regularizer 'sparse_centers' is of several; "
                f"accepted: {', '.join(several)}"
            )
    return built


def _generic(rows: Any) -> Entry:
    """The entry of a user's own row kernel; one with a keyword `triplets` reads triplets."""
    if not callable(rows):
        raise ValueError(
            f"loss {GENERIC!r} has rows={rows!r}; accepted: a function "
            "(sims, pos, neg, *, ...) -> (values, weights)"
        )
    cls = TripletLoss if "triplets" in names.keywords(rows) else PairLoss
    return Entry(cls, rows, "lp", "mean")


def _wrapper(name: str, miner: Any, hyper: dict[str, Any]) -> Loss:
    """A loss made of losses, from their specifications."""
    make = WRAPPERS[name]
    names.check_hyper(f"loss {name!r}", names.keywords(make), hyper)
    mined = names.build("miner", miners.get, miners.Miner, miner)

    def build(spec: Any) -> Any:
        if spec is None:
            raise ValueError(f"loss {name!r} needs a loss inside it; None is not accepted")
        return names.build("loss", get, Loss, spec)

    if name == "multiple":
        several = hyper["losses"]
        if isinstance(several, (str, Loss)) or not isinstance(several, Iterable):
            raise ValueError(f"loss 'multiple' has losses={several!r}; accepted: a list or a dict")
        if not isinstance(several, Mapping):
            several = {str(i): spec for i, spec in enumerate(several)}
        parts = tuple((part, build(spec)) for part, spec in several.items())
        if mined is not None:
            raise ValueError("loss 'multiple' takes a miner in each of its losses")
        return make(**{**hyper, "losses": parts})
    return make(**{**hyper, "loss": with_miner(name, build(hyper["loss"]), mined)})
