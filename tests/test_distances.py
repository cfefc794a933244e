"""Distances by hand: values, zero vectors, duplicates, dtypes, and what makes two of them equal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dml_jax import UserError, distances
from dml_jax.bound import Bound
from dml_jax.distances import Distance

A = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32)
R = jnp.asarray(np.random.default_rng(1).normal(size=(7, 4)), jnp.float32)


def naive(name, a, r, **hyper):
    """The double loop, in float64."""
    p, power = hyper.get("p", 2), hyper.get("power", 1)
    found = np.zeros((len(a), len(r)))
    for i, x in enumerate(np.asarray(a, float)):
        for j, y in enumerate(np.asarray(r, float)):
            if hyper.get("normalize_embeddings", True):
                order = p if name == "lp" else 2
                x, y = (v / max(np.linalg.norm(v, order), 1e-12) for v in (x, y))
            if name in distances.SIMILARITIES:
                found[i, j] = x @ y
            elif name == "lp":
                found[i, j] = np.linalg.norm(x - y + hyper.get("eps", 0), p) ** power
            else:
                found[i, j] = np.var(x - y) / np.var(x)
    return found


CASES = [
    ("cosine", {}),
    ("cosine", {"normalize_embeddings": False}),
    ("dot_product", {"normalize_embeddings": False}),
    ("lp", {}),
    ("lp", {"power": 2}),
    ("lp", {"p": 1, "normalize_embeddings": False}),
    ("lp", {"p": 3, "power": 0.5}),
    ("lp", {"eps": 0.1, "normalize_embeddings": False}),
    ("snr", {}),
    ("snr", {"normalize_embeddings": False}),
]


@pytest.mark.parametrize(("name", "hyper"), CASES)
def test_equals_the_double_loop(name, hyper):
    made = distances.get(name, **hyper)
    assert made == getattr(distances, name)(**hyper)
    assert made.similarity == (name in distances.SIMILARITIES)
    assert made.normalized == hyper.get("normalize_embeddings", True)
    np.testing.assert_allclose(made(A, R), naive(name, A, R, **hyper), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", distances.available())
def test_zero_vectors_and_duplicates_have_finite_gradients(name):
    x = jnp.concatenate([A, A[:2], jnp.zeros((2, 4))])
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(distances.get(name)(x, x)))(x)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    if name in ("lp", "snr"):
        assert (np.diagonal(distances.get(name)(x, x)) == 0).all()


def test_narrow_types_are_widened():
    narrow = A.astype(jnp.bfloat16)
    found = distances.lp()(narrow, R)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, distances.lp()(narrow.astype(jnp.float32), R))


def test_the_farthest():
    assert distances.lp(power=2).farthest == 4
    assert distances.lp(normalize_embeddings=False).farthest == np.inf
    assert distances.cosine().farthest == np.inf


def test_the_vectors_that_are_multiplied():
    units = distances.cosine().normalized_vectors(A)
    np.testing.assert_allclose(jnp.linalg.norm(units, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(
        distances.cosine(normalize_embeddings=False).normalized_vectors(A), A
    )


def test_the_gradient_of_both_operands():
    value = lambda a, r: jnp.sum(jnp.sin(distances.inner_products(a, r)))
    plain = lambda a, r: jnp.sum(jnp.sin(a @ r.T))
    for got, want in zip(*(jax.grad(f, (0, 1))(A, R) for f in (value, plain)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    got, want = (jax.jvp(f, (A, R), (A + 1, R - 1))[1] for f in (value, plain))
    np.testing.assert_allclose(got, want, rtol=1e-5)


def chebyshev(a, r, *, scale):
    return scale * jnp.max(jnp.abs(a[:, None] - r[None]), -1)


def test_a_distance_of_one_s_own():
    made = Distance("chebyshev", Bound(chebyshev, scale=2.0), similarity=False)
    assert made == Distance("chebyshev", Bound(chebyshev, scale=2.0), similarity=False)
    assert distances.build(made) is made
    want = 2 * np.abs(np.asarray(A)[:, None] - np.asarray(R)[None]).max(-1)
    np.testing.assert_allclose(made(A, R), want, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: distances.lp(p=0), "p of distance 'lp' is 0; accepted: a number above 0"),
        (lambda: distances.get("lp", power=-1), "accepted: a number above 0"),
        (lambda: distances.get("lp", normalize_embeddings=1), "accepted: True or False"),
        (lambda: distances.get("euclid"), "accepted: cosine, dot_product, lp, snr"),
        (lambda: distances.build(3), "distance is 3; accepted: a name"),
    ],
)
def test_errors(make, words):
    with pytest.raises(UserError, match=words):
        make()
