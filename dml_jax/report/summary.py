"""What a report shows of a set besides its metrics: which queries went well, which classes, how distances lie."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from dml_jax.errors import UserError
from dml_jax.evaluation.search.index import DISTANCES
from dml_jax.evaluation.vectors import as_embeddings, normalize_rows

# Distances computed at a time.
CHUNK = 1 << 22


def query_scores(
    hits: Bool[np.ndarray, "q k"], relevant: Int[np.ndarray, " q"]
) -> Float[np.ndarray, " q"]:
    """Returns the average precision of each query over its first m = min(R, k) neighbours: sum_{i <= m} hit_i P@i / m.

    MAP@R's value where R <= k. nan where nothing is relevant (R = 0).

    Args:
      hits: [q, k], True where the j-th neighbour is relevant.
      relevant: R [q].

    >>> query_scores(np.array([[True, False, True]]), np.array([2]))
    array([0.5])
    """
    k = hits.shape[1]
    depth = np.minimum(relevant, k)
    ranks = np.arange(1, k + 1)
    counted = hits & (ranks[None, :] <= depth[:, None])
    precision = np.cumsum(hits, axis=1) / ranks[None, :]
    total = np.sum(np.where(counted, precision, 0), axis=1)
    return np.where(depth > 0, total / np.maximum(depth, 1), np.nan)


class ClassScores(NamedTuple):
    """Of each class that has a scored query, ascending by label: the means over its queries.

    Attributes:
      labels, queries: [c], the class and how many of its queries were scored.
      recall: recall at 1; precision: the mean of `query_scores`.
    """

    labels: Int[np.ndarray, " c"]
    queries: Int[np.ndarray, " c"]
    recall: Float[np.ndarray, " c"]
    precision: Float[np.ndarray, " c"]


def class_scores(
    labels: Int[np.ndarray, " q"],
    first: Bool[np.ndarray, " q"],
    scores: Float[np.ndarray, " q"],
) -> ClassScores:
    """Averages by class; queries whose score is nan are left out.

    Args:
      labels: of the queries.
      first: True where the nearest neighbour has the query's class.
      scores: as from `query_scores`.

    >>> class_scores(np.array([4, 4]), np.array([True, False]), np.array([0.5, 0.1])).recall
    array([0.5])
    """
    kept = ~np.isnan(scores)
    found, of, counts = np.unique(labels[kept], return_inverse=True, return_counts=True)
    means = [np.bincount(of, weights=v[kept], minlength=len(found)) for v in (first, scores)]
    return ClassScores(found, counts, *(m / np.maximum(counts, 1) for m in means))


class Histograms(NamedTuple):
    """Counts of distances in bins of equal width, for pairs of a class and of two classes."""

    edges: Float[np.ndarray, " bins_and_1"]
    intra: Int[np.ndarray, " bins"]
    inter: Int[np.ndarray, " bins"]


def distance_histograms(
    embeddings: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    *,
    anchors: Int[np.ndarray, " a"] | None = None,
    distance: str = "euclidean",
    bins: int = 60,
) -> Histograms:
    """Counts the distances of each anchor to everything but itself, within its class and outside.

    euclidean: |a - x|, cosine: 1 - a.x / (|a| |x|), 1 for zero vectors; by matrix products in float64, blocks of
    anchors at a time. Bins run from 0 to the largest distance seen (1 where all are 0).

    Args:
      embeddings: of the items.
      labels: of the items.
      anchors: rows of `embeddings`, all by default.
      distance: `euclidean` or `cosine`.
      bins: how many.

    Raises:
      UserError: an unknown distance, embeddings that are not finite, or no bin.

    >>> distance_histograms(np.array([[0.0], [1.0], [4.0]]), np.array([0, 0, 1]), bins=2).intra
    array([2, 0])
    """
    if distance not in DISTANCES:
        raise UserError(f"unknown distance {distance!r}; accepted: {', '.join(DISTANCES)}")
    if bins < 1:
        raise UserError(f"bins={bins}; accepted: 1 or more")
    vectors = as_embeddings("embeddings", embeddings).astype(np.float64)
    labels = np.asarray(labels)
    anchors = np.arange(len(vectors)) if anchors is None else np.asarray(anchors)
    if distance == "cosine":
        vectors = normalize_rows(vectors)
    squares = np.einsum("nd,nd->n", vectors, vectors)
    size = max(1, CHUNK // len(vectors))
    parts = [anchors[i : i + size] for i in range(0, len(anchors), size)]

    def distances(rows: np.ndarray) -> np.ndarray:
        products = vectors[rows] @ vectors.T
        if distance == "cosine":
            return np.maximum(1 - products, 0)
        return np.sqrt(np.maximum(squares[rows, None] + squares[None, :] - 2 * products, 0))

    def others(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        far, same = distances(rows), labels[rows, None] == labels[None, :]
        kept = rows[:, None] != np.arange(len(vectors))[None, :]
        return far[same & kept], far[~same]

    # The distances twice rather than all of them kept.
    largest = max(
        (float(part.max()) for rows in parts for part in others(rows) if part.size), default=0.0
    )
    edges = np.linspace(0, largest or 1.0, bins + 1)
    counts = np.zeros((2, bins), np.int64)
    for rows in parts:
        for kind, part in enumerate(others(rows)):
            counts[kind] += np.histogram(part, edges)[0]
    return Histograms(edges, counts[0], counts[1])
