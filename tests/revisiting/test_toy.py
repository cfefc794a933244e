"""The toy problem: what its rules minimise, and that the regularised spectrum is the flatter one."""

import csv

import jax
import jax.numpy as jnp
import numpy as np

from dml_jax.revisiting import toy

X = toy.points(toy.TRAIN, 3)


def test_the_rules_are_means_over_all_triplets():
    """Against a triple loop; of the regularised rule for no and for every negative replaced."""
    x = np.asarray(toy.embed(toy.init(jax.random.key(0)), X.coordinates), float)[::4]
    y = X.labels[::4]
    d = np.linalg.norm(x[:, None] - x[None], axis=-1)
    near, far, pushed = [], [], []
    for a in range(len(y)):
        for p in range(len(y)):
            for n in range(len(y)):
                if y[a] == y[p] != y[n] and a != p:
                    near.append(d[a, p])
                    far.append(max(0.1 - d[a, n], 0))
                    pushed.append(max(0.1 - d[a, p], 0))
    rules = toy.rules(1.0)
    want = {
        "base": np.mean(near) + np.mean(far),
        "regularised, p_switch = 0": np.mean(far),
        "regularised": np.mean(pushed),
    }
    for name, value in want.items():
        mean, _ = rules[name].apply({}, jnp.asarray(x), jnp.asarray(y), key=jax.random.key(1))
        np.testing.assert_allclose(mean.compute(), value, rtol=1e-4)
        assert value > 1e-3
    half = toy.rules(0.5)["regularised"]
    drawn = [
        half.apply({}, jnp.asarray(x), jnp.asarray(y), key=jax.random.key(i))[0].compute()
        for i in range(20)
    ]
    between = (want["regularised"] + want["regularised, p_switch = 0"]) / 2
    np.testing.assert_allclose(np.mean(drawn), between, rtol=0.03)


def test_points_lie_on_their_lines():
    assert np.bincount(X.labels).tolist() == [15] * 4
    np.testing.assert_allclose(X.coordinates[:, 0], X.coordinates[:, 1])
    assert len(np.unique(X.coordinates[:, 0])) == 60
    philox = np.random.Generator(np.random.Philox(key=[3, 4]))
    drawn = np.linspace(*toy.TRAIN[0], 100)[philox.choice(100, 15, replace=False)]
    np.testing.assert_array_equal(X.coordinates[:15], drawn)
    test = toy.points(toy.TEST, 3)
    assert (test.coordinates[:30, 0] == 0.2).all() and (test.coordinates[30:, 1] == 0.2).all()


def test_the_regularised_spectrum_is_flatter(tmp_path):
    spectra = toy.toy(2, 0.001, tmp_path)
    for rows in spectra.values():
        np.testing.assert_allclose(rows.sum(1), 1)
    assert (spectra["regularised"][:, 1] > spectra["base"][:, 1] + 0.1).all()
    with (tmp_path / "spectra.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * len(spectra)
    assert (tmp_path / "toy.png").read_bytes()[:4] == b"\x89PNG"
