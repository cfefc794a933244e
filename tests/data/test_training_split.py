"""What is made of a training split: held-out parts, fewer classes and images, wrong labels."""

import numpy as np
import pytest

from dml_jax import UserError, data
from dml_jax.data import base

# Classes of 1, 2, 10 and 5 images, not in order.
LABELS = np.array([2] * 4 + [0] + [3] * 5 + [1] * 2 + [2] * 6)


@pytest.fixture
def source():
    pixels = np.arange(len(LABELS), dtype=np.uint8)[:, None, None, None] * np.ones(
        (4, 4, 1), np.uint8
    )
    names = [f"{label}/{i}" for i, label in enumerate(LABELS)]
    return base.Images(LABELS, tuple("abcd"), names, base.ArrayReader(pixels))


def images(source):
    """The names of the images, whose pixels must be theirs."""
    assert all(
        int(source[i]["image"][0, 0, 0]) == int(source.name(i)[2:]) for i in range(len(source))
    )
    return [source.name(i) for i in range(len(source))]


def test_the_last_classes_are_held_out_as_both_papers_do(source):
    """int(0.8 * C) classes stay: 80 of 100 on CUB and 78 of 98 on Cars."""
    for count, fraction, stay in (
        (100, 0.2, 80),
        (98, 0.2, 78),
        (10, 0.9, 1),
        (4, 0.3, 2),
        (4, 0.99, 1),
    ):
        many = base.Images(np.arange(count), tuple(map(str, range(count))), ["x"] * count, None)
        rest, held = data.hold_out(many, fraction, seed=3, by="last_classes")
        assert rest.class_names == tuple(map(str, range(stay)))
        assert held.class_names == tuple(map(str, range(stay, count)))
    rest, held = data.hold_out(source, 0.5, seed=0, by="last_classes")
    assert (len(rest), len(held)) == (3, 15)


def test_folds_are_parts_of_the_classes_in_their_order():
    many = base.Images(np.arange(10), tuple("abcdefghij"), ["x"] * 10, None)
    parts = [data.hold_out(many, 1 / 4, seed=0, by="fold", fold=i) for i in range(4)]
    assert [held.class_names for _, held in parts] == [
        tuple("ab"),
        tuple("cde"),
        tuple("fgh"),
        tuple("ij"),
    ]
    assert all(
        sorted(rest.class_names + held.class_names) == list("abcdefghij") for rest, held in parts
    )
    for fraction, fold in ((1 / 4, 4), (0.9, 0), (1 / 20, 0)):
        with pytest.raises(UserError, match=f"fold {fold} of .* folds of 10 classes"):
            data.hold_out(many, fraction, seed=0, by="fold", fold=fold)


def test_images_of_each_class_are_held_out_at_even_places(source):
    rest, held = data.hold_out(source, 0.2, seed=0, by="images")
    assert sorted(images(rest) + images(held)) == sorted(source.names)
    # round(linspace(0, 9, 8)) of the ten of class c, round(linspace(0, 4, 4)) of the five of d; the single image of a
    # stays, of two in b the first.
    for label, expected in ((2, [0, 1, 3, 4, 5, 6, 8, 9]), (3, [0, 1, 3, 4]), (0, [0]), (1, [0])):
        rows = np.flatnonzero(label == LABELS)[expected]
        assert rest.rows[rest.labels == label].tolist() == rows.tolist()
    assert rest.class_names == tuple("abcd")
    assert held.class_names == tuple("bcd") and np.bincount(held.labels).tolist() == [1, 2, 1]
    assert len(data.hold_out(source, 0.01, seed=0, by="images")[1]) == 3
    singles = base.Images(np.arange(3), tuple("abc"), ["x"] * 3, None)
    with pytest.raises(UserError, match="each of the 3 classes has a single image"):
        data.hold_out(singles, 0.5, seed=0, by="images")
    with pytest.raises(UserError, match="fraction=1"):
        data.hold_out(source, 1, seed=0, by="images")


def test_smaller_draws_are_within_larger_ones(source):
    draw = lambda **how: data.reduced(
        source, **{"classes": None, "images_per_class": None, "seed": 5} | how
    )
    assert draw() is source
    two, three = draw(classes=2), draw(classes=3)
    assert set(two.class_names) < set(three.class_names) and len(three.class_names) == 3
    assert draw(classes=0.5).class_names == two.class_names
    assert len(draw(classes=0.01).class_names) == 1
    few, more = draw(images_per_class=2), draw(images_per_class=6)
    assert set(images(few)) < set(images(more))
    assert np.bincount(few.labels).tolist() == [1, 2, 2, 2]
    assert np.bincount(more.labels).tolist() == [1, 2, 6, 5]
    assert len({tuple(images(draw(images_per_class=2, seed=s))) for s in range(9)}) > 5
    both = draw(classes=2, images_per_class=1)
    assert both.class_names == two.class_names and len(both) == 2
    with pytest.raises(UserError, match="train_classes=5, and the training split has 4 classes"):
        draw(classes=5)


def test_wrong_labels_are_exactly_so_many_and_even(source):
    assert data.with_label_noise(source, 0.0, seed=0) is source
    noisy = data.with_label_noise(source, 0.3, seed=0)
    wrong = noisy.labels != source.labels
    assert wrong.sum() == round(0.3 * len(source))
    assert images(noisy) == images(source) and noisy.class_names == source.class_names
    more = data.with_label_noise(source, 0.6, seed=0)
    assert (more.labels[wrong] == noisy.labels[wrong]).all()
    assert (more.labels != source.labels).sum() == round(0.6 * len(source))
    # Each of the other classes is as likely: 3 standard deviations of a binomial draw.
    many = base.Images(np.zeros(9000, np.int64), tuple("abcd"), ["x"] * 9000, None)
    counts = np.bincount(data.with_label_noise(many, 0.999, seed=1).labels, minlength=4)
    assert counts[0] == 9000 - round(0.999 * 9000)
    assert (abs(counts[1:] - 2997) < 3 * (8991 * 2 / 9) ** 0.5).all()
    with pytest.raises(UserError, match="1 class, which has no other label"):
        data.with_label_noise(data.subset(source, [2]), 0.3, seed=0)
