"""What a metric is, and how a function of one's own becomes one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int

Distance = Literal["euclidean", "cosine"]
Depth = Callable[[Int[np.ndarray, " q"], Bool[np.ndarray, " q"]], Int[np.ndarray, " q"]]

# As a depth: all neighbours.
ALL = np.iinfo(np.int64).max


def all_neighbours(relevant: np.ndarray, included: np.ndarray) -> np.ndarray:
    return np.full(len(relevant), ALL)


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
    depth: Depth = all_neighbours
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
    function: Callable[..., Any], *, depth: Depth = all_neighbours, title: str | None = None
) -> Metric:
    """Makes a metric of a function of ranks; a decorator for a metric of one's own.

    In a config it is called "package.module:name".

    Args:
      function: from (`Ranks` or a boolean matrix [q, n] of hits, R [q]) to a value for each query; the functions of
        `evaluation`, such as `recall_at_k`, can be called in it.
      depth: how many neighbours it looks at, from R [q] and whether the query lies in the gallery [q]; all by default.
      title: in the head of a table; the function's name by default.

    >>> from dml_jax.evaluation.metrics import ranking
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
