"""Steps after training that change what is stored or how it is ranked; none looks at labels.

Embeddings are compared by cosine here. Each step gives other embeddings, or ids [q, k] of what it ranks first, as
`neighbours` does; `query_ids` and `gallery_ids` likewise keep a query from finding itself.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Int8

from dml_jax.evaluation.clustering import normalized
from dml_jax.evaluation.index import matrix
from dml_jax.evaluation.maps import principal_axes
from dml_jax.evaluation.neighbours import neighbours

# Directions with less than this share of the largest variance are noise of rounding.
RANK = 1e-10
# float64 numbers of a block.
CHUNK = 1 << 22

Ids = Int[np.ndarray, " n"]


class Whitening(NamedTuple):
    """A map to coordinates of mean 0, variance 1 and no correlation on the set that it was fitted to.

    Attributes:
      mean: [d].
      matrix: [d, m], the principal directions, each divided by its standard deviation.
    """

    mean: Float[np.ndarray, " d"]
    matrix: Float[np.ndarray, "d m"]

    def __call__(self, embeddings: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n m"]:
        """normalised((x - mean) matrix), float32; what lies at the mean becomes zero."""
        return normalized((embeddings - self.mean) @ self.matrix).astype(np.float32)


def whitening(embeddings: Float[np.ndarray, "n d"], dim: int | None = None) -> Whitening:
    """PCA-whitening fitted to a set (Jegou and Chum, ECCV 2012), keeping `dim` directions, or all.

    Directions in which the set has no variance are left out.
    Raises: ValueError for a `dim` out of 1..d, or a set of no variance.
    """
    mean, directions, variances = principal_axes(embeddings)
    if dim is not None and not 1 <= dim <= len(mean):
        raise ValueError(
            f"dim={dim} of a whitening of {len(mean)} dimensions; accepted: 1 to {len(mean)}"
        )
    kept = np.flatnonzero(variances > RANK * variances[0])[:dim]
    if not len(kept):
        raise ValueError("the embeddings are all equal: there is nothing to whiten")
    return Whitening(mean, directions[:, kept] / np.sqrt(variances[kept]))


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
    """normalised(q + sum_{i <= k} max(cos(q, x_i), 0)^alpha x_i) over the k nearest x_i, all of them normalised.

    Radenovic, Tolias and Chum (PAMI 2019). alpha = 0 is average query expansion.
    Errors as in `neighbours`.
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
    places = _places(found, gallery_ids)
    unit, items = normalized(queries), normalized(gallery)
    expanded = unit.copy()
    size = max(1, CHUNK // (k * unit.shape[1]))
    for start in range(0, len(unit), size):
        rows = slice(start, start + size)
        near = items[places[rows]]
        cosines = np.einsum("qd,qkd->qk", unit[rows], near)
        expanded[rows] += np.einsum("qk,qkd->qd", np.maximum(cosines, 0) ** alpha, near)
    return normalized(expanded).astype(np.float32)


def database_augmentation(
    gallery: Float[np.ndarray, "n d"], k: int, *, alpha: float = 3.0, backend: str = "jax"
) -> Float[np.ndarray, "n d"]:
    """Every item of the gallery expanded by its k nearest others, as `alpha_query_expansion` expands a query.

    The idea is Turcot and Lowe's (ICCV workshops 2009), the weights are those of the expansion of queries.
    """
    rows = np.arange(len(gallery))
    return alpha_query_expansion(
        gallery, gallery, k, alpha=alpha, query_ids=rows, gallery_ids=rows, backend=backend
    )


class Quantized(NamedTuple):
    """Embeddings of one byte a dimension: codes times scale.

    Attributes:
      codes: int8 [n, d], -127..127.
      scale: [d].
    """

    codes: Int8[np.ndarray, "n d"]
    scale: Float[np.ndarray, " d"]

    def decoded(self) -> Float[np.ndarray, "n d"]:
        """float32, off by half of the scale at most where nothing was cut."""
        return (self.codes * self.scale).astype(np.float32)


def int8(
    embeddings: Float[np.ndarray, "n d"], fitted_to: Float[np.ndarray, "m d"] | None = None
) -> Quantized:
    """round(x / scale), cut to -127..127; scale = max |x| / 127 of each dimension over a set (1 where it is 0).

    `fitted_to` is that set, by default the embeddings themselves: none of them is cut then.
    Raises: ValueError for another number of dimensions.
    """
    vectors = matrix("embeddings", embeddings).astype(np.float64)
    known = vectors if fitted_to is None else matrix("fitted_to", fitted_to).astype(np.float64)
    if known.shape[1] != vectors.shape[1]:
        raise ValueError(
            f"fitted_to has {known.shape[1]} dimensions; accepted: those of the embeddings, {vectors.shape[1]}"
        )
    scale = np.abs(known).max(axis=0) / 127
    scale[scale == 0] = 1
    codes = np.clip(np.rint(vectors / scale), -127, 127)
    return Quantized(codes.astype(np.int8), scale)


def binary(embeddings: Float[np.ndarray, "n d"]) -> Int[np.ndarray, "n bytes"]:
    """A bit a dimension, 1 where x > 0, packed into uint8 [n, ceil(d / 8)]."""
    return np.packbits(matrix("embeddings", embeddings) > 0, axis=1)


def signs(codes: Int[np.ndarray, "n bytes"], dim: int) -> Float[np.ndarray, "n d"]:
    """The bits of `binary` as -1 and 1: cosine distance of these is 2 / dim times the Hamming distance."""
    return np.unpackbits(codes, axis=1, count=dim).astype(np.float32) * 2 - 1


def rescored(
    queries: Float[np.ndarray, "q d"],
    gallery: Float[np.ndarray, "n d"],
    found: Int[np.ndarray, "q m"],
    k: int,
    *,
    gallery_ids: Ids | None = None,
) -> Int[np.ndarray, "q k"]:
    """The first k of the candidates that a coarser search found, by cosine distance, the lower id first among equals.

    Raises: ValueError for a k beyond the candidates.
    """
    if not 1 <= k <= found.shape[1]:
        raise ValueError(f"k={k} of {found.shape[1]} candidates; accepted: 1 to {found.shape[1]}")
    unit, items = normalized(queries), normalized(gallery)
    places = _places(found, gallery_ids)
    best = np.empty((len(found), k), np.int64)
    size = max(1, CHUNK // (found.shape[1] * unit.shape[1]))
    for start in range(0, len(unit), size):
        rows = slice(start, start + size)
        far = 1 - np.einsum("qd,qmd->qm", unit[rows], items[places[rows]])
        order = np.lexsort((found[rows], far), axis=1)[:, :k]
        best[rows] = np.take_along_axis(found[rows], order, axis=1)
    return best


def _places(ids: np.ndarray, gallery_ids: np.ndarray | None) -> np.ndarray:
    """Which row of the gallery has each id."""
    if gallery_ids is None:
        return ids
    order = np.argsort(gallery_ids)
    return order[np.searchsorted(np.asarray(gallery_ids)[order], ids)]
