"""How the embeddings of a set fill their space: distances within and between classes, the spectrum."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dml_jax.errors import UserError
from dml_jax.evaluation.vectors import as_embeddings, normalize_rows

MODES = ("intra", "inter", "intra_over_inter")
BLOCK = 8192


def class_distances(
    embeddings: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], mode: str
) -> float:
    """The ICML 2020 code's `dists@intra`, `dists@inter` and `dists@intra_over_inter` (Roth et al. 2020, section 4.2).

    intra: the mean of 1 - cosine over the pairs of a class, averaged over classes; inter: the same over pairs of
    class means, which are taken before they are normalised; intra_over_inter: intra / max(inter, 1e-8).
    A zero vector has cosine 0 with everything. A class of one has no pair and takes the largest mean of a class
    (as that code intends; it looks among the classes 0 and 1 only). nan where no class has a pair, for inter
    where there is one class.

    Args:
      embeddings: of the items.
      labels: of the items.
      mode: `intra`, `inter` or `intra_over_inter`.

    >>> class_distances(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), np.array([0, 0, 1]), "intra")
    1.0
    """
    _, of, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.argsort(of, kind="stable")
    starts = np.cumsum(sizes) - sizes
    if mode == "inter":
        return _inter(embeddings, order, starts, sizes)
    unit = normalize_rows(embeddings)
    length = np.add.reduceat(np.einsum("nd,nd->n", unit, unit)[order], starts)
    sums = np.add.reduceat(unit[order], starts, axis=0)
    pairs = sizes * (sizes - 1.0)
    if not pairs.any():
        return float("nan")
    # sum_{i != j} cosine = |sum of unit vectors|^2 - sum of their squared lengths.
    cosines = np.einsum("cd,cd->c", sums, sums) - length
    means = 1 - cosines / np.where(pairs > 0, pairs, 1)
    intra = float(np.where(pairs > 0, means, means[pairs > 0].max()).mean())
    if mode == "intra":
        return intra
    return intra / max(_inter(embeddings, order, starts, sizes), 1e-8)


def _inter(
    embeddings: np.ndarray, order: np.ndarray, starts: np.ndarray, sizes: np.ndarray
) -> float:
    if len(sizes) == 1:
        return float("nan")
    means = np.add.reduceat(embeddings[order], starts, axis=0, dtype=np.float64)
    means = normalize_rows(means / sizes[:, None])
    total = means.sum(axis=0)
    pairs = len(sizes) * (len(sizes) - 1.0)
    return float(1 - (total @ total - np.sum(means * means)) / pairs)


def singular_values(embeddings: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " m"]:
    """Returns the singular values of the embeddings, uncentred, largest first, in float64; min(n, d) of them.

    Args:
      embeddings: of the items.

    >>> singular_values(np.array([[3.0, 0.0], [0.0, 4.0]]))
    array([4., 3.])
    """
    triangle: Any = np.zeros((0, embeddings.shape[1]))
    for start in range(0, len(embeddings), BLOCK):
        block = embeddings[start : start + BLOCK].astype(np.float64)
        triangle = np.linalg.qr(np.concatenate([triangle, block]), mode="r")
    return np.linalg.svd(triangle, compute_uv=False)


def rho_spectrum(embeddings: Float[np.ndarray, "n d"], mode: int) -> float | np.ndarray:
    """The ICML 2020 code's `rho_spectrum@mode`: how far the singular values are from equal (Roth et al. 2020, eq. 9).

    With q the singular values without the |mode| - 1 largest, over their sum, and u uniform: KL(u || q) for mode
    > 0, KL(q || u) for mode < 0, and the vector q of all of them for mode 0. The paper's rho is mode 2 on the
    training set. inf for mode > 0 where a singular value is 0.
    Differs from that code, which computes d - 1 of the d values by an iterative method unless it runs on a GPU.
    nan for a spectrum that is all 0.

    Args:
      embeddings: of the items.
      mode: how many of the largest are left out, plus 1; its sign is the direction of the divergence.

    Raises:
      UserError: a mode that leaves no singular value.

    >>> abs(round(rho_spectrum(np.eye(3), 2), 6))
    0.0
    """
    values = singular_values(embeddings)
    if abs(mode) > len(values):
        raise UserError(
            f"rho_spectrum@{mode} leaves out {abs(mode) - 1} of {len(values)} singular values; accepted: "
            f"{-len(values)} to {len(values)}"
        )
    values = values[max(0, abs(mode) - 1) :]
    if not values.sum():
        return float("nan")
    q = values / values.sum()
    if mode == 0:
        return q
    if mode < 0:
        return float(np.sum(q * np.log(np.where(q > 0, q, 1) * len(q))))
    if not q.all():
        return float("inf")
    return float(-np.mean(np.log(q * len(q))))


class Axes(NamedTuple):
    """The principal axes of a set.

    Attributes:
      mean: [d].
      directions: [d, d], an axis a column, of the largest variance first; unit length, signs such that the
        coordinate of largest magnitude is positive.
      variances: [d], of the set along each axis (division by n), not negative.
    """

    mean: Float[np.ndarray, " d"]
    directions: Float[np.ndarray, "d d"]
    variances: Float[np.ndarray, " d"]


def principal_axes(embeddings: Float[np.ndarray, "n d"]) -> Axes:
    """Returns the eigenvectors of the covariance (x - mean)^T (x - mean) / n, in float64, blocks of rows at a time.

    The singular values of the centred embeddings are sqrt(n variances).

    Args:
      embeddings: of the items.

    Raises:
      UserError: another shape, or values that are not finite.

    >>> principal_axes(np.array([[0.0, 1.0], [0.0, 3.0]])).variances
    array([1., 0.])
    """
    vectors = as_embeddings("embeddings", embeddings)
    mean = vectors.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((vectors.shape[1],) * 2)
    for start in range(0, len(vectors), BLOCK):
        centred = vectors[start : start + BLOCK] - mean
        covariance += centred.T @ centred
    values, directions = np.linalg.eigh(covariance / len(vectors))
    directions = directions[:, ::-1]
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=0)[None, :], axis=0)
    return Axes(mean, directions * np.sign(largest), np.maximum(values[::-1], 0))
