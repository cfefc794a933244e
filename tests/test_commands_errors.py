"""Bad input to the commands: one line that says what would be accepted, no traceback."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.training.commands import CONFIG, CommandServer, losses, pictures

TRAIN, EVALUATE = "dml_jax.train", "dml_jax.evaluate"
EMBED, SEARCH = "dml_jax.embed", "dml_jax.search"
IMAGE = "other_data/class01/0.png"


def train(*options, data="good", arguments="steps=2,epochs=1", workdir="new"):
    return [
        TRAIN,
        f"--config={CONFIG}:{arguments}",
        f"--config.data.path={data}",
        f"--workdir={workdir}",
        *options,
    ]


# In this order: some need the run that the first one makes.
COMMANDS = {
    "good run": train(workdir="run"),
    "same again": train(workdir="run"),
    "longer": train("--config.train.epochs=2", workdir="run"),
    "parts of one's own": [TRAIN, "--config=my_config.py", "--workdir=own"],
    "a part that the module lacks": [
        TRAIN,
        "--config=my_config.py",
        "--workdir=new",
        "--config.loss.name=my_parts:gab",
    ],
    "a module that is not there": [
        TRAIN,
        "--config=my_config.py",
        "--workdir=new",
        "--config.sampler.name=my_part:in_turn",
    ],
    "a hyper-parameter of one's own": [
        TRAIN,
        "--config=my_config.py",
        "--workdir=new",
        "--config.miner.radius=-1.0",
    ],
    "good evaluation": [EVALUATE, "--workdir=run"],
    "the same evaluation": [EVALUATE, "--workdir=run"],
    "evaluation of one's own": [EVALUATE, "--workdir=own"],
    "evaluation of other data": [
        EVALUATE,
        "--workdir=run",
        f"--config={CONFIG}",
        "--config.data.path=other_data",
        "--split=all",
        "--step=last",
    ],
    "unknown loss": train("--config.loss.name=cos_fase"),
    "unknown field": train("--config.train.epoch=3"),
    "unknown section": train("--config.trian.epochs=3"),
    "unknown hyper-parameter": train("--config.loss.margn=0.2"),
    "value of another type": train("--config.train.epochs=many"),
    "unknown argument": train(arguments="stepz=2"),
    "empty argument": train(arguments="steps="),
    "out of range": train("--config.train.log_steps=0"),
    "no folder": train(workdir="good/class01/0.png/run"),
    "no such config": [TRAIN, "--config=tests/training/tiny_confg.py", "--workdir=new"],
    "no config": [TRAIN, "--workdir=new"],
    "no workdir": [TRAIN, f"--config={CONFIG}"],
    "stray argument": train("epochs=3"),
    "unknown option": train("--confg=3"),
    "batch not divisible": train("--config.train.batch_size=7"),
    "too few classes": train("--config.train.batch_size=32", arguments="steps=8"),
    "singles": train(data="singles", arguments="loss=multi_similarity,steps=2"),
    "singles, random": train(
        data="singles", arguments="loss=multi_similarity,sampler=random,steps=1"
    ),
    "empty folder": train(data="empty"),
    "no path": [TRAIN, f"--config={CONFIG}", "--workdir=new"],
    "truncated": train(data="truncated", workdir="broken"),
    "truncated, skipped": train("--config.data.on_error=skip", data="truncated", workdir="skipped"),
    "skipping from now on": train("--config.data.on_error=skip", workdir="run"),
    "other images": train(data="fewer", workdir="run"),
    "unknown monitor": train("--config.train.monitor=val/map_at_q"),
    "micro-batch": train("--config.train.micro_batch=3", workdir="micro"),
    "devices": train("--config.train.devices=3"),
    "not finite": train(workdir="nan", arguments="steps=2,epochs=2,explode"),
    "another config": train("--config.loss.scale=8.0", "--config.seed=3", workdir="run"),
    "another architecture": [EVALUATE, "--workdir=other"],
    "no run": [EVALUATE, "--workdir=empty"],
    "no such step": [EVALUATE, "--workdir=run", "--step=3"],
    "no such split": [EVALUATE, "--workdir=run", "--split=tset"],
    "a field of the run's own": [
        EVALUATE,
        "--workdir=run",
        "--config.evaluation.backend=faiss",
        "--config.evaluation.after=('int8', 'reranking')",
    ],
    "unknown step after training": [
        EVALUATE,
        "--workdir=run",
        "--config.evaluation.after=('int4',)",
    ],
    "each class": [
        EVALUATE,
        "--workdir=run",
        "--config.evaluation.average=each_class",
        "--config.evaluation.k=max_bin_count",
        "--step=last",
    ],
    "a gallery": [
        EVALUATE,
        "--workdir=run",
        "--out=of_gallery",
        "--config.data.path=parts",
        "--config.evaluation.gallery.test=gallery",
        "--config.evaluation.distractors.test=distractors",
        "--config.evaluation.embeddings=('features', 'Combined_embedding_features-1-2')",
        "--config.evaluation.k=2",
    ],
    "a relation": [
        EVALUATE,
        "--workdir=run",
        "--config.data.path=parts/list.csv",
        "--config.evaluation.relation={'name': 'hierarchy', 'level': 0}",
        "--config.evaluation.average=parent",
        "--config.evaluation.kmeans=jax",
        "--config.evaluation.block=16",
        "--split=all",
    ],
    "relation that the data lack": [
        EVALUATE,
        "--workdir=run",
        "--config.evaluation.relation=hierarchy",
    ],
    "parents that the data lack": [
        EVALUATE,
        "--workdir=run",
        "--config.evaluation.among=other_parents",
    ],
    "no such gallery": [
        EVALUATE,
        "--workdir=run",
        "--config.evaluation.gallery.test=gallery",
    ],
    "unknown average": train("--config.evaluation.average=classes"),
    "each class in training": train("--config.evaluation.average=each_class"),
    "unknown metric": train(
        "--config.evaluation.metrics=('map_at_r', 'recall_at_k')", "--config.train.monitor="
    ),
    "unknown embedding": train("--config.evaluation.embeddings=('feature',)"),
    "k of another kind": train("--config.evaluation.k=0"),
    "unknown map": [
        EVALUATE,
        "--workdir=run",
        "--config.evaluation.map=umap",
    ],
    "stored embeddings": [
        EVALUATE,
        "--embeddings=stored.npz",
        "--labels=labels.csv",
        "--out=of_stored",
        "--config.evaluation.metrics=map_at_r,recall_at_1",
    ],
    "stored embeddings and a gallery": [
        EVALUATE,
        "--embeddings=stored.npz",
        "--labels=labels.npy",
        "--gallery=gallery.npy",
        "--gallery_labels=labels.npy",
    ],
    "stored embeddings, evaluated otherwise": [
        EVALUATE,
        "--embeddings=stored.npz",
        "--labels=labels.npy",
        "--gallery=gallery.npy",
        "--gallery_labels=labels.npy",
        "--config.evaluation.metrics=recall_at_2",
    ],
    "no labels": [EVALUATE, "--embeddings=stored.npz"],
    "labels of a run": [EVALUATE, "--workdir=run", "--labels=labels.csv"],
    "labels that do not fit": [EVALUATE, "--embeddings=stored.npz", "--labels=fewer.npy"],
    "neither": [EVALUATE],
    "embeddings of a split": [EMBED, "--workdir=run", "--out=of_split"],
    "features of a folder": [
        EMBED,
        "--workdir=run",
        "--images=large",
        "--out=of_features",
        "--config.evaluation.embeddings=('features',)",
    ],
    "embeddings of a folder": [EMBED, "--workdir=run", "--images=large", "--out=of_folder"],
    "embeddings of classes": [
        EMBED,
        "--workdir=run",
        "--images=good",
        "--classes",
        "--out=of_classes",
    ],
    "classes of a split": [EMBED, "--workdir=run", "--classes"],
    "no folder for an evaluation": [EVALUATE, "--workdir=run", "--out=good/class01/0.png"],
    "no folder for embeddings": [EMBED, "--workdir=run", "--out=good/class01/0.png/of"],
    "both": [EMBED, "--workdir=run", "--images=large", "--split=val"],
    "embeddings of no folder": [EMBED, "--workdir=run", "--images=lagre"],
    "embeddings of no images": [EMBED, "--workdir=run", "--images=empty"],
    "embeddings of broken images": [EMBED, "--workdir=run", "--images=truncated", "--out=broken"],
    "embeddings of no run": [EMBED, "--workdir=empty"],
    "stray argument of embed": [EMBED, "--workdir=run", "large"],
    "search": [
        SEARCH,
        "--index=of_folder",
        "--k=3",
        "--html=results.html",
        IMAGE,
        "text.png",
        "nowhere.png",
        "large/a.png",
    ],
    "search by nothing": [SEARCH, "--index=of_folder", "text.png"],
    "search by features": [SEARCH, "--index=of_features", "--k=1", "large/a.png"],
    "search in a split": [SEARCH, "--index=of_split", "--k=2", "--backend=faiss", IMAGE],
    "no index": [SEARCH, IMAGE],
    "no file for the page": [SEARCH, "--index=of_folder", "--html=/proc/a.html", IMAGE],
    "no file for the model": ["dml_jax.export", "--workdir=run", "--out=/proc/a.dml"],
    "exported model": ["dml_jax.export", "--workdir=run", "--out=exported/model.dml"],
    "no folder for the page": [
        SEARCH,
        "--index=of_folder",
        "--html=good/class01/0.png/a.html",
        IMAGE,
    ],
    "no such index": [SEARCH, "--index=empty", IMAGE],
    "damaged index": [SEARCH, "--index=damaged", IMAGE],
    "index that does not fit": [SEARCH, "--index=unlike", IMAGE],
    "no query": [SEARCH, "--index=of_folder"],
    "no such query": [SEARCH, "--index=of_folder", "large/z.png"],
    "query that is no image": [SEARCH, "--index=of_folder", "run/config.json"],
    "too many results": [SEARCH, "--index=of_folder", "--k=99", IMAGE],
    "results that are no number": [SEARCH, "--index=of_folder", "--k=ten", IMAGE],
    "unknown backend": [SEARCH, "--index=of_folder", "--k=2", "--backend=fais", IMAGE],
    "moved run": [SEARCH, "--index=of_folder", "--workdir=elsewhere", IMAGE],
}

# What the line must say, and no other line.
ERRORS = {
    "unknown loss": ["unknown loss 'cos_fase'", "'cos_face'"],
    "unknown field": ["--config.train.epoch", "did you mean 'epochs'"],
    "unknown section": ["--config.trian.epochs", "did you mean 'train'"],
    "unknown hyper-parameter": ["--config.loss.margn", "did you mean 'margin'"],
    "value of another type": ["--config.train.epochs is 'many'", "a whole number"],
    "unknown argument": ["'stepz'", "'steps'"],
    "empty argument": ["steps=''", "type int"],
    "out of range": ["train.log_steps is 0", "at least 1"],
    "a part that the module lacks": ["unknown loss of module my_parts: 'gab'", "'gap'"],
    "a module that is not there": ["sampler 'my_part:in_turn'", "no module 'my_part'"],
    "a hyper-parameter of one's own": ["--config.miner.radius is -1.0", "above 0"],
    "no folder": ["--workdir: the folder good/class01/0.png/run cannot be made", "Not a directory"],
    "no such config": ["tiny_confg.py", "tiny_config.py"],
    "no config": ["no --config", "quickstart"],
    "no workdir": ["--workdir is missing"],
    "stray argument": ["'epochs=3'"],
    "unknown option": ["'--confg'", "'--config'"],
    "batch not divisible": ["batch_size=7", "m=2", "6 or 8"],
    "too few classes": ["16 classes", "has 14", "batch_size=28"],
    "singles": ["single image", "accepted"],
    "singles, random": ["single image", "multi_similarity", "accepted"],
    "empty folder": ["no images under", ".jpg"],
    "no path": ["data.path", "--config.data.path=PATH"],
    "truncated": ["cannot decode", "broken.jpg"],
    "other images": ["the training images of run have changed", "is gone", "another --workdir"],
    "unknown monitor": ["train.monitor='val/map_at_q'", "map_at_r"],
    "micro-batch": ["micro_batch=3", "the batch of 8", "2, 4, 8"],
    "devices": ["train.devices=3", "1 to 2"],
    "not finite": ["step 3 is not finite", "by id: ", "checkpoints/last/2"],
    "another config": [
        "seed (0 there, 3 given)",
        "loss.scale",
        "run holds a run of another config",
    ],
    "another architecture": ["another architecture", "params/head/bias is (4,) there and (5,)"],
    "no run": ["config.json", "accepted"],
    "no such step": ["'3'", "best, last"],
    "no such split": ["'tset'", "'test'"],
    "unknown step after training": ["'int4'", "did you mean 'int8'"],
    "unknown map": ["unknown map 'umap'", "pca", "tsne"],
    "relation that the data lack": ["relation 'hierarchy' needs coarser classes", "omniglot"],
    "parents that the data lack": [
        "evaluation.among='other_parents' needs parents",
        "split 'test' of folder",
    ],
    "no labels": ["--labels is missing"],
    "labels of a run": ["--labels goes with --embeddings"],
    "labels that do not fit": ["stored.npz has 12 rows and fewer.npy 11"],
    "neither": ["--workdir is missing"],
    "no such gallery": ["has no 'gallery'", "beside it"],
    "unknown average": ["unknown average 'classes'", "'class'"],
    "each class in training": ["evaluation.average='each_class'", "accepted: query"],
    "unknown metric": ["metric 'recall_at_k' needs a number for k", "'recall_at_4'"],
    "unknown embedding": ["unknown embedding 'feature'", "'features'"],
    "k of another kind": ["k=0", "'max_bin_count'"],
    "no file for the page": ["--html: the file /proc/a.html cannot be written"],
    "no file for the model": ["--out: the file /proc/a.dml cannot be written"],
    "classes of a split": ["--classes goes with --images"],
    "no folder for an evaluation": ["--out: good/class01/0.png is a file"],
    "search by nothing": ["1 of 1 images could not be decoded", "text.png", "are accepted"],
    "no folder for embeddings": ["--out: the folder good/class01/0.png/of cannot be made"],
    "no folder for the page": ["--html: good/class01/0.png is a file; a folder is accepted"],
    "both": ["--split", "not allowed with argument --images"],
    "embeddings of no folder": ["'lagre'", "does not exist"],
    "embeddings of no images": ["no images under empty", ".jpg"],
    "embeddings of no run": ["config.json", "accepted"],
    "stray argument of embed": ["'large'", "--name=value"],
    "no index": ["--index is missing", "dml embed"],
    "no such index": ["empty/embeddings.npy", "dml embed"],
    "damaged index": ["damaged is damaged", "embed again"],
    "index that does not fit": ["5 embeddings and 4 lines", "embed again"],
    "no query": ["no image to search for", "accepted"],
    "no such query": ["large/z.png (it is not a file)", "accepted"],
    "query that is no image": ["run/config.json (it is not an image"],
    "too many results": ["k=99", "1 to 5"],
    "results that are no number": ["--k", "'ten'"],
    "unknown backend": ["'fais'", "'faiss'"],
    "moved run": ["elsewhere has no config.json", "accepted"],
}


@pytest.fixture(scope="module")
def server():
    with CommandServer(devices=2) as server:
        yield server


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, server):
    """(exit status, what was printed) of every command."""
    folder = tmp_path_factory.mktemp("commands")
    pictures(folder / "good")
    pictures(folder / "other_data", classes=5)
    pictures(folder / "singles", images=1)
    pictures(folder / "fewer", classes=18)
    pictures(folder / "truncated")
    for whole in sorted((folder / "truncated").glob("*/0.png"))[1:]:
        broken = whole.with_name("broken.jpg")
        Image.open(whole).save(broken, quality=95)
        broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    # A split that is searched in another, with distractors that have no classes; and a list of what has parents.
    pictures(folder / "parts" / "test", classes=4)
    pictures(folder / "parts" / "gallery", classes=5, images=3)
    pictures(folder / "parts" / "distractors", classes=3)
    rows = [
        f"test/class0{c}/{i}.png,{c},{'low' if c < 2 else 'high'}"
        for c in range(1, 4)
        for i in range(4)
    ]
    (folder / "parts" / "list.csv").write_text("\n".join(["path,label,parent", *rows]) + "\n")
    (folder / "empty").mkdir()
    (folder / "text.png").write_text("no picture")
    # Images without classes, larger than the model takes and not square.
    (folder / "large" / "below").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c", "below/d", "below/e"):
        noise = Image.fromarray(rng.integers(0, 256, (40, 30, 3), np.uint8))
        noise.save(folder / "large" / f"{name}.png")
    (folder / "tests" / "training").mkdir(parents=True)
    shutil.copy(CONFIG, folder / "tests" / "training")
    for name in ("my_parts.py", "my_config.py"):
        shutil.copy(CONFIG.with_name(name), folder)
    labels = np.repeat(np.arange(4), 3)
    stored = np.eye(4, 5, dtype=np.float32)[labels] + rng.normal(0, 0.02, (12, 5))
    np.savez(folder / "stored.npz", embeddings=stored)
    np.save(folder / "gallery.npy", stored[::-1])
    np.save(folder / "labels.npy", labels)
    np.save(folder / "fewer.npy", labels[:11])
    rows = [f"good/class{c + 1:02}/{i % 4}.png,{c}" for i, c in enumerate(labels)]
    (folder / "labels.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    first = {k: v for k, v in COMMANDS.items() if v[0] == TRAIN}
    last = {k: v for k, v in COMMANDS.items() if v[0] == SEARCH}
    rest = {k: v for k, v in COMMANDS.items() if k not in (*first, *last)}
    found = _run(server, folder, first)
    shutil.copytree(folder / "run", folder / "other")
    config = folder / "other" / "config.json"
    stored = json.loads(config.read_text())
    stored["model"]["embedding_dim"] = 5
    config.write_text(json.dumps(stored))
    found |= _run(server, folder, rest)
    # Where the modules of the run's own parts are not; their copies in the run are.
    (folder / "elsewhere").mkdir()
    status, out, err = server.run([EVALUATE, "--workdir=../own"], folder / "elsewhere")
    found["own, elsewhere"] = status, out + err
    for name in ("damaged", "unlike"):
        shutil.copytree(folder / "of_folder", folder / name)
    (folder / "damaged" / "embeddings.npy").write_bytes(b"no array")
    lines = (folder / "unlike" / "items.jsonl").read_text().splitlines(keepends=True)
    (folder / "unlike" / "items.jsonl").write_text("".join(lines[1:]))
    return found | _run(server, folder, last) | {"folder": folder}


def _run(server, folder: pathlib.Path, commands):
    found = {}
    for name, command in commands.items():
        status, out, err = server.run(command, folder)
        found[name] = status, out + err
    return found


@pytest.mark.parametrize("name", ERRORS)
def test_one_line(outcomes, name):
    status, printed = outcomes[name]
    assert status in (1, 2), printed
    assert "Traceback" not in printed
    lines = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, printed
    assert printed.rstrip().endswith(lines[0])
    for part in ERRORS[name]:
        assert part in lines[0]


@pytest.mark.parametrize("name", [k for k in COMMANDS if k not in ERRORS])
def test_good(outcomes, name):
    status, printed = outcomes[name]
    assert status == 0, printed
    assert "error" not in printed


def test_what_a_good_run_says(outcomes):
    assert "1 of 14 classes have fewer than m=2 images" in outcomes["good run"][1]
    assert "going on from" in outcomes["same again"][1]
    assert "epoch 2" in outcomes["longer"][1]
    assert "of the run cannot be read; left out, " in outcomes["truncated, skipped"][1]
    assert "last, step 4" in outcomes["evaluation of other data"][1]
    assert "val/my_parts:mean_precision" in outcomes["parts of one's own"][1]
    assert list(losses(outcomes["folder"] / "own")) == [1, 2]
    table = outcomes["good evaluation"][1]
    assert "MAP@R" in table and "best, step" in table
    steps = outcomes["a field of the run's own"][1]
    assert (
        "k-reciprocal re-ranking, 16 bytes" in steps
        and "int8 fitted to the training set, 4 bytes" in steps
    )


def test_parts_of_ones_own_are_stored(outcomes):
    status, printed = outcomes["own, elsewhere"]
    assert status == 0 and "mean_precision" in printed, printed
    stored = outcomes["folder"] / "own" / "code"
    assert [p.name for p in stored.iterdir()] == ["my_parts.py"]


def test_images_that_cannot_be_decoded(outcomes):
    assert "19 of 96 images could not be decoded" in outcomes["embeddings of broken images"][1]
    assert "broken.jpg, ..." in outcomes["embeddings of broken images"][1]
    assert "data.on_error" in outcomes["truncated"][1]


def test_what_an_evaluation_says(outcomes):
    folder = outcomes["folder"] / "run" / "evaluation"
    each = json.loads((folder / "folder_test_last" / "each_class.json").read_text())["metrics"]
    whole = json.loads((folder / "folder_test_last" / "metrics.json").read_text())["metrics"]
    assert all(name.startswith("class") and set(row) >= {"map_at_r"} for name, row in each.items())
    mean = np.mean([row["map_at_r"] for row in each.values()])
    assert next(iter(whole.values()))["map_at_r"] == pytest.approx(mean)
    assert (
        "each class:" in outcomes["each class"][1] and "each_class.csv" in outcomes["each class"][1]
    )
    table = outcomes["a gallery"][1]
    assert ", features" in table and ", Combined_embedding_features-1-2" in table
    page = (outcomes["folder"] / "of_gallery" / "report.html").read_text()
    # 13 queries, 13 images of the gallery and 9 distractors.
    for words in ("searched in 13 images", "with distractors: 9 images", "13 queries, 22 images"):
        assert words in page, words
    page = (folder / "folder_all_best" / "report.html").read_text()
    assert "relevant by relation hierarchy, level 0; means over parents" in page


def test_stored_embeddings(outcomes):
    """Those of a class lie together; of the gallery, whose labels run the other way, the wrong ones are near."""
    folder = outcomes["folder"]
    found = json.loads((folder / "of_stored" / "metrics.json").read_text())
    assert found["metrics"] == {"stored": {"map_at_r": 1.0, "recall_at_1": 1.0}}
    assert found["settings"]["labels"] == "labels.csv"
    assert (folder / "of_stored" / "best.png").is_file()
    page = (folder / "of_stored" / "report.html").read_text()
    assert "data:image/" in page and "12 images of 4 classes" in page
    other = json.loads((folder / "stored_evaluation" / "metrics.json").read_text())["metrics"]
    assert other["stored"]["precision_at_1"] == 0.0
    # Without pictures there are no galleries.
    assert not (folder / "stored_evaluation" / "best.png").exists()
    # Other settings are beside it.
    other = json.loads((folder / "stored_evaluation-2" / "metrics.json").read_text())["metrics"]
    assert list(other["stored"]) == ["recall_at_2"]
    assert "data:image/" not in (folder / "stored_evaluation" / "report.html").read_text()


def test_another_setting_does_not_overwrite(outcomes):
    folder = outcomes["folder"] / "run" / "evaluation"
    assert "note:" not in outcomes["the same evaluation"][1]
    assert "note: run/evaluation/folder_test_best holds" in outcomes["a field of the run's own"][1]
    first = json.loads((folder / "folder_test_best" / "metrics.json").read_text())["settings"]
    second = json.loads((folder / "folder_test_best-2" / "metrics.json").read_text())["settings"]
    assert first["evaluation"]["after"] == [] and second["evaluation"]["after"] == [
        "int8",
        "reranking",
    ]
    assert first["checkpoint"].startswith("best, step ") and first["data"]["name"] == "folder"


def test_embeddings_that_are_written(outcomes):
    folder = outcomes["folder"]
    embeddings = np.load(folder / "of_split" / "embeddings.npy")
    lines = (folder / "of_split" / "items.jsonl").read_text().splitlines()
    assert embeddings.dtype == np.float32 and embeddings.shape == (len(lines), 4)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
    for line in lines:
        item = json.loads(line)
        path = pathlib.Path(item["path"])
        assert path.is_file() and path.parent.name == item["class"]
    items = [json.loads(s) for s in (folder / "of_folder" / "items.jsonl").read_text().splitlines()]
    found = [str(pathlib.Path(item["path"]).relative_to(folder / "large")) for item in items]
    assert found == ["a.png", "b.png", "c.png", "below/d.png", "below/e.png"]
    assert all(set(item) == {"name", "path"} for item in items)


def test_classes_of_folders(outcomes):
    lines = (outcomes["folder"] / "of_classes" / "items.jsonl").read_text().splitlines()
    items = [json.loads(line) for line in lines]
    assert len({item["class"] for item in items}) == 20
    assert all(pathlib.Path(item["path"]).parent.name == item["class"] for item in items)


def test_what_search_finds(outcomes):
    folder = outcomes["folder"]
    printed = outcomes["search"][1].splitlines()
    start = printed.index("large/a.png")
    rank, similarity, kind, path = printed[start + 2].split()
    # An image that is among the indexed ones finds itself first.
    assert (rank, similarity, kind) == ("1", "1.0000", "-") and path.endswith("large/a.png")
    values = [float(line.split()[1]) for line in printed[start + 2 : start + 5]]
    assert values == sorted(values, reverse=True) and printed[start + 5] == ""
    found = outcomes["search by features"][1].splitlines()[2].split()
    assert found[1] == "1.0000" and found[3].endswith("large/a.png")
    # What is no image is left out, and named.
    assert printed[0].startswith("2 of 4 images could not be decoded: text.png (")
    assert "nowhere.png (it is not a file)" in printed[0]
    # Two queries, and each result once.
    results = {line.split()[-1] for line in printed[1:] if ".png" in line and line[0].isdigit()}
    page = (folder / "results.html").read_text()
    assert page.count("data:image/") == 2 + len(results) and "Queries" in page
    lines = outcomes["search in a split"][1].splitlines()
    assert lines[0] == IMAGE and len(lines) == 4 and "class" in lines[2].split()[2]
