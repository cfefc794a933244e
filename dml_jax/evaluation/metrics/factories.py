"""A typed factory for each metric.

Where the names of the ICML 2020 code (Roth et al.) and those of PyTorch Metric Learning (PML) mean nearly the same:
its metrics count queries with nothing to find as 0, PML's leave them out; `e_` and names without a prefix are of
Euclidean, `c_` of cosine distances, whatever distance the evaluation asks for; its `mAP` family divides by the
class's size with the query in it. Both systems' defects are not reproduced: each docstring says which.
"""

from dataclasses import replace
from functools import partial
from typing import Annotated, Literal

import numpy as np

from dml_jax.evaluation import clustering, spectrum
from dml_jax.evaluation.metrics import ranking
from dml_jax.evaluation.metrics.metric import Depth, Distance, Metric, all_neighbours
from dml_jax.evaluation.verification import consistency
from dml_jax.parameters import Fraction, Interval, PositiveInt, checked

Share = Annotated[float, Interval(0, 1, closed_high=True)]


def _r(relevant: np.ndarray, included: np.ndarray) -> np.ndarray:
    return np.maximum(relevant, 1)


def _with_self(relevant: np.ndarray, included: np.ndarray) -> np.ndarray:
    return relevant + included


def _at_most(depth: Depth, k: int | None) -> Depth:
    """Not beyond k, where there is one."""
    if k is None:
        return depth
    return lambda relevant, included: np.minimum(depth(relevant, included), k)


@checked("metric")
def recall_at_k(k: PositiveInt = 1) -> Metric:
    """1 where one of the first k neighbours is relevant; see `ranking.recall_at_k`.

    Args:
      k: how many neighbours are looked at, from 1 on.

    >>> recall_at_k(k=4).name
    'recall_at_4'
    """
    function = partial(ranking.recall_at_k, k=k)
    depth = _at_most(all_neighbours, k)
    return Metric(f"recall_at_{k}", f"R@{k}", "ranks", function, depth, first_hit_only=True)


@checked("metric")
def precision_at_k(k: PositiveInt = 1) -> Metric:
    """The share of the first k neighbours that is relevant; see `ranking.precision_at_k`.

    Args:
      k: how many neighbours are looked at, from 1 on.

    >>> precision_at_k(k=2)(np.array([[True, False, True]]), np.array([2]))
    array([0.5])
    """
    function = partial(ranking.precision_at_k, k=k)
    depth = _at_most(all_neighbours, k)
    # One neighbour is a hit or not: what comes after the first hit plays no part.
    return Metric(f"precision_at_{k}", f"P@{k}", "ranks", function, depth, first_hit_only=k == 1)


@checked("metric")
def r_precision(k: PositiveInt | None = None) -> Metric:
    """The share of the first R neighbours that is relevant; see `ranking.r_precision`.

    Args:
      k: looks at min(R, k) of them (PML's k); None: at R.

    >>> r_precision()(np.array([[True, False, True]]), np.array([2]))
    array([0.5])
    """
    function = partial(ranking.r_precision, k=k)
    return Metric("r_precision", "R-precision", "ranks", function, _at_most(_r, k))


@checked("metric")
def map_at_r(k: PositiveInt | None = None) -> Metric:
    """Mean average precision over the first R neighbours; see `ranking.map_at_r`.

    Args:
      k: looks at min(R, k) of them (PML's k); None: at R.

    >>> map_at_r()(np.array([[True, False, True]]), np.array([2]))
    array([0.5])
    """
    return Metric("map_at_r", "MAP@R", "ranks", partial(ranking.map_at_r, k=k), _at_most(_r, k))


def _named(stem: str, title: str, k: int | None) -> tuple[str, str]:
    return (stem, title) if k is None else (f"{stem}_at_{k}", f"{title}@{k}")


@checked("metric")
def mean_average_precision(k: PositiveInt | None = None) -> Metric:
    """Average precision over all relevant neighbours; see `ranking.mean_average_precision`.

    Args:
      k: looks at the first k neighbours alone; None: at all.

    >>> mean_average_precision(k=10).title
    'MAP@10'
    """
    name, title = _named("mean_average_precision", "MAP", k)
    function = partial(ranking.mean_average_precision, k=k)
    return Metric(name, title, "ranks", function, _at_most(all_neighbours, k))


@checked("metric")
def mean_reciprocal_rank(k: PositiveInt | None = None) -> Metric:
    """1 / the rank of the first hit; see `ranking.mean_reciprocal_rank`.

    Args:
      k: 0 where it is beyond the first k neighbours; None: looks at all.

    >>> mean_reciprocal_rank()(np.array([[False, True]]), np.array([1]))
    array([0.5])
    """
    name, title = _named("mean_reciprocal_rank", "MRR", k)
    function = partial(ranking.mean_reciprocal_rank, k=k)
    return Metric(name, title, "ranks", function, _at_most(all_neighbours, k), first_hit_only=True)


@checked("metric")
def ndcg(k: PositiveInt | None = None) -> Metric:
    """Normalised discounted cumulative gain; see `ranking.ndcg`.

    Args:
      k: looks at the first k neighbours alone; None: at all.

    >>> ndcg()(np.array([[True, False]]), np.array([1]))
    array([1.])
    """
    name, title = _named("ndcg", "nDCG", k)
    return Metric(name, title, "ranks", partial(ranking.ndcg, k=k), _at_most(all_neighbours, k))


@checked("metric")
def minp() -> Metric:
    """R / the rank of the last hit; see `ranking.mean_inverse_negative_penalty`.

    >>> minp()(np.array([[True, False, False, True]]), np.array([2]))
    array([0.5])
    """
    return Metric("minp", "mINP", "ranks", ranking.mean_inverse_negative_penalty, all_neighbours)


def _prefix(distance: str, euclidean: str = "") -> str:
    """How the ICML 2020 code says which distance is meant."""
    return "c_" if distance == "cosine" else euclidean


@checked("metric")
def revisiting_recall(k: PositiveInt = 1, distance: Distance = "euclidean") -> Metric:
    """`recall_at_k` as the ICML 2020 code has it: queries to which nothing is relevant count as misses.

    Args:
      k: how many neighbours are looked at, from 1 on.
      distance: `euclidean` (its `e_recall@k`) or `cosine` (`c_recall@k`).

    >>> revisiting_recall(k=4, distance="cosine").name
    'c_recall@4'
    """
    name = f"{_prefix(distance, 'e_')}recall@{k}"
    return replace(
        recall_at_k(k), name=name, title=name, distance=distance, counts_no_positives=True
    )


@checked("metric")
def revisiting_map(
    k: PositiveInt | None = None, distance: Distance = "euclidean", name: str = "mAP"
) -> Metric:
    """The `mAP` family of the ICML 2020 code; see `ranking.revisiting_map`.

    Args:
      k: looks at the first k neighbours alone; None: at all.
      distance: `euclidean` or `cosine`.
      name: as that code calls it, without the prefix of the distance.

    >>> revisiting_map(k=1000, name="mAP_1000").name
    'mAP_1000'
    """
    name = _prefix(distance) + name
    function = partial(ranking.revisiting_map, k=k)
    return Metric(
        name,
        name,
        "ranks",
        function,
        _at_most(all_neighbours, k),
        distance,
        counts_no_positives=True,
    )


@checked("metric")
def revisiting_map_c(distance: Distance = "euclidean") -> Metric:
    """The `mAP_c` of the ICML 2020 code; see `ranking.revisiting_map_c`.

    Args:
      distance: `euclidean` or `cosine`.

    >>> revisiting_map_c().counts_no_positives
    True
    """
    name = _prefix(distance) + "mAP_c"
    function = ranking.revisiting_map_c
    return Metric(name, name, "ranks", function, _with_self, distance, counts_no_positives=True)


@checked("metric")
def nmi(distance: Distance = "euclidean") -> Metric:
    """Normalised mutual information of labels and k-means clusters; see `clustering.nmi`.

    Args:
      distance: `euclidean`, or `cosine` (the ICML 2020 code's `c_nmi`; see `clustering.cosine_kmeans`).

    >>> nmi()(np.array([0, 0, 1]), np.array([5, 5, 2]))
    1.0
    """
    name = _prefix(distance) + "nmi"
    title = "NMI" if distance == "euclidean" else name
    return Metric(name, title, "clusters", clustering.nmi, distance=distance)


@checked("metric")
def ami() -> Metric:
    """Adjusted mutual information of labels and k-means clusters; see `clustering.ami`.

    >>> ami()(np.array([0, 0, 1]), np.array([5, 5, 2]))
    1.0
    """
    return Metric("ami", "AMI", "clusters", clustering.ami, distance="euclidean")


@checked("metric")
def f1(distance: Distance = "euclidean") -> Metric:
    """The F1 score of pairs in one k-means cluster; see `clustering.f1`.

    Args:
      distance: `euclidean`, or `cosine` (the ICML 2020 code's `c_f1`).

    >>> f1()(np.array([0, 0, 1]), np.array([5, 5, 2]))
    1.0
    """
    name = _prefix(distance) + "f1"
    title = "F1" if distance == "euclidean" else name
    return Metric(name, title, "clusters", clustering.f1, distance=distance)


@checked("metric")
def class_distances(
    mode: Literal["intra", "inter", "intra_over_inter"] = "intra",
) -> Metric:
    """Cosine distances within and between classes; see `spectrum.class_distances`.

    Args:
      mode: within classes, between them, or the quotient of the two.

    >>> class_distances("inter").name
    'dists@inter'
    """
    function = partial(spectrum.class_distances, mode=mode)
    return Metric(f"dists@{mode}", f"dists@{mode}", "space", function, better="")


@checked("metric")
def rho_spectrum(mode: int = 2) -> Metric:
    """How far the singular values of the embeddings are from equal; see `spectrum.rho_spectrum`.

    Args:
      mode: which of the values are left out, and the direction of the divergence.

    >>> rho_spectrum().name
    'rho_spectrum@2'
    """

    def function(embeddings: np.ndarray, labels: np.ndarray) -> float | np.ndarray:
        return spectrum.rho_spectrum(embeddings, mode)

    name = f"rho_spectrum@{mode}"
    return Metric(name, name, "space", function, better="")


@checked("metric")
def tar_at_far(far: Fraction = 0.001) -> Metric:
    """The true accept rate at a false accept rate; see `Verification.true_accept_rate`.

    Args:
      far: the false accept rate, from 0 to 1.

    >>> tar_at_far(0.01).name
    'tar@far=0.01'
    """
    name = f"tar@far={far:g}"
    function = lambda found: found.true_accept_rate(far)
    return Metric(name, name, "pairs", function, false_accept_rates=(far,))


@checked("metric")
def fnmr_at_fmr(fmr: Fraction = 0.001) -> Metric:
    """The false non-match rate at a false match rate: 1 - `tar_at_far`.

    Args:
      fmr: the false match rate, from 0 to 1.

    >>> fnmr_at_fmr().better
    'low'
    """
    name = f"fnmr@fmr={fmr:g}"
    function = lambda found: 1 - found.true_accept_rate(fmr)
    return Metric(name, name, "pairs", function, false_accept_rates=(fmr,), better="low")


@checked("metric")
def eer() -> Metric:
    """The equal error rate; see `Verification.equal_error_rate`.

    >>> eer().title
    'EER'
    """
    function = lambda found: found.equal_error_rate()
    return Metric("eer", "EER", "pairs", function, needs=("equal",), better="low")


@checked("metric")
def auc() -> Metric:
    """The area under the ROC, off by 5e-5 at most; see `Verification.area`.

    >>> auc().title
    'AUC'
    """
    return Metric("auc", "AUC", "pairs", lambda found: found.area()[0], needs=("area",))


@checked("metric")
def opis() -> Metric:
    """The operating-point-inconsistency score; see `consistency.opis`.

    >>> opis().false_accept_rates
    (0.01, 0.1)
    """
    return Metric(
        "opis",
        "OPIS",
        "pairs",
        consistency.opis,
        false_accept_rates=consistency.CALIBRATION,
        needs=("classes",),
        better="low",
    )


@checked("metric")
def epsilon_opis(epsilon: Share = 0.1) -> Metric:
    """How far the best and the worst classes are apart at one threshold; see `consistency.epsilon_opis`.

    Args:
      epsilon: the share of the classes, above 0, up to 1.

    >>> epsilon_opis(0.2).name
    'opis@epsilon=0.2'
    """
    name = f"opis@epsilon={epsilon:g}"
    function = partial(consistency.epsilon_opis, epsilon=epsilon)
    return replace(opis(), name=name, title=name, function=function)
