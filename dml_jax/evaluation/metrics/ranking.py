"""Metrics of queries, a value each, from the ranks of the relevant items among their neighbours.

A metric is a function `(hits, relevant [q]) -> float64 [q]`. `hits` is either a boolean matrix [q, n], whose j-th
column says whether the j-th neighbour is relevant, or the same as `Ranks`. `relevant` (R) counts the relevant
items of the gallery, the query itself not among them.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from dml_jax.errors import UserError


@dataclass(frozen=True)
class Ranks:
    """Where the relevant neighbours of a block of queries lie.

    Attributes:
      query_index: [m], which query of the block, ascending.
      rank: [m], from 1, ascending for each query.
      queries: how many queries the block has.
      depth: how many neighbours were looked at.
      includes_self: [q], whether the query itself is an item of the gallery (it has no rank).
    """

    query_index: Int[np.ndarray, " m"]
    rank: Int[np.ndarray, " m"]
    queries: int
    depth: int
    includes_self: Bool[np.ndarray, " q"]

    @classmethod
    def from_hits(
        cls,
        hits: "Bool[np.ndarray, 'q n'] | Ranks",
        includes_self: Bool[np.ndarray, " q"] | None = None,
    ) -> "Ranks":
        """Makes `Ranks` of a boolean matrix; returns what is `Ranks` already as it is.

        Args:
          hits: [q, n], True where the j-th neighbour is relevant.
          includes_self: [q], True where the query itself is an item of the gallery; all of them by default.

        >>> Ranks.from_hits(np.array([[True, False, True]])).rank
        array([1, 3])
        """
        if isinstance(hits, Ranks):
            return hits
        query_index, rank = np.nonzero(hits)
        includes_self = np.ones(len(hits), bool) if includes_self is None else includes_self
        queries, depth = hits.shape
        return cls(query_index, rank + 1, queries, depth, includes_self)

    @property
    def nth(self) -> Int[np.ndarray, " m"]:
        """The number of each relevant neighbour among those of its query, from 1."""
        starts = np.searchsorted(self.query_index, np.arange(self.queries))
        return np.arange(len(self.query_index)) - starts[self.query_index] + 1

    def sum(self, values: np.ndarray) -> Float[np.ndarray, " q"]:
        """Returns the sum of values [m] over the relevant neighbours of each query."""
        return np.bincount(self.query_index, weights=values, minlength=self.queries).astype(
            np.float64
        )


Hits = Bool[np.ndarray, "q n"] | Ranks
Relevant = Int[np.ndarray, " q"]
Values = Float[np.ndarray, " q"]


def recall_at_k(hits: Hits, relevant: Relevant, *, k: int) -> Values:
    """Returns 1 where any of the first k neighbours is relevant, else 0 (Jegou et al. 2011).

    Where the gallery has fewer than k items, all of them count. PML has no such metric. The ICML 2020 code's
    `e_recall@k` is this with raw Euclidean distances, and counts a query to which nothing is relevant as a
    miss; here such queries are left out of the mean.

    Args:
      hits: [q, n] booleans, True where the j-th neighbour is relevant; or `Ranks`.
      relevant: R [q], how many items are relevant to each query.
      k: how many neighbours are looked at.

    >>> recall_at_k(np.array([[True, False, True]]), np.array([2]), k=2)
    array([1.])
    """
    ranks = Ranks.from_hits(hits)
    return (ranks.sum(ranks.rank <= k) > 0).astype(np.float64)


def precision_at_k(hits: Hits, relevant: Relevant, *, k: int) -> Values:
    """Returns sum_{j <= k} hit_j / k; items that a gallery of fewer than k lacks are misses.

    Args:
      hits: [q, n] booleans, True where the j-th neighbour is relevant; or `Ranks`.
      relevant: R [q], how many items are relevant to each query.
      k: how many neighbours are looked at.

    >>> precision_at_k(np.array([[True, False, True]]), np.array([2]), k=2)
    array([0.5])
    """
    ranks = Ranks.from_hits(hits)
    return ranks.sum(ranks.rank <= k) / k


def precision_at_1(hits: Hits, relevant: Relevant) -> Values:
    """Returns 1 where the nearest neighbour is relevant, else 0: PML's `precision_at_1`.

    Args:
      hits: [q, n] booleans, True where the j-th neighbour is relevant; or `Ranks`.
      relevant: R [q], how many items are relevant to each query.

    >>> precision_at_1(np.array([[True, False, True]]), np.array([2]))
    array([1.])
    """
    return recall_at_k(hits, relevant, k=1)


def r_precision(hits: Hits, relevant: Relevant, *, k: int | None = None) -> Values:
    """Returns sum_{j <= m} hit_j / m with m = R, the share of the first R neighbours that are relevant.

    With `k`, m = min(R, k): PML's `r_precision` with that k. 0 where R is 0.

    Args:
      hits: [q, n] booleans, True where the j-th neighbour is relevant; or `Ranks`.
      relevant: R [q], how many items are relevant to each query.
      k: the most neighbours that are looked at; None: R of them.

    Raises:
      UserError: fewer neighbours than m.

    >>> r_precision(np.array([[True, False, True]]), np.array([2]))
    array([0.5])
    """
    ranks, limit = Ranks.from_hits(hits), _limit(relevant, k)
    return ranks.sum(_within(ranks, limit)) / np.maximum(limit, 1)


def map_at_r(hits: Hits, relevant: Relevant, *, k: int | None = None) -> Values:
    """Returns sum_{j <= m} hit_j precision@j / R with m = R (Musgrave et al. 2020, section 2.3).

    With `k`, m = min(R, k): PML's `mean_average_precision_at_r` with that k. 0 where R is 0.

    Args:
      hits: [q, n] booleans, True where the j-th neighbour is relevant; or `Ranks`.
      relevant: R [q], how many items are relevant to each query.
      k: the most neighbours that are looked at; None: R of them.

    Raises:
      UserError: fewer neighbours than m.

    >>> map_at_r(np.array([[True, False, True]]), np.array([2]))
    array([0.5])
    """
    ranks = Ranks.from_hits(hits)
    within = _within(ranks, _limit(relevant, k))
    return ranks.sum(within * ranks.nth / ranks.rank) / np.maximum(relevant, 1)


def mean_average_precision(hits: Hits, relevant: Relevant, *, k: int | None = None) -> Values:
    """Returns sum_{j <= k} hit_j precision@j / R, over all neighbours without a k: PML's `mean_average_precision`.

    With a k under R even a perfect ranking gets less than 1. The ICML 2020 code's `mAP` divides by R + 1 instead.
    0 where R is 0.

    Args:
      hits: [q, n] booleans, True where the j-th neighbour is relevant; or `Ranks`.
      relevant: R [q], how many items are relevant to each query.
      k: the most neighbours that are looked at; None: all.

    >>> mean_average_precision(np.array([[True, False, True]]), np.array([2])).round(4)
    array([0.8333])
    """
    ranks = Ranks.from_hits(hits)
    within = ranks.rank <= (ranks.depth if k is None else k)
    return ranks.sum(within * ranks.nth / ranks.rank) / np.maximum(relevant, 1)


def mean_reciprocal_rank(hits: Hits, relevant: Relevant, *, k: int | None = None) -> Values:
    """Returns 1 / the rank of the first relevant neighbour; 0 where there is none, or none among the first k.

    PML's `mean_reciprocal_rank`, which cannot be asked for alone there.

    Args:
      hits: [q, n] booleans, True where the j-th neighbour is relevant; or `Ranks`.
      relevant: R [q], how many items are relevant to each query.
      k: the most neighbours that are looked at; None: all.

    >>> mean_reciprocal_rank(np.array([[False, True]]), np.array([1]))
    array([0.5])
    """
    ranks = Ranks.from_hits(hits)
    first = (ranks.nth == 1) & (ranks.rank <= (ranks.depth if k is None else k))
    return ranks.sum(first / ranks.rank)


def mean_inverse_negative_penalty(hits: Hits, relevant: Relevant) -> Values:
    """Returns mINP, R / the rank of the last relevant item (Ye et al. 2021, "Deep learning for person re-ID", eq. 4).

    1 where all of them come first; 0 where R is 0. Neither reference system has it. All R must be ranked.

    Args:
      hits: [q, n] booleans, True where the j-th neighbour is relevant; or `Ranks`.
      relevant: R [q], how many items are relevant to each query.

    >>> mean_inverse_negative_penalty(np.array([[True, False, False, True]]), np.array([2]))
    array([0.5])
    """
    ranks = Ranks.from_hits(hits)
    last = np.zeros(ranks.queries, np.int64)
    last[ranks.query_index] = ranks.rank  # ascending, so that the last one stays
    return np.where(last > 0, relevant / np.maximum(last, 1), 0.0)


def ndcg(hits: Hits, relevant: Relevant, *, k: int | None = None) -> Values:
    """Returns DCG / the DCG of a perfect ranking, DCG = sum_{j <= k} hit_j / log2(j + 1) (Jarvelin & Kekalainen 2002).

    An item is relevant or not, so that linear and exponential gains agree. 0 where R is 0. Neither reference
    system has it; scikit-learn's `ndcg_score` averages over ties, which are ranked by id here.

    Args:
      hits: [q, n] booleans, True where the j-th neighbour is relevant; or `Ranks`.
      relevant: R [q], how many items are relevant to each query.
      k: the most neighbours that are looked at; None: all.

    >>> ndcg(np.array([[False, True]]), np.array([1])).round(4)
    array([0.6309])
    """
    ranks = Ranks.from_hits(hits)
    k = ranks.depth if k is None else k
    gains = ranks.sum((ranks.rank <= k) / np.log2(ranks.rank + 1.0))
    ideal = np.concatenate(
        [[0.0], np.cumsum(1 / np.log2(np.arange(2.0, 2 + relevant.max(initial=0))))]
    )
    best = ideal[np.minimum(relevant, k)]
    return np.where(best > 0, gains / np.where(best > 0, best, 1), 0.0)


def revisiting_map(hits: Hits, relevant: Relevant, *, k: int | None) -> Values:
    """Returns sum_{j <= k} hit_j precision@j / f: the `mAP` family of the ICML 2020 code.

    f is the size of the query's class in the gallery, the query itself included where it lies there; so a
    perfect ranking of all against all gets (f - 1) / f, and a query to which nothing is relevant 0, which counts.
    `k` is 1000 for `mAP_1000`, 1023 for `mAP_lim`, all for `mAP` (None).
    Differs from that code: it pads what the search did not find with the last sample's label (one spurious
    hit of `mAP` and of `mAP_lim` on small sets, any number of `mAP_1000`), drops the first neighbour instead of the
    query itself, and has no `c_mAP` though it names one.

    Args:
      hits: [q, n] booleans, True where the j-th neighbour is relevant; or `Ranks`.
      relevant: R [q], how many items are relevant to each query.
      k: the most neighbours that are looked at; None: all.

    >>> revisiting_map(np.array([[True, True]]), np.array([2]), k=None).round(4)
    array([0.6667])
    """
    ranks = Ranks.from_hits(hits)
    within = ranks.rank <= (ranks.depth if k is None else k)
    return ranks.sum(within * ranks.nth / ranks.rank) / _class_size(ranks, relevant)


def revisiting_map_c(hits: Hits, relevant: Relevant) -> Values:
    """Returns sum_{j <= f} hit_j precision@j / f: the ICML 2020 code's `mAP_c`, the "mAP" of its paper.

    f as in `revisiting_map`. Its mean is over queries (the code's README says over classes). MAP@R is the same
    sum over R = f - 1 neighbours, divided by R.

    Args:
      hits: [q, n] booleans, True where the j-th neighbour is relevant; or `Ranks`.
      relevant: R [q], how many items are relevant to each query.

    >>> revisiting_map_c(np.array([[True, True, False]]), np.array([2])).round(4)
    array([0.6667])
    """
    ranks = Ranks.from_hits(hits)
    size = _class_size(ranks, relevant)
    within = _within(ranks, np.minimum(size, ranks.depth))
    return ranks.sum(within * ranks.nth / ranks.rank) / size


def _class_size(ranks: Ranks, relevant: Relevant) -> Relevant:
    return np.maximum(relevant + ranks.includes_self, 1)


def _limit(relevant: Relevant, k: int | None) -> Relevant:
    return relevant if k is None else np.minimum(relevant, k)


def _within(ranks: Ranks, limit: Relevant) -> Bool[np.ndarray, " m"]:
    if ranks.depth < limit.max(initial=0):
        raise UserError(
            f"{ranks.depth} neighbours for R = {limit.max()}; needed: at least R of them"
        )
    return ranks.rank <= limit[ranks.query_index]
