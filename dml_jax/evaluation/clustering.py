"""k-means of the embeddings, and how well the clusters agree with the labels."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int
from scipy.special import gammaln

from dml_jax import names
from dml_jax.errors import UserError
from dml_jax.evaluation.vectors import normalize_rows

ITERATIONS = 20
SEED = 1234
# A cluster that lost all its points takes half of another's: its centroid, and this share apart from it.
APART = 1 / 1024
BLOCK = 1024
BACKENDS = ("faiss", "jax")
# Values of the gamma function at a time in the expected mutual information.
CHUNK = 1 << 22


def kmeans(
    embeddings: Float[np.ndarray, "n d"],
    clusters: int,
    *,
    backend: str = "faiss",
    iterations: int = ITERATIONS,
    seed: int = SEED,
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, "clusters d"]]:
    """Clusters the embeddings by Lloyd's algorithm, started from `clusters` of the points.

    Both backends start from the same points, drawn with `seed`, use all embeddings in each iteration, and assign
    each to the nearest final centroid. In float32: rounding may send a point between two centroids to either.
    Differs from PML, which clusters a sample where there are more than 256 embeddings per cluster; from the ICML
    2020 code, which takes the number of training classes for any set.

    Args:
      embeddings: the points.
      clusters: how many, from 1 to the number of points.
      backend: `faiss` (on the CPU) or `jax` (on the default device; blocks of points against all centroids).
      iterations: of Lloyd's algorithm; 20 is PML's and the ICML 2020 code's.
      seed: of the draw of the first centroids; 1234 is faiss's.

    Returns: the cluster of each embedding [n], and the centroids [clusters, d].

    Raises:
      UserError: fewer points than clusters, an unknown backend.

    >>> assigned, centroids = kmeans(np.array([[0.0], [0.1], [5.0], [5.2]]), 2)
    >>> bool(assigned[0] == assigned[1] != assigned[2] == assigned[3])
    True
    """
    names.resolve("backend of k-means", dict.fromkeys(BACKENDS), backend)
    points = np.ascontiguousarray(embeddings, dtype=np.float32)
    if not 1 <= clusters <= len(points):
        raise UserError(f"clusters={clusters}; accepted: 1 to {len(points)}, the number of points")
    method = _faiss_kmeans if backend == "faiss" else _jax_kmeans
    return method(points, clusters, iterations, seed)


def cosine_kmeans(
    embeddings: Float[np.ndarray, "n d"], clusters: int, *, backend: str = "faiss"
) -> Int[np.ndarray, " n"]:
    """Clusters by `kmeans` of the normalised embeddings; each goes to the normalised centroid of the largest cosine.

    The clusters of `c_nmi` and `c_f1`. The ICML 2020 code overwrites these centroids with those of the raw
    embeddings, so that its `c_nmi` needs `nmi` or `f1` beside it.

    Args:
      embeddings: the points.
      clusters: how many.
      backend: as in `kmeans`.

    >>> assigned = cosine_kmeans(np.array([[1.0, 0.0], [9.0, 0.1], [0.0, 2.0]]), 2)
    >>> bool(assigned[0] == assigned[1] != assigned[2])
    True
    """
    unit = normalize_rows(embeddings).astype(np.float32)
    centroids = normalize_rows(kmeans(unit, clusters, backend=backend)[1]).astype(np.float32)
    parts = [unit[i : i + BLOCK] @ centroids.T for i in range(0, len(unit), BLOCK)]
    return np.concatenate([np.argmax(part, axis=1) for part in parts])


def initial_centroids(size: int, clusters: int, seed: int = SEED) -> Int[np.ndarray, " clusters"]:
    """Returns the rows that faiss's k-means starts from: the first of a shuffle by the Mersenne twister of seed + 1."""
    draws = np.random.RandomState(seed + 1).randint(0, 1 << 32, size=size, dtype=np.uint32)
    order = np.arange(size)
    for i in range(min(clusters, size - 1)):
        j = i + int(draws[i]) % (size - i)
        order[i], order[j] = order[j], order[i]
    return order[:clusters]


def _faiss_kmeans(
    points: np.ndarray, clusters: int, iterations: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    import faiss

    index = faiss.IndexFlatL2(points.shape[1])
    method = faiss.Clustering(points.shape[1], clusters)
    method.niter, method.seed = iterations, seed
    method.min_points_per_centroid, method.max_points_per_centroid = 1, len(points)
    method.train(points, index)
    centroids = faiss.vector_to_array(method.centroids).reshape(clusters, -1)
    return index.search(points, 1)[1][:, 0], centroids


def _jax_kmeans(
    points: np.ndarray, clusters: int, iterations: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    centroids = points[initial_centroids(len(points), clusters, seed)]
    padded = np.pad(points, ((0, -len(points) % BLOCK), (0, 0)))
    vectors = jnp.asarray(padded.reshape(-1, BLOCK, points.shape[1]))
    for _ in range(iterations):
        nearest = np.asarray(_assign(vectors, jnp.asarray(centroids)))[: len(points)]
        counts = np.bincount(nearest, minlength=clusters)
        # Sums in float64 and in the order of the points: not the device's business.
        order = np.argsort(nearest, kind="stable")
        filled = np.flatnonzero(counts)
        starts = (np.cumsum(counts) - counts)[filled]
        sums = np.add.reduceat(points[order], starts, axis=0, dtype=np.float64)
        centroids = np.array(centroids)
        centroids[filled] = sums / counts[filled, None]
        _split(centroids, counts.astype(np.float64), len(points))
    return np.asarray(_assign(vectors, jnp.asarray(centroids)))[: len(points)], centroids


@jax.jit
def _assign(points: Float[Array, "blocks b d"], centroids: Float[Array, "k d"]) -> Int[Array, " n"]:
    sizes = jnp.sum(centroids * centroids, axis=1)

    def nearest(block: Array) -> Array:
        products = jnp.matmul(block, centroids.T, precision=lax.Precision.HIGHEST)
        return jnp.argmin(sizes[None, :] - 2 * products, axis=1)

    return lax.map(nearest, points).reshape(-1)


def _split(centroids: np.ndarray, counts: np.ndarray, size: int) -> None:
    """Gives each empty cluster half of another one, drawn with probability (its count - 1) / (n - k).

    The rule is faiss's, its random numbers too, but not its rounding: the two may choose different clusters.
    """
    k = len(centroids)
    draws = np.random.RandomState(1234)
    signs = np.where(np.arange(centroids.shape[1]) % 2 == 0, 1, -1) * np.float32(APART)
    for empty in np.flatnonzero(counts == 0):
        other = 0
        while True:
            draw = draws.randint(0, 1 << 32, dtype=np.uint32) / np.float32(2**32 - 1)
            if draw < (counts[other] - 1) / np.float32(size - k):
                break
            other = (other + 1) % k
        centroids[empty] = centroids[other] * (1 + signs)
        centroids[other] *= 1 - signs
        counts[empty] = counts[other] / 2
        counts[other] -= counts[empty]


def nmi(labels: Int[np.ndarray, " n"], clusters: Int[np.ndarray, " n"]) -> float:
    """I(labels; clusters) / ((H(labels) + H(clusters)) / 2): normalised mutual information, from 0 to 1.

    1 where both have one group only. PML's NMI and the ICML 2020 code's `nmi` (of a scikit-learn from 0.22 on; older
    ones took the geometric mean).

    Args:
      labels: of the items.
      clusters: of the items.

    >>> round(nmi(np.array([0, 0, 1, 1]), np.array([3, 3, 8, 8])), 6)
    1.0
    """
    table = _Contingency(labels, clusters)
    if len(table.rows) == len(table.columns) == 1:
        return 1.0
    mean = (table.entropy(table.rows) + table.entropy(table.columns)) / 2
    return float(table.information() / mean)


def ami(labels: Int[np.ndarray, " n"], clusters: Int[np.ndarray, " n"]) -> float:
    """(I - E[I]) / ((H(labels) + H(clusters)) / 2 - E[I]): adjusted for chance (Vinh et al. 2010).

    E is over clusterings with the same sizes. 1 where the two agree, also where both have one group only or one
    item a group; near 0 for chance. PML's AMI.

    Args:
      labels: of the items.
      clusters: of the items.

    >>> round(ami(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])), 4)
    -0.5
    """
    table = _Contingency(labels, clusters)
    groups = len(table.rows), len(table.columns)
    if groups in ((1, 1), (table.total, table.total)):
        return 1.0
    expected = table.expected_information()
    mean = (table.entropy(table.rows) + table.entropy(table.columns)) / 2
    gap = mean - expected
    # Where chance alone gives everything, the quotient is one of rounding errors.
    gap = np.copysign(max(abs(gap), np.finfo(float).eps), gap)
    return float((table.information() - expected) / gap)


def f1(labels: Int[np.ndarray, " n"], clusters: Int[np.ndarray, " n"]) -> float:
    """2 TP / (pairs of one label + pairs of one cluster), TP the pairs that share both.

    0 where no pair shares both; nan where neither has a pair. The ICML 2020 code's `f1`, which is nan wherever TP is 0
    and computes the same through the medoid of each cluster.

    Args:
      labels: of the items.
      clusters: of the items.

    >>> round(f1(np.array([0, 0, 1, 1]), np.array([3, 3, 8, 9])), 6)
    0.666667
    """
    table = _Contingency(labels, clusters)
    both, one, other = (np.sum(c * (c - 1.0)) for c in (table.cells, table.rows, table.columns))
    return float(2 * both / (one + other)) if one + other else float("nan")


class _Contingency:
    """How many items each pair of a label and a cluster has: only pairs that occur are kept."""

    def __init__(self, labels: np.ndarray, clusters: np.ndarray) -> None:
        _, a, self.rows = np.unique(labels, return_inverse=True, return_counts=True)
        _, b, self.columns = np.unique(clusters, return_inverse=True, return_counts=True)
        pairs, self.cells = np.unique(a * len(self.columns) + b, return_counts=True)
        self.a, self.b = pairs // len(self.columns), pairs % len(self.columns)
        self.total = len(labels)

    def entropy(self, counts: np.ndarray) -> float:
        share = counts / self.total
        return float(-np.sum(share * np.log(share)))

    def information(self) -> float:
        share = self.cells / self.total
        ratio = np.log(self.cells) + np.log(self.total) - np.log(self.rows[self.a])
        return max(0.0, float(np.sum(share * (ratio - np.log(self.columns[self.b])))))

    def expected_information(self) -> float:
        """sum_{sizes a, b} sum_n n/N log(N n / (a b)) P(n), P hypergeometric; equal pairs of sizes once."""
        n = self.total
        rows, many_rows = np.unique(self.rows, return_counts=True)
        columns, many_columns = np.unique(self.columns, return_counts=True)
        factorial = gammaln(np.arange(n + 2))  # log (i - 1)!
        log = np.log(np.arange(1, n + 1))
        expected = 0.0
        for a, times in zip(rows, many_rows, strict=True):
            # [b, n] for as many column sizes at a time as fit.
            for start in range(0, len(columns), max(1, CHUNK // a)):
                b = columns[start : start + max(1, CHUNK // a), None]
                weight = many_columns[start : start + max(1, CHUNK // a), None]
                cell = np.arange(1, a + 1)[None, :]
                possible = (cell <= b) & (cell >= a + b - n)
                c = np.where(possible, cell, np.maximum(1, a + b - n))
                chance = (
                    factorial[a + 1]
                    + factorial[b + 1]
                    + factorial[n - a + 1]
                    + factorial[n - b + 1]
                    - factorial[n + 1]
                    - factorial[c + 1]
                    - factorial[np.maximum(a - c, 0) + 1]
                    - factorial[np.maximum(b - c, 0) + 1]
                    - factorial[np.maximum(n - a - b + c, 0) + 1]
                )
                gain = c / n * (log[n - 1] + log[c - 1] - log[a - 1] - log[b - 1])
                expected += times * float(
                    np.sum(weight * np.where(possible, gain * np.exp(chance), 0))
                )
        return expected
