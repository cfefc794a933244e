"""What is wrong with files of one's own, found before they are trained on."""

import io
import json
import os
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from dml_jax import UserError, config_files, data, inspect_data
from dml_jax.data.base import decode, decoded
from dml_jax.data.datasets.folder import other_files
from dml_jax.training import session
from dml_jax.training.experiment import Experiment
from tests.training.commands import CONFIG, pictures


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
    assert found.unreadable == [(str(photos / "class01" / "text.jpg"), "not an image")]
    assert found.doubled == [[str(photos / "class02" / n) for n in ("0.png", "copy.png")]]
    same = {str(photos / place) for place in ("class03/0.png", "class04/same.png")}
    assert [set(group) for group in found.across] == [same]
    assert found.broken == 3
    starts = [
        "1 file is missing: ",
        "1 file is empty: ",
        "1 file is no image: ",
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
    scan = data.BackgroundScan([source, source], reported.append)
    scan.wait(30)
    scan.close()
    assert len(reported) == 1 and len(reported[0].empty) == 1
    slow = Image.open
    monkeypatch.setattr(Image, "open", lambda path: time.sleep(0.05) or slow(path))
    scan = data.BackgroundScan([source], reported.append)
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
        session._scan(experiment)
    config.data.on_error = "skip"
    session._scan(Experiment.from_config(config)).close()
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


def test_classes_in_two_splits(tmp_path):
    for split in ("train", "test"):
        pictures(tmp_path / split, classes=3, images=2)
    config = config_files.load("own_images:scratch")
    config.data.path = str(tmp_path)
    found = inspect_data.inspected(config)
    assert found["shared_classes"] == {"train and test": ["class00", "class01", "class02"]}
    # The same noise was drawn for both.
    assert found["findings"][0].startswith("5 images stand in two classes or splits: ")
