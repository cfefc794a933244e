"""Operations on colours and further policies against torchvision's (golden/make_augment_colour.py)."""

import math
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from dml_jax import config_files
from dml_jax.data import augment
from dml_jax.data.augment import colour, operations, policies
from dml_jax.errors import UserError

FOLDER = pathlib.Path(__file__).parents[1] / "golden"
GOLDEN = np.load(FOLDER / "augment_colour.npz")
IMAGES = np.load(FOLDER / "augment.npz")
KINDS = ("rgb", "grey")


def image(kind):
    return Image.fromarray(IMAGES[f"image/{kind}"])


def rng(seed=0):
    return np.random.Generator(np.random.Philox(key=seed))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_colours_equal_torchvision(name, kind):
    made = [colour.adjusted(image(kind), name, f) for f in GOLDEN[f"factors/{name}"]]
    np.testing.assert_array_equal(np.stack(made), GOLDEN[f"{name}/{kind}"])
    stays = kind == "grey" and name in ("saturation", "hue")
    assert (GOLDEN[f"{name}/{kind}"][0] == IMAGES[f"image/{kind}"]).all() == stays


def test_grey_equals_torchvision():
    made = augment.grayscale(1.0)(image("rgb"), rng())
    np.testing.assert_array_equal(made, GOLDEN["grayscale/rgb"])
    assert augment.grayscale(0.0)(image("rgb"), rng()) == image("rgb")
    assert augment.grayscale(1.0)(image("grey"), rng()) == image("grey")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size, sigma", [(3, 0.1), (5, 1.0), (9, 2.0)])
def test_blur_equals_torchvision_up_to_rounding(kind, size, sigma):
    made = np.asarray(colour.blurred(image(kind), size, sigma), int)
    apart = np.abs(made - GOLDEN[f"blur/{kind}/{size}/{sigma}"])
    assert apart.max() <= 1 and (apart > 0).mean() < 0.02
    assert sigma < 0.5 or np.abs(made - np.asarray(image(kind), int)).max() > 10


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"])
def test_bilinear_operations_equal_torchvision(name, kind):
    operation, _ = operations.OPERATIONS[name]
    strengths = [operations.strength_of(name, int(i), 31, 24, 20) for i in IMAGES["levels"]]
    made = [
        operation(image(kind), sign * s, Image.Resampling.BILINEAR)
        for s in strengths
        for sign in (1, -1)
    ]
    np.testing.assert_array_equal(np.stack(made), GOLDEN[f"bilinear/{name}/{kind}"])


@pytest.mark.parametrize("kind", KINDS)
def test_nearest_scaling_equals_torchvision(kind):
    for size in (10, 40, [7, 19]):
        made = augment.resize(size, interpolation="nearest")(image(kind), rng())
        np.testing.assert_array_equal(made, GOLDEN[f"nearest/{kind}/{size}"])


@pytest.mark.parametrize("size", [(24, 20), (331, 224), (97, 331)])
@pytest.mark.parametrize("name", operations.OPERATIONS)
def test_strengths_of_the_policies_equal_torchvision(name, size):
    shape = f"{size[0]}x{size[1]}"
    wide = [policies.wide_strength_of(name, i, 31) for i in range(31)]
    mixed = [policies.mix_strength_of(name, i, *size) for i in range(10)]
    for ours, key in ((wide, f"wide/{name}/{shape}"), (mixed, f"mix/{name}/{shape}")):
        if key not in GOLDEN:
            assert (name, key[:3]) == ("Identity", "mix")
            continue
        theirs = GOLDEN[key]
        if name == "Solarize":
            # A share of 255, compared with whole numbers: in float64 for pictures, in float32 for tensors (AugMix).
            theirs = 255 * theirs if ours is wide else np.float32(255 * theirs)
            ours, theirs = np.ceil(ours), np.ceil(theirs)
        np.testing.assert_array_equal(ours, theirs)


def test_jitter_draws_factors_evenly_and_in_any_order(monkeypatch):
    seen = []
    monkeypatch.setattr(colour, "adjusted", lambda image, name, f: seen.append((name, f)) or image)
    jitter = augment.color_jitter(0.2, 1.5, 0.2, 0.1)
    for i in range(400):
        jitter(image("rgb"), rng(i))
    ranges = {
        "brightness": (0.8, 1.2),
        "contrast": (0, 2.5),
        "saturation": (0.8, 1.2),
        "hue": (-0.1, 0.1),
    }
    for name, (low, high) in ranges.items():
        drawn = [f for n, f in seen if n == name]
        assert len(drawn) == 400
        assert stats.kstest(drawn, stats.uniform(low, high - low).cdf).pvalue > 1e-3
    firsts = [seen[4 * i][0] for i in range(400)]
    assert all(firsts.count(name) > 60 for name in ranges)
    # What has no range is left alone, and draws nothing.
    seen.clear()
    augment.color_jitter(hue=0.1)(image("rgb"), rng())
    assert [name for name, _ in seen] == ["hue"]


def test_erased_rectangles():
    white = Image.new("L", (60, 40), 255)
    erase = augment.random_erasing(1.0, value=7)
    areas, ratios = [], []
    for i in range(300):
        rows, columns = np.nonzero(np.asarray(erase(white, rng(i))) == 7)
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert len(rows) == height * width
        areas.append(len(rows) / 2400)
        ratios.append(math.log(height / width))
    assert (
        min(areas) > 0.015
        and max(areas) < 0.34
        and np.mean(areas) == pytest.approx(0.165, abs=0.03)
    )
    assert min(ratios) > math.log(0.25) and max(ratios) < math.log(4) and abs(np.mean(ratios)) < 0.2
    kept = sum(
        np.asarray(augment.random_erasing(0.3)(white, rng(i))).min() == 255 for i in range(300)
    )
    assert abs(kept - 210) < 40
    noise = np.asarray(
        augment.random_erasing(1.0, value="random")(Image.new("RGB", (60, 40)), rng())
    )
    assert len(np.unique(noise)) > 50
    # Where no rectangle fits the image stays.
    assert augment.random_erasing(1.0, (0.9, 1.0), (3.0, 3.3))(white, rng()) == white


def test_random_crop_is_anywhere_and_whole():
    pixels = np.arange(30 * 40, dtype=np.uint16).reshape(30, 40) % 251
    picture = Image.fromarray(pixels.astype(np.uint8))
    crop = augment.random_crop((10, 12))
    corners = set()
    for i in range(400):
        part = np.asarray(crop(picture, rng(i)))
        assert part.shape == (10, 12)
        corners.add(int(part[0, 0]))
        top = next(
            t
            for t in range(21)
            for left in range(29)
            if (pixels[t : t + 10, left : left + 12] == part).all()
        )
        assert 0 <= top <= 20
    assert len(corners) > 150
    assert np.asarray(augment.random_crop(50)(picture, rng())).shape == (50, 50)


def test_trivial_augment_draws_everything_evenly(monkeypatch):
    seen = []
    noting = lambda name: lambda image, m, how: seen.append((name, m, how)) or image
    table = {name: (noting(name), signed) for name, (_, signed) in operations.OPERATIONS.items()}
    monkeypatch.setattr(policies, "OPERATIONS", table)
    for i in range(1400):
        augment.trivial_augment(interpolation="bilinear")(image("rgb"), rng(i))
    assert len(seen) == 1400 and {how for _, _, how in seen} == {Image.Resampling.BILINEAR}
    counts = [sum(n == name for n, _, _ in seen) for name in table]
    assert stats.chisquare(counts).pvalue > 1e-3
    rotations = {m for n, m, _ in seen if n == "Rotate"}
    assert max(rotations) > 100 and min(rotations) < -100


def test_aug_mix_is_a_mean_of_chains(monkeypatch):
    picture = image("rgb")
    mixed = np.asarray(augment.aug_mix()(picture, rng(3)), float)
    assert np.abs(mixed - np.asarray(picture, float)).max() > 0
    # Where every chain leaves the image as it is, so does the mixture, up to rounding down.
    same = {
        name: (lambda image, m, how: image, signed)
        for name, (_, signed) in operations.OPERATIONS.items()
    }
    monkeypatch.setattr(policies, "OPERATIONS", same)
    unchanged = np.asarray(picture, int) - np.asarray(
        augment.aug_mix(mixture_width=5)(picture, rng()), int
    )
    assert unchanged.min() >= 0 and unchanged.max() <= 1
    depths, names = [], set()
    noting = lambda name: lambda image, m, how: (depths.append(name), names.add(name), image)[2]
    table = {name: (noting(name), signed) for name, (_, signed) in operations.OPERATIONS.items()}
    monkeypatch.setattr(policies, "OPERATIONS", table)
    for i in range(200):
        augment.aug_mix(all_ops=False)(picture, rng(i))
    assert 3 * 200 < len(depths) < 3 * 3 * 200 and not names & {
        "Identity",
        "Brightness",
        "Color",
        "Contrast",
        "Sharpness",
    }
    depths.clear()
    augment.aug_mix(chain_depth=2, mixture_width=4)(picture, rng())
    assert len(depths) == 8


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: augment.color_jitter(hue=0.6), "hue of augmentation 'color_jitter' is 0.6"),
        (lambda: augment.gaussian_blur(4), "kernel_size .* 4; accepted: an odd number"),
        (lambda: augment.gaussian_blur(3, (2.0, 1.0)), "sigma .* ascending"),
        (lambda: augment.random_erasing(scale=(0.5, 1.5)), "scale .* at most 1"),
        (lambda: augment.random_erasing(value=300), "value .* 300; accepted: 0 to 255"),
        (lambda: augment.random_resized_crop(9, resampling="simd", interpolation="nearest"), "is bilinear"),
    ],
)  # fmt: skip
def test_what_is_refused(make, says):
    with pytest.raises(UserError, match=says):
        make()


def test_the_pipelines_of_both_papers():
    """`configs/common.py`: each is built, and ends at the size that it is asked for."""
    config_files.load("quickstart")  # its neighbours can be imported from then on
    (name,) = [n for n in sys.modules if n.startswith("_configs_") and n.endswith(".common")]
    common = sys.modules[name]
    for name, size in (("base", 224), ("adv", 224), ("red", 227), ("big", 256)):
        sections = common.icml2020(name, 224 if name == "big" else size)
        for steps in sections.values():
            assert np.asarray(
                augment.build(steps)(np.zeros((300, 280, 3), np.uint8), rng())
            ).shape == (size, size, 3)
    for steps in common.gmb2025(56).values():
        assert augment.build(steps)(np.zeros((300, 280, 3), np.uint8), rng()).shape == (56, 56, 3)
