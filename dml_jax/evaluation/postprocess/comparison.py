"""Compares steps after training in one table: recall against bytes per image."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from dml_jax import names
from dml_jax.errors import UserError
from dml_jax.evaluation.postprocess import compression, expansion
from dml_jax.evaluation.postprocess.reranking import k_reciprocal
from dml_jax.evaluation.postprocess.whitening import whitening
from dml_jax.evaluation.search.neighbours import neighbours
from dml_jax.evaluation.vectors import as_embeddings, as_ids

# Neighbours that are scored, candidates of a coarse search, items that expand another.
DEPTH, CANDIDATES, EXPANDED = 10, 100, 10
RECALLS = (1, 2, 4, 8)
# The shortest prefix that is tried.
SHORTEST = 8

# (what it is, bytes per image, ids [n, k])
Found = tuple[str, int, np.ndarray]


class _Search:
    """Leave-one-out searches in one set, and the set that steps are fitted to."""

    def __init__(self, embeddings: np.ndarray, training: np.ndarray | None, backend: str) -> None:
        self.vectors = as_embeddings("embeddings", embeddings)
        self.count, self.dim = self.vectors.shape
        self.known = self.vectors if training is None else as_embeddings("training", training)
        if self.known.shape[1] != self.dim:
            raise UserError(
                f"training has {self.known.shape[1]} dimensions; accepted: those of the embeddings, {self.dim}"
            )
        self.fitted = f"fitted to {'this' if training is None else 'the training'} set"
        self.rows = np.arange(self.count)
        self.backend = backend
        self.most = self.count - 1

    def __call__(self, queries: np.ndarray, gallery: np.ndarray, k: int = DEPTH) -> np.ndarray:
        _, ids = neighbours(
            queries,
            gallery,
            min(k, self.most),
            query_ids=self.rows,
            gallery_ids=self.rows,
            distance="cosine",
            backend=self.backend,
        )
        return ids

    def among(self, queries: np.ndarray, gallery: np.ndarray, found: np.ndarray) -> np.ndarray:
        return compression.rescored(queries, gallery, found, min(DEPTH, self.most))


def _whitening(search: _Search) -> Iterator[Found]:
    white = whitening(search.known)(search.vectors)
    yield f"PCA-whitening {search.fitted}", 4 * white.shape[1], search(white, white)


def _query_expansion(search: _Search) -> Iterator[Found]:
    expanded = expansion.alpha_query_expansion(
        search.vectors,
        search.vectors,
        min(EXPANDED, search.most),
        query_ids=search.rows,
        gallery_ids=search.rows,
        backend=search.backend,
    )
    yield "alpha query expansion", 4 * search.dim, search(expanded, search.vectors)


def _database_augmentation(search: _Search) -> Iterator[Found]:
    k = min(EXPANDED, search.most)
    gallery = expansion.database_augmentation(search.vectors, k, backend=search.backend)
    yield "database-side augmentation", 4 * search.dim, search(search.vectors, gallery)


def _reranking(search: _Search) -> Iterator[Found]:
    k1 = min(20, search.most)
    _, found = k_reciprocal(
        search.vectors, min(DEPTH, search.most), k1=k1, k2=min(6, k1 + 1), backend=search.backend
    )
    yield "k-reciprocal re-ranking", 4 * search.dim, found


def _prefixes(search: _Search) -> Iterator[Found]:
    dim = search.dim // 2
    while dim >= SHORTEST:
        part = search.vectors[:, :dim]
        yield f"first {dim} dimensions", 4 * dim, search(part, part)
        dim //= 2


def _int8(search: _Search) -> Iterator[Found]:
    gallery = compression.int8(search.vectors, search.known).decoded()
    yield f"int8 {search.fitted}", search.dim, search(gallery, gallery)


def _binary(search: _Search) -> Iterator[Found]:
    codes = compression.binary(search.vectors)
    bits, size = compression.signs(codes, search.dim), codes.shape[1]
    candidates = search(bits, bits, CANDIDATES)
    yield "binary", size, candidates[:, :DEPTH]
    yield (
        "binary, rescored by the query's floats",
        size,
        search.among(search.vectors, bits, candidates),
    )
    decoded = compression.int8(search.vectors, search.known).decoded()
    found = search.among(search.vectors, decoded, candidates)
    yield f"binary, rescored with int8 {search.fitted}", size + search.dim, found


STEPS: dict[str, Callable[[_Search], Iterator[Found]]] = {
    "binary": _binary,
    "database_augmentation": _database_augmentation,
    "int8": _int8,
    "prefixes": _prefixes,
    "query_expansion": _query_expansion,
    "reranking": _reranking,
    "whitening": _whitening,
}


# Those that are fitted to a set.
FITTED = ("binary", "int8", "whitening")


def check_steps(steps: Sequence[str]) -> None:
    """Raises `UserError` for an unknown step.

    Args:
      steps: names, keys of `STEPS`.

    >>> check_steps(["int8"])
    """
    for step in steps:
        names.resolve("step after training", STEPS, step)


def after_training(
    embeddings: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    steps: Sequence[str],
    *,
    training: Float[np.ndarray, "m d"] | None = None,
    backend: str = "jax",
) -> dict[str, dict[str, float]]:
    """Measures the recall of every item as a query among all others, as the embeddings are and after each step alone.

    A row has `bytes_per_image` and recall_at_1, 2, 4, 8 by cosine distance, over the items that are not alone in
    their class (nan where all are). Expansions take 10 neighbours with alpha = 3, re-ranking k1 = 20, k2 = 6 and
    weight 0.3, the binary search 100 candidates for rescoring, each cut to what the set has. Whitening and the scales
    of int8 (the steps in `FITTED`) are fitted without labels, and their rows' names say to what; augmentation and
    re-ranking use the set with the query in it, so that a new query would gain less from them.

    Args:
      embeddings: of the items.
      labels: of the items.
      training: the embeddings that steps are fitted to, as they would be before new images come; None: the set itself.
      steps: names from `binary`, `database_augmentation`, `int8`, `prefixes`, `query_expansion`, `reranking`,
        `whitening`.
      backend: as in `neighbours`.

    Raises:
      UserError: an unknown step, fewer than two items, training embeddings of another dimension, and as in
        `neighbours`.

    >>> rows = after_training(np.eye(4)[[0, 0, 1, 1]], np.array([0, 0, 1, 1]), ["int8"])
    >>> {name: row["recall_at_1"] for name, row in rows.items()}
    {'as trained, 16 bytes': 1.0, 'int8 fitted to this set, 4 bytes': 1.0}
    """
    check_steps(steps)
    search = _Search(embeddings, training, backend)
    labels = as_ids("labels", labels, search.count)
    if search.count < 2:
        raise UserError("one embedding has no neighbours; accepted: two or more")
    rows = {}
    plain = ("as trained", 4 * search.dim, search(search.vectors, search.vectors))
    for name, size, found in [plain, *(row for step in steps for row in STEPS[step](search))]:
        values = _recalls(found, labels)
        rows[f"{name}, {size} bytes"] = {"bytes_per_image": size, **values}
    return rows


def _recalls(found: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    _, of, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    scored = sizes[of] > 1
    hits = (labels[found] == labels[:, None])[scored]
    return {
        f"recall_at_{k}": float(hits[:, :k].any(axis=1).mean()) if len(hits) else float("nan")
        for k in RECALLS
    }
