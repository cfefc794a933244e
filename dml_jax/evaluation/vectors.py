"""Checks of what an evaluation is given, and the normalisation of vectors on the host."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dml_jax.errors import UserError

# A vector of at most this length counts as zero, as in `dml_jax.distances.normalize`.
ZERO_NORM = 1e-12


def as_embeddings(name: str, embeddings: Any) -> Float[np.ndarray, "n d"]:
    """Returns the embeddings as a float32 array [n, d].

    Args:
      name: what they are, as errors call them.
      embeddings: an array or nested lists.

    Raises:
      UserError: another number of axes, no row or column at all, or values that are not finite.

    >>> as_embeddings("gallery", [[3, -0.0]])
    array([[3., 0.]], dtype=float32)
    """
    found = np.asarray(embeddings, dtype=np.float32)
    if found.ndim != 2 or 0 in found.shape:
        raise UserError(
            f"{name} have shape {found.shape}; accepted: [items, dimensions], not empty"
        )
    finite = np.isfinite(found).all(axis=1)
    if not finite.all():
        raise UserError(f"{name}: row {np.argmin(finite)} has values that are not finite")
    # Adding 0 turns -0.0 into 0.0, which would make equal rows differ in their bytes.
    return found + np.float32(0)


def as_ids(name: str, values: Any, size: int) -> Int[np.ndarray, " n"]:
    """Returns the values as an int64 array [size].

    Args:
      name: what they are, as errors call them.
      values: integers.
      size: how many of them are needed.

    Raises:
      UserError: values that are not integers, or not as many.

    >>> as_ids("labels", [4, 2], 2)
    array([4, 2])
    """
    found = np.asarray(values)
    if found.shape != (size,) or found.dtype.kind not in "iu":
        raise UserError(
            f"{name} have shape {found.shape} and type {found.dtype}; accepted: {size} integers"
        )
    return found.astype(np.int64)


def norms(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """Returns the Euclidean norm of each row, in float64."""
    return np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))


def normalize_rows(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Returns each row over its Euclidean norm, in float64; a row whose norm is at most 1e-12 becomes zero.

    The NumPy counterpart of `dml_jax.distances.normalize`, with the same rule for zero vectors.

    >>> normalize_rows(np.array([[3.0, 4.0], [0.0, 0.0], [0.0, 1e-13]]))
    array([[0.6, 0.8],
           [0. , 0. ],
           [0. , 0. ]])
    """
    lengths = norms(vectors)
    zero = lengths <= ZERO_NORM
    return np.where(zero[:, None], 0.0, vectors / np.where(zero, 1, lengths)[:, None])


def rows_of_ids(
    ids: Int[np.ndarray, "*shape"], gallery_ids: Int[np.ndarray, " n"] | None
) -> Int[np.ndarray, "*shape"]:
    """Returns which row of the gallery has each id; ids are row numbers where the gallery has none of its own.

    >>> rows_of_ids(np.array([7, 5]), np.array([5, 6, 7]))
    array([2, 0])
    """
    if gallery_ids is None:
        return ids
    order = np.argsort(gallery_ids)
    return order[np.searchsorted(np.asarray(gallery_ids)[order], ids)]


def squared_chords(
    products: Float[np.ndarray, " m"], squares: Float[np.ndarray, " m"]
) -> Float[np.ndarray, " m"]:
    """Returns 2 - 2 cos, the squared distance of two vectors' directions, from q.g and |q|^2 |g|^2 in float64.

    2 where a vector is zero: it has cosine 0 with everything. The cosine is taken from (q.g)^2 / (|q|^2 |g|^2) and not
    from rounded unit vectors, so that equal cosines of vectors whose products float64 holds exactly (multiples by
    powers of two of any vector, any vectors of small whole numbers) are equal numbers, which is what ties are.

    >>> squared_chords(np.array([3.0, 6.0, 0.0]), np.array([9.0, 36.0, 0.0]))
    array([0., 0., 2.])
    """
    ratio = products * np.abs(products) / np.where(squares > 0, squares, 1)
    return np.where(squares > 0, 2 - 2 * np.sign(ratio) * np.sqrt(np.abs(ratio)), 2.0)


def without_tiny(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Returns the vectors with those that count as zero (of a norm of at most 1e-12) made zero."""
    tiny = norms(vectors) <= ZERO_NORM
    return np.where(tiny[:, None], np.zeros((), vectors.dtype), vectors) if tiny.any() else vectors
