"""The samplers: what a plan holds, what it depends on, and what it refuses."""

import os
import pathlib

import numpy as np
import pytest

from dml_jax import samplers

# Unbalanced, not starting at 0, not contiguous in the array, with singletons 50 and 60.
SIZES = {7: 9, 3: 4, 40: 2, 50: 1, 60: 1, -5: 6, 11: 3}
LABELS = np.random.default_rng(0).permutation(np.repeat(list(SIZES), list(SIZES.values())))


def shares_of_batch(plan, labels, m):
    """Each row as [classes, m] labels and positions."""
    positions = plan.reshape(len(plan), -1, m)
    return labels[positions], positions


def test_m_per_class_batches_hold_p_classes_of_m_images():
    plan = samplers.get("m_per_class", m=3, length=600).plan(LABELS, 12, seed=1, epoch=2)
    assert plan.shape == (50, 12)
    assert plan.dtype == np.int32
    labels, positions = shares_of_batch(plan, LABELS, 3)
    assert (labels == labels[:, :, :1]).all()
    for row_labels, row in zip(labels, positions, strict=True):
        assert len(set(row_labels[:, 0])) == 4
        for label, images in zip(row_labels[:, 0], row, strict=True):
            if SIZES[label] >= 3:
                assert len(set(images)) == 3
    # A class of two gives a repeated image (3 from 2), a singleton the same one three times.
    assert all(len(set(p)) == 1 for p in positions[labels[:, :, 0] == 50])


def test_small_classes_are_drawn_with_replacement_and_not_in_order():
    plan = samplers.get("m_per_class", m=4, length=4 * 500).plan(LABELS, 4, seed=0, epoch=0)
    pairs = plan[LABELS[plan[:, 0]] == 40]
    assert {len(set(p)) for p in pairs} == {1, 2}  # without replacement could only give 2


def test_classes_and_images_are_drawn_evenly():
    sampler = samplers.get("m_per_class", m=2, length=60_000)
    plan = sampler.plan(LABELS, 6, seed=3, epoch=0)
    labels, positions = shares_of_batch(plan, LABELS, 2)
    classes, counts = np.unique(labels[:, :, 0], return_counts=True)
    expected = 30_000 / len(SIZES)  # groups / classes, whatever their sizes
    np.testing.assert_allclose(counts, expected, rtol=0.06)
    for label, size in SIZES.items():
        drawn = positions[labels[:, :, 0] == label]
        ids, uses = np.unique(drawn, return_counts=True)
        assert len(ids) == size
        np.testing.assert_allclose(uses, drawn.size / size, rtol=0.15)
        if size > 2:  # every ordered pair, so that no image prefers a neighbour
            assert len({tuple(p) for p in drawn}) == size * (size - 1)
    assert len(classes) == len(SIZES)


def test_m_one_takes_any_image_of_a_class():
    plan = samplers.get("m_per_class", m=1, length=700).plan(LABELS, 7, seed=0, epoch=0)
    assert (np.sort(LABELS[plan], axis=1) == sorted(SIZES)).all()


def test_random_is_a_permutation_in_whole_batches():
    plan = samplers.get("random").plan(LABELS, 8, seed=0, epoch=0)
    assert plan.shape == (3, 8)  # 26 images: two wait
    assert len(np.unique(plan)) == 24
    longer = samplers.get("random", length=60).plan(LABELS, 8, seed=0, epoch=0)
    assert longer.shape == (7, 8)
    assert len(np.unique(longer.ravel()[:26])) == 26


@pytest.mark.parametrize("name", samplers.available())
def test_a_plan_is_pure_in_seed_and_epoch(name):
    def plan(seed, epoch):
        return samplers.get(name).plan(LABELS, 8, seed=seed, epoch=epoch)

    np.testing.assert_array_equal(plan(0, 1), plan(0, 1))
    assert (plan(0, 1) != plan(0, 0)).any()
    assert (plan(0, 1) != plan(1, 0)).any()  # fails for a generator keyed by seed + epoch
    assert (plan(2, 3) != plan(3, 2)).any()


def test_frozen_plans():
    """A change here changes the batches of every published run: only for a reason in the change log."""
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 3])
    got = samplers.get("m_per_class", m=2).plan(labels, 4, seed=5, epoch=7)
    np.testing.assert_array_equal(got, FROZEN_M_PER_CLASS)
    got = samplers.get("random").plan(labels, 4, seed=5, epoch=7)
    np.testing.assert_array_equal(got, FROZEN_RANDOM)


FROZEN_M_PER_CLASS = [[0, 2, 5, 6], [6, 5, 9, 9]]
FROZEN_RANDOM = [[7, 6, 3, 1], [4, 8, 0, 5]]


def test_notes():
    assert samplers.get("m_per_class", m=4).notes(LABELS) == [
        "4 of 7 classes have fewer than m=4 images; theirs are drawn with replacement"
    ]
    assert samplers.get("m_per_class", m=1).notes(LABELS) == []
    assert samplers.get("random").notes(LABELS) == []


@pytest.mark.parametrize(
    ("name", "hyper", "labels", "batch", "says"),
    [
        ("m_per_class", {"m": 4}, LABELS, 10, "batch_size=10 is not a multiple of m=4.*8 or 12"),
        ("m_per_class", {"m": 4}, LABELS, 2, "batch_size=2 is not a multiple of m=4.*4 or 8"),
        ("m_per_class", {"m": 2}, LABELS, 16, "needs 8 classes and the set has 7.*up to 14"),
        ("m_per_class", {"m": 2}, np.arange(9), 4, "each of the 9 classes has a single image"),
        ("m_per_class", {"m": 2}, LABELS[:3], 4, "no whole batch of batch_size=4"),
        ("m_per_class", {"m": 2}, LABELS[:0], 4, "is empty"),
        ("random", {}, LABELS, 27, "epoch of 26 images has no whole batch"),
        ("random", {}, LABELS, 0, "batch_size=0"),
        ("m_per_class", {"m": 2}, LABELS, 0, "batch_size=0"),
    ],
)
def test_refused_plans(name, hyper, labels, batch, says):
    with pytest.raises(ValueError, match=says) as error:
        samplers.get(name, **hyper).plan(labels, batch, seed=0, epoch=0)
    assert "\n" not in str(error.value)


def test_refused_names_and_values():
    with pytest.raises(
        ValueError, match=r"unknown sampler 'm_per_clas'; did you mean 'm_per_class'"
    ):
        samplers.get("m_per_clas")
    with pytest.raises(ValueError, match=r"unknown hyper-parameter.*'lenght'.*'length'"):
        samplers.get("random", lenght=3)
    with pytest.raises(ValueError, match="m=0"):
        samplers.get("m_per_class", m=0)
    with pytest.raises(ValueError, match="length=0"):
        samplers.get("random", length=0)
    with pytest.raises(ValueError, match="seed=-1 is negative"):
        samplers.get("random").plan(LABELS, 4, seed=-1, epoch=0)


def test_stanford_online_products():
    root = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"
    path = pathlib.Path(os.environ.get("DML_JAX_TEST_DATA", root)) / "splits/sop/Ebay_train.txt"
    if not path.exists():
        pytest.skip("no label list of SOP")
    labels = np.loadtxt(path, skiprows=1, usecols=1, dtype=np.int64)
    assert len(labels) == 59_551
    plan = samplers.get("m_per_class", m=4).plan(labels, 256, seed=0, epoch=0)
    assert plan.shape == (232, 256)
    groups = labels[plan].reshape(232, 64, 4)
    assert (groups == groups[:, :, :1]).all()
    assert all(len(np.unique(row)) == 64 for row in groups)
