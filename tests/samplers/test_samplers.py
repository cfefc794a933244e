"""The samplers: what a plan holds, what it depends on, and what it refuses."""

import hashlib

import numpy as np
import pytest

from dml_jax import data, samplers
from dml_jax.data.base import ArrayReader
from tests.samplers.common import HYPER, plan_of

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


@pytest.mark.parametrize("name", HYPER)
def test_a_plan_is_pure_in_seed_and_epoch(name):
    def plan(seed, epoch):
        return plan_of(name, LABELS, seed=seed, epoch=epoch)

    first = plan(0, 1)
    assert first.dtype == np.int32 and first.flags.c_contiguous
    assert set(first.ravel()) <= set(range(len(LABELS)))
    np.testing.assert_array_equal(first, plan(0, 1))
    if name == "sequential":
        np.testing.assert_array_equal(first, plan(2, 3))
        return
    assert (first != plan(0, 0)).any()
    assert (first != plan(1, 0)).any()  # fails for a generator keyed by seed + epoch
    assert (plan(2, 3) != plan(3, 2)).any()


@pytest.mark.parametrize("name", HYPER)
def test_only_which_labels_are_equal_matters(name):
    # Gaps in the numbers are classes without images: they are never drawn, and change nothing.
    renamed = np.searchsorted(sorted(SIZES), LABELS) * 1_000_003 + 17
    np.testing.assert_array_equal(
        plan_of(name, renamed, seed=0, epoch=0), plan_of(name, LABELS, seed=0, epoch=0)
    )


def test_every_sampler_is_tested():
    assert {name.split("-")[0] for name in HYPER} == set(samplers.available())


def test_sequential():
    sampler = samplers.get("sequential")
    np.testing.assert_array_equal(
        sampler.plan(LABELS, 8, seed=3, epoch=1), np.arange(24).reshape(3, 8)
    )
    longer = samplers.get("sequential", length=60).plan(LABELS, 8, seed=0, epoch=0)
    np.testing.assert_array_equal(longer.ravel(), np.arange(56) % 26)


@pytest.mark.parametrize(("m", "batch"), [(1, 7), (2, 4), (2, 6), (3, 6), (4, 28), (4, 4)])
def test_cover_shows_every_image_in_batches_of_different_classes(m, batch):
    sampler = samplers.get("m_per_class", m=m, cover=True)
    plan = sampler.plan(LABELS, batch, seed=1, epoch=0)
    assert len(plan) == sampler.steps(LABELS, batch)
    # Enough for all groups of m, and for the largest class (9 images) to be in different batches.
    groups = sum(-(-n // m) for n in SIZES.values())
    assert len(plan) == max(-(-groups // (batch // m)), -(-9 // m))
    labels, positions = shares_of_batch(plan, LABELS, m)
    assert (labels == labels[:, :, :1]).all()
    assert all(len(set(row)) == batch // m for row in labels[:, :, 0])
    images, uses = np.unique(plan, return_counts=True)
    assert len(images) == len(LABELS)
    for label, size in SIZES.items():
        of_class = uses[LABELS[images] == label]
        assert of_class.max() - of_class.min() <= 1
        for row in positions[labels[:, :, 0] == label]:
            assert len(set(row)) == min(size, m)


def test_cover_mixes_classes_and_images():
    sampler = samplers.get("m_per_class", m=2, cover=True)
    labels = np.repeat(np.arange(6), 4)
    plans = np.stack([sampler.plan(labels, 6, seed=0, epoch=e) for e in range(400)])
    pairs = plans.reshape(-1, 2)
    together = {tuple(sorted(p)) for p in pairs if labels[p[0]] == 0}
    assert len(together) == 6  # all pairs of four images
    mates = labels[plans[:, :, ::2]].reshape(-1, 3)
    met = {tuple(sorted(row)) for row in mates}
    assert len(met) == 20  # all triples of six classes


def test_class_random_draws_with_replacement():
    count, groups = 30, 20
    labels = np.repeat(np.arange(count), 3)
    plan = samplers.get("class_random", m=2, length=40 * 1000).plan(labels, 40, seed=0, epoch=0)
    classes, positions = shares_of_batch(plan, labels, 2)
    assert (classes == classes[:, :, :1]).all()
    different = np.array([len(set(row)) for row in classes[:, :, 0]])
    # The published system's: C (1 - (1 - 1/C)^g) of g draws are expected to differ (here 14.77; standard error 0.04).
    assert abs(different.mean() - count * (1 - (1 - 1 / count) ** groups)) < 0.16
    assert different.min() < different.max() < groups
    same = (positions[:, :, 0] == positions[:, :, 1]).mean()
    assert abs(same - 1 / 3) < 0.015


def test_full_random_gives_the_last_image_a_positive():
    plan = samplers.get("full_random", length=5 * 6000).plan(LABELS, 5, seed=0, epoch=0)
    free, last = LABELS[plan[:, :-1]], LABELS[plan[:, -1]]
    assert (free == last[:, None]).any(1).all()
    for label in SIZES:  # classes evenly, whatever their sizes
        assert abs((free == label).mean() - 1 / 7) < 0.012
    # Not the partner again: an image of its class.
    nine = plan[last == 7, -1]
    np.testing.assert_allclose(np.unique(nine, return_counts=True)[1] * 9 / len(nine), 1, atol=0.3)


def test_hierarchical():
    # Parent 0 has one class, 1 has two, 2 has four.
    parent_of = {7: 0, 3: 1, 40: 1, 50: 2, 60: 2, -5: 2, 11: 2}
    parents = np.vectorize(parent_of.get)(LABELS) + 5
    sampler = samplers.get(
        "hierarchical", samples_per_class=2, batches_per_super_tuple=3, length=8 * 600
    )
    plan = sampler.plan(LABELS, 8, seed=0, epoch=0, parents=parents)
    assert plan.shape == (600, 8)
    halves = parents[plan].reshape(600, 2, 4)
    assert (halves == halves[:, :, :1]).all() and (halves[:, 0, 0] != halves[:, 1, 0]).all()
    pairs, counts = np.unique(np.sort(halves[:, :, 0], axis=1), axis=0, return_counts=True)
    assert len(pairs) == 3 and (counts % 3 == 0).all()
    assert (np.abs(counts - 200) < 60).all()
    classes = LABELS[plan].reshape(600, 2, 2, 2)
    assert (classes == classes[..., :1]).all()
    different = classes[:, :, 0, 0] != classes[:, :, 1, 0]
    # Two of two or four classes are different, and a parent's only class comes twice.
    np.testing.assert_array_equal(different, halves[:, :, 0] != 5)
    assert sampler.notes(LABELS, 8, parents=parents) == [
        "2 of 7 classes have fewer than m=2 images; theirs are drawn with replacement",
        "1 of 3 parent classes have fewer than 2 classes; theirs are in a batch more than once",
    ]


def test_fixed_set_of_triplets():
    sampler = samplers.get("fixed_set_of_triplets", num_triplets=50)
    epochs = [sampler.plan(LABELS, 15, seed=4, epoch=e).reshape(-1, 3) for e in range(2)]
    assert epochs[0].shape == (50, 3)
    assert sorted(map(tuple, epochs[0])) == sorted(map(tuple, epochs[1]))
    assert (epochs[0] != epochs[1]).any()
    other = sampler.plan(LABELS, 15, seed=5, epoch=0).reshape(-1, 3)
    assert sorted(map(tuple, other)) != sorted(map(tuple, epochs[0]))
    many = samplers.get("fixed_set_of_triplets", num_triplets=20_000)
    anchor, positive, negative = many.plan(LABELS, 3, seed=0, epoch=0).T
    assert (anchor != positive).all() and (LABELS[anchor] == LABELS[positive]).all()
    assert (LABELS[anchor] != LABELS[negative]).all()
    shares = [(LABELS[anchor] == label).mean() for label in SIZES]
    np.testing.assert_allclose(shares, [0.2, 0.2, 0.2, 0, 0, 0.2, 0.2], atol=0.015)


@pytest.mark.parametrize("name", ["m_per_class-cover", "hierarchical", "greedy_coreset"])
def test_processes_read_their_columns_of_one_plan(name):
    source = data.Images(
        np.searchsorted(sorted(SIZES), LABELS),
        tuple(map(str, sorted(SIZES))),
        [str(i) for i in range(len(LABELS))],
        ArrayReader(np.zeros((len(LABELS), 1, 1, 1), np.uint8)),
    )
    plan = plan_of(name, LABELS, seed=0, epoch=0)
    parts = []
    for process in range(4):
        batches = data.train_batches(
            source, plan, transform=None, seed=0, epoch=0, process_index=process, process_count=4
        )
        parts.append(np.stack([batch["id"] for batch in batches]))
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), plan)


def test_frozen_plans():
    """A change here changes the batches of every published run: only for a reason in the change log."""
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 3])
    got = samplers.get("m_per_class", m=2).plan(labels, 4, seed=5, epoch=7)
    np.testing.assert_array_equal(got, FROZEN_M_PER_CLASS)
    got = samplers.get("random").plan(labels, 4, seed=5, epoch=7)
    np.testing.assert_array_equal(got, FROZEN_RANDOM)


FROZEN_DIGESTS = {
    "m_per_class": "639bc65a0d9d8ece",
    "m_per_class-cover": "e53eaf315f444864",
    "class_random": "5c1eced5e43b8cb7",
    "full_random": "823866b5c06cc6f4",
    "random": "c67d9f6c8c121567",
    "sequential": "044b5fec4e69b025",
    "hierarchical": "f133faea3eb2127f",
    "fixed_set_of_triplets": "cd04bedceae1cfe0",
    "greedy_coreset": "d8f98ed5bd2fbd4e",
    "disthist_batchmatch": "4fb10a0ae47ecfa6",
    "hard_classes": "b2e646c383d6dda7",
}


@pytest.mark.parametrize("name", FROZEN_DIGESTS)
def test_frozen_plans_of_all_samplers(name):
    """Three epochs of each; the samplers that are not here draw what rounding on another host may change."""
    plans = [plan_of(name, LABELS, seed=s, epoch=e) for s, e in ((0, 0), (0, 1), (3, 2))]
    assert hashlib.sha256(np.stack(plans).tobytes()).hexdigest()[:16] == FROZEN_DIGESTS[name]


FROZEN_M_PER_CLASS = [[0, 2, 5, 6], [6, 5, 9, 9]]
FROZEN_RANDOM = [[7, 6, 3, 1], [4, 8, 0, 5]]


def test_notes():
    small = "4 of 7 classes have fewer than m=4 images; theirs are drawn with replacement"
    for name in ("m_per_class", "class_random", "greedy_coreset", "fid_batchmatch", "hard_classes"):
        assert samplers.get(name, m=4).notes(LABELS, 8) == [small]
        assert samplers.get(name, m=1).notes(LABELS, 8) == []
    assert samplers.get("m_per_class", m=4, cover=True).notes(LABELS, 8) == [
        small,
        # Groups of four: 3 + 1 + 1 + 1 + 1 + 2 + 1, two in a batch.
        "an epoch that covers the set has 5 batches, 40 images, and 14 of these for the second time or more",
    ]
    assert samplers.get("fixed_set_of_triplets").notes(LABELS, 6) == [
        "2 classes have a single image; they only give negatives"
    ]
    for name in ("random", "sequential", "full_random"):
        assert samplers.get(name).notes(LABELS, 8) == []


@pytest.mark.parametrize(
    ("name", "hyper", "labels", "batch", "says"),
    [
        ("m_per_class", {"m": 4}, LABELS, 10, "batch_size=10 is not a multiple of m=4.*8 or 12"),
        ("m_per_class", {"m": 4}, LABELS, 2, "batch_size=2 is not a multiple of m=4.*4 or 8"),
        (
            "m_per_class",
            {"m": 2},
            LABELS,
            16,
            "needs 8 classes and the set has 7; .* 14 or less .*batch_size=14",
        ),
        ("m_per_class", {"m": 2}, np.arange(9), 4, "each of the 9 classes has a single image"),
        ("m_per_class", {"m": 2}, np.array([0, 0, 1]), 4, "no whole batch of batch_size=4"),
        ("m_per_class", {"m": 2}, LABELS[:0], 4, "is empty"),
        ("random", {}, LABELS, 27, "epoch of 26 images has no whole batch"),
        ("random", {}, LABELS, 0, "batch_size is 0; accepted: a whole number of at least 1"),
        (
            "m_per_class",
            {"m": 2},
            LABELS,
            0,
            "batch_size is 0; accepted: a whole number of at least 1",
        ),
        ("m_per_class", {"m": 2, "cover": True}, LABELS, 16, "needs 8 classes and the set has 7"),
        ("class_random", {"m": 2}, LABELS, 9, "batch_size=9 is not a multiple of m=2.*8 or 10"),
        ("class_random", {"m": 2}, np.arange(9), 4, "each of the 9 classes has a single image"),
        ("full_random", {}, LABELS, 1, "batch_size=1 has no place for two"),
        ("full_random", {}, np.arange(9), 4, "each of the 9 classes has a single image"),
        ("fixed_set_of_triplets", {}, LABELS, 8, "batch_size=8 is not a multiple of 3.*6 or 9"),
        ("fixed_set_of_triplets", {}, np.zeros(9, int), 3, "the set has 1 of at most 9"),
        ("hierarchical", {}, LABELS, 9, "batch_size=9 is not a multiple of super_classes_per"),
        ("hierarchical", {}, LABELS, 12, "times m=4 images per class; 8 or 16"),
        (
            "hierarchical",
            {},
            LABELS,
            8,
            "sampler 'hierarchical' needs parents of each of the 26.*are none",
        ),
        ("greedy_coreset", {"m": 2}, LABELS, 9, "batch_size=9 is not a multiple of m=2"),
        (
            "greedy_coreset",
            {"m": 2},
            LABELS,
            8,
            "'greedy_coreset' needs embeddings of each of the 26",
        ),
        ("d2_coreset", {"big_batch": 3}, LABELS, 8, r"with 4 different images.*3 to choose.*to 6"),
        ("fid_batchmatch", {"m": 2}, np.arange(9), 4, "each of the 9 classes has a single image"),
        ("hard_classes", {"m": 2}, LABELS, 16, "needs 8 classes and the set has 7"),
        ("tuples_to_weights", {"miner": "batch_hard", "subset": 27}, LABELS, 4, "subset=27 of a"),
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
    with pytest.raises(
        ValueError, match="m of sampler 'm_per_class' is 0; accepted: a whole number of at least 1"
    ):
        samplers.get("m_per_class", m=0)
    with pytest.raises(ValueError, match="length of sampler 'random' is 0"):
        samplers.get("random", length=0)
    with pytest.raises(ValueError, match="seed is -1; accepted: a whole number of at least 0"):
        samplers.get("random").plan(LABELS, 4, seed=-1, epoch=0)
    with pytest.raises(ValueError, match="length=8 with cover=True"):
        samplers.get("m_per_class", cover=True, length=8)
    with pytest.raises(ValueError, match=r"big_batch=9 is not a multiple of m=2.*8 or 10"):
        samplers.get("fid_batchmatch", big_batch=9)
    with pytest.raises(ValueError, match="refresh of sampler 'hard_classes' is -1"):
        samplers.get("hard_classes", refresh=-1)
    with pytest.raises(
        ValueError,
        match="project of sampler 'greedy_coreset' is 0; accepted: a whole number of at least 1 or None",
    ):
        samplers.get("greedy_coreset", project=0)
    with pytest.raises(ValueError, match="needs a value for 'miner'"):
        samplers.get("tuples_to_weights")
    with pytest.raises(ValueError, match="unknown miner 'batch_hrad'; did you mean 'batch_hard'"):
        samplers.get("tuples_to_weights", miner="batch_hrad")


def test_parents_and_embeddings_must_fit():
    two = {"samples_per_class": 2}
    with pytest.raises(ValueError, match="images of one class have different parent labels"):
        samplers.get("hierarchical", **two).plan(
            LABELS, 8, seed=0, epoch=0, parents=np.arange(26) % 2
        )
    with pytest.raises(ValueError, match="super_classes_per_batch=2 and the set has 1"):
        samplers.get("hierarchical", **two).plan(
            LABELS, 8, seed=0, epoch=0, parents=np.zeros(26, int)
        )
    with pytest.raises(ValueError, match="of each of the 26 images, and there are 25"):
        samplers.get("greedy_coreset").plan(
            LABELS, 8, seed=0, epoch=0, embeddings=np.zeros((25, 3), np.float32)
        )
