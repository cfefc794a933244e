"""The vision transformer against the transformers library's, through its published names.

Golden values: tests/golden/make_models.py.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dml_jax import models
from dml_jax.bound import Bound
from dml_jax.models import Model
from dml_jax.models.backbones.positions import cubic_matrix
from dml_jax.models.backbones.shared import drop_path
from dml_jax.models.backbones.vision_transformer import VisionTransformer
from dml_jax.models.network import blueprint
from dml_jax.models.sources import dinov2

# Of the published models without their mask token: transformers' Dinov2Model less its width.
PARAMETERS = {
    ("s", 0): 22_056_576 - 384,
    ("b", 0): 86_580_480 - 768,
    ("l", 0): 304_368_640 - 1024,
    ("g", 0): 1_136_480_768 - 1536,
    ("s", 4): 22_058_112 - 384,
}
TINY = {"width": 16, "depth": 2, "heads": 2, "patch": 14, "layer_scale": 1e-5}
HYPER = {
    "plain": {"hidden": 64},
    "swiglu": {"hidden": 48, "gated": True},
    "registers": {"hidden": 64, "registers": 4, "antialias": True},
}


@pytest.fixture(scope="module")
def golden():
    with np.load(pathlib.Path(__file__).parents[1] / "golden" / "models.npz") as file:
        return dict(file)


def published(golden, name):
    prefix = f"{name}/weights/"
    return {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}


def tiny(name, side, weights=None):
    published = models.vit()
    return Model(
        name,
        Bound(VisionTransformer, grid=4, **TINY, **HYPER[name]),
        side,
        sources=dinov2.tables(2, 4 * (name == "registers"), name == "swiglu"),
        mean=published.mean,
        std=published.std,
        normalize=False,
        weights=weights,
    )


@pytest.mark.parametrize("name", HYPER)
def test_same_outputs_from_published_weights(name, golden, tmp_path):
    np.savez(tmp_path / "w.npz", **published(golden, name))
    variables = tiny(name, 56, str(tmp_path / "w.npz")).init(jax.random.key(0))
    for side in (42, 56, 84):
        images = golden[f"images/{side}"]
        output, _ = jax.jit(tiny(name, side).apply)(variables, images)
        np.testing.assert_allclose(output, golden[f"{name}/output/{side}"], atol=1e-5)
    # To that tolerance one row of the position embedding matters.
    position = variables["params"]["backbone"]["position"]
    variables["params"]["backbone"]["position"] = position.at[6].set(0)
    moved, _ = jax.jit(tiny(name, 84).apply)(variables, images)
    assert np.abs(moved - output).max() > 1e-4


def test_weights_that_are_not_dinov2s(golden, tmp_path):
    weights = published(golden, "plain")

    def read(weights):
        np.savez(tmp_path / "w.npz", **weights)
        return tiny("plain", 56, str(tmp_path / "w.npz")).read_backbone()

    with pytest.raises(ValueError, match=r"transformers: not expected: 'blocks.0.norm1.weight'"):
        read({**weights, "blocks.0.norm1.weight": np.zeros(16)})
    del weights["encoder.layer.1.attention.attention.key.bias"]
    with pytest.raises(ValueError, match=r"missing: 'encoder.layer.1.attention.attention.key.bias"):
        read(weights)


@pytest.mark.parametrize(("size", "registers"), PARAMETERS)
def test_number_of_parameters(size, registers):
    model = models.get("vit", size=size, registers=registers)
    tree = blueprint(model).params
    assert sum(a.size for a in jax.tree.leaves(tree)) == PARAMETERS[size, registers]


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [3, 7, 12])
def test_bicubic_resampling_is_torchs(size, antialias, golden):
    matrix = cubic_matrix(7, size, antialias=antialias)
    got = matrix @ golden["resize/input"] @ matrix.T
    np.testing.assert_allclose(got, golden[f"resize/{size}/{int(antialias)}"], atol=2e-6)


def test_bicubic_resampling_by_a_scale(golden):
    """What `offset` = 0.1 is for: 4 samples of 7 at a scale of 4.1 / 7."""
    matrix = cubic_matrix(7, 4, scale=4.1 / 7)
    got = matrix @ golden["resize/input"] @ matrix.T
    np.testing.assert_allclose(got, golden["resize/scale"], atol=2e-6)
    assert np.abs(matrix - cubic_matrix(7, 4)).max() > 0.01


def dropping(rate):
    hyper = {**TINY, "hidden": 64, "layer_scale": 1.0}
    build = Bound(VisionTransformer, grid=2, drop_path=rate, **hyper)
    return Model("dropping", build, 28)


def test_drop_path_draws_in_training_only():
    model = dropping(0.5)
    variables = model.init(jax.random.key(0))
    images = np.repeat(np.random.default_rng(0).integers(0, 256, (1, 28, 28, 3), np.uint8), 8, 0)
    apply = jax.jit(lambda key: model.apply(variables, images, train=True, key=key)[0])
    one, again, other = apply(jax.random.key(1)), apply(jax.random.key(1)), apply(jax.random.key(2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.01
    assert np.ptp(one, axis=0).max() > 0.01  # the eight copies of one image are drawn apart
    still, _ = jax.jit(model.apply)(variables, images, key=jax.random.key(1))
    np.testing.assert_allclose(still, np.repeat(still[:1], 8, 0), atol=1e-6)
    with pytest.raises(ValueError, match=r"dropping draws at random in training.*needs a key"):
        model.apply(variables, images, train=True)
    # Without a rate there is nothing to draw, so no key is needed.
    calm = dropping(0.0)
    got, _ = jax.jit(functools.partial(calm.apply, train=True))(variables, images)
    np.testing.assert_allclose(got, still, atol=1e-6)


def test_drop_path_keeps_the_mean():
    y = drop_path(jnp.ones((4000, 1, 1)), jax.random.key(0), 0.25)
    np.testing.assert_allclose(np.unique(y), [0, 4 / 3], rtol=1e-6)
    assert abs(float(y.mean()) - 1) < 0.04
