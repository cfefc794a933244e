"""The configurations of both papers' backbones: each builds, and reads a file with the published names."""

import pathlib

import jax
import numpy as np
import pytest

from dml_jax import UserError, config_files
from dml_jax.training import build, optim
from dml_jax.trees import flatten

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "configs"
SMALLEST = [
    ("icml2020", "resnet50", "torchvision", 128),
    ("icml2020", "bn_inception", "pretrainedmodels", 128),
    ("icml2020", "googlenet", "torchvision", 128),
    ("gmb2025", "dinov2_s", "facebookresearch/dinov2", 384),
    ("gmb2025", "resnet18", "torchvision", 512),
]


def load(name, arguments):
    return config_files.load(f"{FOLDER / name}.py:{arguments}")


@pytest.mark.parametrize(("name", "backbone", "source", "dim"), SMALLEST)
def test_a_file_with_published_names_is_read(name, backbone, source, dim, tmp_path):
    """A random file; the arrays that come back are its own."""
    config = load(name, f"backbone={backbone}")
    config.model.weights = str(tmp_path / "w.npz")
    model = build.model(config.model)
    assert model.dim == dim
    shapes = jax.eval_shape(model.without_weights().init, jax.random.key(0))
    parts = [flatten(shapes[part]["backbone"]) for part in ("params", "state") if shapes[part]]
    rng = np.random.default_rng(0)
    drawn = {
        path: rng.standard_normal(leaf.shape, np.float32) for p in parts for path, leaf in p.items()
    }
    table = next(table for table in model.sources if source in table.source)
    np.savez(config.model.weights, **table.save(drawn))
    read = model.read_backbone()
    found = flatten(read["params"]) | flatten(read["state"])
    assert found.keys() == drawn.keys()
    for path, array in drawn.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)


def test_what_the_papers_say():
    config = load("icml2020", "backbone=bn_inception,data=sop")
    model = config.model
    assert (model.norm, model.embedding_dim, model.image_size) == ("frozen", 128, 224)
    assert (config.train.epochs, config.train.batch_size, config.sampler.m) == (100, 112, 2)
    assert {(g.lr, g.weight_decay) for g in (config.optim.backbone, config.optim.head)} == {
        (1e-5, 4e-4)
    }
    assert load("icml2020", "data=cars196").data.order == "names"
    googlenet = load("icml2020", "backbone=googlenet")
    assert googlenet.model.image_size == googlenet.data.augment[0]["size"] == 227
    assert load("icml2020", "augmentation=big").model.image_size == 256
    config = load("gmb2025", "")
    assert (config.model.size, config.train.batch_size, config.optim.backbone.lr) == (
        "b",
        256,
        1e-6,
    )
    assert (config.data.validation_by, config.data.order) == ("last_classes", "devkit")
    assert not config.data.exif


@pytest.mark.parametrize(("trained", "first"), [("all", 0), ("last_four", 8)])
def test_last_four_blocks(trained, first):
    config = load("gmb2025", f"backbone=dinov2_s,trained={trained}")
    config.model.weights = ""
    model = build.model(config.model)
    groups = optim.groups_of(config.optim.to_dict())
    params = jax.eval_shape(model.init, jax.random.key(0))["params"]
    labels = flatten(optim.labels({"model": params, "loss": {}}, groups, model.layers())["model"])
    moving = {path.split("/")[1] for path, group in labels.items() if group != "frozen"}
    assert {name for name in moving if name.startswith("block")} == {
        f"block_{i:02}" for i in range(first, 12)
    }
    assert "norm" in moving and ("patch" in moving) == (trained == "all")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("icml2020", "backbone=resnet500", "backbone of the config: 'resnet500'; did you mean"),
        ("icml2020", "data=cub", "data of the config: 'cub'; did you mean 'cub200'"),
        ("icml2020", "augmentation=bigg", "augmentation of the config: 'bigg'; did you mean"),
        ("gmb2025", "trained=five", "trained of the config: 'five'; accepted: all, last_four"),
        ("gmb2025", "data=inshops", "data of the config: 'inshops'"),
    ],
)
def test_what_there_is_not(name, arguments, message):
    with pytest.raises(UserError, match=message):
        load(name, arguments)
