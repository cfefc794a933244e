"""Verification and the spread of embeddings: naive loops over all pairs."""

import numpy as np
import pytest

from dml_jax.evaluation import (
    class_distances,
    evaluate_embeddings,
    rho_spectrum,
    singular_values,
)


def some(seed=0, size=70, dim=3):
    rng = np.random.default_rng(seed)
    labels = np.minimum(rng.geometric(0.25, size), 8)
    labels[:2] = 20, 21
    centres = rng.normal(size=(30, dim))
    return (centres[labels] + 0.7 * rng.normal(size=(size, dim))).astype(np.float32), labels


def pairs(embeddings, labels):
    """(distance, whether genuine, label of the query) of every pair, in float32 as the streams have it."""
    wide = embeddings.astype(np.float64)
    found = []
    for i in range(len(labels)):
        for j in range(len(labels)):
            if i != j:
                away = np.float32(np.sqrt(np.sum((wide[i] - wide[j]) ** 2)))
                found.append((away, labels[i] == labels[j], labels[i]))
    return map(np.array, zip(*found, strict=True))


@pytest.mark.parametrize("block", [None, 3])
def test_error_rates_equal_a_naive_loop(block, monkeypatch):
    from dml_jax.evaluation import values

    if block:
        monkeypatch.setattr(values, "PAIRS", block * 70)
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


def naive_opis(embeddings, labels):
    away, same, of = pairs(embeddings, labels)
    impostors = np.sort(away[~same])
    low, high = (impostors[int(rate * len(impostors))] for rate in (0.01, 0.1))
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
    apart = np.mean((np.array(utilities) - np.mean(utilities, axis=0)) ** 2, axis=0)
    return np.trapezoid(apart, thresholds) / (high - low)


def test_opis_equals_a_naive_loop():
    embeddings, labels = some(1)
    found = evaluate_embeddings(embeddings, labels, metrics=("opis",))["opis"]
    assert found == pytest.approx(naive_opis(embeddings, labels), rel=1e-5)
    # Control: classes of unlike spread want unlike thresholds.
    rng = np.random.default_rng(2)
    labels = np.arange(80) % 4
    centres = 3 * rng.normal(size=(4, 3))[labels]
    noise = rng.normal(size=(80, 3))
    alike, unlike = (centres + noise * spread for spread in (1.0, (1 + labels[:, None]) / 2.5))
    values = [evaluate_embeddings(e, labels, metrics=("opis",))["opis"] for e in (alike, unlike)]
    assert values[1] > 3 * values[0] > 0


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
