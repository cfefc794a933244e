"""Computes the values of metrics, of each query, of clusters, of pairs, and their means."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dml_jax.evaluation import clustering
from dml_jax.evaluation.metrics import table as table
from dml_jax.evaluation.metrics.inputs import Data
from dml_jax.evaluation.metrics.metric import Metric
from dml_jax.evaluation.metrics.ranking import Ranks
from dml_jax.evaluation.search.index import Index
from dml_jax.evaluation.search.neighbours import search_recall
from dml_jax.evaluation.search.ranks import Ranker
from dml_jax.evaluation.verification import roc
from dml_jax.evaluation.verification.pairs import Pairs

LARGEST_R = "max_bin_count"
# Queries that look at this share of the gallery or more have all of their relevant items ranked at once.
DEEP = 1 / 16
# Every search looks at so many neighbours, which costs no more than one; one for a first hit that these do not
# hold looks at so many times as many.
SHALLOW = 16
FURTHER = 4


def rank_values(
    chosen: Sequence[Metric],
    data: Data,
    among: str,
    k: int | str | None,
    options: Mapping[str, Any],
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Computes (each metric's value for each query, True for queries to which nothing is relevant)."""
    count = len(data.queries)
    values = {metric.name: np.zeros(count) for metric in chosen}
    no_positives = np.ones(count, bool)
    for rows, items in _galleries(data, among):
        if not len(items):
            continue
        part = data if among == "all" else data.subset(rows, items)
        for distance in dict.fromkeys(metric.distance or options["distance"] for metric in chosen):
            some = [m for m in chosen if (m.distance or options["distance"]) == distance]
            index, self_index, relevance = part.build_index(distance, options)
            no_positives[rows] = relevance.relevant == 0
            some = [_at(metric, k, relevance.relevant) for metric in some]
            for at, ranks in _ranks(some, part.queries, index, self_index, relevance):
                for metric in some:
                    values[metric.name][rows[at]] = metric.function(ranks, relevance.relevant[at])
    return values, no_positives


def _at(metric: Metric, k: int | str | None, relevant: np.ndarray) -> Metric:
    """Returns the metric with its k, where the name leaves it open."""
    if k is None or metric.name not in table.OPEN:
        return metric
    return table.get(metric.name, max(1, int(relevant.max())) if k == LARGEST_R else int(k))


def _galleries(data: Data, among: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (rows of queries, rows of the gallery that they are searched among)."""
    if among == "all":
        yield np.arange(len(data.queries)), np.arange(len(data.gallery))
        return
    for parent in np.unique(data.parents):
        same = data.gallery_parents == parent
        yield (
            np.flatnonzero(data.parents == parent),
            np.flatnonzero(same if among == "same_parent" else ~same),
        )


def _ranks(
    chosen: Sequence[Metric],
    queries: np.ndarray,
    index: Index,
    self_index: np.ndarray,
    relevance: Any,
) -> Iterator[tuple[np.ndarray, Ranks]]:
    """Yields blocks of (rows of queries to which something is relevant, where their relevant neighbours lie)."""
    relevant = relevance.relevant
    included = self_index >= 0

    def deepest(some: list[Metric]) -> np.ndarray:
        depths = [metric.depth(relevant, included) for metric in some]
        return np.minimum(np.max(depths, axis=0, initial=0), index.size - included)

    # What depends on the first hit alone is looked for in steps, by queries that have none so far.
    until = deepest(list(chosen))
    depth = np.maximum(
        deepest([m for m in chosen if not m.first_hit_only]), np.minimum(until, SHALLOW)
    )
    rows = np.flatnonzero(relevant > 0)
    ranker = Ranker(index)
    while len(rows):
        again = []
        for part, ranks in _searched(rows, depth, queries, ranker, self_index, relevance):
            hit = np.isin(np.arange(len(part)), ranks.query_index)
            found = hit | (ranks.depth >= until[part])
            again.append(part[~found])
            yield part, ranks
        rows = np.concatenate(again)
        depth = np.minimum(until, FURTHER * depth)


def _searched(
    rows: np.ndarray,
    depth: np.ndarray,
    queries: np.ndarray,
    ranker: Ranker,
    self_index: np.ndarray,
    relevance: Any,
) -> Iterator[tuple[np.ndarray, Ranks]]:
    """Yields blocks of (some of the rows, where their relevant neighbours lie), at least `depth` of each looked at."""
    index, included, relevant = ranker.index, self_index >= 0, relevance.relevant
    deep = depth[rows] > max(64, DEEP * index.size)
    whole, rows = rows[deep], rows[~deep]
    if len(whole):
        blocks = ranker.ranks(
            queries[whole],
            lambda at: relevance.members(whole[at]),
            relevant[whole],
            self_index=self_index[whole],
        )
        for at, query_index, rank in blocks:
            order = np.lexsort((rank, query_index))
            part = whole[at]
            yield (
                part,
                Ranks(query_index[order], rank[order], len(part), index.size, included[part]),
            )
    # Queries of like depth together: a few very large classes do not make every search as deep as
    # theirs. Those in the gallery apart from the others: they have one neighbour less.
    level = 2 * np.ceil(np.log2(np.maximum(depth, SHALLOW))).astype(int) + included
    for each in np.unique(level[rows]):
        some = rows[level[rows] == each]
        k = int(depth[some].max())
        for at, _, places in index.nearest(
            queries[some], k, self_index=self_index[some], distances=False
        ):
            part = some[at]
            yield part, Ranks.from_hits(relevance.hits(part, places), included[part])


def averaged(values: np.ndarray, scored: np.ndarray, data: Data, average: str) -> Any:
    """Averages the values of queries, those that are scored, as `evaluate_embeddings` was asked to."""
    if average == "query":
        return float(values[scored].mean()) if scored.any() else float("nan")
    groups = data.parents if average == "parent" else data.classes
    found, group = np.unique(groups[scored], return_inverse=True)
    means = np.bincount(group, weights=values[scored]) / np.bincount(group) if len(found) else found
    if average == "each_class":
        return {int(data.names[i]): float(m) for i, m in zip(found, means, strict=True)}
    return float(means.mean()) if len(means) else float("nan")


def cluster_values(chosen: Sequence[Metric], data: Data, backend: str) -> dict[str, float]:
    """Scores labels of the queries against k-means of them, once for each distance."""
    found = {}
    for distance in dict.fromkeys(metric.distance for metric in chosen):
        count = len(np.unique(data.classes))
        if distance == "cosine":
            clusters = clustering.cosine_kmeans(data.queries, count, backend=backend)
        else:
            clusters, _ = clustering.kmeans(data.queries, count, backend=backend)
        for metric in chosen:
            if metric.distance == distance:
                found[metric.name] = metric.function(data.classes, clusters)
    return found


def pair_values(
    chosen: Sequence[Metric], data: Data, options: Mapping[str, Any]
) -> dict[str, float]:
    """Computes the metrics of verification over all pairs."""
    index, self_index, relevance = data.build_index(options["distance"], options)
    in_order = np.array_equal(index.order, np.arange(index.size))
    items = data.gallery if in_order else data.gallery[index.order]
    pairs = Pairs.of(data.queries, items, self_index, relevance, data.classes, options["distance"])
    rates = sorted({rate for metric in chosen for rate in metric.false_accept_rates})
    needs = {need for metric in chosen for need in metric.needs}
    found = roc.verify(pairs, rates, equal="equal" in needs, area="area" in needs)
    return {metric.name: metric.function(found) for metric in chosen}


def approximate_recall(data: Data, options: Mapping[str, Any]) -> float:
    """Returns the recall of the approximate search, for the ten nearest."""
    ids: dict[str, Any] = (
        {} if data.ids is None else {"query_ids": data.ids, "gallery_ids": data.gallery_ids}
    )
    k = min(10, len(data.gallery) - (data.ids is not None))
    return search_recall(data.queries, data.gallery, k, **ids, **options)
