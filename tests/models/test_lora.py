"""Low-rank adaptation: what it computes, what it trains, and what it is when it is merged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dml_jax import losses, models
from dml_jax.errors import UserError
from dml_jax.mesh import make_mesh
from dml_jax.models import lora
from dml_jax.training import optim, state
from dml_jax.training.schedules import RunLength
from dml_jax.training.step import make_train_step

SPEC = {"rank": 2, "alpha": 6.0, "match": "block_.*/(qkv|out)"}
IMAGES = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 14, 14, 3), np.uint8))


@pytest.fixture(scope="module")
def adapted():
    return models.get("vit", image_size=14, embedding_dim=3, lora=SPEC)


def test_begins_as_the_model_was(adapted):
    plain = models.get("vit", image_size=14, embedding_dim=3)
    variables = adapted.init(jax.random.key(0))
    narrow = variables["params"]["lora"]["block_03"]["qkv"]
    assert narrow["a"].shape == (384, 2) and narrow["b"].shape == (2, 1152)
    assert len(adapted.adapted()) == 24
    apply = jax.jit(adapted.apply)
    expected, _ = jax.jit(plain.apply)(plain.init(jax.random.key(0)), IMAGES)
    np.testing.assert_allclose(apply(variables, IMAGES)[0], expected, rtol=1e-6)


def test_merged_is_the_map_and_the_product(adapted):
    variables = adapted.init(jax.random.key(0))
    narrow = variables["params"]["lora"]
    narrow["block_00"]["out"]["b"] = jnp.ones((2, 384))
    alone, merged = adapted.merged(variables)
    assert alone.lora is None and "lora" not in merged["params"]
    before, after = (v["params"]["backbone"]["block_00"] for v in (variables, merged))
    a = np.asarray(narrow["block_00"]["out"]["a"], np.float64)
    expected = before["out"]["kernel"] + 6.0 / 2 * a @ np.ones((2, 384))
    np.testing.assert_allclose(after["out"]["kernel"], expected, rtol=1e-5, atol=1e-6)
    assert np.array_equal(before["qkv"]["kernel"], after["qkv"]["kernel"])
    np.testing.assert_allclose(
        jax.jit(alone.apply)(merged, IMAGES)[0],
        jax.jit(adapted.apply)(variables, IMAGES)[0],
        rtol=1e-6,
    )


def test_trains_the_adapters_alone(adapted):
    section = {
        "backbone": {"match": "model/backbone/.*", "name": "sgd", "lr": 1.0, "freeze": True},
        "head": {"match": "model/(head|lora)/.*", "name": "sgd", "lr": 1.0},
    }
    groups = optim.groups_of(section)
    tx, loss = optim.partition(groups, RunLength(1, 1)), losses.get("multi_similarity")
    batch = {"image": IMAGES, "label": jnp.array([0, 0, 1, 1], jnp.int32)}
    with jax.set_mesh(make_mesh(1)):
        before = state.init(adapted, loss, tx, 0, 2)
        step = make_train_step(adapted, loss, tx, trained=optim.trained(groups))
        kept = jax.device_get(before["params"]["model"])
        after = jax.device_get(step(before, batch)[0]["params"]["model"])
    same = jax.tree.map(np.array_equal, kept, after)
    assert all(jax.tree.leaves(same["backbone"])) and not same["head"]["kernel"]
    # A has no gradient while B is 0, and B has one.
    assert not any(same["lora"][f"block_{i:02}"]["qkv"]["b"] for i in range(12))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"match": "block_.*/kqv"},
            r"lora.match='block_.*/kqv' matches no linear map .* 'block_00/mlp_in'",
        ),
        ({"rank": 0}, "rank of lora is 0"),
        ({"ranks": 4}, "hyper-parameter of lora: 'ranks'; did you mean 'rank'"),
    ],
)
def test_wrong_settings(spec, message):
    with pytest.raises(UserError, match=message):
        models.get("vit", lora=spec).adapted()
    assert lora.get(None) is None
