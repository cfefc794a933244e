"""Expansion of queries, and of the items of a gallery, by their nearest neighbours.

Embeddings are compared by cosine here. Each step gives other embeddings, or ids [q, k] of what it ranks first, as
`neighbours` does; `query_ids` and `gallery_ids` likewise keep a query from finding itself.
"""

import numpy as np
from jaxtyping import Float, Int

from dml_jax.evaluation.search.neighbours import neighbours
from dml_jax.evaluation.vectors import normalize_rows, rows_of_ids

# float64 numbers of a block.
CHUNK = 1 << 22

Ids = Int[np.ndarray, " n"]


def alpha_query_expansion(
    queries: Float[np.ndarray, "q d"],
    gallery: Float[np.ndarray, "n d"],
    k: int,
    *,
    alpha: float = 3.0,
    query_ids: Ids | None = None,
    gallery_ids: Ids | None = None,
    backend: str = "jax",
) -> Float[np.ndarray, "q d"]:
    """Returns normalised(q + sum_{i <= k} max(cos(q, x_i), 0)^alpha x_i) over the k nearest x_i, all normalised.

    Radenovic, Tolias and Chum (PAMI 2019).

    Args:
      queries: embeddings.
      gallery: embeddings that are searched.
      k: how many neighbours expand a query.
      alpha: the exponent of the weights, 3 in the paper; 0 is average query expansion.
      query_ids: the queries' ids, which keep a query from finding itself.
      gallery_ids: the gallery's ids.
      backend: as in `neighbours`, errors too.

    >>> alpha_query_expansion(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0], [3.0, 0.0]]), 1)
    array([[1., 0.]], dtype=float32)
    """
    _, found = neighbours(
        queries,
        gallery,
        k,
        query_ids=query_ids,
        gallery_ids=gallery_ids,
        distance="cosine",
        backend=backend,
    )
    places = rows_of_ids(found, gallery_ids)
    unit, items = normalize_rows(queries), normalize_rows(gallery)
    expanded = unit.copy()
    size = max(1, CHUNK // (k * unit.shape[1]))
    for start in range(0, len(unit), size):
        rows = slice(start, start + size)
        near = items[places[rows]]
        cosines = np.einsum("qd,qkd->qk", unit[rows], near)
        expanded[rows] += np.einsum("qk,qkd->qd", np.maximum(cosines, 0) ** alpha, near)
    return normalize_rows(expanded).astype(np.float32)


def database_augmentation(
    gallery: Float[np.ndarray, "n d"], k: int, *, alpha: float = 3.0, backend: str = "jax"
) -> Float[np.ndarray, "n d"]:
    """Expands every item of the gallery by its k nearest others, as `alpha_query_expansion` expands a query.

    The idea is Turcot and Lowe's (ICCV workshops 2009), the weights are those of the expansion of queries.

    Args:
      gallery: embeddings.
      k: how many neighbours expand an item.
      alpha: the exponent of the weights.
      backend: as in `neighbours`, errors too.

    >>> database_augmentation(np.array([[2.0, 0.0], [1.0, 0.0]]), 1)
    array([[1., 0.],
           [1., 0.]], dtype=float32)
    """
    rows = np.arange(len(gallery))
    return alpha_query_expansion(
        gallery, gallery, k, alpha=alpha, query_ids=rows, gallery_ids=rows, backend=backend
    )
