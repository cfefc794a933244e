"""Verification and the spectrum of embeddings: naive loops over all pairs."""

import dataclasses
import itertools
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from dml_jax.evaluation import (
    class_distances,
    evaluate_embeddings,
    rho_spectrum,
    roc_curve,
    singular_values,
)
from dml_jax.evaluation.metrics.relevance import ByClass
from dml_jax.evaluation.verification import Pairs, consistency, histograms, roc, tiles
from dml_jax.evaluation.verification import pairs as tiled
from dml_jax.evaluation.verification.pairs import Window


def some(seed=0, size=70, dim=3):
    rng = np.random.default_rng(seed)
    labels = np.minimum(rng.geometric(0.25, size), 8)
    labels[:2] = 20, 21
    centres = rng.normal(size=(30, dim))
    return (centres[labels] + 0.7 * rng.normal(size=(size, dim))).astype(np.float32), labels


def pairs(embeddings, labels):
    """(distance, whether genuine, label of the query) of every pair."""
    wide = embeddings.astype(np.float64)
    found = []
    for i in range(len(labels)):
        for j in range(len(labels)):
            if i != j:
                away = np.sqrt(np.sum((wide[i] - wide[j]) ** 2))
                found.append((away, labels[i] == labels[j], labels[i]))
    return map(np.array, zip(*found, strict=True))


@pytest.mark.parametrize("tile", [2048, 32])
def test_error_rates_equal_a_naive_loop(tile, monkeypatch):
    monkeypatch.setattr(tiles, "TILE", tile)
    embeddings, labels = some()
    away, same, _ = pairs(embeddings, labels)
    rates = (0.0, 0.001, 0.0333, 0.5, 1.0)
    found = evaluate_embeddings(embeddings, labels, metrics=[f"tar@far={r}" for r in rates])
    for rate in rates:
        # The largest threshold among the distances that accepts no more impostors than allowed.
        accepted = [np.mean(away[~same] <= t) for t in np.unique(away)]
        allowed = np.unique(away)[np.array(accepted) <= rate]
        expected = np.mean(away[same] <= allowed.max()) if len(allowed) else 0.0
        assert found[f"tar@far={rate}"] == pytest.approx(expected, abs=1e-12)
    assert found["tar@far=1.0"] == 1 and 0 < found["tar@far=0.001"] < found["tar@far=0.5"] < 1


def vertices(away, same):
    """(FAR, TAR, threshold) at each distance, from none accepted on."""
    thresholds = np.unique(away)
    accepted = [
        np.searchsorted(np.sort(away[of]), thresholds, side="right") / np.sum(of)
        for of in (~same, same)
    ]
    return [(0.0, 0.0, -np.inf), *zip(*accepted, thresholds, strict=True)]


def naive_equal_error_rate(points):
    for (far, tar, _), (more, higher, _) in itertools.pairwise(points):
        if more >= 1 - higher:
            # Along the segment FAR rises and FRR falls, both linearly.
            part = (1 - tar - far) / ((1 - tar - far) - (1 - higher - more))
            return far + part * (more - far)
    raise AssertionError("the rates do not cross")


def with_ties(seed=0):
    """Whole numbers, with equal distances of both kinds, duplicates in a class and across classes."""
    embeddings, labels = some(seed, size=45)
    embeddings = np.round(2 * embeddings).astype(np.float32)
    embeddings[5], embeddings[6], embeddings[7] = embeddings[4], embeddings[4], embeddings[8]
    labels[4:7] = 3, 3, 5
    return embeddings, labels


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_roc_curve_equals_a_naive_loop(distance, monkeypatch):
    monkeypatch.setattr(tiles, "TILE", 16)
    embeddings, labels = with_ties()
    given = embeddings
    if distance == "cosine":
        # One zero vector, at distance 1 from everything.
        given = embeddings.copy()
        given[9] = 0
        norms = np.linalg.norm(given.astype(np.float64), axis=1)
        cosines = (given @ given.T.astype(np.float64)) / np.maximum(np.outer(norms, norms), 1e-9)
        far = np.round(1 - cosines, 9)
    else:
        far = np.sqrt(np.sum((embeddings[:, None].astype(int) - embeddings) ** 2, axis=2))
    other = ~np.eye(len(labels), dtype=bool)
    away, same = far[other], (labels[:, None] == labels)[other]
    expected = np.array(vertices(away, same))
    found = roc_curve(given, labels, distance=distance)
    np.testing.assert_allclose(np.stack(found[:2]), expected.T[:2], atol=1e-12)
    # Thresholds that tell these distances apart.
    assert (found.thresholds[1:] > expected[1:, 2] - 1e-6).all()
    assert (found.thresholds[1:-1] < expected[2:, 2] - 1e-6).all()
    # Its area and its equal error rate; all distances differ by more than a bucket, so that only true ties are ties.
    area = np.mean(np.sign(away[~same][:, None] - away[same])) / 2 + 0.5
    values = evaluate_embeddings(given, labels, metrics=("auc", "eer"), distance=distance)
    assert values["auc"] == pytest.approx(area, abs=1e-12)
    assert values["eer"] == pytest.approx(naive_equal_error_rate(expected.tolist()), abs=1e-12)
    # Thinned: the same points, the best at up to each of so many rates.
    some_points = roc_curve(given, labels, distance=distance, points=5)
    impostors = np.sum(~same)
    wanted = [
        np.flatnonzero(expected[:, 0] <= r)[-1]
        for r in np.geomspace(1 / impostors, 1, 5) * (1 + 1e-9)
    ]
    wanted = np.unique([0, *wanted, len(expected) - 1])
    np.testing.assert_allclose(some_points.true_accept_rates, expected[wanted, 1], atol=1e-12)


SCIKIT_LEARN = {
    "auc": 0.8017146994419722,
    "eer": 0.25361305361305364,
    "tar@far=0.05": 0.14393939393939395,
}


def test_roc_curve_equals_scikit_learn():
    embeddings, labels = with_ties(2)
    values = evaluate_embeddings(embeddings, labels, metrics=("auc", "eer", "tar@far=0.05"))
    # scikit-learn 1.9.1: roc_auc_score, and of roc_curve the crossing of the lines and the last point up to 0.05.
    assert values == pytest.approx(SCIKIT_LEARN, abs=1e-12)
    metrics = pytest.importorskip("sklearn.metrics", reason="the extra `map` is not installed")
    embeddings, labels = with_ties(2)
    away, same, _ = pairs(embeddings, labels)
    far, tar, scores = metrics.roc_curve(same, -away, drop_intermediate=False)
    found = roc_curve(embeddings, labels)
    np.testing.assert_allclose(found.false_accept_rates, far, atol=1e-12)
    np.testing.assert_allclose(found.true_accept_rates, tar, atol=1e-12)
    np.testing.assert_allclose(found.thresholds[2:], -scores[2:], rtol=4e-5)
    area = evaluate_embeddings(embeddings, labels, metrics=("auc",))["auc"]
    assert area == pytest.approx(metrics.roc_auc_score(same, -away), abs=1e-12)


def test_roc_points_lie_on_the_curve_and_the_area_within_its_bound():
    """Where scales are apart by 1e9, so that distances share buckets, and the rates reached at the smallest."""
    rng = np.random.default_rng(5)
    labels = np.arange(90) % 3
    embeddings = (rng.normal(size=(90, 2)) * 1e-6).astype(np.float32)
    embeddings[:4] *= 1e9
    away, same, _ = pairs(embeddings, labels)
    points = {(round(f, 12), round(t, 12)) for f, t, _ in vertices(away, same)}
    found = roc_curve(embeddings, labels)
    assert {*zip(*np.round(found[:2], 12).tolist(), strict=True)} <= points
    own = np.arange(90)
    everything = Pairs.of(
        embeddings, embeddings, own, ByClass(labels, labels, own), labels, "euclidean"
    )
    result = roc.verify(everything, (0.001, 0.3), equal=True, area=True)
    area, off = result.area()
    assert abs(area - exact_area(away, same)) <= off + 1e-12 and off <= roc.AREA_BOUND
    assert np.trapezoid(found[1], found[0]) == pytest.approx(area, abs=roc.AREA_BOUND)
    for rate in (0.001, 0.3):
        allowed = max(t for f, t, _ in vertices(away, same) if f <= rate)
        assert result.true_accept_rate(rate) == pytest.approx(allowed, abs=1e-12)
    expected = naive_equal_error_rate(vertices(away, same))
    assert result.equal_error_rate() == pytest.approx(expected, abs=1e-12)
    # Control: what the first pass knows is worth less where it is coarse, and says so.
    coarse = histogram_of(everything, Window.over(0, int(tiled.keys_of(np.array([1e5]))[0]), 64))
    area, off = dataclasses.replace(result, histogram=coarse).area()
    assert roc.AREA_BOUND < abs(area - exact_area(away, same)) <= off
    # Divided until it meets the bound, by a few buckets a pass.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roc, "WINDOWS", 3)
        while buckets := roc._uncertain(coarse):
            coarse = coarse.divided(everything, np.array(sorted(buckets)))
    assert coarse.counts.sum() == 90 * 89
    area, off = dataclasses.replace(result, histogram=coarse).area()
    assert abs(area - exact_area(away, same)) <= off + 1e-12 and off <= roc.AREA_BOUND


def histogram_of(everything, window):
    return roc.Histogram.of([window], histograms.histograms(everything, [window]))


def exact_area(away, same):
    """By the ranks of all distances in float64; what only rounding tells apart is a tie."""
    _, of = np.unique(tiled.keys_of(away), return_inverse=True)
    genuine, impostors = (np.bincount(of[s], minlength=of.max() + 1) for s in (same, ~same))
    lower = np.cumsum(impostors) - impostors
    total = genuine.sum() * impostors.sum()
    return 1 - float(genuine @ (lower + impostors / 2)) / total


def hard_sets(case):
    """(queries, items, labels, labels of the items, distance); the queries are the items in most."""
    rng = np.random.default_rng(11)
    labels = np.arange(240) % 12
    noise = rng.normal(size=(12, 8))[labels] + 1.2 * rng.normal(size=(240, 8))
    distance = "cosine" if case in ("parallel", "nearly equal", "binary, cosine") else "euclidean"
    queries = {
        "parallel": 1 + 1e-4 * noise,
        "nearly equal": 1 + 1e-6 * noise,
        "far from the origin": 1e5 + noise,
        "one is long": noise * np.where(np.arange(240) == 7, 1e5, 1)[:, None],
        "several scales": noise * 10.0 ** (4 * rng.integers(-3, 4, 12))[labels, None],
        "small": 1e-25 * noise,
        "large": 1e25 * noise,
        "two places": noise + 1e5 * (np.arange(240) % 2)[:, None],
        "whole numbers": np.round(noise),
        "whole numbers, far": np.round(noise) + 1e6,
        "binary": noise > 0,
        "binary, cosine": (noise > 0) * 3,
        "duplicates": noise[np.arange(240) // 2],
        "groups of near duplicates": np.round(2 * noise) + 1e-6 * rng.normal(size=(240, 8)),
        "gallery far away": noise,
    }[case].astype(np.float32)
    items = queries
    if case == "gallery far away":
        # In a direction of its own: all distances are 1e4 and a little.
        queries = np.pad(queries, ((0, 0), (0, 1)))
        items = np.pad(queries[::-1, :8], ((0, 0), (0, 1)), constant_values=1e4)
        labels = labels, labels[::-1]
    return queries, items, labels, distance


@pytest.mark.parametrize(
    "case",
    [
        "parallel",
        "nearly equal",
        "far from the origin",
        "one is long",
        "several scales",
        "small",
        "large",
        "two places",
        "whole numbers",
        "whole numbers, far",
        "binary",
        "binary, cosine",
        "duplicates",
        "groups of near duplicates",
        "gallery far away",
    ],
)
def test_the_area_is_exact_whatever_the_scale_and_offset(case, monkeypatch):
    monkeypatch.setattr(tiles, "TILE", 128)
    queries, items, labels, distance = hard_sets(case)
    a, b = (v.astype(np.float64) for v in (queries, items))
    if distance == "cosine":
        a, b = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-9) for v in (a, b))
    squared = np.sum((a[:, None] - b[None]) ** 2, axis=2)
    far = squared / 2 if distance == "cosine" else np.sqrt(squared)
    if distance == "cosine":
        far[~a.any(axis=1)] = far[:, ~b.any(axis=1)] = 1
    given = {"distance": distance, "metrics": ("auc", "eer", "tar@far=0.01")}
    kept = np.ones(far.shape, bool)
    if items is queries:
        kept[np.arange(240), np.arange(240)] = False
        same = labels[:, None] == labels
    else:
        labels, item_labels = labels
        same = labels[:, None] == item_labels
        given |= {"gallery": items, "gallery_labels": item_labels}
    values = evaluate_embeddings(queries, labels, **given)
    away, same = far[kept], same[kept]
    exact = exact_area(away, same)
    assert (0.5 if case == "several scales" else 0.55) < exact < 0.98
    # Where rounding of the inputs' squares decides nothing the bound is all that may differ.
    assert abs(values["auc"] - exact) <= roc.AREA_BOUND
    points = vertices(tiled.distances_of(tiled.keys_of(away)), same)
    assert values["eer"] == pytest.approx(naive_equal_error_rate(points), abs=1e-4)
    allowed = max(t for f, t, _ in points if f <= 0.01)
    assert values["tar@far=0.01"] == pytest.approx(allowed, abs=1e-3)


def test_a_zero_vector_is_at_right_angles_to_everything():
    """Its cosine distances are equal, so that they are ties: with each other and with true right angles."""
    embeddings = np.random.default_rng(3).normal(size=(40, 6)).astype(np.float32)
    embeddings[20:] = 0
    labels = np.arange(40) % 2
    given = {"gallery": embeddings[:20], "gallery_labels": labels[:20], "distance": "cosine"}
    values = evaluate_embeddings(
        embeddings[20:], labels[20:], metrics=("eer", "auc", "tar@far=0.9"), **given
    )
    assert values == {"eer": 0.5, "auc": 0.5, "tar@far=0.9": 0.0}
    away = roc_curve(embeddings[20:], labels[20:], **given).thresholds
    np.testing.assert_array_equal(away, [-np.inf, 1])
    both = np.array([[1, 0, 0], [0, 3, 0], [0, 0, 0], [0, 0, 7]], np.float32)
    curve = roc_curve(both, np.array([0, 0, 1, 1]), distance="cosine")
    np.testing.assert_array_equal(curve.thresholds, [-np.inf, 1])


def test_many_buckets_are_found_by_bisection():
    embeddings, labels = some(9)
    everything = tiled.pairs_of(embeddings, labels)
    window = everything.first_window()
    edges = window.edges()
    at = np.sort(np.random.default_rng(0).permutation(len(edges) - 1)[: len(edges) // 3])
    windows = [Window.over(int(edges[i]), int(edges[i + 1]), 4) for i in at[:: len(at) // 300]]
    many = histograms.histograms(everything, windows)
    some_of_them = slice(40, 45)
    few = histograms.histograms(everything, windows[some_of_them])
    for a, b in zip(many[some_of_them], few, strict=True):
        np.testing.assert_array_equal(a, b)
    whole = histograms.histograms(everything, [window], complete=True)[0]
    for part, i in zip(many, at[:: len(at) // 300], strict=True):
        np.testing.assert_array_equal(part.sum(axis=1), whole[:, i])


def test_a_curve_by_hand():
    """Genuine at 1, 2, 3, impostors at 2.5, 4, 5 of one query."""
    items = np.array([[1], [-2], [3], [2.5], [-4], [5]])
    given = {"gallery": items, "gallery_labels": np.array([7, 7, 7, 1, 2, 2])}
    found = roc_curve(np.zeros((1, 1)), np.array([7]), **given)
    third = 1 / 3
    np.testing.assert_allclose(found.true_accept_rates, [0, third, 2 * third, 2 * third, 1, 1, 1])
    np.testing.assert_allclose(found.false_accept_rates, [0, 0, 0, third, third, 2 * third, 1])
    values = evaluate_embeddings(
        np.zeros((1, 1)), np.array([7]), metrics=("auc", "eer", "fnmr@fmr=0.4"), **given
    )
    # Of nine comparisons one is lost; FAR and FRR are both 1/3 at 2.5.
    assert values == pytest.approx({"auc": 8 / 9, "eer": third, "fnmr@fmr=0.4": 0})
    # Its own item, in the gallery, is no pair.
    less = roc_curve(np.zeros((1, 1)), np.array([7]), **given, self_index=np.array([0]))
    np.testing.assert_allclose(less.true_accept_rates, [0, 0.5, 0.5, 1, 1, 1])


def test_no_curve():
    alone = evaluate_embeddings(np.eye(3), np.arange(3), metrics=("auc", "eer", "tar@far=0.1"))
    together = evaluate_embeddings(np.eye(3), np.zeros(3, int), metrics=("auc", "eer", "opis"))
    assert all(np.isnan(value) for value in (*alone.values(), *together.values()))
    with pytest.raises(ValueError, match="points=0; accepted: 1 or more"):
        roc_curve(np.eye(3), np.arange(3), points=0)
    with pytest.raises(ValueError, match="unknown distance 'manhattan'"):
        roc_curve(np.eye(3), np.arange(3), distance="manhattan")
    with pytest.raises(ValueError, match="queries have 3 dimensions, the gallery has 2"):
        roc_curve(np.eye(3), np.arange(3), gallery=np.eye(2), gallery_labels=np.arange(2))


def test_galleries_ids_and_relations(monkeypatch):
    """Half of the pairs, all of them in another order, and relevance that a relation tells, over several tiles."""
    monkeypatch.setattr(tiles, "TILE", 32)
    embeddings, labels = some(6)
    names = ("tar@far=0.01", "auc", "eer", "opis", "opis@epsilon=0.3")
    plain = evaluate_embeddings(embeddings, labels, metrics=names)
    ids = np.arange(70)
    both = {"gallery": embeddings.copy(), "gallery_labels": labels, "ids": ids, "gallery_ids": ids}
    assert evaluate_embeddings(embeddings, labels, metrics=names, **both) == pytest.approx(plain)
    turned = evaluate_embeddings(embeddings, labels, metrics=names, ids=(ids * 3) % 70)
    assert turned == pytest.approx(plain)
    # Without ids each item is a genuine pair with itself.
    found = evaluate_embeddings(
        embeddings, labels, metrics=("auc",), gallery=embeddings.copy(), gallery_labels=labels
    )
    assert found["auc"] > plain["auc"]
    sets = (np.random.default_rng(7).random((70, 4)) < 0.3).astype(int)
    same = (sets @ sets.T > 0)[~np.eye(70, dtype=bool)]
    away, _, _ = pairs(embeddings, labels)
    allowed = max(t for f, t, _ in vertices(away, same) if f <= 0.05)
    for relation, given in (("overlap", sets), ("matrix", sets @ sets.T > 0)):
        found = evaluate_embeddings(
            embeddings, given, metrics=("tar@far=0.05", "auc"), relation=relation
        )
        assert found["tar@far=0.05"] == pytest.approx(allowed, abs=1e-12)
        with pytest.raises(ValueError, match=r"metric 'opis@epsilon=0\.1' with relation"):
            evaluate_embeddings(embeddings, given, metrics=("opis@epsilon=0.1",), relation=relation)


def test_a_mesh_changes_nothing():
    embeddings, labels = some()
    names = ("tar@far=0.01", "opis", "auc", "eer")
    plain = evaluate_embeddings(embeddings, labels, metrics=names)
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))):
        assert evaluate_embeddings(embeddings, labels, metrics=names) == plain


def naive_utilities(embeddings, labels):
    """(thresholds, utility of each class at them)."""
    away, same, of = pairs(embeddings, labels)
    impostors = np.sort(away[~same])
    low, high = (float(impostors[int(rate * len(impostors))]) for rate in (0.01, 0.1))
    thresholds = np.linspace(low, high, 101)
    utilities = []
    for label in np.unique(labels):
        mine = of == label
        if not (same & mine).any():
            continue
        sensitivity = np.array([np.mean(away[same & mine] <= t) for t in thresholds])
        specificity = np.array([np.mean(away[~same & mine] > t) for t in thresholds])
        total = sensitivity + specificity
        utilities.append(
            np.where(total > 0, 2 * sensitivity * specificity / np.maximum(total, 1e-9), 0)
        )
    return thresholds, np.array(utilities)


@pytest.mark.parametrize("tile", [2048, 32])
def test_opis_equals_a_naive_loop(tile, monkeypatch):
    monkeypatch.setattr(tiles, "TILE", tile)
    embeddings, labels = some(1)
    names = ("opis", "opis@epsilon=0.1", "opis@epsilon=0.4", "opis@epsilon=1")
    found = evaluate_embeddings(embeddings, labels, metrics=names)
    at, utilities = naive_utilities(embeddings, labels)
    width = at[-1] - at[0]
    apart = np.mean((utilities - np.mean(utilities, axis=0)) ** 2, axis=0)
    assert found["opis"] == pytest.approx(np.trapezoid(apart, at) / width, rel=1e-9)
    order = sorted(range(len(utilities)), key=lambda i: np.trapezoid(utilities[i], at))
    for name, count in (("opis@epsilon=0.1", 1), ("opis@epsilon=0.4", 4)):
        assert count == -(-len(order) * float(name[-3:]) // 1)
        worst, best = (
            np.mean([utilities[i] for i in part], axis=0)
            for part in (order[:count], order[-count:])
        )
        expected = np.trapezoid((best - worst) ** 2, at) / width
        assert found[name] == pytest.approx(expected, rel=1e-9)
    assert found["opis@epsilon=1"] == 0 < found["opis@epsilon=0.4"] < found["opis@epsilon=0.1"]


def test_opis_finds_classes_of_unlike_spread():
    rng = np.random.default_rng(2)
    labels = np.arange(80) % 4
    centres = 3 * rng.normal(size=(4, 3))[labels]
    noise = rng.normal(size=(80, 3))
    alike, unlike = (centres + noise * spread for spread in (1.0, (1 + labels[:, None]) / 2.5))
    names = ("opis", "opis@epsilon=0.25")
    values = [evaluate_embeddings(e, labels, metrics=names) for e in (alike, unlike)]
    assert all(values[1][name] > 3 * values[0][name] > 0 for name in names)


def test_opis_by_hand():
    at = np.array([1.0, 2.0, 3.0])
    utility = np.array([[1, 1, 1], [0, 0.5, 1], [0.5, 0.5, 0.5], [0, 0, 0]])
    found = SimpleNamespace(utilities=(at, utility))
    # Variances at the thresholds: of (1, 0, .5, 0), (1, .5, .5, 0), (1, 1, .5, 0).
    variances = [0.171875, 0.125, 0.171875]
    assert consistency.opis(found) == pytest.approx(
        (variances[0] + 2 * variances[1] + variances[2]) / 4
    )
    # The best class less the worst: 1 everywhere. Of two each: (.5, .75, 1) or (.75, .75, .75), less the others.
    assert consistency.epsilon_opis(found, 0.25) == pytest.approx(1)
    # Averages 1, .5, .5, 0: of the two equal ones the lower label counts as worse.
    differences = np.array([0.75 - 0, 0.75 - 0.25, 0.75 - 0.5])
    expected = np.sum(differences**2 * [1, 2, 1]) / 4
    assert consistency.epsilon_opis(found, 0.5) == pytest.approx(expected)
    assert np.isnan(consistency.opis(SimpleNamespace(utilities=None)))
    for share in ("0", "1.5"):
        with pytest.raises(
            ValueError, match=f"epsilon of metric 'epsilon_opis' is {float(share)}; accepted"
        ):
            evaluate_embeddings(np.eye(3), np.arange(3), metrics=(f"opis@epsilon={share}",))


def test_class_distances_by_loops():
    embeddings, labels = some(3)
    unit = embeddings / np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
    means, centres = {}, []
    for label in np.unique(labels):
        mine = unit[labels == label]
        n = len(mine)
        away = [1 - mine[i] @ mine[j] for i in range(n) for j in range(n) if i != j]
        means[label] = np.mean(away) if away else None
        centre = embeddings[labels == label].astype(np.float64).mean(axis=0)
        centres.append(centre / np.linalg.norm(centre))
    largest = max(mean for mean in means.values() if mean is not None)
    intra = np.mean([largest if mean is None else mean for mean in means.values()])
    c = len(centres)
    inter = np.mean([1 - centres[i] @ centres[j] for i in range(c) for j in range(c) if i != j])
    assert class_distances(embeddings, labels, "intra") == pytest.approx(intra)
    assert class_distances(embeddings, labels, "inter") == pytest.approx(inter)
    both = class_distances(embeddings, labels, "intra_over_inter")
    assert both == pytest.approx(intra / inter)
    assert np.isnan(class_distances(np.eye(3), np.arange(3), "intra"))
    assert np.isnan(class_distances(np.eye(3), np.zeros(3, int), "inter"))


def test_spectrum():
    rng = np.random.default_rng(4)
    scales = np.array([8.0, 4, 2, 2])
    basis = np.linalg.qr(rng.normal(size=(20000, 4)))[0]
    embeddings = basis * scales
    np.testing.assert_allclose(singular_values(embeddings), scales)
    q = np.array([4, 2, 2]) / 8
    assert rho_spectrum(embeddings, 2) == pytest.approx(np.mean(np.log(1 / 3 / q)))
    assert rho_spectrum(embeddings, -2) == pytest.approx(np.sum(q * np.log(q * 3)))
    np.testing.assert_allclose(rho_spectrum(embeddings, 0), scales / 16)
    assert rho_spectrum(embeddings, 3) == pytest.approx(0, abs=1e-12)
    assert rho_spectrum(np.eye(3)[:2], 1) == pytest.approx(0, abs=1e-12)
    flat = np.outer(np.ones(5), [1.0, 2, 3])
    assert rho_spectrum(flat, 1) > 10 and rho_spectrum(flat, -1) == pytest.approx(np.log(3))
