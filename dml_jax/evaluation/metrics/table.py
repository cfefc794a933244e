"""Metrics: a typed factory for each, a table of them by name, and metrics of a user's own.

Four kinds: `ranks` (one value a query, from the ranks of its relevant neighbours), `clusters` (labels against k-means),
`space` (the embeddings themselves) and `pairs` (verification).

Where the names of the ICML 2020 code (Roth et al.) and those of PyTorch Metric Learning (PML) mean nearly the same:
its metrics count queries with nothing to find as 0, PML's leave them out; `e_` and names without a prefix are of
Euclidean, `c_` of cosine distances, whatever distance the evaluation asks for; its `mAP` family divides by the
class's size with the query in it. Both systems' defects are not reproduced: each docstring says which.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Bool, Int

from dml_jax import names
from dml_jax.errors import UserError
from dml_jax.evaluation import clustering, spectrum
from dml_jax.evaluation.metrics import ranking
from dml_jax.evaluation.verification import consistency
from dml_jax.parameters import Fraction, Interval, PositiveInt, checked

Distance = Literal["euclidean", "cosine"]
Share = Annotated[float, Interval(0, 1, closed_high=True)]
Depth = Callable[[Int[np.ndarray, " q"], Bool[np.ndarray, " q"]], Int[np.ndarray, " q"]]

# As a depth: all neighbours.
ALL = np.iinfo(np.int64).max


def _all(relevant: np.ndarray, included: np.ndarray) -> np.ndarray:
    return np.full(len(relevant), ALL)


def _r(relevant: np.ndarray, included: np.ndarray) -> np.ndarray:
    return np.maximum(relevant, 1)


def _with_self(relevant: np.ndarray, included: np.ndarray) -> np.ndarray:
    return relevant + included


def _at_most(depth: Depth, k: int | None) -> Depth:
    """Not beyond k, where there is one."""
    if k is None:
        return depth
    return lambda relevant, included: np.minimum(depth(relevant, included), k)


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
      name: as in a config and in the results.
      title: as in the head of a table.
      kind: `ranks`, `clusters`, `space` or `pairs`.
      function: ranks: `(hits, relevant [q]) -> float64 [q]`; clusters: `(labels, clusters) -> float`; space:
        `(embeddings, labels) -> float or vector`; pairs: `Verification -> float`.
      depth: of ranks: from R [q] and whether the query lies in the gallery [q] to how many neighbours it looks at.
      distance: the distance that it is defined for; None: the evaluation's.
      counts_no_positives: of ranks: True where the mean is over queries to which nothing is relevant, too.
      first_hit_only: of ranks: True where it depends on the first hit alone, so that what comes after it need not be
        searched.
      false_accept_rates: of pairs: those whose thresholds it needs.
      needs: of pairs: what else it needs: `area`, `equal`, `classes`.
      better: `high`, `low`, or nothing where neither is.
    """

    name: str
    title: str
    kind: Literal["ranks", "clusters", "space", "pairs"]
    function: Callable[..., Any]
    depth: Depth = _all
    distance: Distance | None = None
    counts_no_positives: bool = False
    first_hit_only: bool = False
    false_accept_rates: tuple[float, ...] = ()
    needs: tuple[Literal["area", "equal", "classes"], ...] = ()
    better: Literal["high", "low", ""] = "high"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls `function`."""
        return self.function(*args, **kwargs)


def of_ranks(
    function: Callable[..., Any], *, depth: Depth = _all, title: str | None = None
) -> Metric:
    """Makes a metric of a function of ranks; a decorator for a metric of one's own.

    In a config it is called "package.module:name".

    Args:
      function: from (`Ranks` or a boolean matrix [q, n] of hits, R [q]) to a value for each query; the functions of
        `evaluation`, such as `recall_at_k`, can be called in it.
      depth: how many neighbours it looks at, from R [q] and whether the query lies in the gallery [q]; all by default.
      title: in the head of a table; the function's name by default.

    >>> @of_ranks
    ... def found_in_time(hits, relevant):
    ...     return ranking.recall_at_k(hits, relevant, k=2)
    >>> found_in_time(np.array([[False, True], [False, False]]), np.array([1, 1]))
    array([1., 0.])
    """
    name = function.__name__
    return Metric(name, title or name, "ranks", function, depth)


def of_embeddings(
    function: Callable[..., Any],
    *,
    title: str | None = None,
    better: Literal["high", "low", ""] = "",
) -> Metric:
    """Makes a metric of a function of the queries' embeddings and classes; a decorator for one of one's own.

    Args:
      function: from (embeddings [q, d], classes [q], from 0 on) to a number.
      title: in the head of a table; the function's name by default.
      better: `high`, `low`, or "" where neither is.

    >>> @of_embeddings
    ... def mean_length(embeddings, labels):
    ...     return float(np.linalg.norm(embeddings, axis=1).mean())
    >>> mean_length(np.array([[3.0, 4.0]]), np.array([0]))
    5.0
    """
    name = function.__name__
    return Metric(name, title or name, "space", function, better=better)


@checked("metric")
def recall_at_k(k: PositiveInt = 1) -> Metric:
    """1 where one of the first k neighbours is relevant; see `ranking.recall_at_k`.

    Args:
      k: how many neighbours are looked at, from 1 on.

    >>> recall_at_k(k=4).name
    'recall_at_4'
    """
    function = partial(ranking.recall_at_k, k=k)
    depth = _at_most(_all, k)
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
    depth = _at_most(_all, k)
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
    return Metric(name, title, "ranks", function, _at_most(_all, k))


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
    return Metric(name, title, "ranks", function, _at_most(_all, k), first_hit_only=True)


@checked("metric")
def ndcg(k: PositiveInt | None = None) -> Metric:
    """Normalised discounted cumulative gain; see `ranking.ndcg`.

    Args:
      k: looks at the first k neighbours alone; None: at all.

    >>> ndcg()(np.array([[True, False]]), np.array([1]))
    array([1.])
    """
    name, title = _named("ndcg", "nDCG", k)
    return Metric(name, title, "ranks", partial(ranking.ndcg, k=k), _at_most(_all, k))


@checked("metric")
def minp() -> Metric:
    """R / the rank of the last hit; see `ranking.mean_inverse_negative_penalty`.

    >>> minp()(np.array([[True, False, False, True]]), np.array([2]))
    array([0.5])
    """
    return Metric("minp", "mINP", "ranks", ranking.mean_inverse_negative_penalty, _all)


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
        name, name, "ranks", function, _at_most(_all, k), distance, counts_no_positives=True
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


# By name. k, m and x at the end of a name stand for a number, the factory's first argument.
METRICS: dict[str, Callable[..., Metric]] = {
    "ami": ami,
    "auc": auc,
    "c_f1": partial(f1, "cosine"),
    "c_mAP": partial(revisiting_map, None, "cosine"),
    "c_mAP_1000": partial(revisiting_map, 1000, "cosine", "mAP_1000"),
    "c_mAP_c": partial(revisiting_map_c, "cosine"),
    "c_mAP_lim": partial(revisiting_map, 1023, "cosine", "mAP_lim"),
    "c_nmi": partial(nmi, "cosine"),
    "c_recall@k": partial(revisiting_recall, distance="cosine"),
    "dists@inter": partial(class_distances, "inter"),
    "dists@intra": partial(class_distances, "intra"),
    "dists@intra_over_inter": partial(class_distances, "intra_over_inter"),
    "e_recall@k": revisiting_recall,
    "eer": eer,
    "f1": f1,
    "fnmr@fmr=x": fnmr_at_fmr,
    "mAP": revisiting_map,
    "mAP_1000": partial(revisiting_map, 1000, name="mAP_1000"),
    "mAP_c": revisiting_map_c,
    "mAP_lim": partial(revisiting_map, 1023, name="mAP_lim"),
    "map_at_r": map_at_r,
    "mean_average_precision": mean_average_precision,
    "mean_average_precision_at_k": mean_average_precision,
    "mean_reciprocal_rank": mean_reciprocal_rank,
    "mean_reciprocal_rank_at_k": mean_reciprocal_rank,
    "minp": minp,
    "ndcg": ndcg,
    "ndcg_at_k": ndcg,
    "nmi": nmi,
    "opis": opis,
    "opis@epsilon=x": epsilon_opis,
    "precision_at_1": precision_at_k,
    "precision_at_k": precision_at_k,
    "r_precision": r_precision,
    "recall@k": recall_at_k,
    "recall_at_k": recall_at_k,
    "rho_spectrum@m": rho_spectrum,
    "tar@far=x": tar_at_far,
}
# As tables print them.
TITLES: dict[str, Callable[..., Metric]] = {
    "AMI": ami,
    "AUC": auc,
    "EER": eer,
    "F1": f1,
    "MAP": mean_average_precision,
    "MAP@R": map_at_r,
    "MAP@k": mean_average_precision,
    "MRR": mean_reciprocal_rank,
    "MRR@k": mean_reciprocal_rank,
    "NMI": nmi,
    "OPIS": opis,
    "P@k": precision_at_k,
    "R-precision": r_precision,
    "R@k": recall_at_k,
    "mINP": minp,
    "nDCG": ndcg,
    "nDCG@k": ndcg,
}
# Names that leave the k of their definition open.
OPEN = (
    *("map_at_r", "mean_average_precision", "mean_reciprocal_rank", "ndcg", "r_precision"),
    *("MAP@R", "MAP", "MRR", "nDCG", "R-precision"),
)
# What stands for a number at the end of a name, how the number is read, and an example of it.
PLACEHOLDERS: dict[str, tuple[str, type, str]] = {
    "@k": (r"[1-9][0-9]*", int, "4"),
    "_k": (r"[1-9][0-9]*", int, "4"),
    "@m": (r"-?[0-9]+", int, "2"),
    "=x": (r"[0-9.]+(?:e-?[0-9]+)?", float, "0.1"),
}


def get(name: str, k: int | None = None) -> Metric:
    """Returns the metric of a name.

    Args:
      name: one of `available()`, a title as tables print it (`R@1`, `MAP@R`), or "package.module:name" for a metric of
        one's own, made by `of_ranks` or `of_embeddings`.
      k: how many neighbours those look at whose name leaves it open (`OPEN`); None: r_precision and map_at_r the
        first R, the others all.

    Raises:
      UserError: an unknown name, with the near misses; a number that is missing or out of range.

    >>> get("tar@far=0.01").false_accept_rates
    (0.01,)
    >>> get("R@1").title
    'R@1'
    """
    if isinstance(name, str) and ":" in name:
        found = names.imported("metric", name)
        if not isinstance(found, Metric):
            raise UserError(
                f"metric {name!r} is {found!r}; accepted: a Metric, which evaluation.metrics.of_ranks and "
                "of_embeddings make of a function"
            )
        return replace(found, name=name)
    for table in (METRICS, TITLES):
        if name in table and str(name)[-2:] not in PLACEHOLDERS:
            if k is None or name not in OPEN:
                return replace(table[name](), name=name)
            plain = table[name]()
            return replace(table[name](k), name=name, title=plain.title)
    for key, factory in {**METRICS, **TITLES}.items():
        if key[-2:] not in PLACEHOLDERS:
            continue
        pattern, number, example = PLACEHOLDERS[key[-2:]]
        if name == key:
            raise UserError(
                f"metric {name!r} needs a number for {name[-1]}, as in {key[:-1] + example!r}"
            )
        match = re.fullmatch(re.escape(key[:-1]) + f"({pattern})", str(name))
        if match:
            found = factory(_number(name, number, match[1]))
            title = name if found.title == found.name else found.title
            return replace(found, name=name, title=title)
    raise names.unknown("metric", name, {**METRICS, **TITLES})


def _number(name: str, kind: type, text: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"metric {name!r}: {text!r} is not a number") from None


def available() -> tuple[str, ...]:
    """Lists the names of the metrics; k, m and x at their ends stand for numbers.

    >>> "map_at_r" in available()
    True
    """
    return tuple(sorted(METRICS))


def metric_names(metrics: str | Sequence[str | Metric]) -> tuple[str, ...]:
    """Lists the names of the metrics that were asked for: a sequence, or one text with commas between them.

    >>> metric_names("recall_at_1, map_at_r")
    ('recall_at_1', 'map_at_r')
    """
    return tuple(metric.name for metric in select(metrics))


def select(metrics: str | Sequence[str | Metric]) -> list[Metric]:
    """Returns the metrics that were asked for.

    Args:
      metrics: names, metrics, or one text with commas between names.

    Raises:
      UserError: as `get`; what is neither a name nor a metric.

    >>> [metric.title for metric in select("R@1,map_at_r")]
    ['R@1', 'MAP@R']
    """
    if isinstance(metrics, Metric):
        return [metrics]
    if isinstance(metrics, Mapping) or not hasattr(metrics, "__iter__"):
        raise UserError(
            f"metrics={metrics!r}; accepted: names, or one text with commas between them"
        )
    listed = metrics.split(",") if isinstance(metrics, str) else metrics
    return [
        m if isinstance(m, Metric) else get(m.strip() if isinstance(m, str) else m) for m in listed
    ]
