"""The built-in letters: what is one class, what is an image, and how the drawn set is kept."""

import collections

import numpy as np
import pytest

from dml_jax import data
from dml_jax.data.datasets import glyphs
from dml_jax.errors import UserError


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache of the tests' own."""
    folder = tmp_path_factory.mktemp("glyphs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DML_JAX_CACHE", str(folder))
        yield folder


def class_of(character):
    found = [letter for letter in glyphs.letters() if character in letter.characters]
    assert len(found) == 1
    return found[0]


def test_letters_of_one_shape_are_one_class():
    capital = class_of("A")
    assert {"A", "Α", "А"} <= set(capital.characters)  # noqa: RUF001 (Latin, Greek, Cyrillic)
    assert "a" not in capital.characters
    assert {"o", "ο", "о"} <= set(class_of("o").characters)  # noqa: RUF001
    # Cyrillic te has the outline of m in two italic faces: another class, drawn in the other faces only.
    te, em = class_of("т"), class_of("m")
    assert te != em
    for letter in (te, em):
        faces = {face for face, _ in letter.glyphs}
        assert {"DejaVuSans", "DejaVuSerif"} <= faces
        assert not {"DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"} & faces


def test_classes_are_many_unbalanced_and_disjoint():
    letters = glyphs.letters()
    assert len(letters) > 1200
    every = "".join(letter.characters for letter in letters)
    assert len(set(every)) == len(every)
    sizes = collections.Counter(len(letter.glyphs) for letter in letters)
    assert min(sizes) >= 12
    assert len(sizes) >= 3
    assert not any("LastResort" in face for letter in letters for face, _ in letter.glyphs)
    shares = collections.Counter(glyphs._split_of(letter, 0) for letter in letters)
    for split, share in (("train", 0.5), ("val", 0.1), ("test", 0.4)):
        assert abs(shares[split] / len(letters) - share) < 0.04


def test_no_two_classes_look_the_same():
    """Drawn without jitter, no pair of classes is identical in a face."""
    letters = glyphs.letters()
    by_face = collections.defaultdict(list)
    for label, letter in enumerate(letters):
        for face, character in letter.glyphs:
            by_face[face].append((label, character))
    assert len(by_face) == 16
    for face, pairs in by_face.items():
        images = glyphs.render([(face, c) for _, c in pairs], size=32, seed=None)
        drawn = collections.defaultdict(set)
        for (label, _), image in zip(pairs, images, strict=True):
            assert image.max() > 100, "a blank image"
            drawn[image.tobytes()].add(label)
        assert max(map(len, drawn.values())) == 1
    # The check can fail: two characters that were merged do give one image.
    twins = glyphs.render([("DejaVuSans", c) for c in "AА"], size=32, seed=None)  # noqa: RUF001
    np.testing.assert_array_equal(twins[0], twins[1])


def test_source():
    train = data.load("glyphs", "train", classes=5)
    test = data.load("glyphs", "test", classes=5)
    assert isinstance(train, data.Source)
    assert train[0]["image"].shape == (32, 32, 1)
    assert train[0]["image"].dtype == np.uint8
    assert len(train.class_names) == 5
    assert set(train.labels) == set(range(5))
    assert not set(train.class_names) & set(test.class_names)
    assert train[3] == {"image": pytest.approx(train[3]["image"]), "label": 0, "id": 3}
    assert f"U+{ord(train.class_names[0]):04X}" in train.name(0)
    names = [train.name(i) for i in range(len(train))]
    assert len(set(names)) == len(names)


def test_images_are_jittered_kept_and_drawn_again_when_lost(cache):
    def load(**options):
        return np.stack([s["image"] for s in data.load("glyphs", "val", classes=2, **options)])

    first = load()
    files = {path: path.read_bytes() for path in cache.iterdir()}  # nothing half-written stays
    for path in files:
        path.write_bytes(b"cut off")
    np.testing.assert_array_equal(load(), first)
    assert {path: path.read_bytes() for path in cache.glob("*.npz")}.keys() <= files.keys()
    assert load(size=24).shape[1:] == (24, 24, 1)
    other = load(seed=1)
    assert other.shape != first.shape or (other != first).any()
    letter = class_of(data.load("glyphs", "val", classes=1).class_names[0])
    plain = glyphs.render(letter.glyphs, size=32, seed=None)
    assert all((a != b).any() for a, b in zip(plain, first, strict=False))


def test_cache_that_cannot_be_written(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DML_JAX_CACHE", str(tmp_path / "file" / "below"))
    assert len(data.load("glyphs", "val", classes=1)) >= 12
    assert "nothing kept in" in caplog.text


@pytest.mark.parametrize(
    ("split", "options", "says"),
    [
        (
            "valid",
            {},
            "split of data set 'glyphs' is 'valid'; accepted: 'train' or .*; did you mean 'val'",
        ),
        (
            "train",
            {"size": 4},
            "size of data set 'glyphs' is 4; accepted: a whole number of at least 8",
        ),
        ("train", {"size": 32.5}, "size of data set 'glyphs' is 32.5"),
        ("train", {"size": "32"}, "size of data set 'glyphs' is '32'"),
        ("train", {"size": None}, "size of data set 'glyphs' is None"),
        (
            "train",
            {"classes": 0},
            "classes of data set 'glyphs' is 0; accepted: .* at least 1 or None",
        ),
        ("train", {"classes": 2.5}, "classes of data set 'glyphs' is 2.5"),
        ("train", {"seed": -1}, "seed of data set 'glyphs' is -1"),
        ("train", {"seed": "one"}, "seed of data set 'glyphs' is 'one'"),
        (3, {}, "split of data set 'glyphs' is 3"),
        ("train", {"class": 2}, "did you mean 'classes'"),
    ],
)
def test_refused(split, options, says):
    with pytest.raises(UserError, match=says) as error:
        data.load("glyphs", split, **options)
    assert "\n" not in str(error.value)
