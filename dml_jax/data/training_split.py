"""What is made of a training split: a part held out for validation, fewer classes or images, wrong labels."""

from typing import Literal

import numpy as np
from jaxtyping import Int64

from dml_jax import streams
from dml_jax.data.base import Source, Subset, shuffled_classes, subset
from dml_jax.errors import UserError

HeldOut = Literal["random_classes", "last_classes", "fold", "images"]


def hold_out(
    source: Source, fraction: float, seed: int, by: HeldOut = "random_classes", fold: int = 0
) -> tuple[Subset, Subset]:
    """Divides a source in two and returns both, (rest, held out).

    - "random_classes": round(fraction * C) of the C classes, drawn at random, are held out.
    - "last_classes": the first floor((1 - fraction) * C) classes in the set's own order stay, as in the code of both
      papers (2025: the first 80 %; ICML 2020: `use_tv_split`).
    - "fold": the classes in the set's own order are cut into round(1 / fraction) parts, of which one is held out, for
      cross-validation (Musgrave et al., ECCV 2020).
    - "images": of each class of n images, floor((1 - fraction) * n) at evenly spaced places stay, as with
      `tv_split_by_samples` of the ICML 2020 code on CUB; both have the same classes, but for those of which nothing is
      held out.

    At least one class (or image of each class) stays, and at least one class is held out. Both keep the order of the
    images; labels are 0 to C-1 within each.

    Args:
      source: of two or more classes.
      fraction: the share that is held out, above 0 and below 1.
      seed: of the draw; only "random_classes" has one.
      by: what is divided.
      fold: which of the parts is held out, from 0 on; only "fold" has parts.

    Raises:
      UserError: a fraction out of range, a source of fewer than two classes, or classes that all have a single
        image.

    Example:
      >>> from dml_jax.data.base import ArrayReader, Images
      >>> pixels = np.zeros((4, 8, 8, 1), np.uint8)
      >>> source = Images(np.arange(4), tuple("abcd"), list("wxyz"), ArrayReader(pixels))
      >>> rest, held_out = hold_out(source, 0.25, seed=0, by="last_classes")
      >>> rest.class_names, held_out.class_names
      (('a', 'b', 'c'), ('d',))
    """
    count = len(source.class_names)
    if not 0 < fraction < 1:
        raise UserError(f"fraction={fraction} of the classes; a number between 0 and 1 is accepted")
    if by == "images":
        return _by_images(source, fraction)
    if count < 2:
        raise UserError(f"a source of {count} class has none to hold out; two or more are needed")
    if by == "last_classes":
        rest = max(_floor((1 - fraction) * count), 1)
        return subset(source, np.arange(rest)), subset(source, np.arange(rest, count))
    if by == "fold":
        cuts = _cuts(count, round(1 / fraction), fold)
        inside = (np.arange(count) >= cuts[0]) & (np.arange(count) < cuts[1])
        return subset(source, np.flatnonzero(~inside)), subset(source, np.flatnonzero(inside))
    held = min(max(round(fraction * count), 1), count - 1)
    order = shuffled_classes(count, seed)
    return subset(source, np.sort(order[held:])), subset(source, np.sort(order[:held]))


def _floor(value: float) -> int:
    """Returns the whole part of a product of a share, whose rounding error must not cost a whole one: (1 - .9) * 10."""
    return int(value + 1e-9)


def _cuts(count: int, folds: int, fold: int) -> tuple[int, int]:
    """Returns the first class of a fold and the one after its last."""
    if not 2 <= folds <= count or fold >= folds:
        raise UserError(
            f"fold {fold} of {folds} folds of {count} classes; accepted: 2 to {count} folds (data.validation, 1 over "
            "their number) and one of them (data.fold, from 0 on)"
        )
    return round(fold * count / folds), round((fold + 1) * count / folds)


def _by_images(source: Source, fraction: float) -> tuple[Subset, Subset]:
    stays = np.zeros(len(source), bool)
    for rows in _rows_of_classes(source.labels):
        kept = max(_floor((1 - fraction) * len(rows)), 1)
        stays[rows[np.rint(np.linspace(0, len(rows) - 1, kept)).astype(int)]] = True
    if stays.all():
        raise UserError(
            f"each of the {len(source.class_names)} classes has a single image, of which none can be held out; "
            "data.validation_by='random_classes' or 'last_classes' is accepted"
        )
    return _images(source, np.flatnonzero(stays)), _images(source, np.flatnonzero(~stays))


def _rows_of_classes(labels: Int64[np.ndarray, " n"]) -> list[Int64[np.ndarray, " m"]]:
    order = np.argsort(labels, kind="stable")
    _, starts = np.unique(labels[order], return_index=True)
    return np.split(order, starts[1:])


def _images(source: Source, rows: Int64[np.ndarray, " m"]) -> Subset:
    """Returns some images of a source, with those of its classes that they are of."""
    present, labels = np.unique(source.labels[rows], return_inverse=True)
    names = tuple(source.class_names[c] for c in present.tolist())
    return Subset(source, rows, labels.astype(np.int64), names)


def reduced(
    source: Source, *, classes: int | float | None, images_per_class: int | None, seed: int
) -> Source:
    """Returns a part of a training split: fewer classes, and fewer images of each.

    Both are drawn at random, and nested: with the same seed, 50 classes are among the 100 of another run, and 4 images
    of a class among 8.

    Args:
      source: the training split.
      classes: how many classes are kept, or which share of them (a float below 1, at least one class); None: all.
      images_per_class: how many images of each class are kept at most; None: all.
      seed: of both draws.

    Raises:
      UserError: more classes than there are.

    Example:
      >>> from dml_jax.data.base import ArrayReader, Images
      >>> pixels = np.zeros((5, 8, 8, 1), np.uint8)
      >>> source = Images(np.array([0, 0, 0, 1, 2]), tuple("abc"), list("vwxyz"), ArrayReader(pixels))
      >>> len(reduced(source, classes=None, images_per_class=2, seed=0))
      4
    """
    if classes is not None:
        count = len(source.class_names)
        kept = max(round(classes * count), 1) if isinstance(classes, float) else classes
        if kept > count:
            raise UserError(
                f"train_classes={classes}, and the training split has {count} classes; at most so many are accepted, "
                "or a share below 1"
            )
        order = streams.generator("train_classes", seed).permutation(count)
        source = subset(source, np.sort(order[:kept]))
    if images_per_class is not None:
        rng = streams.generator("train_images", seed)
        # One order of all images, from which every class takes its first ones.
        rank = rng.permutation(len(source))
        rows = [
            rows[np.argsort(rank[rows])[:images_per_class]]
            for rows in _rows_of_classes(source.labels)
        ]
        source = _images(source, np.sort(np.concatenate(rows)))
    return source


def with_label_noise(source: Source, fraction: float, seed: int) -> Source:
    """Returns a source in which some images have the label of a class that is not theirs.

    round(fraction * N) of the N images, drawn at random, get a label drawn evenly from the other classes. Images that
    are wrong with a fraction are wrong with every larger one. The result's `source.labels[rows]` are the true labels.

    Args:
      source: the training split.
      fraction: the share of wrong labels, at least 0 and below 1; with 0 the source is returned as it is.
      seed: of the draw.

    Raises:
      UserError: a single class, beside which there is no other.

    Example:
      >>> from dml_jax.data.base import ArrayReader, Images
      >>> pixels = np.zeros((4, 8, 8, 1), np.uint8)
      >>> source = Images(np.array([0, 0, 1, 1]), ("a", "b"), list("wxyz"), ArrayReader(pixels))
      >>> int((with_label_noise(source, 0.5, seed=0).labels != source.labels).sum())
      2
    """
    if not fraction:
        return source
    count, images = len(source.class_names), len(source)
    if count < 2:
        raise UserError(
            f"label_noise={fraction} of a training split of {count} class, which has no other label to give"
        )
    rng = streams.generator("label_noise", seed)
    wrong = rng.permutation(images)[: round(fraction * images)]
    shift = rng.integers(1, count, images)
    labels = source.labels.copy()
    labels[wrong] = (labels[wrong] + shift[wrong]) % count
    return Subset(source, np.arange(images), labels, tuple(source.class_names))
