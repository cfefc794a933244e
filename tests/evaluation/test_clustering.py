"""k-means and what is made of clusters: both backends, by hand, and with empty clusters."""

import numpy as np
import pytest

from dml_jax.evaluation import kmeans
from dml_jax.evaluation.clustering import ami, cosine_kmeans, f1, initial_centroids, nmi


def test_initial_centroids_are_those_of_faiss():
    import faiss

    points = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    method = faiss.Clustering(3, 20)
    method.niter = 0
    method.min_points_per_centroid = 1
    method.train(points, faiss.IndexFlatL2(3))
    start = faiss.vector_to_array(method.centroids).reshape(20, 3)
    np.testing.assert_array_equal(points[initial_centroids(500, 20)], start)


def test_backends_agree():
    rng = np.random.default_rng(1)
    points = (rng.normal(size=(12, 6))[rng.integers(0, 12, 1500)] * 4).astype(np.float32)
    points += rng.normal(size=points.shape).astype(np.float32)
    found = [kmeans(points, 12, backend=backend) for backend in ("faiss", "jax")]
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-5)
    # Control: another seed starts elsewhere.
    assert (kmeans(points, 12, backend="jax", seed=1)[0] != found[1][0]).any()


@pytest.mark.parametrize("backend", ["faiss", "jax"])
def test_empty_clusters_are_filled(backend):
    """Many copies of few points: of centroids that start at the same place all but one lose their points."""
    rng = np.random.default_rng(1)
    points = rng.normal(size=(9, 4)).astype(np.float32)[rng.integers(0, 9, 300)]
    points[:60] += rng.normal(size=(60, 4)).astype(np.float32)
    clusters, centroids = kmeans(points, 25, backend=backend)
    start = points[initial_centroids(300, 25)]
    assert len(np.unique(clusters)) > len(np.unique(start, axis=0))
    # Each point is at its nearest centroid.
    away = ((points[:, None] - centroids[None]) ** 2).sum(axis=2)
    chosen = np.take_along_axis(away, clusters[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(chosen, away.min(axis=1), atol=1e-4)


def test_cosine_clusters_do_not_see_lengths():
    rng = np.random.default_rng(2)
    points = rng.normal(size=(200, 4)) + 3 * np.eye(4)[rng.integers(0, 4, 200)]
    longer = points * rng.uniform(0.1, 10, (200, 1))
    expected = cosine_kmeans(points, 4)
    np.testing.assert_array_equal(cosine_kmeans(longer, 4, backend="jax"), expected)
    assert (kmeans(longer, 4)[0] != expected).any()


def test_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 2])
    clusters = np.array([5, 5, 6, 6, 6, 6])
    # Pairs of both: (0, 1) and (3, 4); of a label: 3 + 1; of a cluster: 1 + 6.
    assert f1(labels, clusters) == pytest.approx(2 * 2 / (4 + 7))
    joint = np.array([2, 1, 2, 1]) / 6
    apart = np.array([3 / 6 * 2 / 6, 3 / 6 * 4 / 6, 2 / 6 * 4 / 6, 1 / 6 * 4 / 6])
    information = np.sum(joint * np.log(joint / apart))

    def entropy(counts):
        return -sum(c / 6 * np.log(c / 6) for c in counts)

    expected = information / ((entropy([3, 2, 1]) + entropy([2, 4])) / 2)
    assert nmi(labels, clusters) == pytest.approx(expected)


def test_chance_is_taken_off():
    """The expected information against the mean over all permutations of a small set."""
    import itertools

    labels, clusters = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 2, 2])
    permuted = [ami(labels, clusters[list(p)]) for p in itertools.permutations(range(6))]
    assert np.mean(permuted) == pytest.approx(0, abs=1e-12)
    rng = np.random.default_rng(3)
    many = rng.integers(0, 150, 600), rng.integers(0, 150, 600)
    assert abs(ami(*many)) < 0.05 < 0.5 < nmi(*many)


def test_degenerate_groups():
    one, each = np.zeros(5, int), np.arange(5)
    assert nmi(one, one) == ami(one, one) == f1(one, one) == 1
    assert nmi(each, each) == ami(each, each) == 1
    assert nmi(one, each) == ami(one, each) == f1(one, each) == 0
    assert np.isnan(f1(each, each))


def test_errors():
    points = np.eye(4)
    with pytest.raises(ValueError, match="clusters=5; accepted: 1 to 4"):
        kmeans(points, 5)
    with pytest.raises(
        ValueError, match="unknown backend of k-means 'torch'; accepted: faiss, jax"
    ):
        kmeans(points, 2, backend="torch")
