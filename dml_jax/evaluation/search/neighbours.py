"""Nearest neighbours of queries in a gallery."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dml_jax import streams
from dml_jax.errors import UserError
from dml_jax.evaluation.search.index import Index
from dml_jax.evaluation.vectors import as_embeddings, as_ids


def neighbours(
    queries: Float[np.ndarray, "q d"],
    gallery: Float[np.ndarray, "n d"],
    k: int,
    *,
    query_ids: Int[np.ndarray, " q"] | None = None,
    gallery_ids: Int[np.ndarray, " n"] | None = None,
    exclude_self: bool | None = None,
    distance: str = "euclidean",
    backend: str = "jax",
    block: int | None = None,
) -> tuple[Float[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
    """Finds the `k` nearest of the gallery to each query, nearest first, the lower id first among equals.

    euclidean: |q - g|; cosine: 1 - q.g / (|q| |g|), and 1 where either is a zero vector (of a norm of at most 1e-12).
    Equal cosines are ties, also where the vectors differ in length: they are compared in float64 as
    (q.g)^2 / (|q|^2 |g|^2), not by rounded unit vectors.

    Args:
      queries: embeddings, used as float32.
      gallery: embeddings, used as float32.
      k: how many neighbours, as many as the gallery holds at most (besides the query itself).
      query_ids: the queries' ids, `gallery_ids[:q]` by default.
      gallery_ids: the gallery's ids, all different, the row numbers by default.
      exclude_self: leave the gallery's item with the query's id out, whatever else lies at the same
        place; a query whose id the gallery lacks loses nothing. By default where `query_ids` are
        given.
      distance: `euclidean` or `cosine`.
      backend: `jax` (over the devices of the mesh in context) or `faiss` (GPUs where it has any); same
        results. `approx_max_k`, `faiss_ivf` and `faiss_hnsw` may miss neighbours: see `search_recall`.
      block: how many rows of queries and of the gallery are compared at a time; memory beyond the
        embeddings grows with it (and with the gallery over 64, per query of a block).

    Returns: distances float32 [q, k] and ids int64 [q, k].

    Raises:
      UserError: an array of another shape, values that are not finite, repeated gallery ids, a `k` that is not
        possible, an unknown distance or backend.

    Differs from faiss and PML: those order ties and near ties by rounding and, where ties keep self
      out of the k + 1 neighbours that they find, drop the last of these instead.

    >>> distances, ids = neighbours(np.array([[0.0], [9.0]]), np.array([[1.0], [4.0], [8.0]]), 2)
    >>> distances.tolist(), ids.tolist()
    ([[1.0, 4.0], [1.0, 5.0]], [[0, 1], [2, 1]])
    """
    index = Index.build(gallery, ids=gallery_ids, distance=distance, backend=backend, block=block)
    queries = as_embeddings("queries", queries)
    if query_ids is None and exclude_self:
        if len(queries) > index.size:
            raise UserError(
                f"exclude_self needs query_ids: {len(queries)} queries "
                f"are not rows of a gallery of {index.size}"
            )
        query_ids = np.arange(len(queries)) if gallery_ids is None else np.asarray(gallery_ids)
        query_ids = query_ids[: len(queries)]
    self_index = None
    if query_ids is not None and exclude_self is not False:
        self_index = index.places(as_ids("query_ids", query_ids, len(queries)))
    blocks = index.nearest(queries, k, self_index=self_index)
    distances = np.empty((len(queries), k), np.float32)
    ids = np.empty((len(queries), k), np.int64)
    for rows, near, places in blocks:
        distances[rows], ids[rows] = near, index.ids[places]
    return distances, ids


def search_recall(
    queries: Float[np.ndarray, "q d"],
    gallery: Float[np.ndarray, "n d"],
    k: int,
    *,
    backend: str,
    sample: int = 1000,
    seed: int = 0,
    **options: Any,
) -> float:
    """Returns the share of the exact `k` nearest that a backend finds, over some of the queries; 1 for exact backends.

    Args:
      queries: as in `neighbours`.
      gallery: as in `neighbours`.
      k: how many neighbours.
      backend: whose recall it is.
      sample: how many queries are drawn.
      seed: of the draw.
      **options: as in `neighbours`, errors too; query ids belong to all the queries.

    >>> search_recall(np.eye(5), np.eye(5), 2, backend="jax")
    1.0
    """
    queries = as_embeddings("queries", queries)
    rng = streams.generator("evaluation", seed)
    rows = np.sort(rng.permutation(len(queries))[:sample])
    if options.get("query_ids") is not None:
        query_ids = as_ids("query_ids", options["query_ids"], len(queries))
        options |= {"query_ids": query_ids[rows]}
    found, exact = (
        neighbours(queries[rows], gallery, k, backend=b, **options)[1] for b in (backend, "jax")
    )
    return _shared(found, exact) / exact.size


def _shared(a: Int[np.ndarray, "q k"], b: Int[np.ndarray, "q k"]) -> int:
    """How many ids are in the same row of both; ids of a row differ."""
    both = np.sort(np.concatenate([a, b], axis=1), axis=1)
    return int(np.sum(both[:, 1:] == both[:, :-1]))
