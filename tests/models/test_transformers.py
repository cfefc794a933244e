"""The vision transformers against their authors' code and three libraries, through published names.

Golden values: tests/golden/make_backbones_vit.py.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dml_jax import trees
from dml_jax.models import published
from dml_jax.models.backbones import (
    clip,
    dinov3,
    plain_vit,
    positions,
    siglip,
    transformer,
    vit,
)
from dml_jax.models.backbones.vision_transformer import VisionTransformer
from dml_jax.models.sources import clip as clip_names
from dml_jax.models.sources import dinov2 as dinov2_names
from dml_jax.models.sources import dinov3 as dinov3_names
from dml_jax.models.sources import siglip as siglip_names
from dml_jax.models.sources import vit as vit_names
from tests.golden.drawn import draw, sample

FOLDER = pathlib.Path(__file__).parents[1] / "golden"
TINY = {"width": 16, "depth": 2, "heads": 2, "hidden": 24, "patch": 4, "grid": 4}
DINOV2 = {**TINY, "hidden": 32, "layer_scale": 1.0}
GATED2 = {**DINOV2, "hidden": 24, "gated": True}
REGISTERS = {"registers": 4, "antialias": True}
DINOV3 = {
    **TINY,
    "grid": None,
    "registers": 4,
    "layer_scale": 1.0,
    "eps": 1e-5,
    "bias": "query_value",
}
GATED3 = {**DINOV3, "gated": True}
PLAIN = {**TINY, "antialias": True}
CLIP = {**TINY, "patch_bias": False, "norm_pre": True, "eps": 1e-5, "activation": "quick_gelu"}
SIGLIP = {**TINY, "class_token": False, "activation": "gelu_tanh"}
# File, case: hyper-parameters, the table that reads the file.
CASES = {
    "dinov2": {
        "transformers": (DINOV2, "transformers"),
        "transformers_swiglu": (GATED2, "transformers"),
        "transformers_registers": (DINOV2 | REGISTERS, "transformers"),
        "state": (DINOV2, "transformers' state_dict()"),
        "state_swiglu": (GATED2, "transformers' state_dict()"),
        "facebook": (DINOV2 | {"offset": 0.1}, "facebookresearch/dinov2"),
        "facebook_swiglu_registers": (GATED2 | REGISTERS, "facebookresearch/dinov2"),
        "facebook_one_chunk": (DINOV2, "facebookresearch/dinov2 in one chunk"),
        "timm": (DINOV2, "facebookresearch/dinov2"),
        "timm_swiglu_registers": (GATED2 | REGISTERS, "timm"),
    },
    "dinov3": {
        "transformers": (DINOV3, "transformers"),
        "transformers_gated": (GATED3, "transformers"),
        "state": (DINOV3, "transformers' state_dict()"),
        "facebook": (DINOV3, "facebookresearch/dinov3"),
        "facebook_gated": (GATED3, "facebookresearch/dinov3"),
        "timm": (DINOV3, "timm"),
        "timm_gated": (GATED3, "timm"),
        "timm_without_bias": (DINOV3 | {"bias": "none"}, "timm"),
    },
    "plain": {
        "timm": (PLAIN, "timm"),
        "torchvision": (PLAIN, "torchvision"),
        "transformers": (TINY, "transformers"),
        "state": (TINY, "transformers' state_dict()"),
        "google": (PLAIN, "google-research/vision_transformer"),
    },
    "clip": {
        "transformers": (CLIP | {"projection": 8}, "transformers"),
        "transformers_gelu": (CLIP | {"projection": 8, "activation": "gelu"}, "transformers"),
        "transformers_vision": (CLIP, "transformers' CLIPVisionModel since version 5"),
        "openai": (CLIP | {"projection": 8, "hidden": 64}, "OpenAI's CLIP or OpenCLIP"),
        "timm": (CLIP | {"antialias": True}, "timm"),
    },
    "siglip": {
        "big_vision": (SIGLIP, "google-research/big_vision"),
        "timm": (SIGLIP | {"antialias": True}, "timm"),
        "transformers": (SIGLIP, "transformers' SiglipVisionModel since version 5"),
    },
}
FLAT = [(file, case) for file, cases in CASES.items() for case in cases]


@functools.cache
def golden(file):
    with np.load(FOLDER / f"backbones_vit_{file}.npz") as arrays:
        return dict(arrays)


def case_of(file, case):
    prefix = f"{case}/"
    return {k.removeprefix(prefix): v for k, v in golden(file).items() if k.startswith(prefix)}


def tables(file, hyper):
    gated, heads = hyper.get("gated", False), hyper["heads"]
    return {
        "dinov2": lambda: dinov2_names.tables(hyper["depth"], hyper.get("registers", 0), gated),
        "dinov3": lambda: dinov3_names.tables(gated),
        "plain": lambda: vit_names.tables(heads),
        "clip": clip_names.tables,
        "siglip": lambda: siglip_names.tables(heads),
    }[file]()


@functools.cache
def compiled(hyper):
    """The shapes of the parameters by path, and a function of the flat parameters and images."""
    module = nnx.eval_shape(
        lambda: VisionTransformer(**dict(hyper), image_size=16, dtype=jnp.float32, rngs=nnx.Rngs(0))
    )
    graphdef, params = nnx.split(module)
    shapes = trees.flatten(nnx.to_pure_dict(params))

    def outputs(arrays, images):
        backbone = nnx.merge(graphdef, nnx.State(trees.unflatten(arrays)))
        found = backbone(images, train=False, key=None)
        return {"token": found.token, "parts": found.parts}

    @jax.jit
    def differentiated(arrays, images, weights):
        def scalar(arrays, images):
            found = outputs(arrays, images)
            return sum((found[n] * weights[n]).sum() for n in found), found

        (_, found), grads = jax.value_and_grad(scalar, (0, 1), has_aux=True)(arrays, images)
        return found, grads

    return shapes, jax.jit(outputs), differentiated


def weights_of(found):
    return {
        name: draw(name, tuple(shape)) for name, shape in json.loads(str(found["names"])).items()
    }


def images_of(size):
    height, width = map(int, size.split("x"))
    return draw("images", (2, 3, height, width)).transpose(0, 2, 3, 1) * 4


def error(got, wanted):
    """The largest difference relative to the largest magnitude."""
    assert got.shape == wanted.shape
    return np.abs(got - wanted).max() / np.abs(wanted).max()


def load(file, case, hyper):
    weights = weights_of(case_of(file, case))
    table = published.recognised(tables(file, hyper), weights)
    shapes = compiled(tuple(sorted(hyper.items())))[0]
    return table, weights, dict(table.load(weights, shapes, "a file"))


def errors(file, case, sample=sample, **changed):
    """The errors of outputs and gradients, by name."""
    hyper, source = CASES[file][case]
    hyper = {**hyper, **changed}
    found = case_of(file, case)
    table, _, arrays = load(file, case, hyper)
    assert table.source == source
    _, outputs, differentiated = compiled(tuple(sorted(hyper.items())))
    sizes = [k.removeprefix("token/") for k in found if k.startswith("token/")]
    made = {}
    for size in sizes[:-1]:
        for name, output in outputs(arrays, images_of(size)).items():
            made[f"{name}/{size}"] = error(output, found[f"{name}/{size}"])
    size = sizes[-1]
    weights = {n: draw(n, found[f"{n}/{size}"].shape) for n in ("token", "parts")}
    last, (grads, image_grads) = differentiated(arrays, images_of(size), weights)
    for name, output in last.items():
        made[f"{name}/{size}"] = error(output, found[f"{name}/{size}"])
    made["images/grad"] = error(
        sample(np.asarray(image_grads).transpose(0, 3, 1, 2)), found["images/grad"]
    )
    if "registers" in hyper and source == "timm" and file == "dinov2":
        grads = {k: v for k, v in grads.items() if k != "position"}  # has no row 0 in the file
    if "grad" not in found:
        return made
    theirs = table.save(grads)
    names, start = json.loads(str(found["grads"])), 0
    for name in names:
        size = sample(np.zeros(json.loads(str(found["names"]))[name])).size
        wanted = found["grad"][start : start + size]
        start += size
        if name in theirs and np.abs(wanted).max() > 1e-6:
            made[f"grad/{name}"] = error(sample(theirs[name]), wanted)
    missing = [n for n in names if n not in theirs and table.reason(n) is None]
    assert missing == (["pos_embed"] if "position" in arrays and "position" not in grads else [])
    return made


@pytest.mark.parametrize(("file", "case"), FLAT)
def test_same_outputs_and_gradients(file, case):
    made = errors(file, case)
    assert max(made.values()) < 1e-5, max(made, key=made.get)
    assert len(made) > (30 if "grad" in case_of(file, case) else 1)


@pytest.mark.parametrize(
    ("file", "case", "wrong"),
    [
        ("dinov2", "facebook", {"offset": 0.0}),
        ("dinov3", "transformers", {"eps": 1e-6}),
        ("plain", "timm", {"antialias": False}),
        ("clip", "transformers", {"activation": "gelu"}),
        ("siglip", "transformers", {"activation": "gelu"}),
    ],
)
def test_to_that_tolerance_details_matter(file, case, wrong):
    made = errors(file, case, **wrong)
    # Each is seen in outputs, and most in the gradients.
    assert max(e for name, e in made.items() if name.startswith(("token", "parts"))) > 2e-5
    assert np.median([e for name, e in made.items() if name.startswith("grad/")]) > 1e-5


@pytest.mark.parametrize(("file", "case"), FLAT)
def test_a_table_goes_both_ways(file, case):
    table, weights, arrays = load(file, case, CASES[file][case][0])
    saved = table.save(arrays)
    left_out = {name for name in weights if name not in saved}
    assert all(table.reason(name) for name in left_out)
    assert set(saved) <= set(weights)
    if file == "dinov3" and "facebook" in case:  # the mask leaves the keys' bias out
        for name in (n for n in weights if n.endswith("qkv.bias")):
            weights[name][16:32] = 0
    for name, array in saved.items():
        np.testing.assert_array_equal(array, weights[name], strict=True, err_msg=name)


@pytest.mark.parametrize(
    ("file", "hyper"), [("clip", CLIP), ("clip", CLIP | {"projection": 8}), ("siglip", SIGLIP)]
)
def test_the_text_tower_of_a_file_is_left_out(file, hyper):
    weights = weights_of(case_of(file, "transformers_both"))
    table = published.recognised(tables(file, hyper), weights)
    shapes = compiled(tuple(sorted(hyper.items())))[0]
    arrays = dict(table.load(weights, shapes, "a file"))
    text = "text_model.final_layer_norm.weight"
    assert text in weights
    assert set(arrays) == set(shapes)
    with pytest.raises(ValueError, match=r"transformers: not expected: 'text_modem.final"):
        table.load({**weights, text.replace("model", "modem"): 0}, shapes, "a file")
    del weights["vision_model.post_layernorm.weight"]
    with pytest.raises(ValueError, match=r"transformers: missing: 'vision_model.post_layernorm"):
        table.load(weights, shapes, "a file")


def test_dinov2_in_four_chunks_of_layers():
    table = next(t for t in dinov2_names.tables(8, 0, False) if "four" in t.source)
    paths = {f"block_{i:02}/norm1/scale": np.full(3, i) for i in range(8)}
    saved = table.save(paths)
    assert set(saved) == {f"blocks.{i // 2}.{i}.norm1.weight" for i in range(8)}
    assert published.recognised(dinov2_names.tables(8, 0, False), saved) == table
    loaded = dict(table.load(saved, paths, "a file"))
    assert [a[0] for a in loaded.values()] == list(range(8))


@pytest.mark.parametrize("stacked", [False, True])
def test_big_vision_has_layers_of_their_own_or_stacked(stacked):
    """SigLIP 2's files have them stacked, by big_vision's `scan`."""
    found = weights_of(case_of("siglip", "big_vision"))
    part = "/Transformer/encoderblock_{}/"
    layers = [
        {k.replace(part.format(i), "@"): v for k, v in found.items() if part.format(i) in k}
        for i in range(2)
    ]
    scan = {k: v for k, v in found.items() if "encoderblock_" not in k}
    for name in layers[0]:
        path = name.replace("@", "/Transformer/encoderblock/")
        scan[path] = np.stack([layer[name] for layer in layers])
    assert len(layers[0]) == len(scan) - len(found) + 2 * len(layers[0]) == 16
    scan["params/txt/Encoder_0/encoderblock/LayerNorm_0/scale"] = np.ones((2, 16), np.float32)
    shapes = compiled(tuple(sorted(SIGLIP.items())))[0]
    table = published.recognised(tables("siglip", SIGLIP), scan if stacked else found)
    assert table.source.endswith("stacked layers") == stacked
    loaded = dict(table.load(scan if stacked else found, shapes, "a file"))
    _, _, wanted = load("siglip", "big_vision", SIGLIP)
    assert loaded.keys() == wanted.keys()
    for path, array in wanted.items():
        np.testing.assert_array_equal(loaded[path], array, strict=True, err_msg=path)
    if stacked:
        saved = table.save(loaded)
        assert all(np.array_equal(saved[name], scan[name]) for name in saved)


@pytest.mark.parametrize(
    ("file", "case", "heads"),
    [
        ("dinov2", "facebook", ("dino_head.mlp.0.weight", "ibot_head.last_layer.weight_g")),
        ("dinov2", "facebook_one_chunk", ("dino_head.mlp.0.weight",)),
        ("dinov3", "facebook", ("dino_head.mlp.0.weight", "ibot_head.mlp.0.bias")),
        ("plain", "timm", ("head.mlp.0.weight", "head.last_layer.weight_v")),
    ],
)
def test_a_checkpoint_of_pre_training_has_heads_beside_the_backbone(file, case, heads):
    hyper = CASES[file][case][0]
    _, weights, wanted = load(file, case, hyper)
    inner = {f"backbone.{name}": array for name, array in weights.items()}
    inner |= dict.fromkeys(heads, np.ones(3, np.float32))
    table = published.recognised(tables(file, hyper), inner)
    assert "within 'backbone.'" in table.source
    assert {table.reason(name) for name in heads} == {"is a head of pre-training"}
    loaded = dict(table.load(inner, compiled(tuple(sorted(hyper.items())))[0], "a file"))
    for path, array in wanted.items():
        np.testing.assert_array_equal(loaded[path], array, strict=True, err_msg=path)


def test_timm_has_no_position_of_the_class_token_beside_registers():
    table = dinov2_names.tables(2, 4, False)[-1]
    position = np.ones((17, 16), np.float32)
    with pytest.raises(ValueError, match="no row for the class token where there are registers"):
        table.save({"position": position})
    position[0] = 0
    assert table.save({"position": position})["pos_embed"].shape == (1, 16, 16)


# Of timm's models without a classifier (SigLIP's g-opt is for 256 pixels), with CLIP's projection.
PARAMETERS = {
    ("dinov3", "s"): 21_596_160,
    ("dinov3", "s_plus"): 28_692_480,
    ("dinov3", "b"): 85_659_648,
    ("dinov3", "l"): 303_128_576,
    ("dinov3", "h_plus"): 840_591_360,
    ("dinov3", "7b"): 6_716_030_976,
    ("plain_vit", "ti"): 5_524_416,
    ("plain_vit", "s"): 21_665_664,
    ("plain_vit", "b", 32): 87_455_232,
    ("plain_vit", "l"): 303_301_632,
    ("plain_vit", "h", 14): 630_764_800,
    ("clip", "b", 32): 87_849_216,
    ("clip", "l"): 303_966_208,
    ("clip", "h"): 632_076_800,
    ("clip", "g"): 1_012_645_632,
    ("clip", "bigg"): 1_844_907_264,
    ("siglip", "b"): 92_884_224,
    ("siglip", "so400m"): 427_680_704,
    ("siglip", "g_opt"): 1_163_168_256,
}
FACTORIES = {
    "vit": vit.vit,
    "dinov3": dinov3.dinov3,
    "plain_vit": plain_vit.plain_vit,
    "clip": clip.clip,
    "siglip": siglip.siglip,
}


@pytest.mark.parametrize("key", PARAMETERS, ids=str)
def test_number_of_parameters(key):
    name, size, *patch = key
    options = {"patch": patch[0]} if patch else {}
    options |= {"projection": True} if name == "clip" else {}
    options |= {"position_size": 256} if size == "g_opt" else {}
    model = FACTORIES[name](size, **options)
    # One layer more or less is as many parameters more or less, and is faster to make than all of them.
    depth = model.build.keywords["depth"]

    def count(layers):
        keywords = {**model.build.keywords, "depth": layers}
        tree = nnx.eval_shape(
            lambda: VisionTransformer(
                **keywords, image_size=224, dtype=jnp.float32, rngs=nnx.Rngs(0)
            )
        )
        return sum(a.size for a in jax.tree.leaves(nnx.split(tree)[1]))

    one, two = count(1), count(2)
    assert one + (depth - 1) * (two - one) == PARAMETERS[key]


def tiny(dtype=jnp.float32, **hyper):
    return VisionTransformer(**hyper, image_size=16, dtype=dtype, rngs=nnx.Rngs(0))


DROPPING = {**DINOV3, "drop_path": 0.5, "drop_path_grows": True}


@functools.cache
def trained(remat, scan, key=1):
    """Value, gradients, and how many numbers the backward pass keeps, of a training step."""
    graphdef, params = nnx.split(tiny(**DROPPING, remat=remat, scan=scan))
    params = nnx.to_pure_dict(params)
    images = jnp.asarray(images_of("20x12"))

    def scalar(params):
        backbone = nnx.merge(graphdef, nnx.State(params))
        found = backbone(images, train=True, key=jax.random.key(key))
        return (found.token**2).sum() + (found.parts**3).sum()

    kept = jax.tree.leaves(jax.eval_shape(lambda p: jax.vjp(scalar, p)[1], params))
    return *jax.jit(jax.value_and_grad(scalar))(params), sum(a.size for a in kept)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("remat", ["none", "block", "dots"])
def test_remat_and_scan_change_no_value(remat, scan):
    value, grads, _ = trained("none", False)
    got, got_grads, _ = trained(remat, scan)
    np.testing.assert_allclose(got, value, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(got_grads), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * float(np.abs(b).max()) + 1e-7)
    if (remat, scan) == ("none", False):  # the draws have a part in it
        assert abs(trained("none", False, key=2)[0] / value - 1) > 1e-3


def test_remat_keeps_less():
    none, dots, block = (trained(remat, False)[2] for remat in ("none", "dots", "block"))
    assert none > 1.3 * dots
    assert dots > 1.3 * block


def test_drop_path_grows_with_the_depth():
    model = plain_vit.plain_vit("s", drop_path=0.11)
    backbone = nnx.eval_shape(
        lambda: model.build(image_size=224, dtype=jnp.float32, rngs=nnx.Rngs(0))
    )
    np.testing.assert_allclose(backbone.drops, np.arange(12) / 100, atol=1e-9)
    assert backbone.stochastic
    assert set(tiny(**DINOV2, drop_path=0.2).drops) == {0.2}


def test_fused_attention_is_for_bfloat16_on_gpus(monkeypatch):
    asked = []

    def spy(q, k, v, implementation):
        asked.append(implementation)
        return v

    monkeypatch.setattr(jax.nn, "dot_product_attention", spy)
    x = jnp.zeros((1, 2, 2, 8), jnp.bfloat16)
    transformer.attention(x, x, x, fused=True)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    transformer.attention(x, x, x, fused=True)
    transformer.attention(x, x, x, fused=False)
    wide = x.astype(jnp.float32)
    transformer.attention(wide, wide, wide, fused=True)
    assert asked == [None, "cudnn", None, None]
    monkeypatch.undo()
    assert tiny(**TINY, fused_attention=True).block_01.fused_attention


def test_rotation_turns_pairs_by_the_angle_of_the_place():
    by = positions.rotation(2, 3, 8, prefix=1)
    x = np.random.default_rng(0).normal(size=(1, 7, 1, 8)).astype(np.float32)
    got = np.asarray(positions.rotate(jnp.asarray(x), by))[0, :, 0]
    np.testing.assert_array_equal(got[0], x[0, 0, 0])
    for place in range(6):
        y, column = (place // 3 + 0.5) / 2 * 2 - 1, (place % 3 + 0.5) / 3 * 2 - 1
        angles = [2 * np.pi * p / 100 ** (i / 2) for p in (y, column) for i in range(2)]
        pairs = x[0, 1 + place, 0, :4] + 1j * x[0, 1 + place, 0, 4:]
        turned = pairs * np.exp(1j * np.array(angles))
        want = np.concatenate([turned.real, turned.imag])
        np.testing.assert_allclose(got[1 + place], want, atol=1e-5)


def test_rotation_is_stretched_in_training_only():
    backbone = tiny(**DINOV3, rescale=2.0)
    assert backbone.stochastic
    still = backbone._rotation(3, 3, None)
    np.testing.assert_array_equal(still.cos, tiny(**DINOV3)._rotation(3, 3, jax.random.key(0)).cos)
    # The last patch of 3 x 3 is at 2/3; the smallest angle of its two is 2 pi 2/3 / 100^(1/2).
    angles = [
        np.arcsin(backbone._rotation(3, 3, jax.random.key(i)).sin[-1, 1]) / (0.4 * np.pi / 3)
        for i in range(40)
    ]
    assert 0.5 <= min(angles) < 0.6
    assert 1.7 < max(angles) <= 2


@pytest.mark.parametrize("name", FACTORIES)
def test_images_consist_of_whole_patches(name):
    with pytest.raises(ValueError, match=rf"image_size of model '{name}' is 100; accepted: a mult"):
        FACTORIES[name](image_size=100)
    if name in ("plain_vit", "clip", "siglip"):
        with pytest.raises(ValueError, match=f"position_size of model '{name}' is 225"):
            FACTORIES[name](position_size=225)
    side = 98 if name == "vit" else 96
    model = FACTORIES[name](image_size=side, pooling="token_average", embedding_dim=4)
    assert model == FACTORIES[name](image_size=side, pooling="token_average", embedding_dim=4)
    assert hash(model) == hash(model.without_weights())


def test_features_of_token_and_patches():
    make = functools.partial(FACTORIES["clip"], image_size=32, projection=True)
    assert make().dim == 512
    assert make(pooling="token_average").dim == 512 + 768


def test_bfloat16_is_near():
    hyper = CLIP | {"projection": 8}
    _, _, arrays = load("clip", "transformers", hyper)
    images = images_of("16x16")
    outputs = compiled(tuple(sorted(hyper.items())))[1]
    graphdef = nnx.split(nnx.eval_shape(lambda: tiny(jnp.bfloat16, **hyper)))[0]
    backbone = nnx.merge(graphdef, nnx.State(trees.unflatten(arrays)))
    got = backbone(jnp.asarray(images, jnp.bfloat16), train=False, key=None)
    assert got.token.dtype == got.parts.dtype == jnp.bfloat16
    wide = outputs(arrays, images)
    assert 1e-4 < error(np.asarray(got.token, np.float32), np.asarray(wide["token"])) < 0.05


def test_layers_of_a_model():
    layers = plain_vit.plain_vit("ti", image_size=32, embedding_dim=4).layers()
    number = {k.removeprefix("model/"): v for k, v in layers.items()}
    assert number["backbone/position"] == number["backbone/patch/kernel"] == 0
    assert number["backbone/block_00/qkv/bias"] == 1
    assert number["backbone/norm/scale"] == number["head/kernel"] == 13
