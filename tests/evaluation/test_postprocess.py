"""Steps after training, against naive forms in loops."""

import numpy as np
import pytest

from dml_jax import evaluation
from dml_jax.evaluation.postprocess import comparison, compression, expansion, reranking

LABELS = np.array([0] * 11 + [1] * 2 + [2] * 8 + [3] + [4] * 5)
COUNT = len(LABELS)


def clustered(dim=6, seed=0, zero=True):
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(5, dim))[LABELS] + 0.7 * rng.normal(size=(COUNT, dim))
    found[4] = found[2]
    if zero:  # all is equally far from it, up to rounding: what it finds is not defined
        found[13] = 0
    return found.astype(np.float32)


def unit(vectors):
    vectors = vectors.astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms == 0, 1, norms)


def order(distances):
    """By distance, the lower position first among equals (up to rounding)."""
    return np.lexsort((np.arange(len(distances)), np.round(distances, 10)))


def test_whitening():
    vectors = clustered() @ np.diag([5, 1, 1, 0.1, 1, 2]).astype(np.float32)
    found = evaluation.whitening(vectors)
    coordinates = (vectors - found.mean) @ found.matrix
    np.testing.assert_allclose(coordinates.T @ coordinates / COUNT, np.eye(6), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found(vectors), axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(found(found.mean[None, :]), 0)
    assert evaluation.whitening(vectors, 2)(vectors).shape == (COUNT, 2)
    # A dimension that is the sum of two others adds none.
    more = np.concatenate([vectors, vectors[:, :1] + vectors[:, 1:2]], axis=1)
    assert evaluation.whitening(more.astype(np.float32)).matrix.shape == (7, 6)
    with pytest.raises(ValueError, match="dim=7 of a whitening of 6 dimensions; accepted: 1 to 6"):
        evaluation.whitening(vectors, 7)
    with pytest.raises(ValueError, match="all equal"):
        evaluation.whitening(np.ones((4, 3)))


@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_alpha_query_expansion(monkeypatch, alpha):
    monkeypatch.setattr(expansion, "CHUNK", 40)
    queries, gallery = clustered(seed=1)[:5], clustered()
    ids = 100 - 3 * np.arange(COUNT)
    found = evaluation.alpha_query_expansion(
        queries, gallery, 4, alpha=alpha, query_ids=ids[:5], gallery_ids=ids
    )
    q, g = unit(queries), unit(gallery)
    for i in range(5):
        far = 1 - g @ q[i]
        far[i] = np.inf
        near = sorted(range(COUNT), key=lambda j: (round(far[j], 10), ids[j]))[:4]
        total = q[i] + sum(max(q[i] @ g[j], 0) ** alpha * g[j] for j in near)
        np.testing.assert_allclose(found[i], total / np.linalg.norm(total), atol=1e-6)


def test_database_augmentation():
    gallery = clustered()
    found = evaluation.database_augmentation(gallery, 3)
    g = unit(gallery)
    for i in range(COUNT):
        far = 1 - g @ g[i]
        far[i] = np.inf
        total = g[i] + sum(max(g[i] @ g[j], 0) ** 3 * g[j] for j in order(far)[:3])
        norm = np.linalg.norm(total)
        np.testing.assert_allclose(found[i], total / norm if norm else total, atol=1e-6)


def test_int8():
    vectors = clustered()
    vectors[:, 3] = 0
    codes = evaluation.int8(vectors)
    assert codes.codes.dtype == np.int8 and np.abs(codes.codes).max() == 127
    assert (np.abs(codes.decoded() - vectors) <= codes.scale / 2 + 1e-6).all()
    np.testing.assert_array_equal(codes.decoded()[:, 3], 0)
    # Fitted to another set: its scales, and what lies beyond them is cut.
    known = np.array([[1, 1, 1, 0, 2, 0.01], [-0.5, 0, 0, 0, 0, 0]], np.float32)
    other = evaluation.int8(vectors, known)
    np.testing.assert_allclose(other.scale, np.array([1, 1, 1, 127, 2, 0.01]) / 127)
    expected = np.clip(np.round(vectors.astype(np.float64) / other.scale), -127, 127)
    np.testing.assert_array_equal(other.codes, expected)
    assert np.abs(vectors[:, 5]).max() > 0.01 and set(np.abs(other.codes[:, 5])) == {0, 127}
    with pytest.raises(ValueError, match="fitted_to has 2 dimensions; accepted: those of the emb"):
        evaluation.int8(vectors, known[:, :2])


def test_binary():
    vectors = clustered(dim=11)
    codes = evaluation.binary(vectors)
    assert codes.dtype == np.uint8 and codes.shape == (COUNT, 2)
    bits = evaluation.signs(codes, 11)
    np.testing.assert_array_equal(bits, np.where(vectors > 0, 1, -1))
    distances, _ = evaluation.neighbours(bits[:1], bits, COUNT, distance="cosine")
    hamming = np.sort([(a != bits[0]).sum() for a in bits])
    np.testing.assert_allclose(distances[0], hamming * 2 / 11, atol=1e-6)


def test_rescored(monkeypatch):
    monkeypatch.setattr(compression, "CHUNK", 100)
    vectors, ids = clustered(), 3 * np.arange(COUNT)[::-1]
    candidates = np.random.default_rng(0).permuted(np.tile(ids, (4, 1)), axis=1)[:, :9]
    found = evaluation.rescored(vectors[:4], vectors, candidates, 5, gallery_ids=ids)
    g = unit(vectors)
    for i in range(4):
        far = {j: round(1 - g[i] @ g[np.flatnonzero(ids == j)[0]], 10) for j in candidates[i]}
        assert found[i].tolist() == sorted(far, key=lambda j: (far[j], j))[:5]
    with pytest.raises(ValueError, match="k=10 of 9 candidates; accepted: 1 to 9"):
        evaluation.rescored(vectors[:4], vectors, candidates, 10, gallery_ids=ids)


def naive_k_reciprocal(vectors, k1, k2, weight, distance="cosine"):
    """The definition with sets and loops: distances [n, n]."""
    g = unit(vectors) if distance == "cosine" else vectors.astype(np.float64)
    plain = np.array([[np.sum((a - b) ** 2) for b in g] for a in g])
    plain /= plain.max(axis=1, keepdims=True)
    count = len(g)

    def nearest(i, k):
        far = plain[i].copy()
        far[i] = -np.inf
        return order(far)[: k + 1].tolist()

    def reciprocal(i, k):
        return {j for j in nearest(i, k) if i in nearest(j, k)}

    encoded = np.zeros((count, count))
    for i in range(count):
        first = reciprocal(i, k1)
        whole = set(first)
        for j in first:
            other = reciprocal(j, round(k1 / 2))
            if len(other & first) > 2 / 3 * len(other):
                whole |= other
        for j in whole:
            encoded[i, j] = np.exp(-plain[i, j])
        encoded[i] /= encoded[i].sum()
    encoded = np.stack([encoded[nearest(i, k1)[:k2]].mean(axis=0) for i in range(count)])
    smaller = np.minimum(encoded[:, None], encoded[None, :]).sum(axis=2)
    larger = np.maximum(encoded[:, None], encoded[None, :]).sum(axis=2)
    return (1 - weight) * (1 - smaller / larger) + weight * plain


@pytest.mark.parametrize(
    "k1, k2, weight, distance",
    [
        (6, 3, 0.3, "cosine"),
        (5, 1, 0.0, "cosine"),
        (26, 6, 0.5, "cosine"),
        (6, 3, 0.3, "euclidean"),
    ],
)
def test_k_reciprocal(monkeypatch, k1, k2, weight, distance):
    vectors = clustered(zero=False)
    # Norms of their own.
    vectors *= np.linspace(0.5, 2, COUNT, dtype=np.float32)[:, None]
    vectors[4] = vectors[2]
    expected = naive_k_reciprocal(vectors, k1, k2, weight, distance)
    for chunk in (1 << 22, 300):
        monkeypatch.setattr(reranking, "CHUNK", chunk)
        far, found = evaluation.k_reciprocal(
            vectors, COUNT - 1, k1=k1, k2=k2, weight=weight, distance=distance
        )
        for i in range(COUNT):
            assert i not in found[i]
            np.testing.assert_allclose(far[i], expected[i, found[i]], atol=1e-9)
            np.testing.assert_allclose(far[i], np.sort(np.delete(expected[i], i)), atol=1e-9)
    # Negative controls: without the sets, and with the other distance, these are others.
    only = naive_k_reciprocal(vectors, k1, k2, 1.0, distance)
    other = naive_k_reciprocal(
        vectors, k1, k2, weight, {"cosine": "euclidean"}.get(distance, "cosine")
    )
    assert np.abs(expected - only).max() > 0.1 and np.abs(expected - other).max() > 0.1


@pytest.mark.parametrize("k", [1, 4, 30])
def test_the_smallest_with_ties(k):
    """As a stable sort of whole rows, with ties all over, at the last place too, and rows of one value."""
    values = np.random.default_rng(0).integers(0, 6, (50, 30)).astype(float)
    values[0] = 2.0
    values[1, 3:] = np.inf
    expected = np.argsort(values, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(reranking._smallest(values, k), expected)


def test_k_reciprocal_with_a_gallery():
    vectors = clustered(zero=False)
    queries, gallery = np.array([0, 12, 25]), np.array([26, 5, 1, 25, 9, 14])
    expected = naive_k_reciprocal(vectors, 6, 3, 0.3)
    far, found = evaluation.k_reciprocal(vectors, 5, queries=queries, gallery=gallery, k1=6, k2=3)
    assert 25 not in found[2] and set(found.ravel()) <= set(gallery)
    np.testing.assert_allclose(far, expected[queries[:, None], found], atol=1e-9)
    with pytest.raises(ValueError, match="k=6; possible: 1 to 5"):
        evaluation.k_reciprocal(vectors, 6, queries=queries, gallery=gallery)
    with pytest.raises(ValueError, match=r"k2=9.*accepted"):
        evaluation.k_reciprocal(vectors, 2, k1=6, k2=9)
    with pytest.raises(ValueError, match="unknown distance 'jaccard'; accepted: cosine, euclidean"):
        evaluation.k_reciprocal(vectors, 2, k1=6, k2=3, distance="jaccard")
    # All at one place: nothing to divide by.
    far, _ = evaluation.k_reciprocal(np.ones((4, 2)), 3, k1=2, k2=1, distance="euclidean")
    assert np.isfinite(far).all()


def test_after_training(monkeypatch):
    monkeypatch.setattr(comparison, "SHORTEST", 3)
    vectors = clustered(zero=False)
    rows = evaluation.after_training(vectors, LABELS, tuple(sorted(comparison.STEPS)))
    sizes = {name.rpartition(", ")[0]: row["bytes_per_image"] for name, row in rows.items()}
    assert sizes == {
        "as trained": 24,
        "binary": 1,
        "binary, rescored by the query's floats": 1,
        "binary, rescored with int8 fitted to this set": 7,
        "database-side augmentation": 24,
        "int8 fitted to this set": 6,
        "first 3 dimensions": 12,
        "alpha query expansion": 24,
        "k-reciprocal re-ranking": 24,
        "PCA-whitening fitted to this set": 24,
    }
    names = [f"recall_at_{k}" for k in (1, 2, 4, 8)]
    for row in rows.values():
        values = [row[name] for name in names]
        assert values == sorted(values) and 0 < values[0] <= values[-1] <= 1
    expected = evaluation.evaluate_embeddings(vectors, LABELS, metrics=names, distance="cosine")
    plain = rows["as trained, 24 bytes"]
    assert all(abs(plain[name] - expected[name]) < 1e-12 for name in names)
    # All 26 others are candidates here, so that the coarse search decides nothing.
    exact = evaluation.int8(vectors).decoded()
    found = evaluation.evaluate_embeddings(
        vectors,
        LABELS,
        metrics=names,
        gallery=exact,
        gallery_labels=LABELS,
        ids=np.arange(COUNT),
        gallery_ids=np.arange(COUNT),
        distance="cosine",
    )
    both = rows["binary, rescored with int8 fitted to this set, 7 bytes"]
    assert all(abs(both[name] - found[name]) < 1e-12 for name in names)


def test_after_training_fitted_to_another_set():
    """Whitening and scales that ruin a set they do not fit, and leave the other rows as they are."""
    vectors = clustered(zero=False)
    training = clustered(seed=3) * np.array([10, 1, 1, 0.1, 0.01, 1], np.float32)
    steps = ("binary", "int8", "whitening")
    own = evaluation.after_training(vectors, LABELS, steps)
    rows = evaluation.after_training(vectors, LABELS, steps, training=training)
    names = [f"recall_at_{k}" for k in (1, 2, 4, 8)]
    stored = {
        "PCA-whitening fitted to the training set, 24 bytes": evaluation.whitening(training)(
            vectors
        ),
        "int8 fitted to the training set, 6 bytes": evaluation.int8(vectors, training).decoded(),
    }
    for name, given in stored.items():
        expected = evaluation.evaluate_embeddings(given, LABELS, metrics=names, distance="cosine")
        assert rows[name].items() >= expected.items()
        before = own[name.replace("the training set", "this set")]
        assert any(before[k] != rows[name][k] for k in names)
    both = "binary, rescored with int8 fitted to the training set, 7 bytes"
    assert set(rows) == {"as trained, 24 bytes", "binary, 1 bytes", both, *stored} | {
        "binary, rescored by the query's floats, 1 bytes"
    }
    assert all(rows[name] == own[name] for name in rows if "fitted" not in name)
    with pytest.raises(ValueError, match="training has 3 dimensions; accepted: those of the emb"):
        evaluation.after_training(vectors, LABELS, steps, training=training[:, :3])


def test_after_training_errors():
    with pytest.raises(ValueError, match="unknown step after training 'int4'; did you mean 'int8'"):
        evaluation.after_training(clustered(), LABELS, ["int4"])
    with pytest.raises(ValueError, match="two or more"):
        evaluation.after_training(clustered()[:1], LABELS[:1], ["int8"])
    alone = evaluation.after_training(clustered()[:3], np.arange(3), ["int8", "reranking"])
    assert all(np.isnan(row["recall_at_1"]) for row in alone.values())
