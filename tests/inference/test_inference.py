"""A trained model in use: what a run, its export and `dml embed` say of an image is one and the same."""

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import dml_jax
from dml_jax import (
    UserError,
    checkpoints,
    command_line,
    config_files,
    evaluation,
    inference,
    models,
)
from dml_jax import export as export_command
from dml_jax.inference import Index, formats
from dml_jax.models.files import open_weights
from dml_jax.training import build, score
from dml_jax.training.loop import train
from tests.training.commands import CONFIG, pictures


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("photos"), classes=14, images=3)


@pytest.fixture(scope="module")
def config(photos):
    config = config_files.load(f"{CONFIG}:steps=2,epochs=1")
    config.data.path = str(photos)
    config.train.devices = 1
    config.train.monitor = ""
    config.evaluation.splits = ()
    return config


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    train(config, str(workdir))
    return workdir


@pytest.fixture(scope="module")
def model(run):
    return dml_jax.load(run)


@pytest.fixture(scope="module")
def paths(photos):
    return sorted(map(str, photos.glob("*/*.png")))[:7]


@pytest.fixture(scope="module")
def vectors(model, paths):
    return model.encode(paths, batch_size=3)


def test_what_is_known_of_a_model(model, run):
    assert (model.dim, model.channels, model.image_size) == (4, 1, 16)
    assert model.about == {
        "workdir": str(run),
        "checkpoint": "last",
        "step": 2,
        "embedding": "embedding",
    }
    assert 5 < len(model.classes) < 14 and all(name.startswith("class") for name in model.classes)


def test_it_says_what_evaluation_says(model, config, run, vectors, paths):
    source = build.source(config, "all")
    net = build.model(config.model)
    template = jax.eval_shape(net.init, jax.random.key(0))
    variables = checkpoints.restore_model(str(run), "last", template)[2]
    want, _, ids = evaluation.embed(
        score.embedder(net), variables, score.batches_of(config, source)
    )
    names = [source.name(i) for i in ids]
    np.testing.assert_allclose(vectors, want[[names.index(path) for path in paths]], atol=1e-6)


def test_images_of_every_kind_are_one_image(model, vectors, paths):
    opened = [Image.open(path) for path in paths]
    arrays = [np.asarray(image) for image in opened]
    for images in (
        opened,
        arrays,
        np.stack(arrays)[..., None],
        [a[..., None] for a in arrays],
        [paths[0], opened[1], *arrays[2:]],
        [np.stack([a] * 3, axis=2) for a in arrays],
    ):
        np.testing.assert_allclose(model.encode(images), vectors, atol=1e-6)
    for image in (paths[0], opened[0], arrays[0]):
        np.testing.assert_allclose(model.encode(image), vectors[:1], atol=1e-6)
    # Another image is another vector, and another size is no error.
    assert np.abs(model.encode(arrays[1]) - vectors[0]).max() > 1e-3
    assert model.encode(np.zeros((50, 20, 3), np.uint8)).shape == (1, 4)


@pytest.mark.parametrize("embedding", ["embedding", "Combined_embedding_features-1-0.5"])
def test_an_exported_model_says_the_same(run, paths, tmp_path, embedding):
    model = inference.load(run, embedding=embedding)
    file = inference.export(model, tmp_path / "model.dml")
    exported = dml_jax.load(file)
    np.testing.assert_allclose(exported.encode(paths), model.encode(paths), atol=1e-6)
    for field in ("prepare", "image_size", "channels", "dim", "classes", "about"):
        assert getattr(exported, field) == getattr(model, field)


def test_a_combination_is_that_of_evaluation(run, paths):
    name = "Combined_embedding_features-1-0.5"
    parts = {
        part: inference.load(run, embedding=part).encode(paths)
        for part in ("embedding", "features")
    }
    want = evaluation.combined(parts, name)
    np.testing.assert_allclose(inference.load(run, embedding=name).encode(paths), want, atol=1e-6)


def test_similarities_and_matches(model, vectors):
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = model.similarity(3 * vectors, vectors)
    np.testing.assert_allclose(found, unit @ unit.T, atol=1e-6)
    assert model.similarity(np.zeros(4), vectors).tolist() == [[0.0] * 7]
    least = float(found[0, 1])
    assert model.is_match(vectors[0], vectors[0], 0.999).tolist() == [True]
    both = model.is_match(vectors[[0, 0]], vectors[[0, 1]], least + 1e-3)
    assert both.tolist() == [True, False]
    with pytest.raises(UserError, match=r"\[2, 4\] and \[7, 4\] to match"):
        model.is_match(vectors[:2], vectors, 0.5)


def test_the_threshold_is_the_lowest_that_keeps_to_the_rate(model):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(30), 4)
    points = (rng.normal(size=(30, 4))[labels] + 0.4 * rng.normal(size=(120, 4))).astype(np.float32)
    match = model.threshold(points, labels, 0.01)
    similarities = model.similarity(points, points)
    same = labels[:, None] == labels
    pairs = ~np.eye(120, dtype=bool)
    accepted = similarities >= match.threshold
    far, tar = accepted[pairs & ~same].mean(), accepted[pairs & same].mean()
    assert 0.008 < far <= 0.01
    assert match.false_accept_rate == pytest.approx(far, abs=2e-4)
    assert match.true_accept_rate == pytest.approx(tar, abs=2e-3)
    assert model.is_match(points[0], points[1], match)[0] == accepted[0, 1]
    with pytest.raises(UserError, match="between 0 and 1"):
        model.threshold(points, labels, 1.0)
    with pytest.raises(UserError, match="no pairs of one class"):
        model.threshold(points, np.arange(120))


def test_an_index(model, vectors, paths, tmp_path):
    index = model.index(paths[:5], labels=list("aabbc"))
    assert index.names == paths[:5] and index.items[4] == {"name": paths[4], "class": "c"}
    found = model.search(index, paths[:2], k=3)
    assert [items[0]["name"] for items in found.items] == paths[:2]
    np.testing.assert_allclose(found.similarities[:, 0], 1, atol=1e-6)
    assert (np.diff(found.similarities) <= 1e-6).all()
    index.add(vectors[5:], paths[5:])
    index.remove([paths[0], paths[3]])
    assert len(index) == 5 and paths[0] not in index.names
    np.testing.assert_array_equal(index.embeddings, vectors[[1, 2, 4, 5, 6]])

    read = Index.load(index.save(tmp_path / "index"))
    np.testing.assert_array_equal(read.embeddings, index.embeddings)
    assert read.items == index.items and read.about == index.about
    index.write_faiss(tmp_path / "index.faiss")
    of_faiss = Index.read_faiss(tmp_path / "index.faiss", index.items)
    assert of_faiss.search(vectors, 3).rows.tolist() == index.search(vectors, 3).rows.tolist()
    assert Index.read_faiss(tmp_path / "index.faiss").names == list("01234")


def test_an_index_of_another_model_is_refused(model, vectors, paths):
    index = model.index(paths)
    later = dataclasses.replace(model, about={**model.about, "step": 9})
    with pytest.raises(
        UserError, match=r"the index was made by .*'step': 2.* and this model is .*'step': 9"
    ):
        later.search(index, paths)


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (lambda m, i: m.encode([]), "no image to encode"),
        (lambda m, i: m.encode("nowhere.png"), "'nowhere.png' is not a file"),
        (lambda m, i: m.encode([__file__]), r"cannot decode .*test_inference\.py"),
        (lambda m, i: m.encode([3]), "image 0 is of type int"),
        (lambda m, i: m.encode(np.zeros((4, 4), np.float32)), r"float32\[4, 4\]; accepted: uint8"),
        (lambda m, i: i.search(np.zeros((1, 3))), r"an array \[1, 3\]; \[n, 4\] is accepted"),
        (lambda m, i: i.search(np.full((1, 4), np.nan)), "embedding 0 is not finite"),
        (lambda m, i: i.search(np.zeros((1, 4)), k=3), "k=3 of an index of 2; 1 to 2"),
        (lambda m, i: i.remove(["c"]), "the index has no 'c'"),
        (lambda m, i: i.add(np.zeros((1, 4)), ["a"]), "the name 'a' comes twice"),
        (lambda m, i: i.add(np.zeros((1, 4)), ["c", "d"]), "1 embeddings, 2 names"),
        (lambda m, i: Index(np.zeros((2, 4)), []), "2 embeddings and 0 items"),
        (lambda m, i: Index.load("nowhere"), r"there is no nowhere/embeddings\.npy"),
        (lambda m, i: Index.read_faiss("nowhere"), "there is no nowhere"),
        (lambda m, i: Index.read_faiss(__file__), "cannot be read as a faiss index"),
        (lambda m, i: dml_jax.load("nowhere"), "there is no nowhere; accepted: the folder of a run"),
        (lambda m, i: dml_jax.load(__file__), "not a file of dml export"),
        (lambda m, i: dml_jax.load(Path(__file__).parent), "no config.json.*that dml export wrote"),
    ],
)  # fmt: skip
def test_what_is_refused_in_one_line(model, do, message):
    index = Index.of(np.eye(4)[:2], ["a", "b"])
    with pytest.raises(UserError, match=message) as error:
        do(model, index)
    assert "\n" not in str(error.value) and index.names == ["a", "b"]


@pytest.mark.parametrize("name", ["dml", "stablehlo", "safetensors", "orbax"])
def test_every_format_is_read_again(name, run, tmp_path, capsys):
    out = tmp_path / f"model.{name}"
    command_line.run(export_command, [f"--workdir={run}", f"--format={name}", f"--out={out}"])
    assert "4 dimensions" in capsys.readouterr().out
    # Everybody may read it who may read what else is written there.
    plain = tmp_path / "plain"
    plain.touch()
    assert out.is_dir() or out.stat().st_mode == plain.stat().st_mode
    card = (tmp_path / f"model.{name}.md").read_text()
    assert (
        "classes trained on" in card and '"name": "convnet"' in card and "random parameters" in card
    )


def test_what_a_format_holds_is_compared(model, config, tmp_path, monkeypatch):
    """The negative control: another model than the one that was written."""
    other = jax.tree.map(lambda x: x + 1, model.variables)
    wrong = dataclasses.replace(model, apply=lambda _, images: model.apply(other, images))
    written = formats.export
    monkeypatch.setattr(formats, "export", lambda _, out: written(wrong, out))
    with pytest.raises(RuntimeError, match="gives other embeddings"):
        formats.as_dml(model, build.model(config.model), tmp_path / "m.dml")


def test_a_fine_tuned_backbone_goes_back_into_the_published_library(tmp_path):
    """By the names that it was published under, batch statistics and merged adapters included."""
    adapted = models.get("vit", image_size=14, embedding_dim=3, lora={"rank": 2, "match": ".*/qkv"})
    variables = adapted.init(jax.random.key(0))
    variables["params"]["lora"] = jax.tree.map(lambda x: x + 0.01, variables["params"]["lora"])
    encoder = inference.Encoder(
        lambda v, x: adapted.apply(v, x)[0], variables, (), 14, 3, 3, (), {}
    )
    formats.as_safetensors(encoder, adapted, tmp_path / "m.safetensors")
    with open_weights(tmp_path / "m.safetensors") as file:
        names = list(file)
        query = file["encoder.layer.3.attention.attention.query.weight"]
    assert "head.kernel" in "".join(names)
    merged = adapted.merged(variables)[1]["params"]["backbone"]["block_03"]["qkv"]["kernel"]
    np.testing.assert_array_equal(query, merged[:, :384].T)
    # Read as pretrained weights it gives the same features.
    again = models.get("vit", image_size=14, weights=tmp_path / "only.safetensors")
    safetensors.numpy.save_file(
        {
            n: a
            for n, a in safetensors.numpy.load_file(tmp_path / "m.safetensors").items()
            if "head" not in n
        },
        tmp_path / "only.safetensors",
    )
    images = np.random.default_rng(0).integers(0, 256, (2, 14, 14, 3), np.uint8)
    expected = jax.jit(adapted.embeddings)(variables, images)["features"]
    found = jax.jit(again.embeddings)(again.init(jax.random.key(1)), images)["features"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_without_the_converter(model, config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(
        UserError, match="--format=onnx needs the packages jax2onnx and onnxruntime"
    ):
        formats.as_onnx(model, build.model(config.model), tmp_path / "m.onnx")
