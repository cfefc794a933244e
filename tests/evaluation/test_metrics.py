"""Metrics: by hand, against PyTorch Metric Learning (golden), and with mistakes put in."""

import math
import pathlib

import jax
import numpy as np
import pytest

from dml_jax.evaluation import (
    available,
    evaluate_embeddings,
    get,
    map_at_r,
    precision_at_1,
    r_precision,
    recall_at_k,
)

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "metrics.npz")
PML = ("precision_at_1", "r_precision", "map_at_r")


def unbalanced(seed=0, size=150, dim=5):
    """Classes of every size from 1 to about a quarter of the items, around centres of their own."""
    rng = np.random.default_rng(seed)
    labels = np.minimum(rng.geometric(0.3, size) ** 2, 120)
    labels[:3] = [500, 501, 502]
    centres = rng.normal(size=(600, dim))
    return (centres[labels] + rng.normal(size=(size, dim))).astype(np.float32), labels


def test_by_hand():
    hits = np.array([[1, 0, 1, 1, 0], [0, 0, 1, 0, 1], [0, 0, 0, 0, 0]], bool)
    relevant = np.array([3, 2, 4])
    np.testing.assert_array_equal(precision_at_1(hits, relevant), [1, 0, 0])
    np.testing.assert_array_equal(recall_at_k(hits, relevant, k=2), [1, 0, 0])
    np.testing.assert_array_equal(recall_at_k(hits, relevant, k=3), [1, 1, 0])
    # Of the first 3: two hits; of the first 2: none, the hit in third place is too late.
    np.testing.assert_allclose(r_precision(hits, relevant), [2 / 3, 0, 0])
    np.testing.assert_allclose(map_at_r(hits, relevant), [(1 / 1 + 2 / 3) / 3, 0, 0])


def test_a_line_of_points_by_hand():
    """Who is nearest can be read off; one label occurs once."""
    points = np.array([[0], [1], [3], [6], [10], [100]], np.float32)
    labels = np.array([7, 7, 8, 7, 8, 9])
    found = evaluate_embeddings(points, labels)
    # Nearest first: of 0: 1 3 6 10; of 1: 0 3 6 10; of 3: 1 0 6 10 (0 and 6 tie); of 6: 3 10 1 0;
    # of 10: 6 3 1 0. R is 2 for 0, 1 and 6, which have label 7, and 1 for 3 and 10.
    assert found["precision_at_1"] == pytest.approx((1 + 1 + 0 + 0 + 0) / 5)
    assert found["recall_at_2"] == pytest.approx((1 + 1 + 0 + 0 + 1) / 5)
    assert found["recall_at_4"] == pytest.approx(1)
    assert found["recall_at_8"] == pytest.approx(1)
    assert found["r_precision"] == pytest.approx((1 / 2 + 1 / 2 + 0 + 0 + 0) / 5)
    assert found["map_at_r"] == pytest.approx((1 / 2 + 1 / 2 + 0 + 0 + 0) / 5)


@pytest.mark.parametrize("backend", ["jax", "faiss"])
@pytest.mark.parametrize("case", ["alone", "separate", "including"])
def test_equals_pml(case, backend):
    names = ("queries", "query_labels", "references", "labels")
    queries, query_labels, references, labels = (GOLDEN[f"{case}/{name}"] for name in names)
    given = {}
    if case != "alone":
        given = {"gallery": references, "gallery_labels": labels}
    if case == "including":
        given |= {"ids": np.arange(len(queries)), "gallery_ids": np.arange(len(references))}
    found = evaluate_embeddings(queries, query_labels, backend=backend, metrics=PML, **given)
    for k in (None, "max_bin_count"):
        expected = GOLDEN[f"{case}/{k}"]
        np.testing.assert_allclose([found[name] for name in PML], expected, atol=1e-9, rtol=0)
    # Control: a query that finds itself scores better.
    if case != "separate":
        given = {"gallery": references, "gallery_labels": labels}
        wrong = evaluate_embeddings(queries, query_labels, metrics=PML, **given)
        for i, name in enumerate(PML):
            assert wrong[name] > expected[i] + 0.01


def test_r_off_by_one_differs():
    rng = np.random.default_rng(1)
    hits = rng.random((50, 12)) < 0.4
    relevant = rng.integers(2, 10, 50)
    for metric in (r_precision, map_at_r):
        right = metric(hits, relevant)
        for wrong in (relevant - 1, relevant + 1):
            assert np.abs(metric(hits, wrong) - right).max() > 0.05


def naive(embeddings, labels, name):
    """One query after another, from the definitions."""
    values = []
    for i, query in enumerate(embeddings.astype(np.float64)):
        squared = ((embeddings - query) ** 2).sum(axis=1)
        order = [j for j in np.argsort(squared, kind="stable") if j != i]
        hits = [labels[j] == labels[i] for j in order]
        r = sum(hits)
        if r == 0:
            continue
        if name.startswith("recall"):
            values.append(any(hits[: int(name.rsplit("_", 1)[1])]))
        elif name == "r_precision":
            values.append(sum(hits[:r]) / r)
        else:
            values.append(sum(sum(hits[: j + 1]) / (j + 1) for j in range(r) if hits[j]) / r)
    return np.mean(values)


@pytest.mark.parametrize("backend", ["jax", "faiss"])
@pytest.mark.parametrize("block", [None, 16])
def test_long_tails_equal_a_naive_loop(backend, block):
    embeddings, labels = unbalanced()
    sizes = np.unique(labels, return_counts=True)[1]
    assert sizes.min() == 1 and sizes.max() > 30
    names = ("recall_at_1", "recall_at_5", "r_precision", "map_at_r")
    found = evaluate_embeddings(embeddings, labels, metrics=names, backend=backend, block=block)
    assert list(found) == list(names)
    for name in names:
        assert found[name] == pytest.approx(naive(embeddings, labels, name), abs=1e-12)


def test_order_and_ids_change_nothing():
    embeddings, labels = unbalanced(1)
    expected = evaluate_embeddings(embeddings, labels)
    order = np.random.default_rng(0).permutation(len(labels))
    assert evaluate_embeddings(embeddings[order], labels[order]) == pytest.approx(expected)
    ids = order * 1000 + 3
    assert evaluate_embeddings(embeddings, labels, ids=ids) == pytest.approx(expected)
    halves = embeddings[40:90], labels[40:90]
    given = {"gallery": embeddings[order], "gallery_labels": labels[order], "gallery_ids": order}
    found = evaluate_embeddings(*halves, ids=np.arange(40, 90), **given)
    given = {"gallery": embeddings, "gallery_labels": labels, "gallery_ids": np.arange(len(labels))}
    assert evaluate_embeddings(*halves, ids=np.arange(40, 90), **given) == pytest.approx(found)


def test_devices_change_nothing():
    embeddings, labels = unbalanced(2)
    expected = evaluate_embeddings(embeddings, labels)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        assert evaluate_embeddings(embeddings, labels) == expected


@pytest.mark.parametrize("dtype, offset", [(np.int64, 1 << 24), (np.int64, 1 << 40), (np.uint8, 0)])
def test_labels_of_any_size(dtype, offset):
    """float32 merges labels from 2^24 on; here every label occurs once until they are merged."""
    embeddings, labels = unbalanced(3)
    expected = evaluate_embeddings(embeddings, labels % 100)
    assert evaluate_embeddings(embeddings, (labels % 100).astype(dtype) + offset) == expected
    alone = np.arange(4) + (1 << 24)
    assert all(map(math.isnan, evaluate_embeddings(np.eye(4), alone).values()))
    merged = alone.astype(np.float32).astype(np.int64)
    assert not math.isnan(evaluate_embeddings(np.eye(4), merged)["precision_at_1"])


def test_lone_queries_are_left_out():
    embeddings = np.array([[0.0], [0.1], [5.0], [5.1]], np.float32)
    # The last two are alone in their classes; counted as misses they would halve every value.
    found = evaluate_embeddings(embeddings, np.array([1, 1, 2, 3]))
    assert set(found.values()) == {1.0}
    # In a gallery of their own, items that are not queries count towards R.
    found = evaluate_embeddings(
        embeddings[2:], np.array([2, 3]), gallery=embeddings, gallery_labels=np.array([1, 1, 2, 2])
    )
    assert found["precision_at_1"] == 1 and found["r_precision"] == 1


def test_queries_in_and_outside_the_gallery_together():
    """All of one class: R is the whole gallery for one query, and one less for the other."""
    gallery = np.arange(5.0)[:, None]
    found = evaluate_embeddings(
        np.array([[0.0], [9.0]]),
        np.array([4, 4]),
        gallery=gallery,
        gallery_labels=np.full(5, 4),
        ids=np.array([0, 77]),
        gallery_ids=np.arange(5),
    )
    assert set(found.values()) == {1.0}


def test_names():
    assert available() == ("map_at_r", "precision_at_1", "r_precision", "recall_at_k")
    assert get("recall_at_16").title == "R@16"
    for name in (*PML, "recall_at_2"):
        assert get(name).name == name


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"metrics": ["precision_at1"]},
            "unknown metric 'precision_at1'; did you mean 'precision_",
        ),
        ({"metrics": ["recall_at_0"]}, "unknown metric 'recall_at_0'; did you mean 'recall_at_k'"),
        ({"metrics": ["recall_at_k"]}, "needs a number"),
        ({"labels": np.zeros(6)}, "labels have .* type float64; accepted: 6 integers"),
        ({"labels": np.zeros(5, int)}, r"labels have shape \(5,\)"),
        ({"gallery_ids": np.arange(6)}, "need a gallery"),
        ({"gallery": np.ones((6, 2))}, "a gallery needs gallery_labels"),
        ({"distance": "l1"}, "unknown distance 'l1'"),
        (
            {"gallery": np.eye(6), "gallery_labels": np.zeros(6, int), "ids": np.arange(6)},
            "give both or neither",
        ),
        (
            {
                "gallery": np.ones((6, 2)),
                "gallery_labels": np.ones(6, int),
                "ids": np.arange(6),
                "gallery_ids": np.arange(6),
            },
            "id 0 has label 0 as a query and 1 in the gallery",
        ),
    ],
)
def test_errors(change, message):
    arguments = {"embeddings": np.ones((6, 2)), "labels": np.zeros(6, int)}
    with pytest.raises(ValueError, match=message):
        evaluate_embeddings(**(arguments | change))


def test_too_few_neighbours_for_r():
    with pytest.raises(ValueError, match="2 neighbours for R = 3"):
        map_at_r(np.ones((1, 2), bool), np.array([3]))
