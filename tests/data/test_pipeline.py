"""The pipeline: the same batches however they are loaded, exact resumption, and images that do not decode."""

import threading
import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest

from dml_jax import data, samplers, streams
from dml_jax.data import base
from dml_jax.errors import UserError

SIZES = (4, 1, 3, 2, 5)
LABELS = np.repeat(np.arange(5), SIZES)


@dataclass(frozen=True)
class Read:
    """Image i is 6 x 5 pixels of grey level i; some do not decode."""

    bad: tuple[int, ...] = ()

    def __call__(self, index):
        if index in self.bad:
            raise OSError("image file is truncated")
        return np.full((6, 5, 1), index, np.uint8)


def source_of(bad=(), labels=LABELS):
    names = [f"image-{i}" for i in range(len(labels))]
    kinds = tuple(f"class-{c}" for c in range(labels.max() + 1))
    return data.Images(labels.astype(np.int64), kinds, names, Read(bad))


def noisy(image, rng):
    """A transform whose every draw shows in the image."""
    return image + rng.integers(0, 200, image.shape).astype(np.uint8)


PLAN = samplers.get("m_per_class", m=2, length=48).plan(LABELS, 8, seed=0, epoch=3)


def run(source=None, plan=PLAN, transform=noisy, **options):
    options = {"seed": 0, "epoch": 3} | options
    return list(data.train_batches(source or source_of(), plan, transform=transform, **options))


def assert_same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
            assert a[key].dtype == b[key].dtype


def test_a_batch_is_a_row_of_the_plan():
    batches = run(transform=None)
    assert len(batches) == len(PLAN) == 6
    for row, batch in zip(PLAN, batches, strict=True):
        assert batch.keys() == {"image", "label", "id"}
        assert batch["image"].shape == (8, 6, 5, 1)
        assert [batch[k].dtype for k in ("image", "label", "id")] == [np.uint8, np.int32, np.int32]
        np.testing.assert_array_equal(batch["id"], row)
        np.testing.assert_array_equal(batch["label"], LABELS[row])
        np.testing.assert_array_equal(batch["image"][:, 2, 3, 0], row)


@pytest.mark.parametrize("options", [{"threads": 1}, {"threads": 4, "prefetch": 1}, {"workers": 2}])
def test_threads_and_workers_change_nothing(options):
    assert_same(run(**options), run(threads=2))


def test_resuming_is_exact():
    whole = run()
    for start in range(len(PLAN) + 1):
        assert_same(run(start_step=start), whole[start:])


def test_processes_share_a_batch():
    whole = run()
    parts = [run(process_index=i, process_count=4) for i in range(4)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert all(share["id"].shape == (2,) for share in shares)
        for key in batch:
            np.testing.assert_array_equal(np.concatenate([s[key] for s in shares]), batch[key])


def test_views_come_one_after_another():
    """The first view is the batch without views; the others show the same images, transformed anew."""
    whole, plain, twice = run(views=3), run(transform=None), run()
    for batch, image, one in zip(whole, plain, twice, strict=True):
        for key in ("id", "label"):
            np.testing.assert_array_equal(batch[key], np.tile(one[key], 3))
        np.testing.assert_array_equal(batch["image"][:8], one["image"])
        views = batch["image"].reshape(3, *image["image"].shape)
        assert all((views[i] != views[j]).any((1, 2, 3)).all() for i, j in ((0, 1), (0, 2), (1, 2)))
        assert (views - image["image"] < 200).all()
    assert_same(run(views=3, start_step=2), whole[2:])
    parts = [run(views=3, process_index=i, process_count=4) for i in range(4)]
    for batch, *shares in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(np.concatenate([s["image"] for s in shares]), batch["image"])


def test_views_of_an_image_that_does_not_decode_show_one_substitute():
    counts = Counter()
    source = source_of(bad=(10,))
    for seed in range(4):
        (batch,) = run(
            source, np.array([[10, 0]]), seed=seed, views=2, on_error="skip", skipped=counts
        )
        assert batch["id"][0] == batch["id"][2] != 10
    assert counts == {"image-10": 4}


def test_random_numbers_hang_on_seed_epoch_step_and_place():
    same = np.zeros((3, 4), np.int32)
    draws = [
        image.tobytes()
        for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))
        for batch in run(plan=same, seed=seed, epoch=epoch)
        for image in batch["image"]
    ]
    assert len(set(draws)) == 4 * 3 * 4  # seed + epoch as a key would repeat (0, 1) as (1, 0)


def test_prefetch_is_bounded_and_threads_end():
    loaded = []

    def slow(image, rng):
        loaded.append(1)
        return image

    before = threading.active_count()
    plan = np.zeros((40, 1), np.int32)
    batches = data.train_batches(source_of(), plan, transform=slow, seed=0, epoch=0, prefetch=3)
    next(batches)
    time.sleep(0.2)
    # Three batches ahead, four images that threads are at, and those on their way; grain's default would load all 40.
    assert 1 <= len(loaded) <= 10
    batches.close()
    patience = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < patience:
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_undecodable_image_is_an_error_that_names_it():
    for workers in (0, 1):
        with pytest.raises(data.DecodeError) as error:
            run(source_of(bad=(0,)), np.array([[1, 0]]), workers=workers)
        assert str(error.value).startswith("cannot decode image-0: image file is truncated")


def test_skip_puts_another_of_the_class_in_its_place():
    source = source_of(bad=(0,))
    plan = np.array([[0, 1, 5, 6], [1, 2, 0, 0], [4, 4, 5, 6]], np.int32)
    counts = Counter()
    batches = run(source, plan, on_error="skip", skipped=counts)
    assert counts == {"image-0": 3}
    # Not 1, which the row has already.
    assert batches[0]["id"][0] in (2, 3)
    assert set(batches[1]["id"][2:]) == {3}
    for row, batch in zip(plan, batches, strict=True):
        np.testing.assert_array_equal(batch["label"], LABELS[row])
        kept = row != 0
        np.testing.assert_array_equal(batch["id"][kept], row[kept])
    # Images beside the bad one are what they would have been.
    whole = run(source_of(), plan)
    for a, b, row in zip(batches, whole, plan, strict=True):
        np.testing.assert_array_equal(a["image"][row != 0], b["image"][row != 0])
    for options in ({"threads": 4}, {"workers": 2}):
        again = Counter()
        assert_same(run(source, plan, on_error="skip", skipped=again, **options), batches)
        assert again == counts
    assert_same(run(source, plan, on_error="skip", start_step=1), batches[1:])
    parts = [run(source, plan, on_error="skip", process_index=i, process_count=2) for i in range(2)]
    for k, batch in enumerate(batches):
        ids = np.concatenate([part[k]["id"] for part in parts])
        np.testing.assert_array_equal(ids, batch["id"])


def test_labels_of_the_caller_s_own():
    """Rows for each image, those of the substitutes where one does not decode."""
    rows = np.stack([100 + np.arange(len(LABELS)), LABELS // 2, LABELS], 1)
    for source in (source_of(), source_of(bad=(0,))):
        for batch in run(source, on_error="skip", labels=rows):
            assert batch["label"].dtype == np.int32
            np.testing.assert_array_equal(batch["label"], rows[batch["id"]])


def test_skip_tries_every_other_image_of_the_class():
    source = source_of(bad=(5, 6))  # class 2 is images 5, 6, 7
    counts = Counter()
    (batch,) = run(source, np.array([[5, 6]]), on_error="skip", skipped=counts)
    assert batch["id"].tolist() == [7, 7]
    assert set(counts) == {"image-5", "image-6"}
    with pytest.raises(data.DecodeError, match=r"none of the 1 images of class 'class-1'.*image-4"):
        run(source_of(bad=(4,)), np.array([[4, 0]]), on_error="skip")


def evaluate(source=None, batch_size=4, transform=noisy, **options):
    return list(
        data.eval_batches(source or source_of(), batch_size, transform=transform, **options)
    )


def test_evaluation_yields_every_image_once_in_order():
    batches = evaluate(transform=None)
    assert len(batches) == 4  # 15 images
    assert {b["image"].shape for b in batches} == {(4, 6, 5, 1)}
    valid = np.concatenate([b["valid"] for b in batches])
    assert valid.tolist() == [True] * 15 + [False]
    joined = {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
    assert joined["id"].tolist() == [*range(15), -1]
    np.testing.assert_array_equal(joined["label"], [*LABELS, -1])
    np.testing.assert_array_equal(joined["image"][:, 0, 0, 0], [*range(15), 0])


def test_evaluation_is_the_same_for_any_batch_size_threads_and_processes():
    def images(batches):
        joined = {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
        order = np.argsort(joined["id"][joined["valid"]])
        return joined["image"][joined["valid"]][order]

    expected = images(evaluate())
    added = expected - np.arange(15, dtype=np.uint8)[:, None, None, None]
    assert len({image.tobytes() for image in added}) == 15  # every image has draws of its own
    for batch_size in (1, 7, 15, 16):
        np.testing.assert_array_equal(images(evaluate(batch_size=batch_size)), expected)
    assert_same(evaluate(threads=4), evaluate(threads=1))
    parts = [evaluate(batch_size=6, process_index=i, process_count=3) for i in range(3)]
    assert [len(part) for part in parts] == [3, 3, 3]
    assert not parts[2][2]["valid"].any()  # the share of 16 and 17
    np.testing.assert_array_equal(images([b for part in parts for b in part]), expected)
    whole = evaluate(batch_size=6)
    for k, batch in enumerate(whole):
        ids = np.concatenate([part[k]["id"] for part in parts])
        np.testing.assert_array_equal(ids, batch["id"])


def test_evaluation_drops_what_does_not_decode():
    counts = Counter()
    batches = evaluate(source_of(bad=(4, 5, 6, 7, 9)), on_error="skip", skipped=counts)
    assert {b["image"].shape for b in batches} == {(4, 6, 5, 1)}  # the second batch has none at all
    valid = np.concatenate([b["valid"] for b in batches])
    assert np.flatnonzero(~valid).tolist() == [4, 5, 6, 7, 9, 15]
    assert sum(counts.values()) == 5
    assert batches[1]["id"].tolist() == [4, 5, 6, 7]
    assert not batches[1]["image"].any()
    with pytest.raises(data.DecodeError, match="cannot decode image-9"):
        evaluate(source_of(bad=(9,)))
    with pytest.raises(data.DecodeError, match="none of the 15 images can be decoded"):
        evaluate(source_of(bad=tuple(range(15))), on_error="skip")


def test_different_shapes_need_a_transform():
    def read(index):
        return np.zeros((6, 5 + index, 1), np.uint8)

    source = data.Images(LABELS, tuple("abcde"), [f"image-{i}" for i in range(15)], read)
    says = r"shapes \(6, 5, 1\) \(image-0\) and \(6, 7, 1\) \(image-2\); a transform"
    with pytest.raises(ValueError, match=says):
        run(source, np.array([[0, 0, 2]]), transform=None)
    chain = data.augment.build([{"name": "resize", "size": (4, 4)}])
    (batch,) = run(source, np.array([[0, 0, 2]]), transform=chain)
    assert batch["image"].shape == (3, 4, 4, 1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"on_error": "ignore"}, "on_error of .* is 'ignore'; accepted: 'raise' or 'skip'"),
        ({"threads": 0}, "threads of function 'train_batches' is 0; accepted: .* at least 1"),
        ({"threads": "two"}, "threads of function 'train_batches' is 'two'"),
        ({"workers": -1}, "workers of function 'train_batches' is -1"),
        ({"prefetch": 0}, "prefetch of function 'train_batches' is 0"),
        ({"prefetch": 2.5}, "prefetch of function 'train_batches' is 2.5"),
        ({"views": 0}, "views of function 'train_batches' is 0; accepted: .* at least 1"),
        ({"start_step": -1}, "start_step of function 'train_batches' is -1"),
        ({"start_step": 7}, "start_step=7 of a plan of 6 steps"),
        ({"process_count": 3}, "batch_size=8 does not divide among 3 processes"),
        ({"process_index": 1}, "process_index=1 of process_count=1"),
        ({"process_count": 0}, "process_count of function 'train_batches' is 0"),
        ({"seed": -1}, "seed of function 'train_batches' is -1"),
        ({"epoch": -1}, "epoch of function 'train_batches' is -1"),
        ({"labels": np.arange(3)}, "labels of 3 images for a source of 15"),
    ],
)
def test_refused(options, says):
    """At the call, not at the first batch."""
    with pytest.raises(UserError, match=says):
        data.train_batches(source_of(), PLAN, transform=None, **({"seed": 0, "epoch": 0} | options))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 0}, "batch_size of function 'eval_batches' is 0"),
        ({"batch_size": 2.5}, "batch_size of function 'eval_batches' is 2.5"),
        ({"batch_size": None}, "batch_size of function 'eval_batches' is None"),
        ({"threads": 0}, "threads of function 'eval_batches' is 0"),
        ({"process_count": 3}, "batch_size=4 does not divide among 3 processes"),
    ],
)
def test_evaluation_refused(options, says):
    with pytest.raises(UserError, match=says):
        evaluate(**options)


def test_streams_do_not_meet():
    keys = [("augment", 0, 0), ("replace_image", 0, 0), ("augment", 1, 0), ("augment", 0, 1)]
    draws = {streams.generator(s, 0, step=i, place=j).integers(2**63) for s, i, j in keys}
    draws.add(streams.generator("epoch_plan", 0).integers(2**63))
    draws.add(streams.generator("draw_glyphs", 0, step=ord("A")).integers(2**63))
    assert len(draws) == 6


def test_the_numbers_of_a_stream_are_part_of_what_a_seed_means():
    """Written out: Philox with the key (seed, epoch) and the counter (0, stream, step, place)."""
    for stream, number in (("augment", 1), ("replace_image", 2), ("draw_glyphs", 0)):
        philox = np.random.Philox(key=[7, 2], counter=[0, number, 5, 3])
        expected = np.random.Generator(philox).integers(2**63)
        made = streams.generator(stream, 7, epoch=2, step=5, place=3).integers(2**63)
        assert made == expected


def test_glyphs_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setenv("DML_JAX_CACHE", str(tmp_path))
    train, val = data.hold_out(data.load("glyphs", "train", classes=6), 0.3, seed=0)
    assert isinstance(train, base.Subset)
    plan = samplers.get("m_per_class", m=4).plan(train.labels, 16, seed=0, epoch=0)
    chain = data.augment.build([{"name": "random_resized_crop", "size": 32}, {"name": "flip"}])
    batches = list(data.train_batches(train, plan, transform=chain, seed=0, epoch=0))
    assert len(batches) == len(train) // 16
    assert batches[0]["image"].shape == (16, 32, 32, 1)
    assert sum(b["valid"].sum() for b in data.eval_batches(val, 16, transform=None)) == len(val)


@dataclass(frozen=True)
class Planned:
    """The plan of any epoch, for workers, too."""

    def __call__(self, epoch):
        return samplers.get("m_per_class", m=2, length=24).plan(LABELS, 8, seed=0, epoch=epoch)


@pytest.mark.parametrize("options", [{}, {"workers": 2}, {"workers": 3, "threads": 1}])
def test_epochs_in_one_go(options):
    """The batches of one epoch after the other, from the midst of the first on."""
    apart = [b for epoch in (3, 4, 5) for b in run(plan=Planned()(epoch), epoch=epoch)]
    assert_same(run(plan=Planned(), epochs=3, start_step=2, **options), apart[2:])


def test_images_of_a_batch_are_loaded_at_once_and_decoded_once():
    """Four threads are at work on one batch, and all views of an image are made of one read."""
    together, reads, gate = [], Counter(), threading.Barrier(4, timeout=20)

    def read(index):
        reads[index] += 1
        together.append(gate.wait())
        return np.full((6, 5, 1), index, np.uint8)

    source = data.Images(LABELS, tuple("abcde"), [str(i) for i in range(15)], read)
    (batch,) = run(source, np.array([[0, 1, 2, 3]]), views=3, threads=4)
    assert len(together) == 4 and set(reads.values()) == {1}
    assert batch["image"].shape == (12, 6, 5, 1)
