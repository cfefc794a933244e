"""ResNet, BN-Inception, GoogLeNet and ConvNeXt as models: shapes, options, errors, what training changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dml_jax import trees
from dml_jax.errors import UserError
from dml_jax.models.backbones.bn_inception import bn_inception
from dml_jax.models.backbones.convnext import ConvNeXt, convnext
from dml_jax.models.backbones.googlenet import GoogLeNet, googlenet
from dml_jax.models.backbones.resnet import ResNet, resnet
from dml_jax.models.sources import bn_inception as bn_inception_sources

# Parameters without a classifier: those that torchvision and timm count, less 1000 x (features + 1).
PARAMETERS = [
    (resnet, {"size": 18}, 512, 11_689_512),
    (resnet, {"size": 50}, 2048, 25_557_032),
    (resnet, {"size": 101}, 2048, 44_549_160),
    (bn_inception, {}, 1024, 11_295_240),
    (googlenet, {}, 1024, 6_624_904),
    (convnext, {"size": "t"}, 768, 28_589_128),
    (convnext, {"size": "l"}, 1536, 197_767_336),
]
NARROW = (("3a", (2, 2, 2, 2, 2, 2)), ("5a", (4, 2, 4, 2, 4, 4)))
X = jax.random.normal(jax.random.key(0), (3, 32, 32, 3))


def made(kind, **hyper):
    return kind(**hyper, image_size=32, dtype=jnp.float32, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(("factory", "hyper", "features", "count"), PARAMETERS)
def test_parameters(factory, hyper, features, count):
    model = factory(**hyper)
    assert model.dim == features
    params = jax.eval_shape(model.init, jax.random.key(0))["params"]
    assert sum(a.size for a in jax.tree.leaves(params)) == count - 1000 * (features + 1)


@pytest.mark.parametrize("remat", ["dots", "block"])
def test_remat_changes_nothing(remat):
    """Neither gradients nor the running statistics, which a block changes inside of it."""

    def results(remat):
        net = made(ResNet, depths=(1, 1), width=4, bottleneck=True, remat=remat)
        graphdef, params, state = nnx.split(net, nnx.Param, ...)

        def loss(params):
            net = nnx.merge(graphdef, params, state, copy=True)
            return jnp.sum(net(X, train=True, key=None).parts ** 2), nnx.state(net, nnx.BatchStat)

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    for got, wanted in zip(
        jax.tree.leaves(results(remat)), jax.tree.leaves(results("none")), strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_training_updates_the_statistics_unless_they_are_frozen():
    for norm, changes in (("batch", True), ("frozen", False)):
        net = made(ResNet, depths=(1,), width=4, bottleneck=False, norm=norm)
        before = trees.flatten(nnx.to_pure_dict(nnx.state(net, nnx.BatchStat)))
        y = net(X, train=True, key=None).parts
        after = trees.flatten(nnx.to_pure_dict(nnx.state(net, nnx.BatchStat)))
        assert {np.array_equal(after[k], before[k]) for k in before} == {not changes}
        same = np.allclose(
            y, made(ResNet, depths=(1,), width=4, bottleneck=False)(X, train=False, key=None).parts
        )
        assert same == (not changes)


def test_dropout_takes_features_out_of_all_parts():
    net = made(GoogLeNet, stem=(4, 4, 4), blocks=NARROW, dropout=0.5, norm="frozen")
    without = net(X, train=False, key=None).parts
    parts = net(X, train=True, key=jax.random.key(1)).parts
    kept = np.any(parts != 0, 1)
    assert 0 < kept.sum() < np.any(without != 0, 1).sum()
    np.testing.assert_allclose(parts, np.where(kept[:, None], 2 * without, 0), rtol=1e-5, atol=1e-6)


def test_drop_path_grows_with_the_depth():
    """Of two blocks the first is always there; the second is left out or counts twice at probability 1/2."""
    net = made(ConvNeXt, depths=(1, 1), widths=(4, 6), drop_path=0.5, layer_scale=1.0)
    y = net(X, train=True, key=jax.random.key(0)).parts
    whole = net(X, train=False, key=None).parts
    assert not np.allclose(y, whole, atol=1e-3)
    scale = net.stage_2.block_00.scale[...]
    net.stage_2.block_00.scale.set_value(0 * scale)
    out = net(X, train=False, key=None).parts
    net.stage_2.block_00.scale.set_value(2 * scale)
    twice = net(X, train=False, key=None).parts
    for sample in range(3):
        assert any(np.allclose(y[sample], z[sample], atol=1e-4) for z in (out, twice))


def test_pooling_and_blue_first():
    model = bn_inception(image_size=32, pooling="double", normalize=False)
    assert model.bgr and model.mean == (0.4078, 0.4588, 0.502) and model.dim == 1024
    assert convnext(pooling="token_average").dim == 1536
    assert googlenet().mean == (0.5, 0.5, 0.5)


def test_rows_in_a_file_of_bn_inception():
    """Some files have the vectors of normalisations as rows [1, c]."""
    rule = bn_inception_sources.tables()[0].names("conv1/norm/scale").rule
    assert rule.layout.load(np.ones((1, 64))).shape == rule.layout.load(np.ones(64)).shape == (64,)
    with pytest.raises(ValueError, match="reshape"):
        rule.layout.load(np.ones((2, 32)))


@pytest.mark.parametrize("side", [30, 40, 75, 94])
def test_sizes_that_bn_inception_refuses(side):
    with pytest.raises(UserError, match="multiple of 32"):
        bn_inception(image_size=side)


def test_errors():
    with pytest.raises(UserError, match="norm"):
        resnet(50, norm="layer")
    with pytest.raises(UserError, match="32 or more"):
        convnext(image_size=16)
