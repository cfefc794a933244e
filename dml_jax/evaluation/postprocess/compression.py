"""Embeddings in fewer bytes: a byte or a bit a dimension, and the rescoring of what a coarse search found."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Int8

from dml_jax.errors import UserError
from dml_jax.evaluation.vectors import as_embeddings, rows_of_ids, squared_chords, without_tiny

# float64 numbers of a block.
CHUNK = 1 << 22

Ids = Int[np.ndarray, " n"]


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
    """Returns round(x / scale), cut to -127..127; scale = max |x| / 127 of each dimension over a set (1 where it is 0).

    Args:
      embeddings: what is stored.
      fitted_to: that set, by default the embeddings themselves: none of them is cut then.

    Raises:
      UserError: another number of dimensions.

    >>> int8(np.array([[1.0, -2.0], [0.5, 1.0]])).codes
    array([[ 127, -127],
           [  64,   64]], dtype=int8)
    """
    vectors = as_embeddings("embeddings", embeddings).astype(np.float64)
    known = (
        vectors if fitted_to is None else as_embeddings("fitted_to", fitted_to).astype(np.float64)
    )
    if known.shape[1] != vectors.shape[1]:
        raise UserError(
            f"fitted_to has {known.shape[1]} dimensions; accepted: those of the embeddings, {vectors.shape[1]}"
        )
    scale = np.abs(known).max(axis=0) / 127
    scale[scale == 0] = 1
    codes = np.clip(np.rint(vectors / scale), -127, 127)
    return Quantized(codes.astype(np.int8), scale)


def binary(embeddings: Float[np.ndarray, "n d"]) -> Int[np.ndarray, "n bytes"]:
    """Returns a bit a dimension, 1 where x > 0, packed into uint8 [n, ceil(d / 8)].

    Args:
      embeddings: what is stored.

    >>> binary(np.array([[1.0, -2.0, 3.0]]))
    array([[160]], dtype=uint8)
    """
    return np.packbits(as_embeddings("embeddings", embeddings) > 0, axis=1)


def signs(codes: Int[np.ndarray, "n bytes"], dim: int) -> Float[np.ndarray, "n d"]:
    """Returns the bits of `binary` as -1 and 1: their cosine distance is 2 / dim times the Hamming distance.

    Args:
      codes: as from `binary`.
      dim: of the embeddings.

    >>> signs(np.array([[160]], np.uint8), 3)
    array([[ 1., -1.,  1.]], dtype=float32)
    """
    return np.unpackbits(codes, axis=1, count=dim).astype(np.float32) * 2 - 1


def rescored(
    queries: Float[np.ndarray, "q d"],
    gallery: Float[np.ndarray, "n d"],
    found: Int[np.ndarray, "q m"],
    k: int,
    *,
    gallery_ids: Ids | None = None,
) -> Int[np.ndarray, "q k"]:
    """Returns the first k of the candidates that a coarser search found, by cosine, the lower id first among equals.

    Args:
      queries: embeddings.
      gallery: embeddings.
      found: [q, m], ids of the candidates.
      k: how many of them are kept.
      gallery_ids: the gallery's ids; row numbers by default.

    Raises:
      UserError: a k beyond the candidates.

    >>> rescored(np.array([[1.0, 0.0]]), np.eye(2), np.array([[1, 0]]), 1)
    array([[0]])
    """
    if not 1 <= k <= found.shape[1]:
        raise UserError(f"k={k} of {found.shape[1]} candidates; accepted: 1 to {found.shape[1]}")
    wide, items = (without_tiny(x).astype(np.float64) for x in (queries, gallery))
    query_squares, squares = (np.einsum("nd,nd->n", x, x) for x in (wide, items))
    places = rows_of_ids(found, gallery_ids)
    best = np.empty((len(found), k), np.int64)
    size = max(1, CHUNK // (found.shape[1] * wide.shape[1]))
    for start in range(0, len(wide), size):
        rows = slice(start, start + size)
        products = np.einsum("qd,qmd->qm", wide[rows], items[places[rows]])
        far = squared_chords(products, query_squares[rows, None] * squares[places[rows]])
        order = np.lexsort((found[rows], far), axis=1)[:, :k]
        best[rows] = np.take_along_axis(found[rows], order, axis=1)
    return best
