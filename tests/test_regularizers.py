"""Regularizers: PML's values, their hooks on losses, and the same on blocks, devices and with padding."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from dml_jax import losses, regularizers

GOLDEN = np.load(pathlib.Path(__file__).parent / "golden" / "losses.npz")
CASES = {"lp/cubed": ("lp", {"p": 3, "power": 2})} | {n: (n, {}) for n in regularizers.available()}
X = np.random.default_rng(0).normal(size=(21, 6)).astype(np.float32)
Y = np.arange(21) % 5


@functools.cache
def mesh(devices):
    return jax.make_mesh(
        (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )


def rows(name):
    return GOLDEN["centers"] if name == "sparse_centers" else GOLDEN["weights"]


@pytest.mark.parametrize("case", CASES)
def test_equals_pml(case, x64):
    name, hyper = CASES[case]
    x = jnp.asarray(rows(name))
    value, gradient = jax.value_and_grad(regularizers.get(name, **hyper))(x)
    np.testing.assert_allclose(value, GOLDEN[f"regularizer/{case}/value"], rtol=1e-10)
    want = GOLDEN[f"regularizer/{case}/gradient"].reshape(x.shape)
    np.testing.assert_allclose(gradient, want, rtol=0, atol=1e-10 * np.abs(want).max())


def test_regular_face_by_hand():
    """Angles 0, 60 and 180 degrees: the closest others are at 60, 60 and 120."""
    angles = np.radians([0, 60, 180])
    x = jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], 1) * [[1.0], [2.0], [3.0]])
    np.testing.assert_allclose(
        regularizers.get("regular_face")(x), (0.5 + 0.5 - 0.5) / 3, rtol=1e-5
    )
    assert regularizers.get("regular_face")(x[:1]) == 0


@functools.cache
def graded(name, block=None):
    """Of a loss without anything else to it: no two samples share a label and no margin is violated."""
    loss = losses.get(
        "contrastive", regularizer={"name": name, "weight": 2.0, "of": "embeddings"}, neg_margin=0.0
    )

    def value(x, valid):
        labels = jnp.arange(len(x))
        return loss.apply({}, x, labels, valid=valid, block=block)[0].compute()

    return jax.jit(jax.value_and_grad(value))


EMBEDDINGS = [n for n in regularizers.available() if n != "sparse_centers"]


@pytest.mark.parametrize("name", EMBEDDINGS)
@pytest.mark.parametrize("devices", [1, 8])
def test_padding_blocks_and_devices(name, devices):
    keep = np.arange(len(X)) % 4 != 1
    want = jax.value_and_grad(lambda x: 2 * regularizers.get(name)(x))(jnp.asarray(X[keep]))
    padded = jnp.where(keep[:, None], X, 5 * X[::-1])
    with jax.set_mesh(mesh(devices)):
        value, gradient = graded(name, block=2)(padded, keep)
    np.testing.assert_allclose(value, want[0], rtol=1e-5)
    np.testing.assert_allclose(gradient[keep], want[1], rtol=0, atol=1e-5 * np.abs(want[1]).max())
    assert not np.asarray(gradient)[~keep].any()


@pytest.mark.parametrize(
    ("name", "regularizer"),
    [("cos_face", "regular_face"), ("soft_triple", "sparse_centers"), ("proxy_anchor", "lp")],
)
def test_weights_are_added(name, regularizer):
    spec = {"name": regularizer, "weight": 0.5, "of": "weights"}
    plain, loss = losses.get(name), losses.get(name, regularizer=["zero_mean", spec])
    variables = loss.init(jax.random.key(0), 5, 6)
    weights = variables["params"]["weights"]
    of_rows = regularizers.get(regularizer)(weights)
    want = plain.apply(variables, X, Y)[0].compute() + 0.5 * of_rows
    want += np.abs(X.sum(1)).mean()
    for devices, block in [(1, None), (4, 2)]:
        with jax.set_mesh(mesh(devices)):
            mean, _ = loss.apply(variables, X, Y, block=block)
        np.testing.assert_allclose(mean.compute(), want, rtol=1e-5)
        np.testing.assert_allclose(mean.stats[f"regularizer/{regularizer}"], of_rows, rtol=1e-5)


@pytest.mark.parametrize("name", regularizers.available())
def test_degenerate_rows_are_finite(name):
    shape = (3, 2, 4) if name == "sparse_centers" else (6, 4)
    for x in (jnp.zeros(shape), jnp.ones(shape), 1e-15 * jnp.ones(shape)):
        value, gradient = jax.value_and_grad(regularizers.get(name))(x)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: regularizers.get("lpp"), "did you mean 'lp'"),
        (lambda: regularizers.get("lp", q=3), "accepted: of, p, power, weight"),
        (lambda: regularizers.get("lp", of="labels"), "accepted: 'embeddings' or 'weights'"),
        (lambda: regularizers.get("sparse_centers", of="embeddings"), "accepted: 'weights'"),
        (lambda: losses.get("nt_xent", regularizer="regular_face"), "has no class weights"),
        (lambda: losses.get("cos_face", regularizer="sparse_centers"), "soft_triple"),
        (lambda: losses.get("cos_face", regularizer=3), "regularizer is 3"),
        (
            lambda: losses.get("multiple", losses=["nt_xent"], regularizer="lp"),
            "each of its losses",
        ),
    ],
)
def test_errors(make, words):
    with pytest.raises(ValueError, match=words) as error:
        make()
    assert "\n" not in str(error.value)
