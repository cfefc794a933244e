"""Retrieval metrics of one query each, from which of its neighbours are relevant.

A metric is a function `(hits [q, k], relevant [q]) -> float64 [q]`: `hits[i, j]` says whether the
j-th neighbour of query i has its label; `relevant` (R) counts the items of the gallery that have
it, the query itself not among them. Queries with R = 0 ("lone") have no value:
`evaluate_embeddings` leaves them out of every mean, as PML's AccuracyCalculator does.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Bool, Float, Int

from dml_jax import names


@dataclass(frozen=True)
class Metric:
    """A metric by its name.

    Attributes:
      name: as in a config and in the results.
      title: as in the head of a table.
      rows: `(hits [q, k], relevant [q]) -> float64 [q]`.
      depth: how many neighbours it looks at besides the first R.
      first_r: whether it looks at the first R neighbours of each query.
    """

    name: str
    title: str
    rows: Callable[[np.ndarray, np.ndarray], np.ndarray]
    depth: int
    first_r: bool


def recall_at_k(
    hits: Bool[np.ndarray, "q n"], relevant: Int[np.ndarray, " q"], *, k: int
) -> Float[np.ndarray, " q"]:
    """1 where any of the first k neighbours has the query's label, else 0 (Jegou et al. 2011).

    Where the gallery has fewer than k items, all of them count. PML has no such metric. The ICML
    2020 code's `e_recall@k` takes the mean over all queries, so that a lone one is a miss; here
    lone queries are left out.
    """
    return np.any(hits[:, :k], axis=1).astype(np.float64)


def precision_at_1(
    hits: Bool[np.ndarray, "q n"], relevant: Int[np.ndarray, " q"]
) -> Float[np.ndarray, " q"]:
    """1 where the nearest neighbour has the query's label, else 0: PML's `precision_at_1`."""
    return recall_at_k(hits, relevant, k=1)


def r_precision(
    hits: Bool[np.ndarray, "q n"], relevant: Int[np.ndarray, " q"]
) -> Float[np.ndarray, " q"]:
    """sum_{j <= R} hit_j / R, the share of the first R neighbours that have the query's label.

    PML's `r_precision` with its k at least the largest R; 0 here where R is 0.
    """
    return _within_r(hits, relevant).sum(axis=1) / np.maximum(relevant, 1)


def map_at_r(
    hits: Bool[np.ndarray, "q n"], relevant: Int[np.ndarray, " q"]
) -> Float[np.ndarray, " q"]:
    """sum_{j <= R} hit_j precision@j / R (Musgrave et al. 2020, section 2.3).

    PML's `mean_average_precision_at_r` with its k at least the largest R; 0 here where R is 0.
    """
    found = _within_r(hits, relevant)
    precision = np.cumsum(found, axis=1) / np.arange(1, found.shape[1] + 1)[None, :]
    return (found * precision).sum(axis=1) / np.maximum(relevant, 1)


def get(name: str) -> Metric:
    """The metric of that name; ValueError with the near misses where there is none."""
    match = re.fullmatch(r"recall_at_([1-9][0-9]*)", str(name))
    if match:
        k = int(match[1])
        return Metric(name, f"R@{k}", partial(recall_at_k, k=k), depth=k, first_r=False)
    if name == "recall_at_k":
        raise ValueError("metric 'recall_at_k' needs a number for k, as in 'recall_at_4'")
    if name not in METRICS:
        raise names.unknown("metric", name, available())
    return METRICS[name]


def available() -> tuple[str, ...]:
    """The names of the metrics; the k of `recall_at_k` stands for a number."""
    return tuple(sorted((*METRICS, "recall_at_k")))


METRICS = {
    metric.name: metric
    for metric in (
        Metric("map_at_r", "MAP@R", map_at_r, depth=1, first_r=True),
        Metric("precision_at_1", "P@1", precision_at_1, depth=1, first_r=False),
        Metric("r_precision", "R-precision", r_precision, depth=1, first_r=True),
    )
}


def _within_r(hits: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    if hits.shape[1] < relevant.max(initial=0):
        raise ValueError(
            f"{hits.shape[1]} neighbours for R = {relevant.max()}; needed: at least R of them"
        )
    return hits & (np.arange(hits.shape[1])[None, :] < relevant[:, None])
