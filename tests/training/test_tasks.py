"""The section `evaluation`: each of its options against a naive loop over names, and what it refuses."""

import csv

import jax
import numpy as np
import pytest
from PIL import Image

from dml_jax import config as configs
from dml_jax import config_files, evaluation, run_folder
from dml_jax.data import base
from dml_jax.training import build, loop, score, tasks
from tests.training.commands import CONFIG, pictures

# Images of each class: (split, class, parent, further labels, how many). Classes of one image, classes of the gallery
# alone and of the queries alone, classes of two parents.
ROWS = (
    ("train", "ant", "insect", "red;small", 4),
    ("train", "bee", "insect", "small", 4),
    ("test", "cow", "mammal", "large;grey", 5),
    ("test", "dog", "mammal", "small", 1),
    ("test", "elk", "mammal", "large", 7),
    ("test", "fly", "insect", "small;grey", 3),
    ("test", "gnat", "insect", "", 6),
    ("gallery", "elk", "mammal", "large", 6),
    ("gallery", "yak", "mammal", "large", 4),
    ("gallery", "cow", "mammal", "large;grey", 2),
    ("gallery", "dog", "mammal", "small", 3),
    ("distractors", "zebu", "mammal", "large", 9),
)
METRICS = ("precision_at_1", "recall_at_2", "map_at_r", "mean_average_precision")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A list of noisy pictures with all columns."""
    folder = tmp_path_factory.mktemp("zoo")
    rng = np.random.default_rng(0)
    patterns = {row[1]: rng.integers(0, 256, (16, 16)) for row in ROWS}
    with (folder / "list.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label", "split", "parent", "labels"])
        for split, kind, parent, labels, count in ROWS:
            for i in range(count):
                noisy = np.clip(patterns[kind] + rng.normal(0, 90, (16, 16)), 0, 255)
                name = f"{split}_{kind}_{i}.png"
                Image.fromarray(noisy.astype(np.uint8)).save(folder / name)
                # One animal lives apart from its like.
                table.writerow(
                    [name, kind, split, "mammal" if name == "test_fly_0.png" else parent, labels]
                )
    return folder / "list.csv"


def config_of(path, **evaluation_fields):
    config = config_files.load(str(CONFIG))
    config.data.path = str(path)
    config.evaluation.metrics = METRICS
    for field, value in evaluation_fields.items():
        if field in ("gallery", "distractors"):
            config.evaluation[field].update(value)
        else:
            config.evaluation[field] = value
    return config


@pytest.fixture(scope="module")
def network(path):
    """(the model, its variables, the name and outputs of each image by split)."""
    model = build.model(config_of(path).model)
    variables = model.init(jax.random.key(0))
    outputs = jax.jit(model.embeddings)
    seen = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            image = np.asarray(Image.open(path.parent / row["path"]))[None, ..., None]
            found = {
                name: np.asarray(v)[0].astype(np.float64)
                for name, v in outputs(variables, image).items()
            }
            seen.setdefault(row["split"], []).append({**row, **found})
    return model, variables, seen


def evaluated(config, network, split="test"):
    model, variables, _ = network
    task = tasks.eval_spec(config, split, model)
    apply = score.outputs(model, task.embeddings)
    found = score.embedded(
        task, lambda source: evaluation.embed(apply, variables, score.batches_of(config, source))
    )
    return task, score.metrics(task, found)


def naive(seen, vector, *, relevant, candidates, k=None, average=None, largest=False):
    """One query after another: (metric -> mean), or means by `average` of a row first."""
    rows = []
    queries = seen["test"]
    counts = []
    for query in queries:
        items = [item for item in candidates(query) if item is not query]
        counts.append(sum(relevant(query, item) for item in items))
    if largest:
        k = max(counts)
    for query, r in zip(queries, counts, strict=True):
        items = [item for item in candidates(query) if item is not query]
        if not r:
            continue
        away = [((vector(query) - vector(item)) ** 2).sum() for item in items]
        hits = [relevant(query, items[j]) for j in np.argsort(away, kind="stable")]
        precision = [sum(hits[: j + 1]) / (j + 1) * hits[j] for j in range(len(hits))]
        depth = r if k is None else min(r, k)
        rows.append(
            (query, [hits[0], any(hits[:2]), sum(precision[:depth]) / r, sum(precision[:k]) / r])
        )
    if average is None:
        return np.mean([values for _, values in rows], axis=0)
    groups = {}
    for query, values in rows:
        groups.setdefault(query[average], []).append(values)
    return {name: np.mean(values, axis=0) for name, values in groups.items()}


def same(name):
    return lambda a, b: a[name] == b[name] and b["split"] != "distractors"


def sets(row):
    return set(row["labels"].split(";")) - {""}


def whole(seen):
    return lambda query: seen["test"]


# What is asked for, and how the naive loop is told: with `seen`.
CASES = {
    "default": ({}, lambda seen: {}),
    "gallery": (
        {"gallery": {"test": "gallery"}},
        lambda seen: {"candidates": lambda query: seen["gallery"]},
    ),
    "distractors": (
        {"distractors": {"test": "distractors"}},
        lambda seen: {"candidates": lambda query: seen["test"] + seen["distractors"]},
    ),
    "gallery and distractors": (
        {"gallery": {"test": "gallery"}, "distractors": {"test": "train"}},
        lambda seen: {"candidates": lambda query: seen["gallery"] + seen["train"]},
    ),
    "same parent": (
        {"among": "same_parent"},
        lambda seen: {
            "candidates": lambda query: [i for i in seen["test"] if i["parent"] == query["parent"]]
        },
    ),
    "other parents": (
        {"among": "other_parents"},
        lambda seen: {
            "candidates": lambda query: [i for i in seen["test"] if i["parent"] != query["parent"]]
        },
    ),
    "k": ({"k": 3}, lambda seen: {"k": 3}),
    "largest": ({"k": "max_bin_count"}, lambda seen: {"largest": True}),
    "level": (
        {"relation": {"name": "hierarchy", "level": 0}},
        lambda seen: {"relevant": same("parent")},
    ),
    "finest level": ({"relation": "hierarchy"}, lambda seen: {}),
    "overlap": (
        {"relation": "overlap"},
        lambda seen: {"relevant": lambda a, b: bool(sets(a) & sets(b))},
    ),
    "overlap of two": (
        {"relation": {"name": "overlap", "threshold": 2}},
        lambda seen: {"relevant": lambda a, b: len(sets(a) & sets(b)) >= 2},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_options_equal_a_naive_loop(path, network, case):
    fields, told = CASES[case]
    seen = network[2]
    task, found = evaluated(config_of(path, **fields), network)
    options = {"relevant": same("label"), "candidates": whole(seen), **told(seen)}
    expected = naive(seen, lambda row: row["embedding"], **options)
    np.testing.assert_allclose([found["embedding"][m] for m in METRICS], expected, atol=1e-12)
    # Controls: another option, another value; and only what is no default is worth a note.
    plain = naive(
        seen, lambda row: row["embedding"], relevant=same("label"), candidates=whole(seen)
    )
    if case not in ("default", "finest level"):
        assert np.abs(expected - plain).max() > 1e-3
    assert bool(task.about) == (case != "default")


@pytest.mark.parametrize("average", ["class", "parent"])
def test_averages_equal_a_naive_loop(path, network, average):
    seen = network[2]
    _, found = evaluated(config_of(path, average=average), network)
    by = naive(
        seen,
        lambda row: row["embedding"],
        relevant=same("label"),
        candidates=whole(seen),
        average="label" if average == "class" else "parent",
    )
    values = [found["embedding"][m] for m in METRICS]
    np.testing.assert_allclose(values, np.mean(list(by.values()), axis=0), atol=1e-12)


def test_each_class(path, network):
    """By name, without the class of one image; numbers above them; in a gallery too."""
    seen = network[2]
    for fields, candidates in (
        ({}, whole(seen)),
        ({"gallery": {"test": "gallery"}}, lambda query: seen["gallery"]),
    ):
        config = config_of(path, average="each_class", **fields)
        config.evaluation.metrics = (*METRICS, "nmi")
        task, found = evaluated(config, network)
        rows, by_class = score.tabulated(task, found, "best")
        expected = naive(
            seen,
            lambda row: row["embedding"],
            relevant=same("label"),
            candidates=candidates,
            average="label",
        )
        assert sorted(by_class) == sorted(expected)
        for name, values in by_class.items():
            np.testing.assert_allclose([values[m] for m in METRICS], expected[name], atol=1e-12)
            assert "nmi" not in values
        mean = np.mean(list(expected.values()), axis=0)
        np.testing.assert_allclose([rows["best"][m] for m in METRICS], mean, atol=1e-12)
        assert rows["best"]["nmi"] == found["embedding"]["nmi"]


def test_several_embeddings(path, network):
    seen = network[2]
    names = ("embedding", "features", "Combined_embedding_features-1-2")
    config = config_of(path, embeddings=names)
    task, found = evaluated(config, network)
    assert tuple(found) == names

    def unit(x):
        return x / np.linalg.norm(x)

    def together(row):
        return np.concatenate([unit(row["embedding"]), 2 * unit(row["features"])])

    vectors = (lambda row: row["embedding"], lambda row: row["features"], together)
    seen_values = set()
    for name, vector in zip(names, vectors, strict=True):
        expected = naive(seen, vector, relevant=same("label"), candidates=whole(seen))
        np.testing.assert_allclose([found[name][m] for m in METRICS], expected, atol=1e-12)
        seen_values.add(round(float(expected[3]), 6))
    assert len(seen_values) == 3
    assert list(score.reported(found, "test"))[:5] == [
        *(f"test/{m}" for m in METRICS),
        f"test/features/{METRICS[0]}",
    ]
    rows, _ = score.tabulated(task, found, "best")
    assert list(rows) == [f"best, {name}" for name in names]


def test_training_monitors_another_embedding(path, tmp_path):
    """A run from a config with all of it, and the monitor's name."""
    config = config_files.load(f"{CONFIG}:steps=2,epochs=1")
    config.data.path = str(path)
    config.train.batch_size = 4
    config.train.devices = 1
    config.train.monitor = "test/features/map_at_r"
    config.evaluation.splits = ("test",)
    config.evaluation.embeddings = ("embedding", "features")
    config.evaluation.gallery.test = "gallery"
    config.evaluation.average = "class"
    found = loop.train(config, str(tmp_path))
    assert 0 < found["test/features/map_at_r"] < 1
    # A folder that holds the run goes on, and a stored config from before a field was there means its default.
    stored = run_folder.read_config(str(tmp_path))
    assert configs.to_dict(stored) == configs.to_dict(config)
    old = configs.to_dict(configs.new())
    del old["evaluation"]["gallery"], old["evaluation"]["k"]
    run_folder.check_same(old, configs.to_dict(configs.new()), "run")
    assert configs.from_dict(old).evaluation.gallery.test == ""


REFUSED = [
    ({"average": "classes"}, "unknown average 'classes'; did you mean 'class'"),
    ({"among": "same"}, "unknown among 'same'; did you mean 'same_parent'"),
    ({"k": 0}, "k=0; accepted: a positive integer, 'max_bin_count', or None"),
    ({"k": "max"}, "k='max'; accepted: a positive integer"),
    ({"backend": "fais"}, "unknown backend 'fais'; did you mean 'faiss'"),
    ({"kmeans": "fais"}, "unknown backend of k-means 'fais'"),
    ({"block": 0}, "block=0; accepted: a positive number of rows, or None"),
    ({"distance": "l2"}, "unknown distance 'l2'"),
    ({"metrics": ("map_at_q",)}, "unknown metric 'map_at_q'; did you mean 'map_at_r'"),
    ({"relation": "hierachy"}, "unknown relation 'hierachy'; did you mean 'hierarchy'"),
    ({"relation": {"name": "hierarchy", "level": 2}}, "has level=2, and labels of 2 levels"),
    (
        {"relation": "matrix"},
        "evaluation.relation is 'matrix', and data sets have labels of images",
    ),
    ({"relation": "overlap", "average": "class"}, "average='class' with relation 'overlap'"),
    ({"relation": "overlap", "metrics": ("nmi",)}, "metric 'nmi' with relation 'overlap'"),
    ({"among": "same_parent", "metrics": ("nmi",)}, "metric 'nmi' is not of ranks"),
    ({"embeddings": ("embeding",)}, "unknown embedding 'embeding'; did you mean 'embedding'"),
    ({"embeddings": ("Combined_embedding_features-1",)}, "has 2 parts; accepted: as many weights"),
    ({"embeddings": ("Combined_features_features",)}, "names a part twice"),
    ({"embeddings": ()}, "evaluation.embeddings is empty"),
    (
        {"gallery": {"test": "galery"}},
        "split of data set 'folder' is 'galery'.*did you mean 'gallery'",
    ),
    ({"gallery": {"test": "test"}}, "evaluation.gallery.test='test' is the split itself"),
    ({"gallery": {"test": "all"}}, "and the queries both have the image .*test_cow_0.png"),
    ({"gallery": {"test": "train"}}, "has none of the queries' classes, 'cow' and so on"),
    ({"distractors": {"test": "gallery"}}, "has images of the queries' class 'cow'"),
    (
        {"gallery": {"test": "gallery"}, "among": "other_parents"},
        "evaluation.gallery.test='gallery' with among='other_parents'",
    ),
    (
        {"distractors": {"test": "train"}, "relation": "overlap"},
        "evaluation.distractors.test='train' with relation 'overlap'",
    ),
    (
        {"after": ("int8",), "gallery": {"test": "gallery"}},
        r"evaluation.after=\('int8',\) compares searches of a split in itself",
    ),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_refused(path, monkeypatch, fields, message):
    """One line, before an image is loaded."""
    monkeypatch.setattr(base.FileReader, "__call__", None)
    config = config_of(path, **fields)
    with pytest.raises(ValueError, match=message) as error:
        tasks.eval_spec(config, "test", build.model(config.model))
    assert "\n" not in str(error.value)


def test_refused_of_data_without_them(tmp_path):
    config = config_of(pictures(tmp_path / "plain"), among="same_parent")
    model = build.model(config.model)
    with pytest.raises(
        ValueError, match=r"evaluation.among='same_parent' needs parents .*'test' of folder"
    ):
        tasks.eval_spec(config, "test", model)
    config = config_of(tmp_path / "plain", average="parent")
    with pytest.raises(ValueError, match=r"evaluation\.average='parent' needs parents"):
        tasks.eval_spec(config, "test", model)
    config = config_of(tmp_path / "plain", gallery={"test": "gallery"})
    with pytest.raises(ValueError, match="has no 'gallery'; directories train, val or test beside"):
        tasks.eval_spec(config, "test", model)
    config = config_of(tmp_path / "plain")
    with config.unlocked():
        config.evaluation.gallery = {"tset": "gallery"}
    with pytest.raises(ValueError, match=r"unknown split of evaluation\.gallery: 'tset'; did you"):
        tasks.eval_spec(config, "test", model)


@pytest.mark.parametrize(
    ("fields", "monitor", "message"),
    [
        (
            {"average": "each_class"},
            "",
            "evaluation.average='each_class' is a value for each class",
        ),
        ({"metrics": ("rho_spectrum@0",)}, "val/rho_spectrum@0", "is not evaluated as a number"),
        ({"splits": ("validation",)}, "val/map_at_r", "accepted, as in 'validation/"),
        ({}, "val/features/map_at_r", "train.monitor='val/features/map_at_r' is not evaluated"),
        ({"embeddings": ("features", "embedding")}, "val/features/map_at_r", "is not evaluated"),
    ],
)
def test_refused_in_training(path, tmp_path, monkeypatch, fields, monitor, message):
    monkeypatch.setattr(base.FileReader, "__call__", None)
    config = config_of(path, **fields)
    config.train.monitor = monitor
    with pytest.raises(ValueError, match=message) as error:
        loop.train(config, str(tmp_path))
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())
