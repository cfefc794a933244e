"""A run is bound to its images: what changes in them is one clear line, and a folder is one process's at a time."""

import fcntl

import numpy as np
import pytest

from dml_jax import UserError, config_files, data, run_folder
from dml_jax import config as configs
from dml_jax.data.base import ArrayReader, Images
from dml_jax.training import same_data
from dml_jax.training.experiment import Experiment
from dml_jax.training.loop import train
from tests.training.commands import pictures


def source(**classes):
    """Classes with so many images each, called as files below /photos are."""
    labels = np.repeat(np.arange(len(classes)), list(classes.values()))
    names = [f"/photos/{name}/{i}.png" for name, count in classes.items() for i in range(count)]
    return Images(
        labels, tuple(classes), names, ArrayReader(np.zeros((len(names), 2, 2, 1), np.uint8))
    )


def fingerprints(root="/photos", **classes):
    return data.fingerprint(source(**classes), root)


def test_a_fingerprint_is_that_of_the_names():
    before = fingerprints(a=2, b=1)
    assert {name: found["images"] for name, found in before.items()} == {"a": 2, "b": 1}
    moved = Images(
        np.array([1, 0, 0]),
        ("a", "b"),
        ["/else/b/0.png", "/else/a/1.png", "/else/a/0.png"],
        ArrayReader(np.zeros((3, 2, 2, 1), np.uint8)),
    )
    # Moved as a whole, and listed in another order.
    assert data.fingerprint(moved, "/else") == before
    assert data.fingerprint(moved) != before


@pytest.mark.parametrize(
    ("now", "line"),
    [
        (dict(a=2, b=1), ""),
        (dict(a=2), "class 'b' is gone"),
        (dict(a=2, c=1), "class 'b' is gone; class 'c' is new"),
        (dict(a=3, b=1), "class 'a' has 3 images in place of 2"),
        (dict(a=2, b=1, **{f"n{i}": 1 for i in range(7)}), "and 2 more"),
    ],
)
def test_differences(now, line):
    found = data.differences(fingerprints(a=2, b=1), fingerprints(**now))
    assert found == line or (line == "and 2 more" and found.endswith(f"class 'n4' is new; {line}"))


def test_other_names():
    before, now = fingerprints(a=2), fingerprints(root="", a=2)
    assert data.differences(before, now) == "images of class 'a' have other names"


def test_a_run_goes_on_with_the_images_that_it_began_with(tmp_path):
    assert same_data.check(tmp_path, {"train": fingerprints(a=1)}) == []  # an older run
    same_data.write(tmp_path, {"train": fingerprints(a=2, b=2), "val": fingerprints(c=2)})
    same = {"train": fingerprints(a=2, b=2), "val": fingerprints(c=2)}
    assert same_data.check(tmp_path, same) == []
    assert same_data.check(tmp_path, {**same, "val": fingerprints(c=3)}) == [
        "the images of val have changed since the run began: class 'c' has 3 images in place of 2"
    ]
    with pytest.raises(UserError, match="have changed since it began: class 'b' is gone; accepted"):
        same_data.check(tmp_path, {**same, "train": fingerprints(a=2)})


def test_classes_that_were_trained_on(tmp_path):
    """A class was removed, and the others were dealt anew: what is tested now was trained on."""
    config = {"data": {"path": "/photos"}}
    note = lambda split, **classes: same_data.trained_on(tmp_path, config, split, source(**classes))
    assert note("test", a=2) == ""
    same_data.write(tmp_path, {"train": fingerprints(a=2, b=2)})
    assert note("test", b=2, c=2, d=1) == (
        "1 of the 3 classes of test were trained on with these very images, 'b' among them: the data have changed "
        "since the training"
    )
    # Other images of the same class are a closed set, and the training split is what it is.
    assert note("test", b=3, c=2) == note("train", a=2) == ""


def test_a_folder_in_which_another_process_trains(tmp_path):
    def enter():
        with run_folder.locked(tmp_path):
            pass

    message = r"is in use: process \d+ of .*, since .* trains in it"
    with run_folder.locked(tmp_path), pytest.raises(UserError, match=message):
        enter()
    # A process that is gone holds nothing, whatever the file says.
    assert "process" in (tmp_path / ".lock").read_text()
    with run_folder.locked(tmp_path):
        pass


def test_a_folder_is_held_before_anything_is_loaded(tmp_path):
    """And one that was made for nothing is not left behind."""
    config = config_files.load("own_images:scratch")
    config.data.path = str(tmp_path / "nowhere")
    with (
        run_folder.held(tmp_path / "run"),
        pytest.raises(UserError, match="is in use: process"),
    ):
        train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="nowhere' does not exist"):
        train(config, str(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="nowhere' does not exist"):
        train(config, str(tmp_path / "run"))
    assert list((tmp_path / "run").iterdir()) == []


def test_a_relative_path_of_the_data_means_the_same_in_every_folder(tmp_path, monkeypatch):
    pictures(tmp_path / "photos", classes=5, images=2)
    (tmp_path / "elsewhere").mkdir()
    config = config_files.load("own_images:scratch")
    config.data.path = "photos"
    monkeypatch.chdir(tmp_path)
    begun = Experiment.from_config(config)
    assert config.data.path == "photos"  # the caller's own stays as it is
    assert begun.config["data"]["path"] == str(tmp_path / "photos")
    stored = configs.from_dict(begun.config)
    monkeypatch.chdir(tmp_path / "elsewhere")
    going_on = Experiment.from_config(stored)
    images = same_data.of_experiment(begun)
    assert same_data.of_experiment(going_on) == images
    # A run that an older version stored: what was compared then is what is compared now.
    monkeypatch.chdir(tmp_path)
    relative = data.load("folder", "train", path="photos", fractions=config.data.fractions)
    assert data.fingerprint(relative, "photos") == images["train"]


def test_a_path_that_is_none_of_files_is_stored_as_it_is():
    for path in ("owner/birds", "gs://bucket/birds", 3):
        config = configs.new()
        config.data = configs.data(name="some.module:birds", path=path)
        assert configs.located(config).data.path == path


def test_a_folder_that_nobody_may_write(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, how: False)  # root may write anywhere
    with pytest.raises(
        UserError, match=r"--out: nothing can be written in .*; a folder that can be"
    ):
        run_folder.create(tmp_path, "--out")
    # A file in such a folder may be one that can be written, as /dev/stdout is.
    assert run_folder.writable("/dev/null", "--json").name == "null"


def test_a_folder_in_which_nothing_can_be_written(tmp_path):
    (tmp_path / ".lock").mkdir()  # as root writes anywhere else
    message = (
        r"--workdir: nothing can be written in .* \(\.lock: Is a directory\); a folder that can"
    )
    with pytest.raises(UserError, match=message), run_folder.held(tmp_path):
        pass


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(file, how):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with run_folder.locked(tmp_path):
        pass
