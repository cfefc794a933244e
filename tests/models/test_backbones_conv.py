"""ResNet, BN-Inception, GoogLeNet and ConvNeXt against torchvision and pretrainedmodels (tests/golden)."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dml_jax import trees
from dml_jax.models.backbones.bn_inception import BNInception
from dml_jax.models.backbones.convnext import ConvNeXt
from dml_jax.models.backbones.googlenet import GoogLeNet
from dml_jax.models.backbones.resnet import ResNet
from dml_jax.models.sources import bn_inception, convnext, googlenet, resnet
from tests.golden import conv_recipe

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "backbones_conv.npz"
CASES = {
    "resnet_basic": (ResNet, {"depths": (2, 1, 1, 1), "bottleneck": False}, resnet),
    "resnet_bottleneck": (ResNet, {"depths": (2, 1, 1, 1), "bottleneck": True}, resnet),
    "bn_inception": (BNInception, {}, bn_inception),
    "googlenet": (GoogLeNet, {"dropout": 0.0}, googlenet),
    "convnext": (ConvNeXt, {"depths": (2, 1, 2, 1), "widths": (8, 16, 24, 32)}, convnext),
}


CLASSIFIERS = ("fc.", "last_linear.", "aux", "classifier.2.")


@functools.cache
def golden():
    with np.load(GOLDEN) as file:
        values = dict(zip(file["names"], file["values"], strict=True))
        shapes = {}
        for name in CASES:
            pairs = (line.rsplit(":", 1) for line in file[f"{name}/shapes"])
            shapes[name] = {n: tuple(json.loads(shape)) for n, shape in pairs}
    return values, shapes


@functools.cache
def loaded(name, dtype, **hyper):
    """Returns the module's structure, its parameters and its state by path, the file's arrays and its table."""
    kind, own, source = CASES[name]
    make = lambda: kind(**own, **hyper, image_size=64, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))
    graphdef, params, state = nnx.split(nnx.eval_shape(make), nnx.Param, ...)
    params, state = (trees.flatten(nnx.to_pure_dict(tree)) for tree in (params, state))
    file = conv_recipe.draw(golden()[1][name])
    table = source.tables()[0]
    arrays = dict(table.load(file, params | state, "drawn"))
    return graphdef, {p: arrays[p] for p in params}, {p: arrays[p] for p in state}, file, table


def run(name, params, state, x, train, **hyper):
    """Returns the last map as torch has it, [b, d, side, side], or the token, and the state afterwards."""
    graphdef = loaded(name, str(x.dtype), **hyper)[0]
    network = nnx.merge(graphdef, *(nnx.State(trees.unflatten(t)) for t in (params, state)))
    parts, token = network(x, train=train, key=None)
    after = trees.flatten(nnx.to_pure_dict(nnx.state(network, nnx.Not(nnx.Param))))
    if token is not None:
        return token[:, :, None, None], after
    side = round(parts.shape[1] ** 0.5)
    return parts.swapaxes(1, 2).reshape(len(x), -1, side, side), after


def largest_error(name, side, found):
    """Returns the largest error of arrays by their names in the golden file, relative to an array's norm.

    A bias before a normalisation has no gradient but rounding: norms count as at least a millionth of the largest.
    """
    wanted = {key: golden()[0][f"{name}/{side}/{key}"] for key in found}
    least = 1e-6 * max(array[-1] for array in wanted.values())
    errors = {
        key: np.abs(conv_recipe.project(array) - wanted[key]).max() / max(wanted[key][-1], least)
        for key, array in found.items()
    }
    return max(errors.values())


def outputs(name, side, gradients):
    """Returns what the golden file has of a case; a float64 computation where there are `gradients`."""
    dtype = jnp.float64 if gradients else jnp.float32
    _, params, state, _, table = loaded(name, str(jnp.dtype(dtype)))
    params, state = jax.tree.map(lambda a: jnp.asarray(a, dtype), (params, state))
    x = jnp.asarray(conv_recipe.images(side), dtype)

    def weighted_sum(params, x):
        y, after = run(name, params, state, x, True)
        return jnp.sum(y * conv_recipe.cotangent(y.shape)), (y, after)

    @jax.jit
    def all_outputs(params, x):
        if gradients:
            slopes, (y, after) = jax.grad(weighted_sum, (0, 1), has_aux=True)(params, x)
        else:
            slopes, (y, after) = None, weighted_sum(params, x)[1]
        return run(name, params, state, x, False)[0], y, after, slopes

    y, trained, after, slopes = all_outputs(params, x)
    found = {"eval": y, "train": trained}
    found |= {f"after/{n}": a for n, a in table.save(after).items()}
    if gradients:
        found["input"] = slopes[1]
        found |= {f"gradient/{n}": a for n, a in table.save(slopes[0]).items()}
    return found


# Each is a program to compile. An odd side has windows that reach over the edge.
SIDES = [("resnet_basic", 67), ("resnet_bottleneck", 64), ("convnext", 64), ("convnext", 67)]
SIDES += [("bn_inception", 67), ("googlenet", 67)]


@pytest.mark.parametrize(("name", "side"), SIDES)
def test_outputs_and_gradients(name, side, x64):
    """In float64: in float32 rounding turns single ReLUs over, in torch too, and gradients differ by a hundredth."""
    found = outputs(name, side, gradients=True)
    count = sum(key.startswith(f"{name}/{side}/") for key in golden()[0])
    assert len(found) == count
    assert largest_error(name, side, found) < 1e-9
    assert largest_error(name, side, found | {"input": found["input"] * 1.0001}) > 1e-5


@pytest.mark.parametrize("name", ["resnet_bottleneck", "convnext"])
def test_outputs_in_float32(name):
    assert largest_error(name, 64, outputs(name, 64, gradients=False)) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_table_gives_back_the_file(name):
    _, params, state, file, table = loaded(name, "float32")
    saved = table.save(params | state)
    assert set(file) - set(saved) == {n for n in file if table.reason(n)}
    assert all(np.array_equal(saved[n], file[n]) for n in saved)
    classifier = {n for n in file if table.reason(n)}
    assert classifier and all(n.startswith(CLASSIFIERS) for n in classifier)
