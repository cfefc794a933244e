"""Augmentation against torchvision's (golden/make_augment.py), and what draws do."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from dml_jax.data import augment, randaugment

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "augment.npz")
KINDS = ("rgb", "grey")


def image(kind):
    return Image.fromarray(GOLDEN[f"image/{kind}"])


def rng(seed=0):
    return np.random.Generator(np.random.Philox(key=seed))


class Replay:
    """A generator that gives the draws that another one made."""

    def __init__(self, draws):
        self.draws = iter(draws)

    def uniform(self, low, high):
        return float(next(self.draws))

    def integers(self, low, high):
        return int(next(self.draws))


def test_all_operations_of_torchvision_are_here():
    theirs = {key.split("/")[1] for key in GOLDEN.files if key.startswith("op/")}
    assert set(randaugment.OPS) == theirs
    assert len(theirs) == 14


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", randaugment.OPS)
def test_operation_equals_torchvision(name, kind):
    operation, signed = randaugment.OPS[name]
    expected = GOLDEN[f"op/{name}/{kind}"]
    made = []
    for level in GOLDEN["levels"]:
        strength = randaugment.magnitude_of(name, int(level), 31, 24, 20)
        made += [operation(image(kind), s * strength) for s in ((1, -1) if signed else (1,))]
    assert len(made) == len(expected)
    for ours, theirs in zip(made, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), theirs)
    unchanged = name == "Identity" or (name == "Color" and kind == "grey")
    assert (expected[-1] == GOLDEN[f"image/{kind}"]).all() == unchanged  # the images tell


@pytest.mark.parametrize("size", [(24, 20), (331, 224), (97, 331)])
@pytest.mark.parametrize("name", randaugment.OPS)
def test_strengths_equal_torchvision(name, size):
    ours = [randaugment.magnitude_of(name, i, 31, *size) for i in range(31)]
    theirs = GOLDEN[f"strength/{name}/{size[0]}x{size[1]}"]
    if name == "Solarize":
        theirs = 255 * theirs
    np.testing.assert_array_equal(ours, theirs)


def test_rand_augment_draws_operations_and_signs_evenly():
    """Each op is replaced by one that notes its name and sign."""
    seen = []

    def noting(name):
        return lambda image, m: seen.append((name, np.sign(m))) or image

    table = {name: (noting(name), signed) for name, (_, signed) in randaugment.OPS.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(randaugment, "OPS", table)
        for i in range(500):
            randaugment.rand_augment(image("grey"), rng(i), num_ops=4)
    assert len(seen) == 2000
    for name, (_, signed) in randaugment.OPS.items():
        signs = [s for n, s in seen if n == name]
        assert abs(len(signs) - 2000 / 14) < 5 * np.sqrt(2000 / 14)
        assert len(set(signs)) == (2 if signed else 1), name


@pytest.mark.parametrize("case", range(len(GOLDEN["crop/cases"])))
def test_crop_box_equals_torchvision(case):
    """From the same draws the same box, fall-backs for extreme shapes included."""
    width, height, wide, *expected = GOLDEN["crop/cases"][case].tolist()
    scale = (0.3, 1.0) if wide else (0.08, 1.0)
    draws = GOLDEN["crop/draws"][case]
    draws = draws[~np.isnan(draws)]
    box = augment._draw_crop(width, height, Replay(draws), scale, (3 / 4, 4 / 3))
    assert list(box) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_geometry_equals_torchvision(kind):
    picture = image(kind)
    for size in (10, 40, [7, 19]):
        for name, function in (("resize", augment.resize), ("center_crop", augment.center_crop)):
            made = np.asarray(function(picture, rng(), size=size))
            np.testing.assert_array_equal(made, GOLDEN[f"{name}/{kind}/{size}"])
    np.testing.assert_array_equal(augment.flip(picture, rng(), p=1.0), GOLDEN[f"flip/{kind}"])
    np.testing.assert_array_equal(augment.flip(picture, rng(), p=0.0), picture)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augment, "_draw_crop", lambda *_: (5, 3, 17, 13))
        made = augment.random_resized_crop(picture, rng(), size=(9, 11))
    np.testing.assert_array_equal(made, GOLDEN[f"crop/{kind}"])


def test_chain_is_a_pure_function_of_image_and_generator():
    chain = augment.build(
        [
            {"name": "random_resized_crop", "size": 12, "scale": [0.3, 1.0]},
            {"name": "flip"},
            {"name": "rand_augment", "num_ops": 3},
        ]
    )
    for kind in KINDS:
        array = GOLDEN[f"image/{kind}"]
        array = array if array.ndim == 3 else array[..., None]
        before = array.copy()
        made = chain(array, rng(1))
        assert made.shape == (12, 12, array.shape[-1])
        assert made.dtype == np.uint8
        np.testing.assert_array_equal(made, chain(array, rng(1)))
        assert (made != chain(array, rng(2))).any()
        np.testing.assert_array_equal(array, before)


def test_chain_of_nothing_leaves_the_image():
    array = GOLDEN["image/rgb"]
    np.testing.assert_array_equal(augment.build([])(array, rng()), array)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ([{"name": "random_resize_crop", "size": 3}], "did you mean 'random_resized_crop'"),
        ([{"size": 3}], "has no 'name'; accepted: center_crop"),
        ([{"name": "resize"}], "needs a value for 'size'"),
        ([{"name": "flip", "prob": 0.5}], "unknown hyper-parameter of augmentation 'flip'"),
        ([{"name": "flip", "p": 1.5}], "p=1.5"),
        ([{"name": "resize", "size": 0}], "size=0"),
        ([{"name": "center_crop", "size": (1, 2, 3)}], r"size=\(1, 2, 3\)"),
        ([{"name": "random_resized_crop", "size": 9, "scale": (1.0, 0.3)}], r"scale=\(1.0, 0.3\)"),
        ([{"name": "rand_augment", "magnitude": 31}], "magnitude=31; 0 to 30 is accepted"),
        ([{"name": "rand_augment", "num_ops": -1}], "num_ops=-1"),
        ([{"name": "rand_augment", "num_magnitude_bins": 1}], "num_magnitude_bins=1"),
    ],
)
def test_refused(config, says):
    with pytest.raises(ValueError, match=says) as error:
        augment.build(config)
    assert "\n" not in str(error.value)
