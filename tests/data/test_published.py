"""The papers' data sets: miniatures in every layout that is read, and the true lists where they are at hand."""

import csv
import io
import json
import pathlib
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from dml_jax import UserError, data
from dml_jax.data.archives import Folder, Tar, Zip, open_files, root_of
from dml_jax.data.published_sets import PUBLISHED

SPLITS = pathlib.Path(__file__).parents[3] / "shared" / "data" / "splits"
real = pytest.mark.skipif(not SPLITS.is_dir(), reason="the published lists are not here")


def jpeg(level):
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (level, level, level)).save(file, "JPEG")
    return file.getvalue()


def write(root, files):
    for name, content in files.items():
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def packed(root, kind):
    """The same files as an archive of their folder."""
    path = root.with_suffix(f".{kind}")
    names = sorted(p for p in root.rglob("*") if p.is_file())
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for i, name in enumerate(names):
                how = zipfile.ZIP_DEFLATED if i % 2 else zipfile.ZIP_STORED
                archive.write(name, name.relative_to(root.parent), how)
    else:
        with tarfile.open(path, "w" if kind == "tar" else "w:gz") as archive:
            archive.add(root, root.name)
    return path


def cub(root):
    """Classes 1, 100, 101 and 200 with 2, 1, 3 and 1 images, not in order in the list."""
    rows = [
        (1, "001.A/x"),
        (2, "200.D/y"),
        (3, "101.C/a"),
        (4, "001.A/b"),
        (5, "100.B/c"),
        (6, "101.C/d"),
        (7, "101.C/e"),
    ]
    files = {f"images/{name}.jpg": jpeg(i) for i, name in rows}
    files["images.txt"] = "".join(f"{i} {name}.jpg\n" for i, name in rows)
    files["image_class_labels.txt"] = "".join(f"{i} {int(name[:3])}\n" for i, name in rows)
    return write(root / "CUB_200_2011", files)


def names(source):
    return [pathlib.Path(source.name(i)).name for i in range(len(source))]


@pytest.mark.parametrize("kind", ["folder", "above", "zip", "tar"])
def test_cub_as_it_is_published(kind, tmp_path):
    root = cub(tmp_path)
    path = {"folder": root, "above": tmp_path}.get(kind) or packed(root, kind)
    train, test, both = (data.cub200(s, path=path, counts=False) for s in ("train", "test", "all"))
    assert names(train) == ["x.jpg", "b.jpg", "c.jpg"]
    assert train.labels.tolist() == [0, 0, 1] and train.class_names == ("001.A", "100.B")
    assert test.labels.tolist() == [1, 0, 0, 0] and test.class_names == ("101.C", "200.D")
    assert len(both) == 7 and both.class_names[2] == "101.C"
    # The pixels are those of the listed file, in another process, too.
    again = pickle.loads(pickle.dumps(test))
    assert [
        abs(int(again[i]["image"].mean()) - level) <= 1 for i, level in enumerate((2, 3, 6, 7))
    ] == [True] * 4


def test_cub_in_the_folders_of_the_icml_2020_code(tmp_path):
    files = {f"images/{n}.jpg": jpeg(9) for n in ("002.B/z", "001.A/b", "001.A/a", "150.C/q")}
    files["images/001.A/._a.jpg"] = b"of macOS"
    path = write(tmp_path / "cub200", files)
    train = data.cub200("train", path=path, counts=False)
    assert names(train) == ["a.jpg", "b.jpg", "z.jpg"] and train.labels.tolist() == [0, 0, 1]
    assert data.cub200("test", path=path, counts=False).class_names == ("150.C",)


# Of the devkit, whose order is not that of the names: class 1 to 4 and 197 classes in all would be too many to draw.
CARS = [
    f"{letter} car/{i:03d}" if i == 5 else f"{letter} car {i:03d}"
    for i, letter in enumerate("BA" * 50)
]


def cars_rows():
    """(file, class from 1 on, is of the authors' test part): classes 1, 6, 98, 99 and 100."""
    return [
        ("a.jpg", 98, 0),
        ("b.jpg", 1, 0),
        ("c.jpg", 99, 0),
        ("d.jpg", 6, 1),
        ("e.jpg", 100, 1),
        ("f.jpg", 1, 1),
    ]


def annotations(rows, **further):
    kinds = [(name, object) for name in rows[0]]
    found = np.empty(len(rows), kinds)
    for i, row in enumerate(rows):
        found[i] = tuple(row.values())
    return {"annotations": found, **further}


def mat(content):
    file = io.BytesIO()
    savemat(file, content)
    return file.getvalue()


def cars(root, layout):
    classes = np.array(CARS, object)
    if layout == "one list":
        rows = [
            {"relative_im_path": f"car_ims/{f}", "class": c, "test": t} for f, c, t in cars_rows()
        ]
        files = {f"car_ims/{f}": jpeg(c) for f, c, _ in cars_rows()}
        files["cars_annos.mat"] = mat(annotations(rows, class_names=classes))
    elif layout == "devkit":
        files = {f"cars_{('train', 'test')[t]}/{f}": jpeg(c) for f, c, t in cars_rows()}
        for t, name in enumerate(("cars_train_annos", "cars_test_annos_withlabels")):
            rows = [{"class": c, "fname": f} for f, c, of in cars_rows() if of == t]
            files[f"devkit/{name}.mat"] = mat(annotations(rows))
        files["devkit/cars_meta.mat"] = mat({"class_names": classes})
    else:
        below = layout == "tables, folders"
        files = {"names.csv": "".join(f"{name}\n" for name in CARS)}
        for t, part in enumerate(("train", "test")):
            rows = [(f, c) for f, c, of in cars_rows() if of == t]
            text = io.StringIO()
            csv.writer(text).writerows([(f, 1, 2, 3, 4, c) for f, c in rows])
            files[f"anno_{part}.csv"] = text.getvalue()
            for f, c in rows:
                folder = CARS[c - 1].replace("/", "-") + "/" if below else ""
                files[f"car_data/car_data/{part}/{folder}{f}"] = jpeg(c)
    return write(root / "cars", files)


@pytest.mark.parametrize("layout", ["one list", "devkit", "tables", "tables, folders"])
def test_cars_in_both_orders(layout, tmp_path):
    path = cars(tmp_path, layout)
    train = data.cars196("train", path=path, counts=False)
    assert train.class_names == (CARS[0], CARS[5], CARS[97])
    assert {n: train.class_names[c] for n, c in zip(names(train), train.labels, strict=True)} == {
        "a.jpg": CARS[97], "b.jpg": CARS[0], "d.jpg": CARS[5], "f.jpg": CARS[0]
    }  # fmt: skip
    assert data.cars196("test", path=path, counts=False).class_names == (CARS[98], CARS[99])
    by_name = data.cars196("all", path=path, counts=False, order="names")
    assert list(by_name.class_names) == sorted(CARS[c] for c in (0, 5, 97, 98, 99))
    levels = {CARS[c - 1]: c for _, c, _ in cars_rows()}
    for i in range(len(by_name)):
        level = by_name[i]["image"].mean()
        assert abs(level - levels[by_name.class_names[by_name.labels[i]]]) <= 1


def test_cars_in_folders_have_the_order_of_the_names_alone(tmp_path):
    path = write(tmp_path / "cars196", {f"images/{name}/1.jpg": jpeg(1) for name in "CAB"})
    assert data.cars196("all", path=path, counts=False).class_names == ("A", "B", "C")
    with pytest.raises(UserError, match="no list in the devkit's order"):
        data.cars196("all", path=path, counts=False, order="devkit")


def sop(root, icml=False):
    lists, images = ("Info_Files/", "images/") if icml else ("", "")
    head = "image_id class_id super_class_id path\n"
    train = (
        "1 2 1 bicycle_final/20_0.JPG\n2 1 12 lamp_final/10_0.JPG\n3 2 1 bicycle_final/20_1.JPG\n"
    )
    test = "4 3 12 lamp_final/30_0.JPG\n"
    files = {f"{lists}Ebay_train.txt": head + train, f"{lists}Ebay_test.txt": head + test}
    files |= {f"{images}{row.split()[3]}": jpeg(9) for row in (train + test).splitlines()}
    return write(root / "Stanford_Online_Products", files)


@pytest.mark.parametrize("icml", [False, True])
def test_online_products(icml, tmp_path):
    path = sop(tmp_path, icml)
    train = data.sop("train", path=path, counts=False)
    assert train.labels.tolist() == [1, 0, 1] and train.class_names == ("lamp/10", "bicycle/20")
    assert train.parent_labels.tolist() == [0, 11, 0] and names(train)[0] == "20_0.JPG"
    both = data.sop("all", path=path, counts=False)
    assert both.labels.tolist() == [1, 0, 1, 2]
    (next(path.rglob("Ebay_test.txt"))).write_text("image_id class_id path\n1 2 a.jpg\n")
    with pytest.raises(UserError, match=r"Ebay_test\.txt in .* is not a list of image_id class_id"):
        data.sop("test", path=path, counts=False)


@pytest.mark.parametrize("lists, images", [("Eval/", "Img/"), ("", ""), ("Eval/", "")])
def test_in_shop_queries_are_searched_in_a_gallery_of_the_same_articles(lists, images, tmp_path):
    rows = [("T/id_9/1.jpg", "id_9", "train"), ("D/id_2/1.jpg", "id_2", "query"), ("D/id_2/2.jpg", "id_2", "gallery"),
            ("D/id_1/3.jpg", "id_1", "gallery"), ("D/id_1/4.jpg", "id_1", "query")]  # fmt: skip
    text = [
        "5",
        "image_name item_id evaluation_status",
        *(f"img/{f}   {i}   {s}" for f, i, s in rows),
    ]
    files = {f"{images}img/{f}": jpeg(9) for f, _, _ in rows}
    path = write(
        tmp_path / "In-shop", {**files, f"{lists}list_eval_partition.txt": "\n".join(text)}
    )
    query, gallery = (data.inshop(s, path=path, counts=False) for s in ("test", "gallery"))
    assert query.class_names == gallery.class_names == ("id_1", "id_2")
    assert query.labels.tolist() == [1, 0] and gallery.labels.tolist() == [1, 0]
    assert data.inshop("train", path=path, counts=False)[0]["image"].shape == (6, 8, 3)
    assert len(data.inshop("all", path=path, counts=False)) == 5


def test_inaturalist_is_divided_by_its_lists(tmp_path):
    files = [
        "train_val2018/Plantae/7/a.jpg",
        "train_val2018/Aves/3/b.jpg",
        "train_val2018/Aves/12/c.jpg",
    ]
    ids, categories = (70, 30, 120), (7, 3, 12)
    parts = {"train": (0, 2), "val": (1,)}
    content = {name: jpeg(i) for i, name in enumerate(files)}
    for part, rows in parts.items():
        images = [{"id": ids[i], "file_name": files[i]} for i in rows]
        labels = [{"image_id": ids[i], "category_id": categories[i], "id": 1} for i in rows[::-1]]
        content[f"{part}2018.json"] = json.dumps({"images": images, "annotations": labels})
    for split, rows in (("train", (0, 1)), ("test", (2,))):
        lines = "\n".join(files[i] for i in rows)
        content[f"Inat_dataset_splits/Inaturalist_{split}_set1.txt"] = lines + "\n"
    path = write(tmp_path / "inat", content)
    train = data.inaturalist2018("train", path=path, counts=False)
    assert train.class_names == ("Aves/3", "Plantae/7") and train.labels.tolist() == [1, 0]
    assert train.parent_labels.tolist() == [1, 0]
    assert data.inaturalist2018("test", path=path, counts=False).class_names == ("Aves/12",)
    (path / "val2018.json").write_text('{"images": [], "annotations": []}')
    with pytest.raises(UserError, match=r"Aves/3/b\.jpg is in the list of 'train'"):
        data.inaturalist2018("train", path=path, counts=False)


def test_what_is_refused(tmp_path):
    path = cub(tmp_path)
    with pytest.raises(
        UserError, match=r"'train' of .* has 3 images of 2 classes; published are 5,864 of 100"
    ):
        data.cub200("train", path=path)
    with pytest.raises(UserError, match=r"sop: .* is not Stanford Online Products: accepted is"):
        data.sop("train", path=path, counts=False)
    with pytest.raises(UserError, match=r"compressed tar file.*dml prepare --dataset=cub200"):
        data.cub200("train", path=packed(path, "tgz"), counts=False)
    (path / "a.txt").write_text("x")
    with pytest.raises(UserError, match="no folder, zip or tar file"):
        data.cub200("train", path=path / "a.txt", counts=False)
    (path / "images" / "001.A" / "b.jpg").unlink()
    with pytest.raises(UserError, match=r"lacks images .*\(1 of 3\), such as images/001\.A/b\.jpg"):
        data.cub200("train", path=path, counts=False)
    for name in ("cars196", "inaturalist2018", "inshop", "cub200"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=rf"{name}: .* accepted is"):
            data.load(name, "train", path=tmp_path / "empty", counts=False)


def test_members_of_archives_are_read_as_they_are(tmp_path):
    root = write(tmp_path / "top", {"a/1": b"x" * 1000, "a/2": b"", "b": bytes(range(256))})
    opened = [open_files(p, "it") for p in (root, packed(root, "zip"), packed(root, "tar"))]
    assert [type(o) for o in opened] == [Folder, Zip, Tar]
    for files in opened:
        prefix = "" if isinstance(files, Folder) else "top/"
        assert list(files.names()) == [prefix + name for name in ("a/1", "a/2", "b")]
        assert files.read(prefix + "b") == bytes(range(256)) and files.read(prefix + "a/2") == b""
        assert root_of(files, "a/1", "b") == prefix and root_of(files, "c") is None
        with pytest.raises(OSError):
            files.read("nowhere")
    damaged = pathlib.Path(opened[1].path)
    damaged.write_bytes(damaged.read_bytes()[:200])
    with pytest.raises(UserError, match="cannot be read as a zip file"):
        Zip(str(damaged))


def test_orientation_is_a_switch(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    place = tmp_path / "c" / "a.jpg"
    place.parent.mkdir()
    Image.new("RGB", (8, 6)).save(place, exif=exif)
    for how, shape in ((True, (8, 6, 3)), (False, (6, 8, 3))):
        assert data.load("folder", "all", path=tmp_path, exif=how)[0]["image"].shape == shape


@real
def test_the_true_lists_have_the_published_counts(tmp_path, monkeypatch):
    """Labels as both papers' code numbers them: see docs/data_sets.md."""
    monkeypatch.setattr(
        Folder, "exists", lambda self, name: (pathlib.Path(self.path) / name).is_file()
    )
    monkeypatch.setattr(type(PUBLISHED["sop"]), "_check_present", lambda *_: None)
    for split in ("train", "test", "all"):
        cub = data.cub200(split, path=SPLITS / "cub200_2011")
        assert (np.diff(cub.labels) >= 0).all()
        data.sop(split, path=SPLITS / "sop")
        devkit, by_name = (
            data.cars196(split, path=SPLITS / "cars196", order=o) for o in ("devkit", "names")
        )
        assert set(devkit.class_names) == set(by_name.class_names)
        data.inshop(split, path=SPLITS / "inshop")
    data.inshop("gallery", path=SPLITS / "inshop")
    # The last classes of the 98, which are held out, are others in the two orders: 18 of 20 are the same.
    held = [set(data.hold_out(data.cars196("train", path=SPLITS / "cars196", order=o), 0.2, 0, "last_classes")[1]
                .class_names) for o in ("devkit", "names")]  # fmt: skip
    assert len(held[0]) == 20 and len(held[0] & held[1]) == 18
