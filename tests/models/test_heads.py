"""Poolings and heads by name: what each computes, and what a model makes of several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dml_jax import models
from dml_jax.errors import UserError
from dml_jax.models import heads
from dml_jax.models.pooling import POOLINGS, GeM, Parts

SMALL = dict(width=8, depth=1, image_size=8)
IMAGES = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8))
PARTS = np.random.default_rng(1).normal(size=(3, 5, 4)).astype(np.float32)
TOKEN = np.random.default_rng(2).normal(size=(3, 6)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("token", TOKEN),
        ("average", PARTS.mean(1)),
        ("token_average", np.concatenate([TOKEN, PARTS.mean(1)], 1)),
        ("max", PARTS.max(1)),
        ("double", PARTS.mean(1) + PARTS.max(1)),
    ],
)
def test_poolings(name, expected):
    found = POOLINGS[name][0](Parts(jnp.asarray(PARTS), jnp.asarray(TOKEN)))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_generalised_mean():
    positive = np.abs(PARTS)
    pool = GeM()
    np.testing.assert_allclose(
        pool(Parts(jnp.asarray(positive))), (positive**3).mean(1) ** (1 / 3), rtol=1e-5
    )
    pool.p[...] = jnp.float32(1.0)
    np.testing.assert_allclose(pool(Parts(jnp.asarray(positive))), positive.mean(1), rtol=1e-6)
    # A negative feature has no power; its gradient is finite all the same.
    found = jax.grad(lambda x: GeM()(Parts(x)).sum())(jnp.asarray(PARTS))
    assert np.isfinite(found).all() and np.all(found[PARTS < 0] == 0)


@pytest.mark.parametrize("pooling", [None, "average", "max", "double", "gem"])
def test_a_model_with_each_pooling(pooling):
    model = models.get("convnet", embedding_dim=4, pooling=pooling, **SMALL)
    variables = model.init(jax.random.key(0))
    assert ("pooling" in variables["params"]) == (pooling == "gem")
    assert model.apply(variables, IMAGES)[0].shape == (3, 4)


def test_a_pooling_that_the_backbone_lacks():
    with pytest.raises(UserError, match=r"has no token: average, max, double, gem are accepted"):
        _ = models.get("convnet", pooling="token", **SMALL).dim
    own = models.Model("own", nnx_that_pools, 8, pooling="max")
    with pytest.raises(UserError, match=r"'own' is 'max'; its backbone pools by itself"):
        _ = own.dim


def nnx_that_pools(*, image_size, dtype, rngs):
    return Pools()


class Pools(nnx.Module):
    features, channels = 1, 1

    def __call__(self, x, *, train, key):
        return x.mean((1, 2))


def test_initial_values():
    torch, he = (heads.linear(init=i)(400, 300, rngs=nnx.Rngs(0)) for i in ("torch", "he"))
    assert np.abs(torch.kernel).max() <= 0.05 and np.std(torch.kernel) > 0.025
    assert np.std(he.kernel) == pytest.approx((2 / 400) ** 0.5, rel=0.02) and not np.any(he.bias)


@pytest.mark.parametrize("norm", ["layer", "batch", "none"])
def test_mlp(norm):
    model = models.get(
        "convnet", embedding_dim=4, head={"name": "mlp", "hidden": 8, "norm": norm}, **SMALL
    )
    variables = model.init(jax.random.key(0))
    assert set(variables["params"]["head"]) == {"layer_0", "layer_1"} | (
        {"norm_0"} if norm != "none" else set()
    )
    embeddings, state = model.apply(variables, IMAGES, train=True)
    if norm == "batch":
        mean = state["head"]["norm_0"]["mean"]
        assert np.any(mean != 0)
        # In evaluation they stay, and no image of the batch has a part in another's embedding.
        alone, unchanged = model.apply({**variables, "state": state}, IMAGES[:1])
        assert np.array_equal(unchanged["head"]["norm_0"]["mean"], mean)
        whole, _ = model.apply({**variables, "state": state}, IMAGES)
        np.testing.assert_allclose(alone, whole[:1], rtol=1e-5, atol=1e-6)
    else:
        assert jax.tree.leaves(state) == []
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)


def test_several_embeddings_of_the_same_features():
    specs = {"shape": {"dim": 3}, "colour": {"dim": 2, "name": "mlp"}}
    model = models.get("convnet", heads=specs, **SMALL)
    assert model == models.get("convnet", heads=specs, **SMALL) and hash(model)
    assert model.dim == 5
    assert model.outputs == ("embedding", "shape", "colour", "features")
    variables = model.init(jax.random.key(0))
    found = model.embeddings(variables, IMAGES)
    assert tuple(found) == model.outputs
    one = variables["params"]["head"]["shape"]
    expected = found["features"] @ one["kernel"] + one["bias"][None]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found["shape"], expected, rtol=1e-5)
    both = np.concatenate([found["shape"], found["colour"]], 1) / 2**0.5
    np.testing.assert_allclose(found["embedding"], both, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "mpl"}, "unknown head 'mpl'; did you mean 'mlp'"),
        ({"head": {"layers": 2}}, "accepted: a name, or a dict with name: linear, mlp"),
        ({"head": {"name": "mlp", "norm": "group"}}, "norm of head 'mlp' is 'group'"),
        ({"heads": {"a": {}}}, "'a' needs a value for 'dim'"),
        ({"heads": {"a": {"dim": 0}}}, "dim of head 'a' is 0"),
        ({"heads": {"features": {"dim": 2}}}, "'features' is no name of a head"),
        ({"heads": {"a": {"dim": 2}}, "embedding_dim": 3}, "has heads and embedding_dim=3"),
        ({"pooling": "mean"}, "pooling of model 'convnet' is 'mean'"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(UserError, match=message):
        models.get("convnet", **SMALL, **settings)
