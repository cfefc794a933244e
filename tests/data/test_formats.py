"""Data that others have packed: Parquet, WebDataset shards, archives of class folders, TensorFlow Datasets."""

import io
import json
import pickle
import subprocess
import sys
import tarfile
import zipfile

import pytest
from PIL import Image

from dml_jax import UserError, data

# The grey level of an image is 10 times its class and its number there: unbalanced classes, a singleton.
CLASSES = {"heron": 4, "ibis": 1, "jay": 3, "kite": 2, "lark": 2}
ROWS = [(name, 10 * c + i) for c, (name, count) in enumerate(CLASSES.items()) for i in range(count)]


def png(level):
    file = io.BytesIO()
    Image.new("RGB", (6, 4), (level,) * 3).save(file, "PNG")
    return file.getvalue()


def levels(source):
    """The grey levels by class name; read in another process's copy."""
    again = pickle.loads(pickle.dumps(source))
    found = {}
    for i in range(len(again)):
        found.setdefault(again.class_names[again.labels[i]], []).append(
            int(again[i]["image"][0, 0, 0])
        )
    return {name: sorted(values) for name, values in found.items()}


ALL = {name: [10 * c + i for i in range(count)] for c, (name, count) in enumerate(CLASSES.items())}


def check_divided(load):
    """All classes once, each in one split; `all` has everything."""
    assert levels(load("all")) == ALL
    parts = [
        levels(load(split, fractions=(0.4, 0.2, 0.4), seed=1)) for split in ("train", "val", "test")
    ]
    assert [len(part) for part in parts] == [2, 1, 2]
    assert {k: v for part in parts for k, v in part.items()} == ALL
    assert len({tuple(levels(load("train", seed=s))) for s in range(12)}) > 4
    with pytest.raises(UserError, match="leave none for split 'val'"):
        load("val", fractions=(0.5, 0.0, 0.5))


@pytest.fixture
def arrow():
    return pytest.importorskip("pyarrow")


def write_parquet(arrow, path, rows, images, labels, metadata=None, **more):
    import pyarrow.parquet

    table = arrow.table({"image": images, "label": labels, **more})
    if metadata:
        table = table.replace_schema_metadata(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path, row_group_size=3)


@pytest.mark.parametrize("kind", ["bytes", "structs", "paths"])
def test_parquet(kind, arrow, tmp_path):
    images = [png(level) for _, level in ROWS]
    if kind == "structs":
        images = [{"bytes": b, "path": f"{i}.png"} for i, b in enumerate(images)]
    if kind == "paths":
        for i, content in enumerate(images):
            (tmp_path / f"{i}.png").write_bytes(content)
        images = [f"{i}.png" for i in range(len(images))]
    names = [name for name, _ in ROWS]
    write_parquet(arrow, tmp_path / "a.parquet", ROWS[:7], images[:7], names[:7])
    write_parquet(arrow, tmp_path / "b.parquet", ROWS[7:], images[7:], names[7:])
    check_divided(lambda split, **how: data.parquet(split, path=tmp_path, **how))
    # However little is kept.
    assert levels(data.parquet("all", path=tmp_path, memory=1e-9)) == ALL


def test_parquet_with_names_and_splits_of_hugging_face(arrow, tmp_path):
    names = list(CLASSES)
    features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    metadata = {"huggingface": json.dumps(features)}
    for split, rows in (("train", ROWS[:7]), ("validation", ROWS[7:9]), ("test", ROWS[9:])):
        images, labels = [png(v) for _, v in rows], [names.index(n) for n, _ in rows]
        write_parquet(
            arrow,
            tmp_path / "data" / f"{split}-00000-of-00001.parquet",
            rows,
            images,
            labels,
            metadata,
        )
    assert levels(data.parquet("all", path=tmp_path)) == ALL
    by_split = {
        s: levels(data.parquet(s, path=tmp_path, by="split")) for s in ("train", "val", "test")
    }
    assert list(by_split["train"]) == ["heron", "ibis", "jay"] and by_split["train"]["jay"] == [
        20,
        21,
    ]
    assert by_split["val"] == {"jay": [22], "kite": [30]} and by_split["test"] == {
        "kite": [31],
        "lark": [40, 41],
    }


def test_parquet_columns(arrow, tmp_path):
    path = tmp_path / "a.parquet"
    names = [name for name, _ in ROWS]
    kinds = ["water" if name in ("heron", "ibis") else "land" for name in names]
    splits = ["train" if name != "lark" else "test" for name in names]
    write_parquet(
        arrow, path, ROWS, [png(v) for _, v in ROWS], names, None, kind=kinds, split=splits
    )
    source = data.parquet("train", path=path, parent="kind", by="split")
    assert len(source) == 10 and source.parent_labels.tolist() == [1] * 5 + [0] * 5
    for how, says in (
        ({"label": "labl"}, "did you mean 'label'"),
        ({"by": "split", "split": "val"}, "accepted: test, train"),
    ):
        with pytest.raises(UserError, match=says):
            data.parquet(how.pop("split", "train"), path=path, **how)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 is not enough")
    with pytest.raises(UserError, match=r"b\.parquet cannot be read"):
        data.parquet("all", path=tmp_path / "b.parquet")
    write_parquet(arrow, path, ROWS, [3] * 2, ["a", None])
    with pytest.raises(UserError, match=r"row 1 of .* has no 'label'"):
        data.parquet("all", path=path)
    write_parquet(arrow, path, ROWS, [3, 4], ["a", "b"])
    with pytest.raises(data.DecodeError, match="column 'image' holds int"):
        data.parquet("all", path=path)[0]


def test_hugging_face_from_its_cache(arrow, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    names = [name for name, _ in ROWS]
    write_parquet(
        arrow, tmp_path / "data" / "train-0.parquet", ROWS, [png(v) for _, v in ROWS], names
    )
    asked = []

    def snapshot(name, **how):
        asked.append(
            (name, how.get("local_files_only", False), how["revision"], how["allow_patterns"])
        )
        if len(asked) == 1:
            raise OSError("not in the cache")
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    found = data.hugging_face("all", dataset="owner/birds@v2", folder="data")
    assert levels(found) == ALL
    assert asked == [("owner/birds", local, "v2", "data/*.parquet") for local in (True, False)]
    monkeypatch.setattr(
        hub, "snapshot_download", lambda *a, **k: (_ for _ in ()).throw(OSError("no network"))
    )
    with pytest.raises(UserError, match=r"no network.*by hand"):
        data.hugging_face("all", dataset="owner/birds")
    with pytest.raises(UserError, match="OWNER/NAME"):
        data.hugging_face("all", dataset="birds")


def write_shard(path, rows, label, content):
    with tarfile.open(path, "w") as tar:
        for name, level in rows:
            for kind, value in (("png", png(level)), (label, content(name))):
                info = tarfile.TarInfo(f"part/{name}{level}.{kind}")
                info.size = len(value)
                tar.addfile(info, io.BytesIO(value))


@pytest.mark.parametrize(
    "kind, label, content",
    [
        ("cls", "cls", lambda name: b"%d\n" % list(CLASSES).index(name)),
        ("txt", "txt", lambda name: name.encode()),
        ("json", "json:species", lambda name: json.dumps({"species": name}).encode()),
    ],
)
def test_webdataset(kind, label, content, tmp_path):
    write_shard(tmp_path / "shard-000000.tar", ROWS[:5], kind, content)
    write_shard(tmp_path / "shard-000001.tar", ROWS[5:], kind, content)
    for path in (
        str(tmp_path),
        f"{tmp_path}/shard-{{000000..000001}}.tar",
        f"{tmp_path}/shard-*.tar",
    ):
        found = levels(data.webdataset("all", path=path, label=label))
        assert list(found.values()) == list(ALL.values())
        assert kind == "cls" or found == ALL
    if kind == "txt":
        check_divided(
            lambda split, **how: data.webdataset(split, path=str(tmp_path), label=label, **how)
        )
        with pytest.raises(UserError, match=r"has no \.cls: it has png, txt"):
            data.webdataset("all", path=str(tmp_path))
        with pytest.raises(UserError, match=r"there is no .*shard-000002\.tar"):
            data.webdataset("all", path=f"{tmp_path}/shard-{{000000..000002}}.tar")
    if kind == "json":
        with pytest.raises(UserError, match="has no field 'kind': it has species"):
            data.webdataset("all", path=str(tmp_path), label="json:kind")


def packed(path, rows):
    names = [(name.format(c=c, i=i), level) for name, (c, level), i in rows]
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, level in names:
                archive.writestr(name, png(level))
            archive.writestr("__MACOSX/top/heron/._0.png", b"x")
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
            for name, level in names:
                info = tarfile.TarInfo(f"./{name}")
                info.size = len(png(level))
                tar.addfile(info, io.BytesIO(png(level)))
    return path


@pytest.mark.parametrize("kind", ["a.zip", "a.tar", "a.tar.gz"])
@pytest.mark.parametrize("top", ["", "top/"])
def test_archives_of_class_folders(kind, top, tmp_path):
    path = packed(tmp_path / kind, [(top + "{c}/{i}.png", row, i) for i, row in enumerate(ROWS)])
    check_divided(lambda split, **how: data.archive(split, path=path, **how))
    if kind == "a.tar.gz":
        with pytest.raises(UserError, match="more than memory=1e-07 GiB"):
            data.archive("all", path=path, memory=1e-7)
        path.write_bytes(path.read_bytes()[:200])
        with pytest.raises(UserError, match="cut off or damaged"):
            data.archive("all", path=path)


def test_archives_with_splits_of_their_own(tmp_path):
    split_of = lambda name: "test" if name in ("kite", "lark") else "train"
    rows = [(f"birds/{split_of(row[0])}/" + "{c}/{i}.png", row, i) for i, row in enumerate(ROWS)]
    path = packed(tmp_path / "a.zip", rows)
    assert set(levels(data.archive("test", path=path))) == {"kite", "lark"}
    assert levels(data.archive("all", path=path)) == ALL
    with pytest.raises(UserError, match=r"no images of split 'val' .* it has splits train, test"):
        data.archive("val", path=path)


TFDS = """
import io, sys
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

class Birds(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.2.0")

    def _info(self):
        features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=NAMES)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(ROWS[:7]), "validation": self._generate_examples(ROWS[7:])}

    def _generate_examples(self, rows):
        for i, (name, level) in enumerate(rows):
            file = io.BytesIO()
            Image.new("RGB", (6, 4), (level,) * 3).save(file, "PNG")
            file.seek(0)
            yield i, {"image": file, "label": name}

Birds(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
"""
READ = """
import sys
from dml_jax import data
source = data.tfds("all", dataset="birds", path=sys.argv[1])
assert source[3]["image"].shape == (4, 6, 3)
assert "tensorflow" not in sys.modules
"""


def test_tensorflow_datasets_without_tensorflow(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    program = f"NAMES, ROWS = {list(CLASSES)!r}, {ROWS!r}\n" + TFDS
    for text in (program, READ):
        done = subprocess.run(
            [sys.executable, "-c", text, str(tmp_path)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
    found = levels(data.tfds("all", dataset="birds", path=tmp_path))
    assert {k: sorted(v) for k, v in found.items()} == ALL
    assert {
        k: sorted(v)
        for k, v in levels(data.tfds("all", dataset="birds/1.2.0", path=tmp_path)).items()
    } == ALL
    val = levels(data.tfds("val", dataset="birds", path=tmp_path, by="split"))
    assert {k: sorted(v) for k, v in val.items()} == {
        "jay": [22],
        "kite": [30, 31],
        "lark": [40, 41],
    }
    parts = [
        set(data.tfds(s, dataset="birds", path=tmp_path).class_names)
        for s in ("train", "val", "test")
    ]
    assert set.union(*parts) == set(CLASSES) and sum(map(len, parts)) == 5
    for how, says in (
        ({"dataset": "brids"}, "there is no data set 'brids'"),
        ({"image": "imge"}, "did you mean 'image'"),
        ({"by": "split", "split": "test"}, "split of birds"),
    ):
        with pytest.raises(UserError, match=says):
            data.tfds(how.pop("split", "train"), **{"dataset": "birds", "path": tmp_path, **how})
