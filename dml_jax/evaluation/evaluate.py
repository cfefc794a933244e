"""From embeddings and labels to a table of metrics."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from dml_jax.evaluation import metrics as table
from dml_jax.evaluation.neighbours import Index, identifiers, matrix

DEFAULT_METRICS = (
    "precision_at_1",
    "recall_at_1",
    "recall_at_2",
    "recall_at_4",
    "recall_at_8",
    "r_precision",
    "map_at_r",
)


def evaluate_embeddings(
    embeddings: Float[np.ndarray, "q d"],
    labels: Int[np.ndarray, " q"],
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    gallery: Float[np.ndarray, "n d"] | None = None,
    gallery_labels: Int[np.ndarray, " n"] | None = None,
    ids: Int[np.ndarray, " q"] | None = None,
    gallery_ids: Int[np.ndarray, " n"] | None = None,
    distance: str = "euclidean",
    backend: str = "jax",
    block: int | None = None,
) -> dict[str, float]:
    """Each metric's mean over the queries, by name.

    Without a gallery every item is a query against all others. With one, a query is kept from
    finding itself where both `ids` and `gallery_ids` are given. Queries whose label no other item
    of the gallery has are left out (PML's rule); a mean over none is nan. Each query is searched
    only as deep as its metrics look: the first R neighbours for R-precision and MAP@R, k for
    recall_at_k.

    Args:
      embeddings: one row per query.
      labels: integers of any size.
      metrics: names from `available()`, a number in the place of k.
      gallery: what is searched; the queries themselves by default.
      gallery_labels: integers, wherever there is a gallery.
      ids: the queries' ids; by default their row numbers where there is no gallery.
      gallery_ids: the gallery's ids, all different.
      distance, backend, block: as in `neighbours`.
    Raises: ValueError for an unknown metric, labels that are not integers or not as many as
      embeddings, a gallery without labels, ids on one side only, an id whose label differs between
      queries and gallery; and as in `neighbours`.
    """
    chosen = [table.get(name) for name in metrics]
    queries = matrix("embeddings", embeddings)
    labels = identifiers("labels", labels, len(queries))
    if gallery is None:
        if gallery_labels is not None or gallery_ids is not None:
            raise ValueError("gallery_labels and gallery_ids need a gallery, which is None")
        gallery, gallery_labels = queries, labels
        ids = gallery_ids = np.arange(len(queries)) if ids is None else ids
    elif gallery_labels is None:
        raise ValueError("a gallery needs gallery_labels, which are None")
    elif (ids is None) != (gallery_ids is None):
        raise ValueError("ids and gallery_ids are compared with each other: give both or neither")
    index = Index.build(gallery, ids=gallery_ids, distance=distance, backend=backend, block=block)
    gallery_labels = identifiers("gallery_labels", gallery_labels, index.size)[index.order]
    own = np.full(len(queries), -1)
    if ids is not None:
        own = index.places(identifiers("ids", ids, len(queries)))
    differ = (own >= 0) & (gallery_labels[own] != labels)
    if differ.any():
        i = np.argmax(differ)
        raise ValueError(
            f"id {index.ids[own[i]]} has label {labels[i]} as a query "
            f"and {gallery_labels[own[i]]} in the gallery"
        )
    classes, sizes = np.unique(gallery_labels, return_counts=True)
    at = np.minimum(np.searchsorted(classes, labels), len(classes) - 1)
    relevant = np.where(classes[at] == labels, sizes[at], 0) - (own >= 0)
    scored = np.flatnonzero(relevant > 0)
    if not len(scored):
        return {metric.name: float("nan") for metric in chosen}

    values = {metric.name: np.empty(len(queries)) for metric in chosen}
    deep = any(metric.first_r for metric in chosen)
    depth = np.maximum(max(metric.depth for metric in chosen), relevant * deep)
    # Queries of like depth together: a few very large classes do not make every search as deep as
    # theirs. Those in the gallery apart from the others: they have one neighbour less.
    level = 2 * np.ceil(np.log2(depth)).astype(int) + (own >= 0)
    for each in np.unique(level[scored]):
        rows = scored[level[scored] == each]
        k = min(int(depth[rows].max()), index.size - each % 2)
        for part, _, places in index.nearest(queries[rows], k, own=own[rows]):
            part = rows[part]
            hits = gallery_labels[places] == labels[part, None]
            for metric in chosen:
                values[metric.name][part] = metric.rows(hits, relevant[part])
    return {name: float(found[scored].mean()) for name, found in values.items()}
