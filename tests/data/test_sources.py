"""Folders, lists and published archives, on tiny copies of their layouts and on the real ones."""

import io
import os
import pickle
import tarfile
import threading
import zipfile

import numpy as np
import pytest
from PIL import Image

from dml_jax import data
from dml_jax.data import sources
from dml_jax.errors import UserError


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.fixture
def pictures(tmp_path, encode):
    """Classes of 3, 1 and 2 images; the grey level tells them apart."""
    for key, levels in {"cat": (10, 11, 12), "ant": (20,), "bee": (30, 31)}.items():
        for level in levels:
            write(tmp_path / key / f"{level}.png", encode(level))
    write(tmp_path / "cat" / "notes.txt", b"no image")
    write(tmp_path / ".hidden" / "1.png", encode(0))
    write(tmp_path / "stray.png", encode(0))
    return tmp_path


def levels(source):
    return [int(source[i]["image"][0, 0, 0]) for i in range(len(source))]


def test_folder(pictures):
    source = data.load("folder", "all", path=pictures)
    assert source.class_names == ("ant", "bee", "cat")
    assert source.labels.tolist() == [0, 1, 1, 2, 2, 2]
    assert levels(source) == [20, 30, 31, 10, 11, 12]
    item = source[4]
    assert (item["label"], item["id"], item["image"].shape) == (2, 4, (20, 24, 3))
    assert source.name(4) == str(pictures / "cat" / "11.png")
    assert data.load("folder", "all", path=pictures, channels=1)[0]["image"].shape == (20, 24, 1)
    with pytest.raises(IndexError):
        source[6]


def test_folder_splits_by_class(tmp_path, encode):
    for key in range(20):
        write(tmp_path / f"{key}" / "x.png", encode(key))
    parts = {s: data.load("folder", s, path=tmp_path, seed=3) for s in ("train", "val", "test")}
    assert [len(p.class_names) for p in parts.values()] == [10, 2, 8]
    assert sorted(level for p in parts.values() for level in levels(p)) == list(range(20))
    for part in parts.values():
        assert [str(level) for level in levels(part)] == [
            part.class_names[label] for label in part.labels
        ]
    other = data.load("folder", "train", path=tmp_path, seed=4)
    assert set(other.class_names) != set(parts["train"].class_names)
    with pytest.raises(ValueError, match="leave none for split 'val'"):
        data.load("folder", "val", path=tmp_path, fractions=(0.5, 0.0, 0.5))
    with pytest.raises(ValueError, match="three numbers of at least 0 with sum 1"):
        data.load("folder", "val", path=tmp_path, fractions=(0.5, 0.1, 0.3))
    with pytest.raises(
        ValueError, match=r"fractions of data set 'folder' is .*; accepted: a sequence of 3"
    ):
        data.load("folder", "val", path=tmp_path, fractions=(0.5, 0.1))


def test_folder_that_divides_itself(tmp_path, encode):
    for split, key, level in (("train", "a", 1), ("train", "b", 2), ("test", "c", 3)):
        write(tmp_path / split / key / "deeper" / "x.JPG", encode(level, "PNG"))
    assert data.load("folder", "train", path=tmp_path).class_names == ("a", "b")
    assert levels(data.load("folder", "test", path=tmp_path)) == [3]
    assert data.load("folder", "all", path=tmp_path).class_names == ("a", "b", "c")
    with pytest.raises(
        ValueError, match=r"no class folders under 'val'; it has splits train, test"
    ):
        data.load("folder", "val", path=tmp_path)


def test_folders_beside_the_splits(tmp_path, encode):
    """A gallery shares classes, distractors have none; neither is a part of everything."""
    for place in (
        "test/a/1",
        "test/b/2",
        "gallery/a/3",
        "gallery/c/4",
        "distractors/x/y/5",
        "distractors/6",
    ):
        write(tmp_path / f"{place}.png", encode(int(place[-1])))
    gallery = data.load("folder", "gallery", path=tmp_path)
    assert (gallery.class_names, levels(gallery)) == (("a", "c"), [3, 4])
    apart = data.load("folder", "distractors", path=tmp_path)
    assert (apart.class_names, apart.labels.tolist(), levels(apart)) == ((), [-1, -1], [6, 5])
    assert levels(data.load("folder", "all", path=tmp_path)) == [1, 2]
    with pytest.raises(ValueError, match="has no 'gallery'; directories train, val or test beside"):
        data.load("folder", "gallery", path=tmp_path / "test")


def test_csv_with_splits_parents_and_labels(pictures):
    lines = (
        "path,label,split,parent,labels",
        "cat/10.png,x,train,pet,soft;",
        "bee/30.png,y,train,wild, loud ;soft",
        "cat/11.png,x,gallery,pet,",
        "ant/20.png,z,test,wild,small",
    )
    path = pictures / "list.csv"
    path.write_text("\n".join(lines) + "\n")
    train = data.load("folder", "train", path=path)
    assert (levels(train), train.class_names) == ([10, 30], ("x", "y"))
    assert train.parent_labels.tolist() == [0, 1]
    # loud, small, soft: the same columns in every split.
    assert train.label_sets.tolist() == [[False, False, True], [True, False, True]]
    assert data.label_sets(data.load("folder", "test", path=path)).tolist() == [
        [False, True, False]
    ]
    assert levels(data.load("folder", "gallery", path=path)) == [11]
    part = data.subset(data.load("folder", "all", path=path), [1])
    assert (levels(part), part.label_sets.tolist()) == ([30], [[True, False, True]])
    with pytest.raises(
        ValueError, match="no row of split 'val'; it has splits train, gallery, test"
    ):
        data.load("folder", "val", path=path)
    with pytest.raises(ValueError, match="needs a set of labels for each image"):
        data.label_sets(data.load("folder", "all", path=pictures))
    path.write_text("path,label,parent\ncat/10.png,x,\n")
    with pytest.raises(ValueError, match=r"line 2 lacks a parent"):
        data.load("folder", "all", path=path)


def test_csv(pictures):
    rows = [("cat/10.png", "x"), (str(pictures / "bee" / "30.png"), "y"), ("cat/12.png", "x")]
    path = pictures / "list.csv"
    path.write_text("label,path\n" + "".join(f"{label},{file}\n" for file, label in rows))
    source = data.load("folder", "all", path=path)
    assert source.class_names == ("x", "y")
    assert source.labels.tolist() == [0, 1, 0]
    assert levels(source) == [10, 30, 12]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", r"has the columns \(none\)"),
        ("file,label\na,b\n", "has the columns file, label; .* path and label is accepted"),
        ("path,label\n", "has no row below the names"),
        ("path,label\na.png,\n", "line 2 lacks a label"),
        ("path,label\na.png\n", "line 2 lacks a label"),
    ],
)
def test_refused_csv(tmp_path, content, says):
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(ValueError, match=says):
        data.load("folder", "all", path=tmp_path / "list.csv")


def test_refused_folders(tmp_path, pictures):
    with pytest.raises(ValueError, match=r"path='.*nowhere' does not exist"):
        data.load("folder", "all", path=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match=r"no images under .*empty; a directory per class"
    ) as error:
        data.load("folder", "all", path=tmp_path / "empty")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"no images under .* of a class, and \d+ beside them"):
        data.load("folder", "all", path=pictures / "cat")
    with pytest.raises(ValueError, match="channels of data set 'folder' is 4; accepted: 1 or 3"):
        data.load("folder", "all", path=pictures, channels=4)
    with pytest.raises(
        ValueError, match=r"split of data set 'folder' is 'trian'.* did you mean 'train'"
    ):
        data.load("folder", "trian", path=pictures)
    with pytest.raises(ValueError, match="unknown data set 'omniglott'; did you mean 'omniglot'"):
        data.load("omniglott", "train")


REFUSED = [
    ("folder", {}, "data set 'folder' needs a value for 'path'"),
    ("folder", {"path": 3}, "path of data set 'folder' is 3; accepted: a text or a path"),
    ("folder", {"path": None}, "path of data set 'folder' is None"),
    (
        "folder",
        {"path": ".", "channels": 2},
        "channels of data set 'folder' is 2; accepted: 1 or 3",
    ),
    ("folder", {"path": ".", "channels": "rgb"}, "channels of data set 'folder' is 'rgb'"),
    ("folder", {"path": ".", "fractions": 0.5}, "fractions of data set 'folder' is 0.5"),
    (
        "folder",
        {"path": ".", "fractions": (2, -1, 0)},
        r"fractions of data set 'folder' is \(2, -1",
    ),
    ("folder", {"path": ".", "fractions": "half"}, "fractions of data set 'folder' is 'half'"),
    ("folder", {"path": ".", "seed": -1}, "seed of data set 'folder' is -1"),
    ("folder", {"path": ".", "seed": 1.5}, "seed of data set 'folder' is 1.5"),
    (
        "folder",
        {"path": ".", "chanels": 3},
        "data set 'folder': 'chanels'; did you mean 'channels'",
    ),
    ("omniglot", {}, "data set 'omniglot' needs a value for 'path'"),
    ("omniglot", {"path": ".", "size": -1}, "size of data set 'omniglot' is -1"),
    ("omniglot", {"path": ".", "size": 2.5}, "size of data set 'omniglot' is 2.5"),
    ("grocery_store", {}, "data set 'grocery_store' needs a value for 'path'"),
    (
        "grocery_store",
        {"path": ".", "size": 32},
        "unknown hyper-parameter of data set 'grocery_store'",
    ),
    (3, {}, "unknown data set 3"),
    ("no_such_package.module:birds", {}, "there is no module 'no_such_package.module'"),
    ("dml_jax.data:Imagess", {}, "did you mean 'Images'"),
    ("builtins:str", {}, "data set 'builtins:str' .*; accepted: a function that returns a Source"),
]


@pytest.mark.parametrize(("name", "options", "says"), REFUSED)
def test_refused_options(name, options, says):
    with pytest.raises(UserError, match=says) as error:
        data.load(name, "train", **options)
    assert "\n" not in str(error.value)


def test_a_data_set_of_the_users_own(documented_module, pictures):
    documented_module(sources.__doc__)
    (pictures / "train.csv").write_text("cat/10.png,cat\nbee/30.png,bee\ncat/12.png,cat\n")
    source = data.load("my_package.my_module:birds", "train", path=pictures)
    assert (source.class_names, source.labels.tolist()) == (("bee", "cat"), [1, 0, 1])
    assert levels(source) == [10, 30, 12]


def test_data_sets_are_callables_of_their_own(pictures):
    assert {"folder", "glyphs", "grocery_store", "omniglot"} < set(data.available())
    assert levels(data.folder("all", path=pictures)) == [20, 30, 31, 10, 11, 12]
    assert isinstance(data.folder("all", path=str(pictures)), data.Source)


@pytest.mark.parametrize("keep", [0, 1, 40, 0.5, 0.97])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_truncated_image_is_an_error_that_names_the_file(tmp_path, encode, noise, kind, keep):
    content = encode(noise, kind)
    assert len(content) > 400
    keep = keep if isinstance(keep, int) else int(keep * len(content))
    write(tmp_path / "a" / "whole.png", content)
    write(tmp_path / "a" / "cut.png", content[:keep])
    source = data.load("folder", "all", path=tmp_path)
    assert source[1]["image"].shape == (20, 24, 3)
    with pytest.raises(data.DecodeError, match=r"cannot decode .*cut\.png: "):
        source[0]


def test_missing_file_of_a_list_is_an_error_that_names_it(tmp_path):
    (tmp_path / "list.csv").write_text("path,label\ngone.png,x\n")
    source = data.load("folder", "all", path=tmp_path / "list.csv")
    with pytest.raises(data.DecodeError, match=r"gone\.png"):
        source[0]


def test_decode_modes(encode):
    grey16 = np.full((5, 6), 0x8040, np.uint16)
    assert (data.decode(encode(grey16), channels=1) == 0x80).all()
    assert data.decode(encode(200, "PNG", "RGBA"), channels=3).shape == (20, 24, 3)
    assert (data.decode(encode(204, "PNG", "P"), channels=3) == 204).all()
    assert (data.decode(encode(200, "TIFF", "CMYK"), channels=1) == 200).all()
    half = np.zeros((20, 20, 3), np.uint8)
    half[:, 10:] = 255
    small = data.decode(encode(half), channels=1, size=4)
    np.testing.assert_array_equal(small[..., 0], [[0, 0, 255, 255]] * 4)
    turned = Image.fromarray(half)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    file = io.BytesIO()
    turned.save(file, "PNG", exif=exif)
    assert data.decode(file.getvalue(), channels=1)[:, 0, 0].tolist() == [0] * 10 + [255] * 10


def test_subset_and_hold_out(pictures):
    source = data.load("folder", "all", path=pictures)
    part = data.subset(source, [2, 0])
    assert part.class_names == ("cat", "ant")
    assert part.labels.tolist() == [1, 0, 0, 0]
    assert levels(part) == [20, 10, 11, 12]
    assert part[1] | {"image": None} == {"image": None, "label": 0, "id": 1}
    assert part.name(0).endswith("20.png")
    assert part.parent_labels is None
    with pytest.raises(ValueError, match="which these data do not have"):
        data.hierarchy(part)
    assert isinstance(part, data.Source)
    assert levels(data.subset(part, [0])) == [10, 11, 12]

    rest, held = data.hold_out(source, 0.4, seed=0)
    assert len(held.class_names) == 1
    assert sorted(rest.class_names + held.class_names) == ["ant", "bee", "cat"]
    assert sorted(levels(rest) + levels(held)) == [10, 11, 12, 20, 30, 31]
    again = data.hold_out(source, 0.4, seed=0)[1]
    assert again.class_names == held.class_names
    assert len({data.hold_out(source, 0.4, seed=s)[1].class_names for s in range(20)}) == 3
    assert len(data.hold_out(source, 0.01, seed=0)[1].class_names) == 1
    assert len(data.hold_out(source, 0.99, seed=0)[0].class_names) == 1
    for fraction in (0, 1, -0.1):
        with pytest.raises(ValueError, match="fraction="):
            data.hold_out(source, fraction, seed=0)
    with pytest.raises(ValueError, match="source of 1 class"):
        data.hold_out(data.subset(source, [0]), 0.5, seed=0)
    for classes, says in (([], "at least one"), ([3], "class 3 .* 0 to 2"), ([1, 1], "twice")):
        with pytest.raises(ValueError, match=says):
            data.subset(source, classes)


@pytest.fixture
def omniglot(tmp_path, encode):
    """A zip in the published layout, and its folder."""
    half = np.zeros((105, 105, 3), np.uint8)
    half[:, 52:] = 255
    drawings = {
        "images_background/Greek/character01/0002_01.png": 1,
        "images_background/Greek/character01/0002_02.png": 1,
        "images_background/Greek/character02/0003_01.png": 1,
        "images_background/Braille/character01/0001_01.png": 1,
        "images_evaluation/Tibetan/character01/0965_01.png": 1,
    }
    path = tmp_path / "omniglot.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images_background/Greek/", "")
        for name in drawings:
            archive.writestr(name, encode(half, "PNG", "1"))
            write(tmp_path / "folder" / name, encode(half, "PNG", "1"))
        archive.writestr("__MACOSX/images_background/Greek/character01/._0002_01.png", b"")
        archive.writestr("images_background/README", b"")
    return tmp_path


@pytest.mark.parametrize("where", ["omniglot.zip", "folder"])
def test_omniglot(omniglot, where):
    train = data.load("omniglot", "train", path=omniglot / where)
    assert train.class_names == ("Braille/character01", "Greek/character01", "Greek/character02")
    assert train.labels.tolist() == [0, 1, 1, 2]
    assert train.parent_labels.tolist() == [0, 1, 1, 1]
    assert train.name(1).endswith("images_background/Greek/character01/0002_01.png")
    image = train[0]["image"]
    assert image.shape == (105, 105, 1)
    assert set(np.unique(image)) == {0, 255}
    test = data.load("omniglot", "test", path=omniglot / where, size=21)
    assert test.class_names == ("Tibetan/character01",)
    # Columns 50..54 of the drawing make column 10: two dark ones, three light ones.
    assert test[0]["image"][0, 9:12, 0].tolist() == [0, 153, 255]
    with pytest.raises(
        ValueError, match="split of data set 'omniglot' is 'val'; accepted: 'train' or 'test'"
    ):
        data.load("omniglot", "val", path=omniglot / where)


def test_refused_omniglot(omniglot):
    with pytest.raises(ValueError, match="no drawings images_background/<alphabet>"):
        data.load("omniglot", "train", path=omniglot / "folder" / "images_evaluation")
    (omniglot / "text").write_text("x")
    with pytest.raises(ValueError, match="text is not a zip file"):
        data.load("omniglot", "train", path=omniglot / "text")
    with pytest.raises(ValueError, match="size of data set 'omniglot' is 0"):
        data.load("omniglot", "train", path=omniglot / "omniglot.zip", size=0)


GROCERY = {  # split -> (path, fine, coarse, level)
    "train": [("train/Fruit/a_1.jpg", 0, 0, 10), ("train/Fruit/b_1.jpg", 40, 1, 20)],
    "val": [("val/Fruit/b_2.jpg", 40, 1, 30)],
    "test": [("test/Packages/c_1.jpg", 41, 1, 40), ("test/Vegetables/d_1.jpg", 80, 2, 50)],
}


@pytest.fixture
def grocery(tmp_path, encode):
    root = tmp_path / "grocery_store"
    for split, rows in GROCERY.items():
        lines = [f"{path}, {fine}, {coarse}\n" for path, fine, coarse, _ in rows]
        write(root / f"{split}.txt", "".join(lines).encode())
        for path, _, _, level in rows:
            write(root / path, encode(level, "JPEG"))
    names = "Class Name (str),Class ID (int)\nGala,0\nBanana,40\nMilk,41\nZucchini,80\n"
    write(root / "classes.csv", names.encode())
    with tarfile.open(tmp_path / "grocery.tar", "w") as tar:
        tar.add(root, "grocery_store")
    return tmp_path


@pytest.mark.parametrize("where", ["grocery.tar", "grocery_store", "."])
def test_grocery_store(grocery, where):
    train = data.load("grocery_store", "train", path=grocery / where)
    assert train.class_names == ("Gala", "Banana")
    assert train.labels.tolist() == [0, 1, 1]
    assert train.parent_labels.tolist() == [0, 1, 1]
    assert levels(train) == [10, 20, 30]
    assert train.name(2).endswith("val/Fruit/b_2.jpg")
    test = data.load("grocery_store", "test", path=grocery / where)
    assert test.class_names == ("Milk", "Zucchini")
    assert test.labels.tolist() == [0, 1]
    everything = data.load("grocery_store", "all", path=grocery / where)
    assert everything.labels.tolist() == [0, 1, 1, 2, 3]
    held = data.subset(everything, [2, 3])
    assert held.parent_labels.tolist() == [1, 2]
    assert data.hierarchy(everything).tolist() == [[0, 0], [1, 1], [1, 1], [1, 2], [2, 3]]
    assert data.hierarchy(held).tolist() == [[0, 0], [1, 1]]


def test_refused_grocery_store(grocery):
    root = grocery / "grocery_store"
    with pytest.raises(ValueError, match="cannot be read as an uncompressed tar file"):
        data.load("grocery_store", "train", path=root / "train.txt")
    (root / "train.txt").write_text("a.jpg 0 0\n")
    with pytest.raises(ValueError, match=r"'a.jpg 0 0' in train.txt is not a row of path, fine"):
        data.load("grocery_store", "train", path=root)
    (root / "val.txt").unlink()
    with pytest.raises(ValueError, match=r"has no folder with train\.txt, val\.txt"):
        data.load("grocery_store", "train", path=root)
    with tarfile.open(grocery / "packed.tar.gz", "w:gz") as tar:
        tar.add(root, "grocery_store")
    with pytest.raises(ValueError, match="unpack it and give the folder"):
        data.load("grocery_store", "train", path=grocery / "packed.tar.gz")


def test_tar_lacks_an_image(grocery):
    with tarfile.open(grocery / "less.tar", "w") as tar:
        tar.add(
            grocery / "grocery_store",
            "grocery_store",
            filter=lambda m: None if m.name.endswith("b_1.jpg") else m,
        )
    source = data.load("grocery_store", "train", path=grocery / "less.tar")
    with pytest.raises(data.DecodeError, match=r"cannot decode .*b_1\.jpg: .* holds no"):
        source[1]


def test_tar_is_read_by_threads_and_after_pickling(grocery):
    source = data.load("grocery_store", "train", path=grocery / "grocery.tar")
    source[0]  # opens the file, which must not travel
    copy = pickle.loads(pickle.dumps(source))
    assert levels(copy) == [10, 20, 30]
    wrong = []

    def work():
        for _ in range(50):
            wrong.extend([1] * (levels(source) != [10, 20, 30]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_real_omniglot(test_data):
    path = test_data / "omniglot" / "omniglot_full.zip"
    if not path.exists():
        pytest.skip("no Omniglot")
    for split, images, classes, alphabets in (
        ("train", 19_280, 964, 30),
        ("test", 13_180, 659, 20),
    ):
        source = data.load("omniglot", split, path=path, size=28)
        assert (len(source), len(source.class_names)) == (images, classes)
        assert (np.bincount(source.labels) == 20).all()
        assert len(np.unique(source.parent_labels)) == alphabets
        assert source[images - 1]["image"].shape == (28, 28, 1)


def test_real_grocery_store(test_data):
    path = test_data / "grocery_store" / "grocery_store_256.tar"
    if not path.exists():
        pytest.skip("no Grocery Store")
    sizes = {"train": (3_051, 41), "test": (2_370, 40), "all": (5_421, 81)}
    for split, (images, classes) in sizes.items():
        source = data.load("grocery_store", split, path=os.fspath(path))
        assert (len(source), len(source.class_names)) == (images, classes)
        assert min(source[images - 1]["image"].shape[:2]) == 256
    assert len(np.unique(source.parent_labels)) == 43
