"""Augmentation against torchvision's (golden/make_augment.py), and what draws do."""

import inspect
import itertools
import pathlib
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from dml_jax.data import augment
from dml_jax.data.augment import geometry, operations, policies
from dml_jax.errors import UserError

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "augment.npz")
KINDS = ("rgb", "grey")
NEAREST = Image.Resampling.NEAREST


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
    assert set(operations.OPERATIONS) == theirs
    assert len(theirs) == 14


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", operations.OPERATIONS)
def test_operation_equals_torchvision(name, kind):
    operation, signed = operations.OPERATIONS[name]
    expected = GOLDEN[f"op/{name}/{kind}"]
    made = []
    for level in GOLDEN["levels"]:
        strength = operations.strength_of(name, int(level), 31, 24, 20)
        made += [
            operation(image(kind), s * strength, NEAREST) for s in ((1, -1) if signed else (1,))
        ]
    assert len(made) == len(expected)
    for ours, theirs in zip(made, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), theirs)
    unchanged = name == "Identity" or (name == "Color" and kind == "grey")
    assert (expected[-1] == GOLDEN[f"image/{kind}"]).all() == unchanged  # the images tell


@pytest.mark.parametrize("size", [(24, 20), (331, 224), (97, 331)])
@pytest.mark.parametrize("name", operations.OPERATIONS)
def test_strengths_equal_torchvision(name, size):
    ours = [operations.strength_of(name, i, 31, *size) for i in range(31)]
    theirs = GOLDEN[f"strength/{name}/{size[0]}x{size[1]}"]
    if name == "Solarize":
        theirs = 255 * theirs
    np.testing.assert_array_equal(ours, theirs)


def test_rand_augment_draws_operations_and_signs_evenly():
    """Each op is replaced by one that notes its name and sign."""
    seen = []

    def noting(name):
        return lambda image, m, how: seen.append((name, np.sign(m))) or image

    table = {name: (noting(name), signed) for name, (_, signed) in operations.OPERATIONS.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policies, "OPERATIONS", table)
        for i in range(500):
            policies.rand_augment(num_ops=4)(image("grey"), rng(i))
    assert len(seen) == 2000
    for name, (_, signed) in operations.OPERATIONS.items():
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
    box = geometry._draw_crop(width, height, Replay(draws), scale, (3 / 4, 4 / 3))
    assert list(box) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_geometry_equals_torchvision(kind):
    picture = image(kind)
    for size in (10, 40, [7, 19]):
        for name, function in (("resize", augment.resize), ("center_crop", augment.center_crop)):
            made = np.asarray(function(size)(picture, rng()))
            np.testing.assert_array_equal(made, GOLDEN[f"{name}/{kind}/{size}"])
    np.testing.assert_array_equal(augment.flip(1.0)(picture, rng()), GOLDEN[f"flip/{kind}"])
    np.testing.assert_array_equal(augment.flip(0.0)(picture, rng()), picture)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geometry, "_draw_crop", lambda *_: (5, 3, 17, 13))
        made = augment.random_resized_crop((9, 11))(picture, rng())
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


def test_augmentations_are_made_by_name_and_compare_by_what_they_hold():
    for name in augment.available():
        hyper = {"size": 9} if "size" in inspect.signature(augment.TABLE[name]).parameters else {}
        one, other = augment.get(name, **hyper), augment.TABLE[name](**hyper)
        assert one == other and hash(one) == hash(other) and isinstance(one, augment.Augmentation)
        assert pickle.loads(pickle.dumps(one)) == one
    assert augment.flip(0.2) != augment.flip(0.3)
    steps = [{"name": "resize", "size": [7, 19]}, "flip"]
    chain = augment.build(steps)
    assert chain == augment.build([augment.resize((7, 19)), ConfigDict({"name": "flip"})])
    assert hash(chain) == hash(augment.build(steps))


def test_an_augmentation_of_the_users_own(documented_module):
    module = documented_module(augment.__doc__)
    name = "my_package.my_module:Invert"
    chain = augment.build([{"name": name, "p": 1.0}, {"name": "flip", "p": 0.0}])
    array = GOLDEN["image/rgb"]
    np.testing.assert_array_equal(chain(array, rng()), 255 - array)
    assert chain.steps[0] == module.Invert(1.0) == pickle.loads(pickle.dumps(chain)).steps[0]
    with pytest.raises(UserError, match="did you mean 'Invert'"):
        augment.get("my_package.my_module:Invertt")
    with pytest.raises(
        UserError, match=r"p of augmentation 'my_package.my_module:Invert' is 'half'"
    ):
        augment.get(name, p="half")
    with pytest.raises(
        UserError, match=r"hyper-parameter of .*Invert': 'q'; did you mean 'p'|accepted"
    ):
        augment.get(name, q=0.5)
    module.three = lambda: 3
    with pytest.raises(UserError, match="returned 3; accepted: a function that returns"):
        augment.get("my_package.my_module:three")


REFUSED = [
    ({"name": "random_resize_crop", "size": 3}, "did you mean 'random_resized_crop'"),
    ({"size": 3}, "has no 'name'; accepted: aug_mix, center_crop"),
    (None, "None has no 'name'"),
    (3, "3 has no 'name'"),
    ({"name": "resize"}, "needs a value for 'size'"),
    ({"name": "flip", "prob": 0.5}, "unknown hyper-parameter of augmentation 'flip'"),
    ({"name": "flip", "p": 1.5}, "p of augmentation 'flip' is 1.5; accepted: .* at most 1"),
    ({"name": "flip", "p": -0.1}, "p of augmentation 'flip' is -0.1"),
    ({"name": "flip", "p": "half"}, "p of augmentation 'flip' is 'half'"),
    ({"name": "flip", "p": None}, "p of augmentation 'flip' is None"),
    ({"name": "flip", "p": float("nan")}, "p of augmentation 'flip' is nan"),
    ({"name": "resize", "size": 0}, "size of augmentation 'resize' is 0"),
    ({"name": "resize", "size": 2.5}, "size of augmentation 'resize' is 2.5"),
    ({"name": "resize", "size": "32"}, "size of augmentation 'resize' is '32'"),
    ({"name": "resize", "size": True}, "size of augmentation 'resize' is True"),
    ({"name": "center_crop", "size": (1, 2, 3)}, r"size .* is \(1, 2, 3\)"),
    ({"name": "center_crop", "size": (1, 0)}, r"size .* is \(1, 0\)"),
    ({"name": "random_resized_crop", "size": -9}, "size .* is -9"),
    (
        {"name": "random_resized_crop", "size": 9, "scale": (1.0, 0.3)},
        r"scale .* is \(1.0, 0.3\); accepted: two ascending numbers",
    ),
    ({"name": "random_resized_crop", "size": 9, "scale": 0.3}, "scale .* is 0.3; .* sequence of 2"),
    ({"name": "random_resized_crop", "size": 9, "scale": (0, 1)}, r"scale .* is \(0, 1\)"),
    ({"name": "random_resized_crop", "size": 9, "ratio": (2, 1)}, r"ratio .* is \(2, 1\)"),
    ({"name": "random_resized_crop", "size": 9, "ratio": (-1, 1)}, r"ratio .* is \(-1, 1\)"),
    ({"name": "random_resized_crop", "size": 9, "ratio": "wide"}, "ratio .* is 'wide'"),
    ({"name": "rand_augment", "magnitude": 31}, "magnitude .* is 31; accepted: 0 to 30"),
    ({"name": "rand_augment", "magnitude": -1}, "magnitude .* is -1"),
    ({"name": "rand_augment", "magnitude": 9.5}, "magnitude .* is 9.5"),
    ({"name": "rand_augment", "num_ops": -1}, "num_ops .* is -1"),
    ({"name": "rand_augment", "num_ops": 2.5}, "num_ops .* is 2.5"),
    ({"name": "rand_augment", "num_magnitude_bins": 1}, "num_magnitude_bins .* is 1; .* least 2"),
]


@pytest.mark.parametrize(("item", "says"), REFUSED)
def test_refused(item, says):
    with pytest.raises(UserError, match=says) as error:
        augment.build([item])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_crop_cut_out_of_the_array_is_that_of_the_picture(kind):
    """The chain cuts arrays, and gives what the steps give one after the other for a Pillow image."""
    steps = ({"name": "random_resized_crop", "size": (9, 11)}, {"name": "flip"})
    chain, picture = augment.build(steps), image(kind)
    array = GOLDEN[f"image/{kind}"]
    array = array[..., None] if kind == "grey" else array
    array.flags.writeable = False
    for seed in range(20):
        ours, theirs = picture, rng(seed)
        for step in chain.steps:
            ours = step(ours, theirs)
        made = chain(array, rng(seed))
        assert made.shape == (9, 11, array.shape[-1])
        np.testing.assert_array_equal(made.squeeze(), np.asarray(ours))
        assert (made != chain(array, rng(seed + 100))).any()


def test_simd_resampling():
    """The same part by the same filter, within two levels, from any number of threads."""
    pytest.importorskip("cykooz_resizer")
    noise = np.random.default_rng(0).integers(0, 256, (97, 120, 3), dtype=np.uint8)
    # Both smaller and larger than the part that is cut out.
    for size, array in itertools.product((24, (130, 150)), (noise, noise[..., :1])):
        crop = {"name": "random_resized_crop", "size": size}
        ours = augment.build([crop | {"resampling": "simd"}, "flip"])
        pillows = augment.build([crop, "flip"])
        arrays, generators = [array] * 12, [rng(i) for i in range(12)]
        with ThreadPoolExecutor(4) as pool:
            made = np.stack(list(pool.map(ours, arrays, generators))).astype(int)
        wanted = np.stack([pillows(array, rng(i)) for i in range(12)])
        apart = np.abs(made - wanted)
        assert apart.max() <= 2 and 0 < (apart > 0).mean() < 0.4
        assert np.abs(np.roll(made, 1, 0) - wanted).mean() > 5
    assert pickle.loads(pickle.dumps(ours)) == ours != pillows


def test_simd_resampling_without_its_package(monkeypatch):
    monkeypatch.setattr(geometry, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"needs the package cykooz.resizer \(pip install dml_jax\[simd\]\)"
    ):
        augment.random_resized_crop(9, resampling="simd")
    augment.random_resized_crop(9)
