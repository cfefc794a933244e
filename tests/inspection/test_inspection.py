"""Copies and near copies that were put into splits are found, and nothing else."""

import json
import re

import numpy as np
import pytest
from PIL import Image, ImageOps

from dml_jax import command_line, data, inspect_data
from dml_jax.inspection import duplicates, hashes
from tests.report import browser


def scene(seed, size=(96, 80)):
    """A picture with structure: blurred noise in colours."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (10, 12, 3), np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path):
    """train: classes heron (5) and ibis (1); test: Heron. (3), which are herons, and jay (2)."""
    root = tmp_path / "photos"

    def put(name, picture, **how):
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        picture.save(place, **how)

    for i in range(5):
        put(f"train/heron/{i}.png", scene(i))
    put("train/ibis/0.png", scene(10))
    put("test/Heron_/same.png", scene(0))
    put("test/Heron_/smaller.jpg", scene(1).resize((48, 40)), quality=60)
    put("test/Heron_/mirrored.jpg", ImageOps.mirror(scene(2)), quality=80)
    put("test/jay/0.png", scene(20))
    put("test/jay/grey.png", Image.new("RGB", (96, 80), (120, 121, 120)))
    put("train/ibis/grey.png", Image.new("RGB", (96, 80), (120, 120, 121)))
    return root


def run(*arguments):
    try:
        command_line.run(inspect_data, list(arguments))
    except SystemExit as end:
        return end.code or 0
    return 0


def test_leaks_are_found_and_end_with_status_1(photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(f"--path={photos}", f"--out={out}") == 1
    said = capsys.readouterr()
    assert "1 stand in two classes or splits" in said.err
    found = json.loads((out / "inspect.json").read_text())
    pairs = {
        (p["one"].split("photos/")[1], p["other"].split("photos/")[1]): p for p in found["copies"]
    }
    assert {key: (p["exact"], p["mirrored"]) for key, p in pairs.items()} == {
        ("train/heron/0.png", "test/Heron_/same.png"): (True, False),
        ("train/heron/1.png", "test/Heron_/smaller.jpg"): (False, False),
        ("train/heron/2.png", "test/Heron_/mirrored.jpg"): (False, True),
    }
    assert "1 mirrored near copy in both train and test" in said.out
    assert ["train/heron", "test/Heron_", "100% of the images of one are in the other"] in found[
        "same_classes"
    ]
    assert [
        "train/heron",
        "test/Heron_",
        "the names are the same but for case and punctuation",
    ] in found["same_classes"]
    # Pictures of one colour are near to all others of one colour, which says nothing.
    assert found["flat"] == 2 and "2 images have too little structure" in said.out


def test_nothing_wrong_ends_with_status_0(photos, capsys):
    for name in ("same.png", "smaller.jpg", "mirrored.jpg"):
        (photos / "test" / "Heron_" / name).unlink()
    Image.new("RGB", (9, 9)).save(photos / "test" / "jay" / "other.png")
    assert run(f"--path={photos}") == 0
    said = capsys.readouterr().out
    assert "copies within" not in said and "copies in" not in said
    (photos / "test" / "jay" / "cut.jpg").write_bytes(
        (photos / "train" / "heron" / "0.png").read_bytes()[:900]
    )
    assert run(f"--path={photos}") == 1
    assert "1 images are missing or broken" in capsys.readouterr().err


def test_near_copies_are_a_matter_of_bits(photos):
    splits = {s: data.load("folder", s, path=photos) for s in ("train", "test")}
    found = {split: hashes.hashes_of(source, 2) for split, source in splits.items()}
    exact = duplicates.pairs_of(found, -1)
    assert [p.exact for p in exact] == [True]
    near = duplicates.pairs_of(found, 4)
    assert len(near) == 3 and all(p.bits <= 4 for p in near)
    # Each pair once, and as a double loop finds it.
    flat = [(s, i) for s, h in found.items() for i in range(len(h.near)) if not h.flat[i]]
    of = lambda place, name: int(getattr(found[place[0]], name)[place[1]])
    for radius in (0, 10, 24):
        expected = {
            frozenset((a, b))
            for a in flat
            for b in flat
            if a != b
            and min(
                (of(a, "near") ^ of(b, "near")).bit_count(),
                (of(a, "mirrored") ^ of(b, "near")).bit_count(),
            )
            <= radius
        }
        made = duplicates.pairs_of(found, radius)
        assert {frozenset((p.one, p.other)) for p in made} == expected | {
            frozenset((p.one, p.other)) for p in exact
        }
        assert len(made) == len({frozenset((p.one, p.other)) for p in made})


def test_hashes_hold_what_changes_leave():
    picture = np.asarray(scene(3))
    one = hashes.hash_of(picture)
    assert one.mirrored == hashes.hash_of(picture[:, ::-1]).near != one.near
    brighter = hashes.hash_of((picture * 0.8 + 20).astype(np.uint8))
    assert brighter.pixels != one.pixels and (brighter.near ^ one.near).bit_count() <= 2
    assert (hashes.hash_of(np.asarray(scene(4))).near ^ one.near).bit_count() > 16
    # Equal bytes of another shape are another picture.
    assert hashes.hash_of(picture.reshape(96, 80, 3)).pixels != one.pixels
    assert hashes.hash_of(np.full((9, 9, 1), 7, np.uint8)).flat


def test_the_page_is_one_file(photos, tmp_path):
    run(f"--path={photos}", f"--out={tmp_path / 'out'}")
    html = (tmp_path / "out" / "inspect.html").read_text()
    assert "In two splits" in html and "Images per class of train" in html
    assert not re.search(r"(src|href)=[\"']?https?:", html)
    if browser.found():
        with browser.opened(tmp_path / "profile") as page:
            page.open((tmp_path / "out" / "inspect.html").as_uri())
            assert page.complaints() == [] and page.run("document.images.length") >= 6
