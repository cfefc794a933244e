"""Miners that draw: how often they draw what, against the exact probabilities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dml_jax import miners
from tests.miners.test_choices import arrays

DRAWS = 300


@functools.cache
def draws(name, **hyper):
    """The selections by 300 keys, and distances, in float64 by numpy."""
    x, labels, _ = arrays("batch", np.float32)
    miner = miners.get(name, **hyper)
    keys = jax.random.split(jax.random.key(8), DRAWS)
    found = jax.vmap(lambda key: miner(x, labels, key=key).selection)(keys)
    x, labels = np.asarray(x, np.float64), np.asarray(labels)
    return found, np.sqrt(((x[:, None] - x[None, :]) ** 2).sum(-1)), labels


def chi_square(counts, chances):
    """(statistic, degrees of freedom) of rows of counts, under chances that need not add up to 1."""
    assert not counts[chances == 0].any()
    expected = chances / chances.sum(-1, keepdims=True) * counts.sum(-1, keepdims=True)
    kept = expected > 0
    terms = (counts[kept] - expected[kept]) ** 2 / expected[kept]
    return terms.sum(), (kept.sum(-1) - 1).sum()


@pytest.mark.parametrize("cutoffs", [(0.5, 1.4), (0.8, 1.2)])
def test_distance_weighted(cutoffs):
    found, d, labels = draws("distance_weighted", cutoff=cutoffs[0], nonzero_loss_cutoff=cutoffs[1])
    same, dim = labels[:, None] == labels[None, :], 6
    positives = same & ~np.eye(len(labels), dtype=bool)
    far = np.maximum(d, cutoffs[0])
    near = ~same & (far < cutoffs[1])
    chances = np.where(near, far ** (2.0 - dim) * (1 - far**2 / 4) ** ((3 - dim) / 2), 0)
    some = near.any(1) & positives.any(1)
    weight = np.asarray(found.triplets.weight)
    np.testing.assert_array_equal(
        weight.sum(-1), np.where(some, same.sum(1), 0)[None].repeat(DRAWS, 0)
    )

    def counted(columns):
        counts = np.zeros(d.shape)
        rows = np.broadcast_to(np.arange(len(d))[None, :, None], weight.shape)
        np.add.at(counts, (rows, np.asarray(columns)), weight)
        return counts[some]

    for columns, probable in [
        (found.triplets.negative, chances),
        (found.triplets.positive, positives.astype(float)),
    ]:
        assert stats.chi2.sf(*chi_square(counted(columns), probable[some])) > 1e-3
    wrong = np.where(near, 1.0, 0)[some]
    assert stats.chi2.sf(*chi_square(counted(found.triplets.negative), wrong)) < 1e-9


def test_distance_weighted_keeps_anchors_whose_weights_are_small():
    """In 512 dimensions the nearest pair outweighs the others by more than float32 holds: PML loses these anchors."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 512))
    x[4] = x[0] + 0.4 * rng.normal(size=512)
    labels = jnp.asarray([0, 0, 1, 1, 2, 2, 3, 3])
    found = miners.get("distance_weighted", nonzero_loss_cutoff=1.6)(
        x.astype(np.float32), labels, key=jax.random.key(0)
    )
    assert np.bincount(found.indices()[0], minlength=8).tolist() == [2] * 8


def test_uniform_histogram():
    """Each bin that is not empty has its number of draws, and each of its pairs is as likely."""
    found, d, labels = draws("uniform_histogram", num_bins=7, pos_per_bin=3, neg_per_bin=5)
    same = labels[:, None] == labels[None, :]
    kinds = [(found.pos, same & ~np.eye(len(d), dtype=bool), 3), (found.neg, ~same, 5)]
    for weights, kind, each in kinds:
        weights = np.asarray(weights)
        assert not weights[:, ~kind].any()
        edges = np.linspace(d[kind].min(), d[kind].max(), 8)
        bins = np.clip(np.searchsorted(edges, d[kind] - 1e-7, side="right") - 1, 0, 6)
        rows, chances = [], []
        for b in np.unique(bins):
            np.testing.assert_array_equal(weights[:, kind][:, bins == b].sum(1), each)
            rows.append(np.where(bins == b, weights[:, kind].sum(0), 0))
            chances.append((bins == b).astype(float))
        assert stats.chi2.sf(*chi_square(np.stack(rows), np.stack(chances))) > 1e-3
        alike = np.ones((1, len(bins)))  # whatever their bin
        assert stats.chi2.sf(*chi_square(np.sum(rows, 0)[None], alike)) < 1e-9


def test_draws_depend_on_key_and_position_alone():
    """An anchor draws the same whoever comes after it."""
    x, labels, _ = arrays("batch", np.float32)
    miner, key = miners.get("distance_weighted"), jax.random.key(1)
    refs = dict(ref_embeddings=x, ref_labels=labels)
    all_, few = (miner(x[:n], labels[:n], key=key, **refs).selection.triplets for n in (24, 10))
    np.testing.assert_array_equal(all_.negative[:10], few.negative)
    other = miner(x, labels, key=jax.random.key(2), **refs).selection.triplets
    assert np.any(np.asarray(other.negative) != np.asarray(all_.negative))
