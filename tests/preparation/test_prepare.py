"""`dml prepare`: the same bytes whatever stops it, nothing half-written taken for whole, and all that was there."""

import io
import json
import os
import pathlib
import pickle
import resource
import signal
import subprocess
import sys
import tarfile
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from dml_jax import UserError, command_line, csv_files, data, prepare
from dml_jax.data import prepared
from dml_jax.preparation import extract, write
from tests.training.commands import environment, pictures


def run(*arguments):
    """The command in this process; returns its error, or None."""
    try:
        command_line.run(prepare, list(arguments))
    except SystemExit as end:
        return end.code or 0
    return 0


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of three images, written in this process: others would not know of it."""

    class Pool:
        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def submit(self, function, job):
            from concurrent.futures import Future

            future = Future()
            try:
                future.set_result(function(job))
            except Exception as error:
                future.set_exception(error)
            return future

        def shutdown(self, **_):
            pass

    monkeypatch.setattr(write, "SHARD", 3)
    monkeypatch.setattr(write, "ProcessPoolExecutor", Pool)


@pytest.fixture
def photos(tmp_path):
    return pictures(tmp_path / "photos", classes=6, images=3)


def content(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_what_is_read_is_what_was_there(photos, tmp_path, small_shards, capsys):
    out = tmp_path / "packed"
    assert run("--dataset=folder:channels=1", f"--source={photos}", f"--data_dir={out}") == 0
    assert f"--config.data.path={out}" in capsys.readouterr().out
    assert json.loads((out / "about.json").read_text())["shards"] == [3, 3, 3, 3, 3, 1]
    for split in ("train", "val", "test", "all"):
        loose = data.load("folder", split, path=photos, channels=1)
        packed = pickle.loads(pickle.dumps(data.load("folder", split, path=out, channels=1)))
        assert packed.labels.tolist() == loose.labels.tolist()
        assert packed.class_names == loose.class_names
        for i in range(len(loose)):
            assert (packed[i]["image"] == loose[i]["image"]).all()
            assert packed.name(i) == str(out / pathlib.Path(loose.name(i)).relative_to(photos))
        # A run that began with the one goes on with the other.
        assert data.fingerprint(packed, out) == data.fingerprint(loose, photos)
    assert data.load("folder", "all", path=out)[0]["image"].shape == (16, 16, 1)
    assert data.load("folder", "all", path=out, channels=3)[0]["image"].shape == (16, 16, 3)


def test_options_that_were_prepared_are_checked(photos, tmp_path, small_shards):
    out = tmp_path / "packed"
    assert run("--dataset=folder:seed=3", f"--source={photos}", f"--data_dir={out}") == 0
    assert len(data.load("folder", "train", path=out, seed=3))
    with pytest.raises(UserError, match=r"data\.seed=4: .* was prepared with 3"):
        data.load("folder", "train", path=out, seed=4)
    with pytest.raises(UserError, match="prepared from 'folder'"):
        data.load("cub200", "train", path=out)
    with pytest.raises(UserError, match=r"unknown split .* 'trian'"):
        data.load("folder", "trian", path=out)
    with pytest.raises(UserError, match="sede"):
        data.load("folder", "train", path=out, sede=4)
    (out / "images-00002-of-00006.arrayrecord").unlink()
    with pytest.raises(UserError, match="lacks 1 of its 6 shards"):
        data.load("folder", "train", path=out)


def test_images_are_scaled_down_once_and_never_up(tmp_path, small_shards):
    for name, size, mode in (
        ("a/big", (300, 200), "RGB"),
        ("a/tall", (90, 400), "L"),
        ("b/small", (20, 30), "RGB"),
    ):
        place = tmp_path / "photos" / f"{name}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, 100 if mode == "L" else (200, 10, 10)).save(place)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (300, 200)).save(tmp_path / "photos" / "b" / "turned.jpg", exif=exif)
    out = tmp_path / "packed"
    run("--dataset=folder", f"--source={tmp_path / 'photos'}", f"--data_dir={out}", "--min_side=64")

    def shapes(**how):
        source = data.load("folder", "all", path=out, **how)
        return [source[i]["image"].shape[:2] for i in range(4)]

    assert shapes() == [(64, 96), (284, 64), (30, 20), (96, 64)]
    # The orientation is still a switch.
    assert shapes(exif=False)[3] == (64, 96)
    small = (tmp_path / "photos" / "b" / "small.png").read_bytes()
    assert data.load("folder", "all", path=out).read.encoded(2) == small


def test_images_that_cannot_be_decoded(photos, tmp_path, small_shards, capsys):
    broken = photos / "class02" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    out = tmp_path / "packed"
    assert run("--dataset=folder", f"--source={photos}", f"--data_dir={out}") == 1
    assert (
        "class02/1.png cannot be decoded" in (said := capsys.readouterr().err)
        and "--on_error=skip" in said
    )
    assert not prepared.is_prepared(out)
    with pytest.raises(UserError, match=r"images-.*|folder"):
        data.load("folder", "all", path=out)
    assert (
        run("--dataset=folder", f"--source={photos}", f"--data_dir={out}", "--on_error=skip") == 0
    )
    (row,) = csv_files.read_rows(out / "bad_images.csv")
    assert row["image"] == "class02/1.png" and row["why"]
    kept = data.load("folder", "all", path=out)
    assert len(kept) == 15 and all(kept[i]["image"].size for i in range(15))
    # Again: nothing to do, and the same said.
    before = content(out)
    assert (
        run("--dataset=folder", f"--source={photos}", f"--data_dir={out}", "--on_error=skip") == 0
    )
    assert "1 images cannot be decoded" in capsys.readouterr().out and content(out) == before


def test_killed_at_any_moment_it_ends_with_the_same_bytes(tmp_path):
    photos = tmp_path / "photos"
    rng = np.random.default_rng(0)
    for i in range(60):
        place = photos / f"class{i % 7}" / f"{i}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (300, 300, 3), np.uint8)).save(place)
    program = (
        "import sys, concurrent.futures as f; from dml_jax import command_line, prepare;"
        "from dml_jax.preparation import write; write.SHARD = 4;"
        "write.ProcessPoolExecutor = lambda *a, **k: f.ThreadPoolExecutor(1);"
        "command_line.run(prepare, sys.argv[1:])"
    )
    command = lambda out: [
        sys.executable, "-c", program, "--dataset=folder", f"--source={photos}", f"--data_dir={out}", "--min_side=200"
    ]  # fmt: skip
    begun = time.time()
    subprocess.run(command(tmp_path / "whole"), env=environment(), check=True, capture_output=True)
    took = time.time() - begun
    killed = 0
    for share in rng.uniform(0.3, 1.0, 10):
        process = subprocess.Popen(
            command(tmp_path / "killed"), env=environment(), stdout=subprocess.DEVNULL
        )
        try:
            process.wait(share * took)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
    assert killed >= 3
    subprocess.run(command(tmp_path / "killed"), env=environment(), check=True, capture_output=True)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_a_full_disk_is_one_line_and_leaves_nothing_whole(photos, tmp_path, small_shards, capsys):
    out = tmp_path / "packed"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        status = run("--dataset=folder", f"--source={photos}", f"--data_dir={out}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert status == 1 and not prepared.is_prepared(out)
    assert not list(out.glob("*.arrayrecord"))


def test_other_folders_and_sets_are_refused(photos, tmp_path, small_shards, capsys):

    def says(dataset, source, folder, *more):
        run(f"--dataset={dataset}", f"--source={source}", f"--data_dir={tmp_path / folder}", *more)
        return capsys.readouterr().err

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    assert "holds other files" in says("folder", photos, "full")
    assert not says("folder", photos, "packed")
    assert "min_side: None there, 9 now" in says("folder", photos, "packed", "--min_side=9")
    assert "is not Stanford Online Products" in says("sop", photos, "x")
    assert "did you mean 'cub200'" in says("cub20", photos, "x")
    assert "no files that could be packed" in says("glyphs", photos, "g")
    assert "--quality=0" in says("folder", photos, "x", "--quality=0")
    assert "there is no nowhere. Stanford" in says("sop", "nowhere", "x")
    run("--dataset=cub200")
    said = capsys.readouterr().err
    assert "CUB_200_2011.tgz (1,150,585,339 bytes, md5:" in said and "Licence: for research" in said


def tgz(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, value in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(value, bytes):
                info.size = len(value)
                tar.addfile(info, io.BytesIO(value))
            else:
                info.type, info.linkname = value
                tar.addfile(info)
    return path


SHOW = lambda done, total: None


@pytest.mark.parametrize(
    "members, says",
    [
        ({"a/1": b"x", "../out": b"x"}, "'../out', which would lie outside"),
        ({"/etc/out": b"x"}, "'/etc/out', which would lie outside"),
        ({"a": (tarfile.SYMTYPE, "/etc")}, "'a', which is a link or a device"),
        ({"b": b"x", "a": (tarfile.LNKTYPE, "b")}, "'a', which is a link or a device"),
        ({"null": (tarfile.CHRTYPE, "")}, "'null', which is a link or a device"),
        ({"bomb": bytes(1 << 20)}, "unpacks to more than"),
    ],
)  # fmt: skip
def test_archives_that_are_not_unpacked(members, says, tmp_path, monkeypatch):
    monkeypatch.setattr(extract, "SPARE", 1000)
    out = tmp_path / "out" / "unpacked"
    with pytest.raises(UserError, match=says):
        extract.unpack([tgz(tmp_path / "a.tgz", members)], out, SHOW)
    assert not list((tmp_path / "out").iterdir()) and not (tmp_path / "out" / "out").exists()


def test_zip_files_are_trusted_no_more(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("a")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc")
    with pytest.raises(UserError, match="a link or a device"):
        extract.unpack([path], tmp_path / "out", SHOW)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../out", "x")
    with pytest.raises(UserError, match="would lie outside"):
        extract.unpack([path], tmp_path / "out", SHOW)


def test_an_archive_that_is_cut_off(tmp_path):
    path = tgz(tmp_path / "a.tgz", {"a/1": os.urandom(100_000), "a/2": os.urandom(100_000)})
    path.write_bytes(path.read_bytes()[:120_000])
    with pytest.raises(UserError, match=r"a\.tgz is cut off or damaged"):
        extract.unpack([path], tmp_path / "out", SHOW)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.part").exists()


def test_a_published_archive_from_its_file(tmp_path, small_shards, capsys):
    """CUB as its authors pack it: unpacked, packed, and read by its name."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    root = "CUB_200_2011"
    members = {f"{root}/images/{n}.jpg": file.getvalue() for n in ("001.A/a", "101.B/b")}
    members[f"{root}/images.txt"] = b"1 001.A/a.jpg\n2 101.B/b.jpg\n"
    members[f"{root}/image_class_labels.txt"] = b"1 1\n2 101\n"
    path = tgz(tmp_path / "CUB_200_2011.tgz", members)
    for source in (path, tmp_path):
        out = tmp_path / f"packed_{source.name}"
        assert run("--dataset=cub200:counts=False", f"--source={source}", f"--data_dir={out}") == 0
        found = data.load("cub200", "test", path=out)
        assert found.class_names == ("101.B",) and found[0]["image"].shape == (8, 8, 3)
    assert run("--dataset=cub200", f"--source={path}", f"--data_dir={tmp_path / 'y'}") == 1
    assert "published are 5,864 of 100" in capsys.readouterr().err
