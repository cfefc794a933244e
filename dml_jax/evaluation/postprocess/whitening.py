"""PCA-whitening of embeddings."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dml_jax.errors import UserError
from dml_jax.evaluation.spectrum import principal_axes
from dml_jax.evaluation.vectors import normalize_rows

# Directions with less than this share of the largest variance are noise of rounding.
RANK = 1e-10


class Whitening(NamedTuple):
    """A map to coordinates of mean 0, variance 1 and no correlation on the set that it was fitted to.

    Attributes:
      mean: [d].
      matrix: [d, m], the principal directions, each divided by its standard deviation.
    """

    mean: Float[np.ndarray, " d"]
    matrix: Float[np.ndarray, "d m"]

    def __call__(self, embeddings: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n m"]:
        """Returns normalised((x - mean) matrix), float32; what lies at the mean becomes zero."""
        return normalize_rows((embeddings - self.mean) @ self.matrix).astype(np.float32)


def whitening(embeddings: Float[np.ndarray, "n d"], dim: int | None = None) -> Whitening:
    """Fits PCA-whitening to a set (Jegou and Chum, ECCV 2012), keeping `dim` directions, or all.

    Directions in which the set has no variance are left out.

    Args:
      embeddings: the set.
      dim: how many directions are kept, those of the largest variance; None: all.

    Raises:
      UserError: a `dim` out of 1..d, or a set of no variance.

    >>> fitted = whitening(np.array([[1.0, 5.0], [3.0, 5.0], [2.0, 5.0]]))
    >>> fitted(np.array([[3.0, 7.0]]))
    array([[1.]], dtype=float32)
    """
    mean, directions, variances = principal_axes(embeddings)
    if dim is not None and not 1 <= dim <= len(mean):
        raise UserError(
            f"dim={dim} of a whitening of {len(mean)} dimensions; accepted: 1 to {len(mean)}"
        )
    kept = np.flatnonzero(variances > RANK * variances[0])[:dim]
    if not len(kept):
        raise UserError("the embeddings are all equal: there is nothing to whiten")
    return Whitening(mean, directions[:, kept] / np.sqrt(variances[kept]))
