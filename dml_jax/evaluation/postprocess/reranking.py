"""k-reciprocal re-ranking, sparse: memory is O(n k1^2) for the sets and O(block x n) for the distances."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dml_jax import names
from dml_jax.errors import UserError
from dml_jax.evaluation.search.index import DISTANCES
from dml_jax.evaluation.search.neighbours import neighbours
from dml_jax.evaluation.vectors import as_embeddings, normalize_rows

# Entries of the arrays of a block.
CHUNK = 1 << 22


def k_reciprocal(
    embeddings: Float[np.ndarray, "n d"],
    k: int,
    *,
    queries: Int[np.ndarray, " q"] | None = None,
    gallery: Int[np.ndarray, " g"] | None = None,
    k1: int = 20,
    k2: int = 6,
    weight: float = 0.3,
    distance: str = "cosine",
    backend: str = "jax",
) -> tuple[Float[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
    """Finds the k nearest of the gallery to each query by re-ranked distance (Zhong et al., CVPR 2017).

    N(p, k): p and its k nearest others. R(p, k) = {g in N(p, k): p in N(g, k)}, the k-reciprocal neighbours; R*(p)
    adds R(q, k1 / 2) of every q in R(p, k1) of which more than two thirds lie in R(p, k1). d(p, g) is the squared
    Euclidean distance over the largest from p to any item of the set. V_p(g) = exp(-d(p, g)) on R*(p), else 0, divided
    by its sum, then averaged over p and its k2 - 1 nearest. Jaccard distance
    d_J = 1 - sum min(V_p, V_g) / sum max(V_p, V_g). The result is by (1 - weight) d_J + weight d, ties by position.
    This is the authors' code (zhunzhong07/person-re-ranking, Python), whose defaults are these and whose distances
    are reproduced to rounding; what the paper leaves open (that d is squared and divided, that k1 / 2 rounds to even,
    that two thirds do not suffice) is as there. Only equal distances it ranks in any order.

    Args:
      embeddings: of queries and gallery together: the sets are made of all of them.
      k: how many neighbours are returned.
      queries: positions, all by default.
      gallery: positions, all by default; a query does not find itself.
      k1: as above, cut to n - 1; 20 is the authors' default.
      k2: as above; 6 is the authors' default.
      weight: as above, from 0 to 1; 0.3 is the authors' default.
      distance: `euclidean`, of the embeddings as they are, or `cosine`, of the normalised ones: cosine distances over
        the largest then, where a zero vector is at 1 from everything.
      backend: as in `neighbours`.

    Returns: distances float64 [q, k], positions [q, k].

    Raises:
      UserError: k1 or k2 below 1 or k2 above k1 + 1, a weight outside [0, 1], a k that the gallery has not, an unknown
        distance.

    >>> _, found = k_reciprocal(np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]), 1, k1=1, k2=1)
    >>> found.tolist()
    [[1], [0], [3], [2]]
    """
    names.resolve("distance", dict.fromkeys(DISTANCES), distance)
    original = _Original.of(as_embeddings("embeddings", embeddings), distance)
    count = len(original.vectors)
    queries = np.arange(count) if queries is None else np.asarray(queries)
    gallery = np.arange(count) if gallery is None else np.sort(np.asarray(gallery))
    k1 = min(k1, count - 1)
    if not (k1 >= 1 and 1 <= k2 <= k1 + 1 and 0 <= weight <= 1):
        raise UserError(
            f"k1={k1}, k2={k2}, weight={weight} of {count} items; accepted: k1 of 1 or more, k2 from 1 to k1 + 1, "
            "a weight from 0 to 1"
        )
    possible = len(gallery) - bool(np.isin(queries, gallery).any())
    if not 1 <= k <= possible:
        raise UserError(f"k={k}; possible: 1 to {possible}")
    rows = np.arange(count)
    _, others = neighbours(
        embeddings,
        embeddings,
        k1,
        query_ids=rows,
        gallery_ids=rows,
        distance=distance,
        backend=backend,
    )
    near = np.concatenate([rows[:, None], others], axis=1)
    encoded = _averaged(_encoded(original, near), near[:, :k2])
    columns = encoded.transposed()

    found = np.empty((len(queries), k), np.int64)
    far = np.empty((len(queries), k))
    size = max(1, CHUNK // count)
    for start in range(0, len(queries), size):
        part = queries[start : start + size]
        shared = _shared(encoded, columns, part)[:, gallery]
        # Both sum to 1: the sum of the larger ones is 2 less that of the smaller ones.
        jaccard = 1 - shared / (2 - shared)
        total = (1 - weight) * jaccard + weight * original.block(part)[:, gallery]
        total[part[:, None] == gallery[None, :]] = np.inf
        order = _smallest(total, k)
        found[start : start + size] = gallery[order]
        far[start : start + size] = np.take_along_axis(total, order, axis=1)
    return far, found


def _smallest(values: np.ndarray, k: int) -> np.ndarray:
    """Where the k smallest values of each row lie, in order, the first of equal ones first: no sort of the row."""
    last = np.partition(values, k - 1, axis=1)[:, k - 1 : k]
    tied = values == last
    room = k - np.sum(values < last, axis=1, keepdims=True)
    kept = (values < last) | (tied & (np.cumsum(tied, axis=1) <= room))
    places = np.nonzero(kept)[1].reshape(len(values), k)
    order = np.argsort(np.take_along_axis(values, places, axis=1), axis=1, kind="stable")
    return np.take_along_axis(places, order, axis=1)


class _Original(NamedTuple):
    """The distances before: (squares_p + squares_g - 2 p.g) / largest_p, in float64.

    Attributes:
      vectors: [n, d], normalised for cosine.
      squares: [n], of their norms; 1 for cosine, so that a zero vector is as far from all as one at right angles.
      largest: [n].
    """

    vectors: np.ndarray
    squares: np.ndarray
    largest: np.ndarray

    @classmethod
    def of(cls, embeddings: np.ndarray, distance: str) -> "_Original":
        cosine = distance == "cosine"
        vectors = normalize_rows(embeddings) if cosine else embeddings.astype(np.float64)
        count = len(vectors)
        squares = np.ones(count) if cosine else np.einsum("nd,nd->n", vectors, vectors)
        found = cls(vectors, squares, np.ones(count))
        size = max(1, CHUNK // count)
        parts = [np.arange(i, min(i + size, count)) for i in range(0, count, size)]
        largest = np.concatenate([found.block(part).max(axis=1) for part in parts])
        return cls(vectors, squares, np.where(largest > 0, largest, 1))

    def block(self, rows: np.ndarray) -> np.ndarray:
        """Returns the distances of some items to all."""
        sums = self.squares[rows, None] + self.squares[None, :]
        far = np.maximum(sums - 2 * (self.vectors[rows] @ self.vectors.T), 0)
        return far / self.largest[rows, None]

    def pairs(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Returns the distance of each item of `rows` to the item of `columns` in the same place."""
        products = np.einsum("md,md->m", self.vectors[rows], self.vectors[columns])
        far = np.maximum(self.squares[rows] + self.squares[columns] - 2 * products, 0)
        return far / self.largest[rows]


class _Sparse(NamedTuple):
    """A matrix [n, n] by rows: those of row i lie from starts[i] to starts[i + 1]."""

    starts: np.ndarray
    columns: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, columns: np.ndarray, values: np.ndarray, count: int) -> "_Sparse":
        """From entries whose rows ascend."""
        return cls(np.searchsorted(rows, np.arange(count + 1)), columns, values)

    def rows(self) -> np.ndarray:
        """The row of each entry."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    def transposed(self) -> "_Sparse":
        order = np.argsort(self.columns, kind="stable")
        count = len(self.starts) - 1
        return _Sparse.of(self.columns[order], self.rows()[order], self.values[order], count)

    def entries(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(which of the wanted rows, where) of all their entries."""
        sizes = self.starts[wanted + 1] - self.starts[wanted]
        of = np.repeat(np.arange(len(wanted)), sizes)
        within = np.arange(len(of)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return of, self.starts[wanted][of] + within


def _reciprocal(near: np.ndarray) -> np.ndarray:
    """[n, k + 1]: whether each neighbour has the row among its own."""
    found = np.empty(near.shape, bool)
    size = max(1, CHUNK // near.shape[1] ** 2)
    for start in range(0, len(near), size):
        part = near[start : start + size]
        mine = np.arange(start, start + len(part))
        found[start : start + size] = (near[part] == mine[:, None, None]).any(axis=2)
    return found


def _encoded(original: _Original, near: np.ndarray) -> _Sparse:
    """V of every item, rows of sum 1."""
    count, width = near.shape
    half = near[:, : round((width - 1) / 2) + 1]
    mutual, mutual_half = _reciprocal(near), _reciprocal(half)
    all_rows, all_columns = [], []
    size = max(1, CHUNK // (width**2 * half.shape[1]))
    for start in range(0, count, size):
        part, kept = near[start : start + size], mutual[start : start + size]
        reach, counted = half[part], mutual_half[part] & kept[:, :, None]
        inside = (reach[..., None] == np.where(kept, part, -1)[:, None, None, :]).any(axis=3)
        share = (inside & counted).sum(axis=2)
        added = counted & (share * 3 > 2 * counted.sum(axis=2))[:, :, None]
        rows = np.arange(start, start + len(part))
        each = np.concatenate(
            [
                np.where(kept, part, -1),
                np.where(added, reach, -1).reshape(len(part), -1),
            ],
            axis=1,
        )
        keys = np.unique((rows[:, None] * count + each)[each >= 0])
        all_rows.append(keys // count)
        all_columns.append(keys % count)
    rows, columns = np.concatenate(all_rows), np.concatenate(all_columns)
    values = np.empty(len(rows))
    size = max(1, CHUNK // original.vectors.shape[1])
    for start in range(0, len(rows), size):
        some = slice(start, start + size)
        values[some] = np.exp(-original.pairs(rows[some], columns[some]))
    values /= np.bincount(rows, weights=values, minlength=count)[rows]
    return _Sparse.of(rows, columns, values, count)


def _averaged(encoded: _Sparse, near: np.ndarray) -> _Sparse:
    """Each row the mean of the rows of its nearest."""
    count, width = near.shape
    if width == 1:
        return encoded
    parts = []
    size = max(1, CHUNK // (width * max(1, int(np.diff(encoded.starts).max()))))
    for start in range(0, count, size):
        block = near[start : start + size]
        of, at = encoded.entries(block.reshape(-1))
        keys, where = np.unique(
            (of // width + start) * count + encoded.columns[at], return_inverse=True
        )
        parts.append((keys, np.bincount(where, weights=encoded.values[at]) / width))
    keys, values = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return _Sparse.of(keys // count, keys % count, values, count)


def _shared(encoded: _Sparse, columns: _Sparse, rows: np.ndarray) -> np.ndarray:
    """sum_c min(V_rc, V_jc) for those rows and all j."""
    count = len(encoded.starts) - 1
    of, at = encoded.entries(rows)
    entry, where = columns.entries(encoded.columns[at])
    smaller = np.minimum(encoded.values[at][entry], columns.values[where])
    places = of[entry] * count + columns.columns[where]
    return np.bincount(places, weights=smaller, minlength=len(rows) * count).reshape(-1, count)
