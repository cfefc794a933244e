"""What holds for every model: trees, shapes, normalisation, precision, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dml_jax import models
from dml_jax.models import weights as weight_files
from dml_jax.models.base import Family, Model
from dml_jax.models.vit import VisionTransformer

TINY_VIT = Family(
    functools.partial(VisionTransformer, width=16, depth=2, heads=2, grid=3, layer_scale=1.0),
    42,
    (0.5,),
    (0.5,),
)
CASES = {
    "convnet": lambda **kw: models.get("convnet", width=8, depth=2, image_size=16, **kw),
    "mobilenet_v2": lambda **kw: models.get("mobilenet_v2", image_size=32, **kw),
    "vit": lambda **kw: Model("vit", TINY_VIT, 28, **kw),
}


def draw_images(model, count=3, seed=0):
    shape = (count, model.image_size, model.image_size, model.channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@functools.cache
def prepared(name, **settings):
    model = CASES[name](**settings)
    return model, model.init(jax.random.key(0)), jax.jit(model.apply, static_argnames="train")


def is_plain(tree):
    return isinstance(tree, jax.Array) or (
        type(tree) is dict and all(type(k) is str and is_plain(v) for k, v in tree.items())
    )


def test_available_names_are_accepted():
    assert models.available() == ["convnet", "mobilenet_v2", "vit"]
    for name in models.available():
        model = models.get(name)
        assert hash(model) == hash(models.get(name)) and model == models.get(name)
    assert (models.get("convnet").image_size, models.get("convnet").channels) == (32, 1)
    assert (models.get("vit").dim, models.get("mobilenet_v2").dim) == (384, 1280)


@pytest.mark.parametrize("name", CASES)
def test_embeddings_and_trees(name):
    model, variables, apply = prepared(name, embedding_dim=5)
    assert set(variables) == {"params", "state"} and is_plain(variables)
    assert set(variables["params"]) == {"backbone", "head"}
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(variables))
    embeddings, state = apply(variables, draw_images(model))
    assert embeddings.shape == (3, 5) == (3, model.dim) and embeddings.dtype == jnp.float32
    assert state == variables["state"] == {}
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
    # Different images do not collapse to one vector.
    assert np.abs(embeddings[0] - embeddings[1]).max() > 1e-4

    headless = CASES[name](normalize=False)
    alone = {"params": {"backbone": variables["params"]["backbone"]}}
    features, _ = jax.jit(headless.apply)(alone, draw_images(model))
    assert features.shape == (3, headless.dim)
    head = jax.tree.map(np.asarray, variables["params"]["head"])
    expected = features @ head["kernel"] + head["bias"][None]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(embeddings, expected, atol=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_an_embedding_does_not_depend_on_its_batch(name):
    """Micro-batches are exact only then."""
    model, variables, apply = prepared(name, embedding_dim=5)
    images = draw_images(model)
    key = jax.random.key(1)
    together, _ = apply(variables, images, train=True, key=key)
    alone, _ = apply(variables, images[:1], train=True, key=key)
    np.testing.assert_allclose(alone[0], together[0], atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_has_a_finite_gradient(name):
    model, variables, _ = prepared(name, embedding_dim=5)
    images = draw_images(model)

    def loss(params):
        embeddings, _ = model.apply({"params": params, "state": {}}, images, train=True)
        return jnp.sum(embeddings * jnp.arange(15.0).reshape(3, 5))

    for path, g in weight_files.flatten(jax.jit(jax.grad(loss))(variables["params"])).items():
        assert jnp.isfinite(g).all(), path
        assert jnp.abs(g).max() > 0, path


def test_features_are_what_the_head_takes():
    model, variables, apply = prepared("convnet", embedding_dim=5)
    images = draw_images(model)
    found = jax.device_get(model.embeddings(variables, images))
    assert tuple(found) == model.outputs == ("embedding", "features")
    np.testing.assert_allclose(found["embedding"], apply(variables, images)[0], atol=1e-6)
    head = jax.tree.map(np.asarray, variables["params"]["head"])
    product = np.asarray(found["features"]) @ head["kernel"] + head["bias"]
    norms = np.linalg.norm(product, axis=1, keepdims=True)
    np.testing.assert_allclose(found["embedding"], product / norms, atol=1e-5)
    assert np.abs(np.linalg.norm(found["features"], axis=1) - 1).min() > 0.01
    model, variables, _ = prepared("convnet")
    found = jax.device_get(model.embeddings(variables, images))
    unit = found["features"] / np.linalg.norm(found["features"], axis=1, keepdims=True)
    np.testing.assert_allclose(found["embedding"], unit, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_is_close_to_float32(name):
    model, variables, apply = prepared(name, embedding_dim=5)
    images = draw_images(model)
    low = CASES[name](embedding_dim=5, dtype="bfloat16")
    jaxpr = str(jax.make_jaxpr(low.apply)(variables, images))
    assert "bf16" in jaxpr
    got, _ = jax.jit(low.apply)(variables, images)
    expected, _ = apply(variables, images)
    assert got.dtype == jnp.float32
    assert np.sum(got * expected, 1).min() > 0.98  # cosines
    assert np.abs(got - expected).max() > 1e-6  # else nothing was computed in bfloat16


def test_apply_is_traced_once():
    model, variables, _ = prepared("convnet", embedding_dim=5)
    traces = []

    @jax.jit
    def embed(variables, images):
        traces.append(1)
        return model.apply(variables, images)[0]

    for seed in range(3):
        embed(variables, draw_images(model, seed=seed))
    assert len(traces) == 1


def test_init_is_pure_in_the_key():
    model, variables, _ = prepared("convnet", embedding_dim=5)
    again, other = model.init(jax.random.key(0)), model.init(jax.random.key(1))
    same = jax.tree.map(lambda a, b: bool((a == b).all()), variables, again)
    assert all(jax.tree.leaves(same))
    kernel = other["params"]["head"]["kernel"]
    assert not np.array_equal(kernel, variables["params"]["head"]["kernel"])
    # The head's draw: uniform in +-1 / sqrt(32), as torch.nn.Linear.
    assert 0.9 * 32**-0.5 < np.abs(kernel).max() <= 32**-0.5


def test_convnet_images_of_any_channels_and_depth():
    model = models.get("convnet", width=8, depth=1, channels=3, image_size=20)
    embeddings, _ = model.apply(model.init(jax.random.key(0)), draw_images(model))
    assert embeddings.shape == (3, 32)


def test_group_normalisation_is_that_of_nnx():
    from dml_jax.models.convnet import _GroupNorm

    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 16)) * 2 + 1
    expected = nnx.GroupNorm(16, num_groups=None, group_size=8, rngs=nnx.Rngs(0))(x)
    np.testing.assert_allclose(_GroupNorm(16, group=8)(x), expected, atol=1e-5)


def test_running_statistics_are_state():
    """No model here has any, but a backbone may."""

    class Normed(nnx.Module):
        features, channels, stochastic = 3, 3, False

        def __init__(self, *, image_size, dtype, rngs):
            self.norm = nnx.BatchNorm(3, momentum=0.5, rngs=rngs)

        def __call__(self, x, *, train, key):
            return self.norm(x, use_running_average=not train).mean((1, 2))

    model = Model("normed", Family(Normed, 4, (0.0,), (1.0,)), 4, normalize=False)
    variables = model.init(jax.random.key(0))
    images = np.full((2, 4, 4, 3), 51, np.uint8)  # 0.2 of 255
    _, kept = model.apply(variables, images)
    _, new = jax.jit(functools.partial(model.apply, train=True))(variables, images)
    mean = lambda state: state["backbone"]["norm"]["mean"]
    np.testing.assert_array_equal(mean(kept), np.zeros(3))
    np.testing.assert_allclose(mean(new), np.full(3, 0.1), rtol=1e-5)
    np.testing.assert_array_equal(mean(variables["state"]), np.zeros(3))  # apply is pure


def test_normalising_a_zero_vector():
    x = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(models.l2_normalize(x), [[0, 0], [0.6, 0.8]], rtol=1e-6)
    jacobian = jax.jacobian(models.l2_normalize)(x)
    np.testing.assert_array_equal(jacobian[0], np.zeros((2, 2, 2)))
    # (I - y y') / ||x|| by hand.
    expected = [[0.64 / 5, -0.48 / 5], [-0.48 / 5, 0.36 / 5]]
    np.testing.assert_allclose(jacobian[1, :, 1], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "convnets"}, r"unknown model 'convnets'; did you mean 'convnet'\?"),
        ({"name": "convnet", "widht": 8}, r"unknown hyper-parameter of convnet: 'widht'.*'width'"),
        ({"name": "convnet", "width": 12}, "width = 12: a positive multiple of 8"),
        ({"name": "convnet", "depth": 0}, "depth = 0: a positive integer"),
        ({"name": "convnet", "dtype": "float16"}, "unknown model dtype 'float16'"),
        ({"name": "convnet", "embedding_dim": 0}, "embedding_dim = 0: a positive integer or None"),
        ({"name": "convnet", "image_size": 3.5}, "image_size = 3.5: a positive integer or None"),
        ({"name": "vit", "size": "xl"}, "unknown vit size 'xl'"),
        ({"name": "vit", "image_size": 32}, "image_size = 32: a multiple of 14 is needed, 28 say"),
        ({"name": "vit", "registers": -1}, "registers = -1: 0 or a positive integer"),
        ({"name": "vit", "drop_path": 1.0}, r"drop_path = 1.0: a probability in \[0, 1\)"),
        ({"name": "mobilenet_v2", "width": 8}, "unknown hyper-parameter of mobilenet_v2"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        models.get(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (np.zeros((2, 16, 16, 1), np.float32), r"float32 \[2, 16, 16, 1\]"),
        (np.zeros((2, 16, 16, 3), np.uint8), r"uint8 \[2, 16, 16, 3\]"),
        (np.zeros((2, 16, 17, 1), np.uint8), r"uint8 \[2, 16, 17, 1\]"),
        (np.zeros((16, 16, 1), np.uint8), r"uint8 \[16, 16, 1\]"),
    ],
)
def test_wrong_images(images, got):
    model, variables, _ = prepared("convnet", embedding_dim=5)
    match = rf"convnet takes images uint8 \[B, 16, 16, 1\], got {got}"
    with pytest.raises(ValueError, match=match) as error:
        model.apply(variables, images)
    assert "\n" not in str(error.value)
