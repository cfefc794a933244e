"""Metrics: by hand, against PyTorch Metric Learning (golden), and with mistakes put in."""

import math
import pathlib
from functools import partial

import jax
import numpy as np
import pytest

from dml_jax import UserError
from dml_jax.evaluation import (
    Ranks,
    available,
    combined,
    evaluate_each,
    evaluate_embeddings,
    get,
    map_at_r,
    mean_average_precision,
    mean_inverse_negative_penalty,
    mean_reciprocal_rank,
    metrics,
    ndcg,
    precision_at_1,
    precision_at_k,
    r_precision,
    recall_at_k,
)
from dml_jax.evaluation.clustering import ami, f1, nmi
from dml_jax.evaluation.metrics import scoring
from dml_jax.evaluation.metrics.table import PLACEHOLDERS
from dml_jax.evaluation.search import Index

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "metrics.npz")
# In the order of the golden file.
PML = (
    "precision_at_1",
    "r_precision",
    "map_at_r",
    "mean_average_precision",
    "mean_reciprocal_rank",
)


def golden_set(case, *keys):
    return tuple(GOLDEN[f"{case}/{key}"] for key in keys)


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
@pytest.mark.parametrize("case", ["alone", "separate", "including", "unit"])
def test_equals_pml(case, backend):
    queries, query_labels = golden_set(case, "queries", "query_labels")
    references, labels = golden_set(case, "references", "labels")
    given = {}
    if case in ("separate", "including"):
        given = {"gallery": references, "gallery_labels": labels}
    if case == "including":
        given |= {"ids": np.arange(len(queries)), "gallery_ids": np.arange(len(references))}
    for k in (None, "max_bin_count", 5):
        for average in ("query", "class", "each_class"):
            found = evaluate_embeddings(
                queries, query_labels, backend=backend, metrics=PML, k=k, average=average, **given
            )
            values = [found[name] for name in PML]
            if average == "each_class":
                assert all(list(value) == sorted(value) for value in values)
                values = [list(value.values()) for value in values]
            expected = GOLDEN[f"{case}/{k}/{average}"]
            np.testing.assert_allclose(values, expected, atol=1e-9, rtol=0)
    # Control: a query that finds itself scores better.
    if case != "separate":
        given = {"gallery": references, "gallery_labels": labels}
        wrong = evaluate_embeddings(queries, query_labels, metrics=PML, **given)
        expected = GOLDEN[f"{case}/None/query"]
        for name, value in zip(PML, expected, strict=True):
            assert wrong[name] > value + 0.001


@pytest.mark.parametrize("case", ["alone", "unit", "many"])
def test_equals_the_icml_2020_code(case):
    """Where that code is wrong, it was patched (tests/golden/make_metrics.py)."""
    names = [key.split("/")[1] for key in GOLDEN.files if key.startswith(f"{case}/")]
    names = [name for name in names if name in available() or "@" in name]
    embeddings, labels = golden_set(case, "queries", "query_labels")
    found = evaluate_embeddings(embeddings, labels, metrics=names)
    assert len(names) == (7 if case == "many" else 23)
    if case == "many":
        # That code compares unit vectors in float32, whose rounding decides one near tie of cosines, which are compared
        # exactly here: so it is given these vectors.
        units = (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32)
        cosine = [name for name in names if name.startswith("c_mAP")]
        plain = evaluate_embeddings(units, labels, metrics=[name[2:] for name in cosine])
        for name in cosine:
            assert abs(found[name] - plain[name[2:]]) < 1e-7
            found[name] = plain[name[2:]]
    for name in names:
        np.testing.assert_allclose(found[name], GOLDEN[f"{case}/{name}"], atol=1e-9, err_msg=name)
    if case == "alone":
        # They differ from PML's: a perfect ranking does not get 1, and lone queries count.
        assert found["mAP_c"] < evaluate_embeddings(embeddings, labels)["map_at_r"] - 0.01
        assert found["e_recall@1"] < evaluate_embeddings(embeddings, labels)["recall_at_1"] - 0.01


@pytest.mark.parametrize("backend", ["faiss", "jax"])
@pytest.mark.parametrize("case", ["alone", "unit", "separate"])
def test_clusters_equal_pml(case, backend):
    embeddings, labels = golden_set(case, "queries", "query_labels")
    found = evaluate_embeddings(embeddings, labels, metrics=("nmi", "ami"), kmeans=backend)
    expected = GOLDEN[f"{case}/clusters"]
    np.testing.assert_allclose([found["nmi"], found["ami"]], expected, atol=1e-9)


def test_equals_scikit_learn():
    embeddings, labels, clusters = golden_set("judged", "queries", "query_labels", "clusters")
    for function, name in ((nmi, "nmi"), (ami, "ami"), (f1, "f1")):
        assert function(labels, clusters) == pytest.approx(GOLDEN[f"judged/{name}"], abs=1e-9)
    names = ("mean_average_precision", "ndcg", "tar@far=0.001", "tar@far=0.01", "tar@far=1e-1")
    found = evaluate_embeddings(embeddings, labels, metrics=names)
    expected = [GOLDEN["judged/ap"], GOLDEN["judged/ndcg"], *GOLDEN["judged/tar"]]
    np.testing.assert_allclose(list(found.values()), expected, atol=1e-9)
    missed = evaluate_embeddings(embeddings, labels, metrics=("fnmr@fmr=0.01",))
    assert missed["fnmr@fmr=0.01"] == pytest.approx(1 - found["tar@far=0.01"])


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
    for name in available():
        if get_or_none(name) is None:
            with pytest.raises(ValueError, match=r"needs a number for [kmx], as in"):
                get(name)
            example = name[:-1] + ("0.01" if name.endswith("x") else "16")
            assert get(example).name == example
        else:
            assert get(name).name == name
    assert get("recall_at_16").title == get("recall@16").title == "R@16"
    assert get("fnmr@fmr=1e-3").better == get("opis").better == "low"


def get_or_none(name):
    return None if name.endswith(("_k", "@k", "=x", "@m")) else get(name)


def test_ranks_and_hits_are_the_same():
    rng = np.random.default_rng(2)
    hits = rng.random((40, 30)) < 0.3
    hits[:3] = False
    relevant = hits.sum(axis=1)
    ranks = Ranks.from_hits(hits)
    by_hand = {"ap": [], "mrr": [], "minp": [], "ndcg": [], "p@4": []}
    for line, r in zip(hits, relevant, strict=True):
        at = [j + 1 for j in range(30) if line[j]]
        by_hand["ap"].append(sum((i + 1) / j for i, j in enumerate(at)) / max(r, 1))
        by_hand["mrr"].append(1 / at[0] if at else 0)
        by_hand["minp"].append(r / at[-1] if at else 0)
        ideal = sum(1 / math.log2(j + 1) for j in range(1, r + 1))
        by_hand["ndcg"].append(sum(1 / math.log2(j + 1) for j in at) / ideal if at else 0)
        by_hand["p@4"].append(sum(line[:4]) / 4)
    functions = {
        "ap": mean_average_precision,
        "mrr": mean_reciprocal_rank,
        "minp": mean_inverse_negative_penalty,
        "ndcg": ndcg,
        "p@4": partial(precision_at_k, k=4),
    }
    for name, function in functions.items():
        np.testing.assert_allclose(function(hits, relevant), by_hand[name])
        np.testing.assert_array_equal(function(hits, relevant), function(ranks, relevant))
    # Of the first 5 only, by all of R.
    np.testing.assert_allclose(
        mean_average_precision(hits, relevant, k=5),
        mean_average_precision(hits[:, :5], relevant),
    )


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_all_ranks_equal_a_naive_loop(distance):
    """With duplicates, a query that is not in the gallery, and ties all over."""
    rng = np.random.default_rng(6)
    gallery = rng.integers(0, 3, (180, 3)).astype(np.float32)
    labels, ids = rng.integers(0, 12, 180), rng.permutation(1000)[:180]
    rows = rng.permutation(180)[:30]
    query_ids = np.append(ids[rows], 5000)
    queries = np.append(gallery[rows], [[1, 2, 1]], axis=0)
    query_labels = np.append(labels[rows], 3)
    names = ("mean_average_precision", "minp", "mean_reciprocal_rank", "recall_at_3")
    found = evaluate_embeddings(
        queries,
        query_labels,
        metrics=names,
        gallery=gallery,
        gallery_labels=labels,
        ids=query_ids,
        gallery_ids=ids,
        distance=distance,
    )
    values = []
    wide = gallery.astype(np.float64)
    for query, label, own in zip(queries.astype(np.float64), query_labels, query_ids, strict=True):
        if distance == "cosine":
            size = np.linalg.norm(wide, axis=1) * np.linalg.norm(query)
            away = np.where(size > 0, 1 - wide @ query / np.where(size > 0, size, 1), 1).round(6)
        else:
            away = ((wide - query) ** 2).sum(axis=1)
        order = [j for j in np.lexsort((ids, away)) if ids[j] != own]
        at = [i + 1 for i, j in enumerate(order) if labels[j] == label]
        ap = np.mean([(i + 1) / j for i, j in enumerate(at)])
        values.append((ap, len(at) / at[-1], 1 / at[0], at[0] <= 3))
    if distance == "euclidean":
        np.testing.assert_allclose(list(found.values()), np.mean(values, axis=0), atol=1e-12)
    else:
        # float32 tells apart unit vectors that are equal in float64.
        np.testing.assert_allclose(list(found.values()), np.mean(values, axis=0), atol=0.05)


def test_long_and_short_searches_agree(monkeypatch):
    """What looks at everything, and what looks at the nearest."""
    embeddings, labels = unbalanced(4, size=700)
    names = ("precision_at_1", "r_precision", "map_at_r", "mAP_c", "recall_at_8", "ndcg_at_20")
    found = []
    for share in (0.0, 1.0):
        monkeypatch.setattr(scoring, "DEEP", share)
        found.append(evaluate_embeddings(embeddings, labels, metrics=names))
    assert found[0] == pytest.approx(found[1], abs=1e-12)


def test_first_hits_are_searched_for_in_steps(monkeypatch):
    """Deep recalls cost a deep search only to queries without a hit nearer by, and come out the same."""
    rng = np.random.default_rng(8)
    labels = np.arange(1500) % 500
    embeddings = rng.normal(size=(500, 8))[labels] + 1.2 * rng.normal(size=(1500, 8))
    embeddings = embeddings.astype(np.float32)
    names = ("recall_at_1", "recall_at_20", "recall_at_300", "map_at_r", "mean_reciprocal_rank")
    searched = []
    nearest = Index.nearest

    def counted(index, queries, k, **options):
        searched.append((k, len(queries)))
        return nearest(index, queries, k, **options)

    monkeypatch.setattr(Index, "nearest", counted)
    found = [evaluate_embeddings(embeddings, labels, metrics=names)]
    depths = dict(searched)
    assert list(depths) == [scoring.SHALLOW, scoring.SHALLOW * scoring.FURTHER]
    assert depths[scoring.SHALLOW] == 1500 > depths[scoring.SHALLOW * scoring.FURTHER] > 0
    monkeypatch.setattr(scoring, "SHALLOW", 1500)
    monkeypatch.setattr(scoring, "DEEP", 1.0)
    found.append(evaluate_embeddings(embeddings, labels, metrics=names))
    assert found[0] == pytest.approx(found[1], abs=1e-12)
    for name in names[1:4]:
        assert found[0][name] == pytest.approx(naive(embeddings, labels, name), abs=1e-12)
    ranks = []
    for i, label in enumerate(labels):
        away = ((embeddings.astype(np.float64) - embeddings[i]) ** 2).sum(axis=1)
        away[i] = np.inf
        ranks.append(1 + np.sum(away < away[labels == label].min()))
    assert found[0]["mean_reciprocal_rank"] == pytest.approx(np.mean(1 / np.array(ranks)))


def test_distractors_and_parents():
    embeddings, labels = unbalanced(5)
    alone = evaluate_embeddings(embeddings, labels)
    far = np.full((7, embeddings.shape[1]), 1e3)
    assert evaluate_embeddings(embeddings, labels, distractors=far) == pytest.approx(alone)
    worse = evaluate_embeddings(embeddings, labels, distractors=embeddings + 1e-3)
    assert worse["recall_at_1"] == 0 and 0 < worse["recall_at_8"] < alone["recall_at_8"]

    parents = np.arange(len(labels)) % 3
    for among in ("same_parent", "other_parents"):
        means, values = [], []
        for parent in range(3):
            own = parents == parent
            items = own if among == "same_parent" else ~own
            ids = np.arange(len(labels))
            given = {"gallery": embeddings[items], "gallery_labels": labels[items]}
            given |= {"ids": ids[own], "gallery_ids": ids[items]}
            found = evaluate_embeddings(embeddings[own], labels[own], average="each_class", **given)
            lone = [
                np.sum(labels[items] == label) - (among == "same_parent") for label in labels[own]
            ]
            values += [
                found["map_at_r"][label] for label, r in zip(labels[own], lone, strict=True) if r
            ]
            means.append(evaluate_embeddings(embeddings[own], labels[own], **given)["map_at_r"])
        options = {"metrics": ("map_at_r",), "parents": parents, "among": among}
        found = evaluate_embeddings(embeddings, labels, **options)
        assert found["map_at_r"] == pytest.approx(np.mean(values))
        found = evaluate_embeddings(embeddings, labels, average="parent", **options)
        assert found["map_at_r"] == pytest.approx(np.mean(means))


def test_relations():
    """Label sets and trees against the masks by hand; a sample without labels has nothing to find."""
    rng = np.random.default_rng(8)
    embeddings = rng.normal(size=(60, 4)).astype(np.float32)
    sets = (rng.random((60, 6)) < 0.25).astype(int)
    sets[:2] = 0
    tree = np.stack([np.arange(60) % 3 + (1 << 40), np.arange(60) % 9], axis=1)
    masks = {
        "overlap": (sets, (sets @ sets.T) > 0),
        "hierarchy": (tree, tree[:, None, 1] == tree[None, :, 1]),
    }
    coarse = {"name": "hierarchy", "level": 0}
    for spec, labels, same in (
        ("overlap", *masks["overlap"]),
        ("hierarchy", *masks["hierarchy"]),
        (coarse, tree, tree[:, None, 0] == tree[None, :, 0]),
        ("matrix", masks["overlap"][1], masks["overlap"][1]),
    ):
        options = {"metrics": ("map_at_r", "mean_average_precision", "recall_at_1")}
        found = evaluate_embeddings(embeddings, labels, relation=spec, **options)
        values = []
        for i, query in enumerate(embeddings.astype(np.float64)):
            order = np.argsort(((embeddings - query) ** 2).sum(axis=1), kind="stable")
            hits = [same[i, j] for j in order if j != i]
            r = sum(hits)
            if not r:
                continue
            precision = [sum(hits[: j + 1]) / (j + 1) for j in range(59) if hits[j]]
            short = [sum(hits[: j + 1]) / (j + 1) for j in range(r) if hits[j]]
            values.append((sum(short) / r, sum(precision) / r, hits[0]))
        assert len(values) < 60 or spec in ("hierarchy", coarse)
        np.testing.assert_allclose(list(found.values()), np.mean(values, axis=0))


def test_combined_embeddings():
    rng = np.random.default_rng(9)
    parts = {"a": rng.normal(size=(20, 3)), "b": 5 * rng.normal(size=(20, 4))}
    found = combined(parts, "Combined_a_b-1-2")
    unit = [parts[n] / np.linalg.norm(parts[n], axis=1, keepdims=True) for n in "ab"]
    cosine = (unit[0] @ unit[0].T + 4 * unit[1] @ unit[1].T) / 5
    np.testing.assert_allclose(found @ found.T, cosine, atol=1e-6)
    np.testing.assert_allclose(combined(parts, "Combined_b_a")[:, :4], unit[1] / 2**0.5, rtol=1e-5)
    labels = np.arange(20) % 4
    result = evaluate_each(parts, labels, combinations=("Combined_a_b-1-2",), metrics=("ndcg",))
    assert list(result) == ["a", "b", "Combined_a_b-1-2"]
    assert result["Combined_a_b-1-2"] == evaluate_embeddings(found, labels, metrics=("ndcg",))
    for name, message in (
        ("Combined_a_c-1-2", "unknown embedding 'c'"),
        ("Combined_a_b-1", "has 2 parts; accepted: as many weights, or none"),
        ("Combined_a_b-1-x", "as many weights"),
    ):
        with pytest.raises(ValueError, match=message):
            combined(parts, name)


def test_cosine_euclidean_and_normalised():
    embeddings, labels = unbalanced(7)
    raw = evaluate_embeddings(embeddings, labels)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    assert evaluate_embeddings(embeddings, labels, normalize=True) == pytest.approx(
        evaluate_embeddings(unit, labels)
    )
    cosine = evaluate_embeddings(embeddings, labels, distance="cosine")
    assert cosine == pytest.approx(evaluate_embeddings(unit, labels))
    assert cosine["map_at_r"] != pytest.approx(raw["map_at_r"], abs=1e-3)


def test_approximate_search_reports_its_recall():
    embeddings, labels = unbalanced(8, size=400)
    exact = evaluate_embeddings(embeddings, labels, metrics=("recall_at_8",))
    for backend in ("approx_max_k", "faiss_ivf", "faiss_hnsw"):
        found = evaluate_embeddings(embeddings, labels, metrics=("recall_at_8",), backend=backend)
        assert 0.7 < found["search_recall"] <= 1
        assert found["recall_at_8"] == pytest.approx(exact["recall_at_8"], abs=0.02)
    assert found.keys() == {"recall_at_8", "search_recall"}


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"metrics": ["precision_at1"]},
            "unknown metric 'precision_at1'; did you mean 'precision_",
        ),
        ({"metrics": ["recal_at_5"]}, "unknown metric 'recal_at_5'; did you mean 'recall_at_5'"),
        ({"metrics": ["recall_at_0"]}, "unknown metric 'recall_at_0'; did you mean 'recall_at_k'"),
        ({"metrics": ["recall_at_k"]}, "needs a number"),
        ({"labels": np.zeros(6)}, "labels have .* type float64; accepted: 6 integers"),
        ({"labels": np.zeros(5, int)}, r"labels have shape \(5,\)"),
        ({"gallery_ids": np.arange(6)}, "need a gallery"),
        ({"gallery": np.ones((6, 2))}, "a gallery needs gallery_labels"),
        ({"distance": "l1"}, "unknown distance 'l1'"),
        ({"k": 0}, "k=0; accepted: a positive integer, 'max_bin_count', or None"),
        ({"k": "max"}, "k='max'; accepted"),
        ({"average": "classes"}, "unknown average 'classes'; did you mean 'class'"),
        ({"among": "same_parent"}, "among='same_parent' needs parents"),
        ({"average": "parent"}, "average='parent' needs parents"),
        (
            {"among": "same_parent", "parents": np.zeros(6, int), "metrics": ["nmi"]},
            "metric 'nmi' is not of ranks",
        ),
        ({"relation": "overlap", "labels": np.ones((6, 2), int), "metrics": ["nmi"]}, "'nmi' with"),
        (
            {"relation": "overlap", "labels": np.ones((6, 2), int), "average": "class"},
            "average='class' with relation 'overlap'",
        ),
        (
            {"metrics": ["tar@far=2"]},
            "far of metric 'tar_at_far' is 2.0; accepted: a number of at least 0",
        ),
        ({"metrics": ["rho_spectrum@9"]}, "leaves out 8 of 2 singular values"),
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


@metrics.of_ranks
def found_among_three(hits, relevant):
    return recall_at_k(hits, relevant, k=3)


@metrics.of_embeddings
def mean_norm(embeddings, labels):
    return float(np.linalg.norm(embeddings, axis=1).mean())


def test_a_metric_of_ones_own():
    embeddings, labels = unbalanced()
    own = [f"{__name__}:{name}" for name in ("found_among_three", "mean_norm")]
    found = evaluate_embeddings(embeddings, labels, metrics=(*own, "recall_at_3"))
    assert list(found) == [*own, "recall_at_3"]
    assert found[own[0]] == found["recall_at_3"] > 0
    assert found[own[1]] == pytest.approx(np.linalg.norm(embeddings, axis=1).mean())
    assert (
        evaluate_embeddings(embeddings, labels, metrics=[mean_norm])["mean_norm"] == found[own[1]]
    )
    with pytest.raises(UserError, match=r"unbalanced' is <function .*accepted: a Metric, which"):
        get(f"{__name__}:unbalanced")
    with pytest.raises(
        UserError, match=r"unknown metric of module .* 'found_among_two'; did you mean"
    ):
        get(f"{__name__}:found_among_two")


def test_metrics_are_typed_callables():
    embeddings, labels = unbalanced()
    some = [metrics.recall_at_k(k=4), metrics.map_at_r(), metrics.tar_at_far(0.01)]
    found = evaluate_embeddings(embeddings, labels, metrics=some)
    by_name = evaluate_embeddings(
        embeddings, labels, metrics=("recall_at_4", "map_at_r", "tar@far=0.01")
    )
    assert found == by_name
    for name in available():
        name = (
            name[:-1] + {"k": "4", "m": "2", "x": "0.1"}[name[-1]]
            if name[-2:] in PLACEHOLDERS
            else name
        )
        assert get(name).name == name
    with pytest.raises(
        UserError, match="k of metric 'recall_at_k' is 0; accepted: a whole number of at least 1"
    ):
        metrics.recall_at_k(k=0)


def test_metrics_as_tables_print_them_and_as_one_text():
    embeddings, labels = unbalanced()
    names = ("R@1", "P@1", "MAP@R", "R-precision", "MRR", "MAP@10", "AUC")
    found = evaluate_embeddings(embeddings, labels, metrics=names)
    same = "recall_at_1,precision_at_1,map_at_r, r_precision,mean_reciprocal_rank,mean_average_precision_at_10,auc"
    assert tuple(found) == names
    assert list(found.values()) == list(
        evaluate_embeddings(embeddings, labels, metrics=same).values()
    )
    assert list(evaluate_embeddings(embeddings, labels, metrics="map_at_r")) == ["map_at_r"]
    assert get("MAP@R", 3).function.keywords == {"k": 3}
    with pytest.raises(UserError, match="unknown metric 'R@one'; did you mean 'R@k'"):
        get("R@one")
    with pytest.raises(UserError, match="metrics=3; accepted: names, or one text"):
        evaluate_embeddings(embeddings, labels, metrics=3)


def test_too_few_neighbours_for_r():
    with pytest.raises(ValueError, match="2 neighbours for R = 3"):
        map_at_r(np.ones((1, 2), bool), np.array([3]))
