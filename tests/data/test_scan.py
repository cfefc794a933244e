"""What is wrong with files of one's own, found before they are trained on."""

import io
import json
import os
import pathlib
import shutil
import sys
import time

import numpy as np
import pytest
from PIL import Image

from dml_jax import UserError, command_line, config_files, data, inspect_data
from dml_jax.data.datasets.folder import other_files
from dml_jax.data.decoding import decode, decoded
from dml_jax.training import session
from dml_jax.training.experiment import Experiment
from tests.training.commands import CONFIG, pictures

NO_IMAGE = "it is not an image that Pillow reads"


@pytest.fixture
def photos(tmp_path):
    """A folder of six classes in which something of everything is wrong."""
    root = pictures(tmp_path / "photos", classes=6, images=3)
    (root / "class01" / "empty.png").write_bytes(b"")
    (root / "class01" / "text.jpg").write_text("no picture")
    shutil.copy(root / "class02" / "0.png", root / "class02" / "copy.png")
    shutil.copy(root / "class03" / "0.png", root / "class04" / "same.png")
    (root / "class05" / "live.heic").write_bytes(b"x")
    (root / "class05" / "notes.txt").write_text("x")
    (root / "class05" / ".hidden.png").write_bytes(b"x")
    (root / "nothing").mkdir()
    return root


def test_a_scan(photos):
    source = data.load("folder", "all", path=photos)
    (photos / "class05" / "2.png").unlink()
    found = data.scan([source])
    assert found.missing == [str(photos / "class05" / "2.png")]
    assert found.empty == [str(photos / "class01" / "empty.png")]
    assert found.unreadable == [(str(photos / "class01" / "text.jpg"), NO_IMAGE)]
    assert found.doubled == [[str(photos / "class02" / n) for n in ("0.png", "copy.png")]]
    same = {str(photos / place) for place in ("class03/0.png", "class04/same.png")}
    assert [set(group) for group in found.across] == [same]
    assert len(found.broken) == 3
    starts = [
        "1 file is missing: ",
        "1 file is empty: ",
        "1 file cannot be decoded: ",
        "1 file is copied",
    ]
    assert [line.startswith(s) for line, s in zip(found.lines(), starts, strict=False)] == [
        True
    ] * 4
    assert found.lines()[4].startswith("1 image stands in two classes or splits: ")
    # A source that is not made of files has none; and an end comes early.
    assert data.scan([data.load("glyphs", "test", size=8, classes=2)]).lines() == []
    assert not data.scan([source], lambda: True).unreadable


def test_classes_of_a_subset(photos):
    subset = data.subset(data.load("folder", "all", path=photos), [3, 1])
    assert {kind for _, kind in data.paths_of(subset)} == {"class03", "class01"}


def test_a_background_scan_reports_once_and_can_be_ended(photos, monkeypatch):
    source = data.load("folder", "all", path=photos)
    reported = []
    scan = data.BackgroundScan(lambda: [source, source], reported.append)
    scan.wait(30)
    scan.close()
    assert len(reported) == 1 and len(reported[0].empty) == 1
    slow = Image.open
    monkeypatch.setattr(Image, "open", lambda path: time.sleep(0.05) or slow(path))
    scan = data.BackgroundScan(lambda: [source], reported.append)
    scan.close()
    assert len(reported) == 1


def test_a_run_that_would_end_at_a_file_does_not_begin(photos, capsys):
    config = config_files.load(f"{CONFIG}:steps=1,epochs=1")
    config.data.path = str(photos)
    config.data.fractions = (0.8, 0.0, 0.2)
    config.evaluation.splits, config.train.monitor = (), ""
    for name in ("class01", "class02", "class03", "class04", "class05"):
        (photos / name / "none.png").write_bytes(b"")
    experiment = Experiment.from_config(config)
    with pytest.raises(UserError, match=r"files are empty: .*; data\.on_error='skip' leaves"):
        session._scan(experiment, set())
    config.data.on_error = "skip"
    session._scan(Experiment.from_config(config), set()).close()
    printed = capsys.readouterr().out
    assert "files are empty" in printed
    assert "note: folders of classes without an image: 1" in printed
    assert "note: .heic images, which cannot be read: 1" in printed and "other kinds" not in printed


def test_other_files(photos):
    assert {what: found["count"] for what, found in other_files(photos).items()} == {
        ".heic images, which cannot be read": 1,
        "hidden files": 1,
        "files of other kinds": 1,
        "folders of classes without an image": 1,
    }
    assert other_files(photos / "class05" / "notes.txt") == {}


def test_each_folder_is_entered_once(tmp_path):
    root = pictures(tmp_path / "photos", classes=3, images=2)
    count = len(data.load("folder", "all", path=root))
    os.symlink(root, root / "class01" / "above")
    os.symlink(root / "class01", root / "class01" / "itself")
    # What a link leads to counts once: the two images of class02 and the one of class00 come with the link above.
    names = [data.load("folder", "all", path=root).name(i) for i in range(count + 3)]
    assert len({os.path.realpath(name) for name in names}) == count
    assert len(data.load("folder", "all", path=root)) == count + 3


def test_a_csv_file_in_which_an_image_stands_twice(tmp_path):
    for text, message in (
        ("a.png,b\na.png,c\n", "lists a.png as 'b' and as 'c'"),
        ("a.png,b\na.png,b\n", "lists a.png twice"),
    ):
        (tmp_path / "list.csv").write_text(f"path,label\n{text}")
        with pytest.raises(UserError, match=message):
            data.load("folder", "all", path=tmp_path / "list.csv")


def encoded(image, suffix, **options):
    file = io.BytesIO()
    image.save(file, suffix, **options)
    return file.getvalue()


def test_transparent_pixels_are_white():
    hidden = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    hidden.putpixel((1, 0), (10, 20, 30, 255))
    assert decode(encoded(hidden, "PNG"), channels=3).tolist() == [[[255] * 3, [10, 20, 30]]]
    assert decoded(hidden.convert("LA"), channels=1)[0, 0].tolist() == [255]
    palette = hidden.convert("RGB").quantize(4)
    palette.info["transparency"] = palette.getpixel((0, 0))
    assert decoded(palette, channels=3)[0, 0].tolist() == [255] * 3
    half = Image.new("RGBA", (1, 1), (0, 0, 0, 128))
    assert decoded(half, channels=3)[0, 0].tolist() == [127] * 3


def test_other_modes():
    assert decode(encoded(Image.new("CMYK", (2, 2)), "JPEG"), channels=3).mean() > 250
    frames = [Image.new("P", (2, 2), i) for i in (0, 1)]
    moving = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(moving, channels=1).shape == (2, 2, 1)
    floats = encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF")
    with pytest.raises(UserError, match="floating-point numbers, whose black and white"):
        decode(floats, channels=1)
    for content, message in (
        (b"", "the file is empty"),
        (b"text", "not an image that Pillow reads"),
    ):
        with pytest.raises(UserError, match=message):
            decode(content, channels=1)
    deep = encoded(Image.fromarray(np.full((1, 1), 0x8000, np.uint16)), "PNG")
    assert decode(deep, channels=1).tolist() == [[[128]]]


def test_inspect(photos, tmp_path):
    config = config_files.load("own_images:scratch")
    config.data.path = str(photos)
    found = json.loads(json.dumps(inspect_data.inspected(config)))
    assert sum(split["images"] for split in found["splits"].values()) == 20
    text = "\n".join(inspect_data.lines(found))
    for words in (
        "images of 3 classes",
        "1 file is empty",
        "stands in two classes",
        ".heic images",
        "PNG L",
    ):
        assert words in text, text
    config.data.path = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="does not exist"):
        inspect_data.inspected(config)


def test_an_image_that_is_cut_off(photos):
    """Its header is whole: only decoding finds it, which is what inspect does."""
    whole = encoded(Image.effect_noise((64, 64), 60), "JPEG")
    (photos / "class05" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    config = config_files.load("own_images:scratch")
    config.data.path = str(photos)
    floats = Image.fromarray(np.ones((2, 2), np.float32))  # refused in training, too
    floats.save(photos / "class05" / "floats.tiff")
    found = {d: inspect_data.inspected(config, decode=d) for d in (True, False)}
    text = {d: "\n".join(inspect_data.lines(of)) for d, of in found.items()}
    assert "22 files were looked at and decoded" in text[True]
    assert "22 files were looked at by the header alone" in text[False]
    assert "cut.jpg (image file is truncated" in text[True] and "cut.jpg" not in text[False]
    assert "floats.tiff (its pixels are floating-point" in text[True]
    unreadable = [path for path, _ in found[True]["files"]["unreadable"]]
    assert unreadable == [
        str(photos / n) for n in ("class01/text.jpg", "class05/cut.jpg", "class05/floats.tiff")
    ]


def test_files_are_handed_to_the_threads_a_few_at_a_time(photos, monkeypatch):
    # The package has a function of the module's name.
    monkeypatch.setattr(sys.modules["dml_jax.data.scan"], "_AT_A_TIME", 2)
    source = data.load("folder", "all", path=photos)
    assert data.scan([source], threads=2).broken == data.scan([source]).broken != []


def test_what_inspect_refuses_before_it_looks(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(inspect_data, "inspected", lambda *a, **k: pytest.fail("it looked"))
    for arguments, message in (
        ([], "--path is missing: a folder"),
        ([f"--path={tmp_path}/nowhere"], "--path: there is no .*nowhere; a folder with"),
        ([f"--path={photos}", "--json=/proc/found.json"], "--json: the file /proc/found.json"),
    ):
        parser = command_line.Parser("dml inspect")
        inspect_data.add_options(parser)
        with pytest.raises(UserError, match=message):
            inspect_data.main(parser.parse(arguments))


def test_images_without_files_are_looked_at_where_all_are_decoded():
    config = config_files.load("quickstart")
    config.data.classes, config.data.size = 6, 8
    text = "\n".join(inspect_data.lines(inspect_data.inspected(config)))
    assert "288 images were decoded" in text
    text = "\n".join(inspect_data.lines(inspect_data.inspected(config, decode=False)))
    assert "in no files of their own, and were not looked at" in text and "decod" not in text


def test_a_split_that_only_an_evaluation_reads(photos, capsys, monkeypatch):
    """Training does not end at it, and says it all the same."""
    config = config_files.load("own_images:scratch")
    monkeypatch.chdir(photos.parent)
    config.data.path = photos.name
    config.data.on_error = "skip"
    config.evaluation.splits, config.train.monitor = (), ""
    experiment = Experiment.from_config(config)
    read = {path for path, _ in data.paths_of(experiment.source)}
    others = [str(path) for path in photos.rglob("?.png") if str(path) not in read]
    pathlib.Path(others[0]).write_text("no image")
    unreadable = set()
    session._scan(experiment, unreadable).close()
    printed = capsys.readouterr().out
    assert f"{others[0]} ({NO_IMAGE})" in printed
    # What the run itself reads is counted, and nothing else: the images of one's own have no other path there.
    assert unreadable == {path for path in read if path.endswith(("empty.png", "text.jpg"))}
    assert "stand in two" not in printed


def test_classes_in_two_splits(tmp_path):
    for split in ("train", "test"):
        pictures(tmp_path / split, classes=3, images=2)
    config = config_files.load("own_images:scratch")
    config.data.path = str(tmp_path)
    found = inspect_data.inspected(config)
    assert found["shared_classes"] == {"train and test": ["class00", "class01", "class02"]}
    # The same noise was drawn for both.
    assert found["findings"][0].startswith("5 images stand in two classes or splits: ")
