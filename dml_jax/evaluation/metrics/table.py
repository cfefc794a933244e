"""Metrics by their names, those of both reference systems and those that neither has.

Four kinds: `ranks` (one value a query, from the ranks of its relevant neighbours), `clusters` (labels against k-means),
`space` (the embeddings themselves) and `pairs` (verification).

Where the names of the ICML 2020 code (Roth et al.) and those of PyTorch Metric Learning (PML) mean nearly the same:
its metrics count lone queries (with nothing to find) as 0, PML's leave them out; `e_` and names without a prefix
are of Euclidean, `c_` of cosine distances, whatever distance the evaluation asks for; its `mAP` family divides by
the class's size with the query in it. Both systems' defects are not reproduced: each docstring says which.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from dml_jax import names
from dml_jax.evaluation import clustering, spectrum
from dml_jax.evaluation.metrics import ranking
from dml_jax.evaluation.metrics.ranking import (
    map_at_r,
    mean_average_precision,
    mean_inverse_negative_penalty,
    mean_reciprocal_rank,
    ndcg,
    precision_at_1,
    precision_at_k,
    r_precision,
    recall_at_k,
)
from dml_jax.evaluation.verification import roc as verification

# As a depth: all neighbours.
ALL = np.iinfo(np.int64).max


def _all(relevant: np.ndarray, own: np.ndarray) -> np.ndarray:
    return np.full(len(relevant), ALL)


@dataclass(frozen=True)
class Metric:
    """A metric by its name.

    Attributes:
      name: as in a config and in the results.
      title: as in the head of a table.
      kind: `ranks`, `clusters`, `space` or `pairs`.
      function: ranks: `(hits, relevant [q]) -> float64 [q]`; clusters: `(labels, clusters) -> float`; space:
        `(embeddings, labels) -> float or vector`; pairs: `Verification -> float`.
      depth: of ranks: from R [q] and whether the query lies in the gallery [q] to how many neighbours it looks at.
      distance: the distance that it is defined for; None: the evaluation's.
      counts_lone: of ranks: whether the mean is over lone queries too.
      first: of ranks: whether it depends on the first hit alone, so that what comes after it need not be searched.
      rates: of pairs: the false accept rates whose thresholds it needs.
      better: `high`, `low`, or nothing where neither is.
    """

    name: str
    title: str
    kind: str
    function: Callable[..., Any]
    depth: Callable[[np.ndarray, np.ndarray], np.ndarray] = _all
    distance: str | None = None
    counts_lone: bool = False
    first: bool = False
    rates: tuple[float, ...] = ()
    better: str = "high"


def get(name: str, k: int | None = None) -> Metric:
    """The metric of that name; ValueError with the near misses where there is none.

    `k` is how many neighbours those look at whose definition leaves it open (`OPEN`); None: r_precision and
    map_at_r the first R, the others all.
    """
    if name in METRICS:
        return METRICS[name]
    if name in OPEN:
        return _open(name, k)
    for pattern, make in PATTERNS:
        match = re.fullmatch(pattern, str(name))
        if match:
            return make(name, *match.groups())
    if name in NUMBERED:
        example = name.removesuffix("k").removesuffix("m").removesuffix("x") + NUMBERED[name]
        raise ValueError(f"metric {name!r} needs a number for {name[-1]}, as in {example!r}")
    raise names.unknown("metric", name, available())


def available() -> tuple[str, ...]:
    """The names of the metrics; k, m and x at their ends stand for numbers."""
    return tuple(sorted((*METRICS, *OPEN, *NUMBERED)))


def _first(k: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    return lambda relevant, own: np.full(len(relevant), k)


def _r(relevant: np.ndarray, own: np.ndarray) -> np.ndarray:
    return np.maximum(relevant, 1)


# What is open in its k: (title, function, how deep it looks without one).
OPEN: dict[str, tuple[str, Callable[..., np.ndarray], Callable[..., np.ndarray]]] = {
    "map_at_r": ("MAP@R", map_at_r, _r),
    "mean_average_precision": ("MAP", mean_average_precision, _all),
    "mean_reciprocal_rank": ("MRR", mean_reciprocal_rank, _all),
    "ndcg": ("nDCG", ndcg, _all),
    "r_precision": ("R-precision", r_precision, _r),
}
# What of these depends on the first hit alone.
FIRST = (mean_reciprocal_rank,)
# What is named with a number at its end, and an example of it.
NUMBERED = {
    "c_recall@k": "4",
    "e_recall@k": "4",
    "fnmr@fmr=x": "0.001",
    "mean_average_precision_at_k": "10",
    "mean_reciprocal_rank_at_k": "10",
    "ndcg_at_k": "10",
    "opis@epsilon=x": "0.1",
    "precision_at_k": "4",
    "recall@k": "4",
    "recall_at_k": "4",
    "rho_spectrum@m": "2",
    "tar@far=x": "0.001",
}


def _open(name: str, k: int | None) -> Metric:
    title, function, depth = OPEN[name]
    if k is None:
        return Metric(name, title, "ranks", function, depth, first=function in FIRST)
    # Not beyond k, and with R in it not beyond R.
    limited = lambda relevant, own: np.minimum(depth(relevant, own), k)
    return Metric(name, title, "ranks", partial(function, k=k), limited, first=function in FIRST)


def _with_k(name: str, stem: str, k: str) -> Metric:
    title, function, _ = OPEN[stem]
    return Metric(
        name,
        f"{title}@{k}",
        "ranks",
        partial(function, k=int(k)),
        _first(int(k)),
        first=function in FIRST,
    )


def _recall(name: str, k: str) -> Metric:
    function = partial(recall_at_k, k=int(k))
    return Metric(name, f"R@{k}", "ranks", function, _first(int(k)), first=True)


def _precision(name: str, k: str) -> Metric:
    return Metric(name, f"P@{k}", "ranks", partial(precision_at_k, k=int(k)), _first(int(k)))


def _revisiting_recall(name: str, k: str) -> Metric:
    function = partial(recall_at_k, k=int(k))
    distance = _distance(name)
    return Metric(
        name, name, "ranks", function, _first(int(k)), distance, counts_lone=True, first=True
    )


def _rho(name: str, mode: str) -> Metric:
    function = lambda embeddings, labels: spectrum.rho_spectrum(embeddings, int(mode))
    return Metric(name, name, "space", function, better="")


def _verification(name: str, kind: str, rate: str) -> Metric:
    far = float(rate)
    if kind == "tar@far":
        function = lambda found: found.true_accept_rate(far)
    else:
        function = lambda found: 1 - found.true_accept_rate(far)
    better = "high" if kind == "tar@far" else "low"
    return Metric(name, name, "pairs", function, rates=(far,), better=better)


def _epsilon_opis(name: str, share: str) -> Metric:
    if not 0 < float(share) <= 1:
        raise ValueError(
            f"metric {name!r}: a share of {share} of the classes; accepted: above 0, up to 1"
        )
    function = partial(verification.epsilon_opis, epsilon=float(share))
    return Metric(name, name, "pairs", function, rates=verification.CALIBRATION, better="low")


NUMBER = r"([1-9][0-9]*)"
SHARE = r"([0-9.]+(?:e-?[0-9]+)?)"
PATTERNS: tuple[tuple[str, Callable[..., Metric]], ...] = (
    (rf"recall(?:_at_|@){NUMBER}", _recall),
    (rf"precision_at_{NUMBER}", _precision),
    (rf"(mean_average_precision|mean_reciprocal_rank|ndcg)_at_{NUMBER}", _with_k),
    (rf"[ce]_recall@{NUMBER}", _revisiting_recall),
    (r"rho_spectrum@(-?[0-9]+)", _rho),
    (rf"(tar@far|fnmr@fmr)={SHARE}", _verification),
    (rf"opis@epsilon={SHARE}", _epsilon_opis),
)


def _revisiting(name: str, k: int | None) -> Metric:
    """One of the `mAP` family of the ICML 2020 code but `mAP_c`."""
    function = partial(ranking.revisiting_map, k=k)
    depth = _all if k is None else _first(k)
    return Metric(name, name, "ranks", function, depth, _distance(name), counts_lone=True)


def _revisiting_c(name: str) -> Metric:
    depth = lambda relevant, own: relevant + own
    function = ranking.revisiting_map_c
    return Metric(name, name, "ranks", function, depth, _distance(name), counts_lone=True)


def _distance(name: str) -> str:
    """What the prefix of an ICML 2020 name means."""
    return "cosine" if name.startswith("c_") else "euclidean"


def _space(mode: str) -> Metric:
    function = lambda embeddings, labels: spectrum.class_distances(embeddings, labels, mode)
    return Metric(f"dists@{mode}", f"dists@{mode}", "space", function, better="")


METRICS = {
    metric.name: metric
    for metric in (
        Metric("precision_at_1", "P@1", "ranks", precision_at_1, _first(1), first=True),
        Metric("minp", "mINP", "ranks", mean_inverse_negative_penalty, _all),
        Metric("nmi", "NMI", "clusters", clustering.nmi, distance="euclidean"),
        Metric("ami", "AMI", "clusters", clustering.ami, distance="euclidean"),
        Metric("f1", "F1", "clusters", clustering.f1, distance="euclidean"),
        Metric("c_nmi", "c_nmi", "clusters", clustering.nmi, distance="cosine"),
        Metric("c_f1", "c_f1", "clusters", clustering.f1, distance="cosine"),
        Metric("auc", "AUC", "pairs", lambda found: found.area()[0]),
        Metric("eer", "EER", "pairs", lambda found: found.equal_error_rate(), better="low"),
        Metric(
            "opis",
            "OPIS",
            "pairs",
            verification.opis,
            rates=verification.CALIBRATION,
            better="low",
        ),
        *(_revisiting(prefix + "mAP", None) for prefix in ("", "c_")),
        *(_revisiting(prefix + "mAP_1000", 1000) for prefix in ("", "c_")),
        *(_revisiting(prefix + "mAP_lim", 1023) for prefix in ("", "c_")),
        *map(_revisiting_c, ("mAP_c", "c_mAP_c")),
        *map(_space, spectrum.MODES),
    )
}
