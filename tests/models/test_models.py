"""What holds for every model: trees, shapes, normalisation, precision, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dml_jax import distances, models, trees
from dml_jax.bound import Bound
from dml_jax.errors import UserError
from dml_jax.models import Model
from dml_jax.models.backbones.convnet import _GroupNorm
from dml_jax.models.backbones.vit import VisionTransformer

TINY_VIT = Bound(
    VisionTransformer, width=16, depth=2, heads=2, hidden=64, patch=14, grid=3, layer_scale=1.0
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
    assert {"bn_inception", "convnet", "mobilenet_v2", "resnet", "vit"} <= {*models.available()}
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

    for path, g in trees.flatten(jax.jit(jax.grad(loss))(variables["params"])).items():
        assert jnp.isfinite(g).all(), path
        assert jnp.abs(g).max() > 0, path


def test_features_are_what_the_head_takes():
    model, variables, apply = prepared("convnet", embedding_dim=5)
    images = draw_images(model)
    found = jax.device_get(jax.jit(model.embeddings)(variables, images))
    assert tuple(found) == model.outputs == ("embedding", "features")
    np.testing.assert_allclose(found["embedding"], apply(variables, images)[0], atol=1e-6)
    head = jax.tree.map(np.asarray, variables["params"]["head"])
    product = np.asarray(found["features"]) @ head["kernel"] + head["bias"]
    norms = np.linalg.norm(product, axis=1, keepdims=True)
    np.testing.assert_allclose(found["embedding"], product / norms, atol=1e-5)
    assert np.abs(np.linalg.norm(found["features"], axis=1) - 1).min() > 0.01
    model, variables, _ = prepared("convnet")
    found = jax.device_get(jax.jit(model.embeddings)(variables, images))
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
    embeddings, _ = jax.jit(model.apply)(model.init(jax.random.key(0)), draw_images(model))
    assert embeddings.shape == (3, 32)


def test_group_normalisation_is_that_of_nnx():
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

    model = Model("normed", Normed, 4, normalize=False, mean=(0.0,), std=(1.0,))
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
    np.testing.assert_allclose(distances.normalize(x), [[0, 0], [0.6, 0.8]], rtol=1e-6)
    jacobian = jax.jacobian(distances.normalize)(x)
    np.testing.assert_array_equal(jacobian[0], np.zeros((2, 2, 2)))
    # (I - y y') / ||x|| by hand.
    expected = [[0.64 / 5, -0.48 / 5], [-0.48 / 5, 0.36 / 5]]
    np.testing.assert_allclose(jacobian[1, :, 1], expected, rtol=1e-5, atol=1e-7)


def test_a_model_of_the_users_own(documented_module):
    documented_module(models.__doc__)
    own = lambda **options: models.get("my_package.my_module:perceptron", **options)
    model = own(embedding_dim=3, image_size=8)
    assert model == own(embedding_dim=3, image_size=8) != own(embedding_dim=3, image_size=9)
    assert (model.dim, model.channels, own().dim) == (3, 1, 64)
    variables = model.init(jax.random.key(0))
    apply = jax.jit(model.apply, static_argnames="train")
    embeddings, state = apply(variables, draw_images(model), train=True)
    assert embeddings.shape == (3, 3) and state == {}
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)


REFUSED = [
    ({"name": "convnets"}, r"unknown model 'convnets'; did you mean 'convnet' or 'convnext'\?"),
    ({"name": 3}, "unknown model 3"),
    ({"name": "no_such_package:net"}, "there is no module 'no_such_package'"),
    (
        {"name": "builtins:dict"},
        "model 'builtins:dict' (is|returned) .*; accepted: a function that returns a Model",
    ),
    ({"name": "convnet", "widht": 8}, r"hyper-parameter of model 'convnet': 'widht'.*'width'"),
    ({"name": "convnet", "width": 12}, "width of model 'convnet' is 12; accepted: a multiple of 8"),
    ({"name": "convnet", "width": 0}, "width of model 'convnet' is 0; accepted: .* at least 1"),
    (
        {"name": "convnet", "width": 8.0},
        "width of model 'convnet' is 8.0; accepted: a whole number",
    ),
    ({"name": "convnet", "width": None}, "width of model 'convnet' is None"),
    ({"name": "convnet", "depth": 0}, "depth of model 'convnet' is 0"),
    ({"name": "convnet", "depth": "2"}, "depth of model 'convnet' is '2'"),
    ({"name": "convnet", "channels": -1}, "channels of model 'convnet' is -1"),
    (
        {"name": "convnet", "dtype": "float16"},
        "dtype of model 'convnet' is 'float16'; accepted: 'float32' or 'bfloat16'; did you mean",
    ),
    ({"name": "convnet", "dtype": 16}, "dtype of model 'convnet' is 16"),
    ({"name": "convnet", "embedding_dim": 0}, "embedding_dim .* is 0; .* at least 1 or None"),
    ({"name": "convnet", "embedding_dim": 2.5}, "embedding_dim of model 'convnet' is 2.5"),
    ({"name": "convnet", "image_size": 3.5}, "image_size of model 'convnet' is 3.5"),
    ({"name": "convnet", "image_size": (32, 32)}, r"image_size of model 'convnet' is \(32, 32\)"),
    ({"name": "convnet", "normalize": "yes"}, "normalize .* is 'yes'; accepted: True or False"),
    (
        {"name": "convnet", "weights": 3},
        "weights of model 'convnet' is 3; accepted: a text or a path",
    ),
    (
        {"name": "vit", "size": "xl"},
        "size of model 'vit' is 'xl'; accepted: 's' or 'b' or 'l' or 'g'",
    ),
    (
        {"name": "vit", "image_size": 32},
        "image_size .* is 32; accepted: a multiple of 14, such as 28",
    ),
    ({"name": "vit", "registers": -1}, "registers of model 'vit' is -1"),
    ({"name": "vit", "registers": 0.5}, "registers of model 'vit' is 0.5"),
    (
        {"name": "vit", "drop_path": 1.0},
        "drop_path of model 'vit' is 1.0; .* at least 0 and below 1",
    ),
    ({"name": "vit", "drop_path": float("nan")}, "drop_path of model 'vit' is nan"),
    ({"name": "vit", "layer_scale": -1.0}, "layer_scale of model 'vit' is -1.0"),
    ({"name": "vit", "layer_scale": "small"}, "layer_scale of model 'vit' is 'small'"),
    ({"name": "vit", "offset": -0.1}, "offset of model 'vit' is -0.1"),
    ({"name": "mobilenet_v2", "width": 8}, "unknown hyper-parameter of model 'mobilenet_v2'"),
    ({"name": "mobilenet_v2", "image_size": -224}, "image_size of model 'mobilenet_v2' is -224"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_wrong_settings(settings, message):
    with pytest.raises(UserError, match=message) as error:
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
