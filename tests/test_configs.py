"""Every configuration loads, is whole, builds, and runs a step; and how configurations are read."""

import copy
import json
import pathlib
import re

import jax
import numpy as np
import pytest

from dml_jax import UserError, config_files, data, run_folder
from dml_jax import config as configs
from dml_jax.config_options import EvaluationOptions, TrainOptions
from dml_jax.mesh import make_mesh
from dml_jax.training import build, optim
from dml_jax.training import state as states
from dml_jax.training.step import make_train_step
from tests import draws

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "configs"
FILES = sorted(p for p in FOLDER.glob("*.py") if p.name not in ("common.py",))
SECTIONS = {"seed", "data", "sampler", "model", "loss", "miner", "optim", "train", "evaluation"}


def parts(config):
    if "weights" in config.model:
        config.model.weights = ""
    model, loss = build.model(config.model), build.loss(config)
    tx = optim.build(config.optim.to_dict(), total_steps=10, epoch_steps=5)
    return model, loss, tx


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_config(path):
    config = config_files.load(str(path))
    assert set(config) == SECTIONS
    assert re.search(r"^    dml (train|quickstart) ", path.read_text().split('"""')[1], flags=re.M)
    stored = configs.to_dict(config)
    assert configs.to_dict(configs.from_dict(stored)) == stored
    sampler, labels = build.sampler(config.sampler), np.arange(9999) // 9
    given = {sampler.needs: np.ones((9999, 2), np.float32)} if sampler.needs else {}
    assert set(sampler.plan(labels, config.train.batch_size, seed=0, epoch=0, **given).ravel())

    # The whole thing in the abstract: state, step, and images as the transforms leave them.
    model, loss, tx = parts(config)
    size, channels = config.train.batch_size, model.channels
    picture = np.zeros((model.image_size + 32, model.image_size + 40, channels), np.uint8)
    rng = np.random.Generator(np.random.Philox(key=0))
    for steps in (config.data.augment, config.data.prepare):
        if len(steps):
            image = build.transform(steps)(picture, rng)
            assert image.shape == (model.image_size, model.image_size, channels)
    shape = (size, model.image_size, model.image_size, channels)
    batch = {
        "image": jax.ShapeDtypeStruct(shape, np.uint8),
        "label": jax.ShapeDtypeStruct((size,), np.int32),
    }
    with jax.set_mesh(make_mesh(1)):
        state = jax.eval_shape(lambda: states.init(model, loss, tx, config.seed, 40))
        after, metrics = jax.eval_shape(make_train_step(model, loss, tx), state, batch)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert metrics["loss"].shape == ()


@pytest.mark.parametrize("path", draws.some(FILES, 2, "configs"), ids=lambda p: p.stem)
def test_one_step(path):
    draws.tell()
    smaller = ",backbone=dinov2_s" if path.stem == "gmb2025" else ""
    config = config_files.load(f"{path}:runlocal{smaller}")
    size = config.model.image_size = 28 if config.model.name == "vit" else 32
    model, loss, tx = parts(config)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, size, size, model.channels), dtype=np.uint8)
    batch = {"image": images, "label": np.arange(8, dtype=np.int32) // 2}
    with jax.set_mesh(make_mesh(1)):
        state = states.init(model, loss, tx, config.seed, 4)
        before = jax.device_get(state["params"])
        after, metrics = make_train_step(model, loss, tx)(state, batch)
    assert metrics["finite"] and metrics["update_norm"] > 0
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, jax.device_get(after["params"]))
    assert moved["model"] and all(jax.tree.leaves(moved["loss"]))


def test_arguments():
    read = lambda text: dict(configs.arguments(text, runlocal=False, size=32, name="a"))
    assert read(None) == {"runlocal": False, "size": 32, "name": "a"}
    assert read("runlocal,size=64,name=b") == {"runlocal": True, "size": 64, "name": "b"}
    assert read("runlocal=false")["runlocal"] is False
    with pytest.raises(ValueError, match=r"'runloacl'.*'runlocal'"):
        read("runloacl")
    with pytest.raises(ValueError, match=r"size='x'.*int"):
        read("size=x")
    assert read("name=")["name"] == ""
    for text, message in (
        ("runlocal=maybe", "'maybe'"),
        # An empty value, or none, is no 1.
        ("size=", "argument size='' of the config; a value of type int is accepted"),
        ("size", "argument size of the config has no value; size=VALUE of type int is accepted"),
        ("runlocal=", "runlocal=''"),
    ):
        with pytest.raises(UserError, match=message):
            read(text)
    with pytest.raises(UserError, match="argument lr='' of the config; a value of type float"):
        configs.arguments("lr=", lr=0.5)


def test_a_miner_can_be_set_and_its_fields_too():
    config = configs.new()
    assert config.miner is None and configs.from_dict(configs.to_dict(config)).miner is None
    config.miner = {"name": "multi_similarity", "epsilon": 0.1}
    config.miner.epsilon = 0.2
    assert configs.to_dict(config)["miner"] == {"name": "multi_similarity", "epsilon": 0.2}
    assert configs.from_dict(configs.to_dict(config)).miner.epsilon == 0.2


def test_fields_of_one_group_leave_the_others_alone():
    config = configs.new()
    config.optim.head.schedule.name = "cosine"
    assert [config.optim[g].schedule.name for g in ("backbone", "head", "loss")] == [
        "constant",
        "cosine",
        "constant",
    ]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epochs", -1, "train.epochs is -1; accepted: a whole number of at least 0"),
        ("batch_size", 0, "train.batch_size is 0"),
        ("log_steps", 0, "train.log_steps is 0"),
        ("views", 0, "train.views is 0"),
        ("patience", -2, "train.patience is -2; accepted: a whole number of at least 0 or None"),
        ("checkpoint_minutes", -0.5, "train.checkpoint_minutes is -0.5"),
    ],
)
def test_ranges_of_the_section_train(field, value, message):
    config = configs.new()
    config.train[field] = value
    with pytest.raises(UserError, match=message):
        configs.typed("train", TrainOptions, config.train)


def test_sections_have_the_fields_of_their_options():
    config = configs.new()
    for section, options in (
        ("train", TrainOptions),
        ("evaluation", EvaluationOptions),
    ):
        assert configs.typed(section, options, config[section]) == options()
    # What is None by default has a type on the command line.
    assert config.train.get_type("micro_batch") is int
    assert config.evaluation.get_type("k") is object
    with pytest.raises(UserError, match="a value that cannot be stored"):
        config.loss = {"name": "contrastive", "distance": object()}
        configs.to_dict(config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("c.train.epoch = 3", "unknown field 'epoch'; did you mean 'epochs'"),
        ("c.train = {'epoch': 3}", "unknown field of train: 'epoch'; did you mean 'epochs'"),
        ("c.loss = 3", "line 4: .*"),
        (
            "c.optim = configs.optim(classifier={})",
            "group of optim: 'classifier' has no match.* backbone, head, loss are accepted",
        ),
        ("c.train.epochs = 'many'", "line 4: "),
        ("c.loss['alpha'] = {}['beta']", "line 4: KeyError: 'beta'"),
        ("c.train.epochs = = 3", "line 4: invalid syntax"),
    ],
)
def test_files_that_are_wrong(tmp_path, text, message):
    path = tmp_path / "wrong.py"
    path.write_text(
        f"from dml_jax import config as configs\ndef get_config():\n  c = configs.new()\n  {text}\n  return c\n"
    )
    with pytest.raises(ValueError, match=message) as error:
        config_files.load(str(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_defect_below_a_file_keeps_its_traceback(tmp_path):
    """An error of a function that the file calls is not the file's."""
    path = tmp_path / "calls.py"
    path.write_text("import json\n\ndef get_config():\n  return json.loads('no json')\n")
    with pytest.raises(json.JSONDecodeError):
        config_files.load(str(path))
    path.write_text("value = 3\n")
    with pytest.raises(UserError, match=r"calls\.py: AttributeError: .*get_config"):
        config_files.load(str(path))


def test_what_may_change():
    old = configs.to_dict(configs.new())
    new = configs.new()
    new.train.epochs = 99
    new.data.threads = 7
    run_folder.check_same(old, configs.to_dict(new), "run")
    new.seed = 1
    new.optim.head.lr = 0.5
    with pytest.raises(
        ValueError, match=r"optim.head.lr \(0.001 there, 0.5 given\); seed"
    ) as error:
        run_folder.check_same(old, configs.to_dict(new), "run")
    assert "epochs" not in str(error.value).split("Its own")[0]


def test_a_run_of_another_version(tmp_path):
    """What came later has its default, also where the run goes on; what there is no more is named."""
    config = configs.new()
    config.train.epochs = 7
    config.data = configs.data(name="glyphs", size=8)
    whole = configs.to_dict(config)
    older = copy.deepcopy(whole)
    del older["evaluation"]
    del older["train"]["views"], older["data"]["on_error"]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(older))
    assert configs.to_dict(run_folder.read_config(str(tmp_path))) == whole
    run_folder.check_same(older, whole, "run")
    config.train.views = 2
    with pytest.raises(ValueError, match=r"train.views \(1 there, 2 given\)"):
        run_folder.check_same(older, configs.to_dict(config), "run")

    for gone, message in [
        ({**whole, "train": {**whole["train"], "view": 2}}, "unknown field of train: 'view'; did"),
        ({**whole, "miners": None}, "unknown section 'miners'; did you mean 'miner'"),
    ]:
        path.write_text(json.dumps(gone))
        with pytest.raises(ValueError, match=message) as error:
            run_folder.read_config(str(tmp_path))
        assert str(path) in str(error.value) and "\n" not in str(error.value)
        with pytest.raises(ValueError, match=f"config stored in run: {message}"):
            run_folder.check_same(gone, whole, "run")


def test_folders(tmp_path):
    (tmp_path / "file").write_text("")
    assert run_folder.create(str(tmp_path / "a" / "b")).is_dir()
    with pytest.raises(
        UserError, match=r"--workdir: the folder .*/file/run cannot be made: Not a directory"
    ):
        run_folder.create(str(tmp_path / "file" / "run"))
    with pytest.raises(UserError, match=r"--out: .*/file is a file; a folder is accepted"):
        run_folder.create(tmp_path / "file", "--out")
    (tmp_path / "config.json").write_text('{"seed":')
    with pytest.raises(UserError, match=r"config\.json is damaged: Expecting value"):
        run_folder.read_config(tmp_path)


def test_splits_of_the_training_classes():
    config = configs.new()
    config.data = configs.data(name="glyphs", size=8, classes=20, validation=0.25)
    train, val, test = (build.source(config, s) for s in ("train", "val", "test"))
    assert (len(train.class_names), len(val.class_names)) == (15, 5)
    assert not {*train.class_names} & {*val.class_names}
    whole = data.load("glyphs", "train", size=8, classes=20)
    assert {*train.class_names, *val.class_names} == {*whole.class_names}
    assert len(test.class_names) == 20
