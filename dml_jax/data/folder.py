"""Images in folders, or in a list: one's own data."""

import csv
import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dml_jax import names
from dml_jax.data.base import (
    SPLITS,
    FileReader,
    Images,
    Source,
    existing,
    labelled,
    split_classes,
    subset,
)

# Splits that are not classes of their own.
ASIDE = ("gallery", "distractors")
ENDINGS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
)


def load(
    split: str,
    *,
    path: str,
    channels: int = 3,
    fractions: Sequence[float] = (0.5, 0.1, 0.4),
    seed: int = 0,
) -> Source:
    """A class per sub-directory, or a CSV file with the columns `path` and `label`.

    Images may lie at any depth below the directory of their class. Where `path` holds directories named
    train, val or test, each is a split with classes of its own; else the classes are divided among the splits
    by `fractions`. Beside them, `gallery` is a split that may share the classes of another, to be searched in its
    place, and `distractors` any images, without classes. Relative paths in a CSV file start at its folder; its
    column `split`, where there is one, names the splits, `parent` a coarser class, and `labels` further labels
    with ";" between them. Split "all" is all of train, val and test. Names that begin with a dot are passed over.

    Args:
      split: train, val, test, all, gallery or distractors.
      path: the directory or the CSV file.
      channels: 3 (RGB) or 1 (grey).
      fractions: of the classes, for train, val and test; they apply where the folder does not divide itself.
      seed: of that division.

    Raises:
      ValueError: nothing there, no images, a split without classes, a CSV file without the two columns.
    """
    if split not in (*SPLITS, *ASIDE, "all"):
        raise names.unknown("split of folder:", split, (*SPLITS, *ASIDE, "all"))
    if channels not in (1, 3):
        raise ValueError(f"folder: channels={channels}; 1 (grey) or 3 (RGB) is accepted")
    path = existing(path, "folder")
    if os.path.isfile(path):
        source, own = _listed(path, split, channels)
    else:
        source, own = _walked(path, split, channels)
    if own or split == "all":
        return source
    if split in ASIDE:
        raise ValueError(
            f"folder: {path} has no {split!r}; directories train, val or test beside it, or the column split of "
            "a CSV file, are accepted"
        )
    classes = split_classes(len(source.class_names), fractions, seed, "folder")[split]
    if not classes:
        raise ValueError(
            f"folder: {path} has {len(source.class_names)} classes and fractions={tuple(fractions)} leave "
            f"none for split {split!r}; larger fractions or split 'all' are accepted"
        )
    return subset(source, classes)


def files(paths: Sequence[str], *, channels: int) -> Images:
    """Those image files, without labels (-1).

    Raises ValueError for a path that is not a file.
    """
    paths = [os.path.expanduser(path) for path in paths]
    for path in paths:
        if not os.path.isfile(path):
            raise ValueError(f"{path!r} is not a file; the path of an image is accepted")
    return Images(np.full(len(paths), -1, np.int64), (), paths, FileReader(paths, channels))


def files_below(path: str, *, channels: int) -> Images:
    """All images at any depth below a directory, in the order of their paths, without labels (-1).

    Raises ValueError where there is no such directory or no image in it.
    """
    path = existing(path, "images")
    found = _below(path)
    if not found:
        raise ValueError(
            f"no images under {path}; a directory with files ending in {' '.join(ENDINGS)} is accepted"
        )
    return files(found, channels=channels)


def _walked(path: str, split: str, channels: int) -> tuple[Images, bool]:
    """(the images, whether they are the split already) below a directory."""
    own = [s for s in SPLITS if _directories(os.path.join(path, s))]
    if not own or split == "all":
        return _source(*_found([os.path.join(path, s) for s in own] or [path]), channels), False
    inside = os.path.join(path, split)
    if split == "distractors" and os.path.isdir(inside):
        return files_below(inside, channels=channels), True
    if not _directories(inside):
        raise ValueError(
            f"folder: {path} has no class folders under {split!r}; it has splits {', '.join(own)}"
        )
    return _source(*_found([inside]), channels), True


def _directories(path: str) -> list[str]:
    if not os.path.isdir(path):
        return []
    return sorted(e.name for e in os.scandir(path) if e.is_dir() and not e.name.startswith("."))


def _found(roots: Sequence[str]) -> tuple[list[str], list[str]]:
    files, keys = [], []
    for root in roots:
        for key in _directories(root):
            images = _below(os.path.join(root, key))
            files += images
            keys += [key] * len(images)
    if not files:
        raise ValueError(
            f"folder: no images under {' or '.join(roots)}; a directory per class with files ending in "
            f"{' '.join(ENDINGS)} is accepted"
        )
    return files, keys


def _below(root: str) -> list[str]:
    """The image files below a directory, in the order of their names."""
    files = []
    for folder, below, inside in os.walk(root, followlinks=True):
        below[:] = sorted(d for d in below if not d.startswith("."))
        images = (
            f for f in sorted(inside) if f.lower().endswith(ENDINGS) and not f.startswith(".")
        )
        files += [os.path.join(folder, f) for f in images]
    return files


def _listed(path: str, split: str, channels: int) -> tuple[Images, bool]:
    """(the images, whether they are the split already) of a CSV file."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        columns = rows.fieldnames or []
        if not {"path", "label"} <= set(columns):
            raise ValueError(
                f"folder: {path} has the columns {', '.join(columns) or '(none)'}; a CSV file whose first "
                "line names the columns path and label is accepted"
            )
        wanted = [c for c in ("path", "label", "parent") if c in columns]
        found = []
        for row in rows:
            if not all(row[c] for c in wanted):
                raise ValueError(
                    f"folder: line {rows.line_num} of {path} lacks a {' or a '.join(wanted)}"
                )
            found.append(row)
    if not found:
        raise ValueError(f"folder: {path} lists no images; a row path,label per image is accepted")
    # Of the whole file, so that a label is the same column in every split.
    kinds = sorted({name for row in found for name in _names(row)})
    own = "split" in columns
    if own:
        present = dict.fromkeys(row["split"] for row in found)
        found = [
            r for r in found if r["split"] == split or (split == "all" and r["split"] in SPLITS)
        ]
        if not found:
            raise ValueError(
                f"folder: {path} has no row of split {split!r}; it has splits {', '.join(map(str, present))}"
            )
    source = _source(
        [os.path.join(os.path.dirname(path), row["path"]) for row in found],
        [row["label"] for row in found],
        channels,
    )
    if "parent" in columns:
        source = replace(source, parent_labels=labelled([row["parent"] for row in found])[0])
    if kinds:
        sets = np.array([[kind in _names(row) for kind in kinds] for row in found])
        source = replace(source, label_sets=sets)
    return source, own


def _names(row: dict[str, str]) -> set[str]:
    """The further labels of a row of a CSV file."""
    return {name.strip() for name in (row.get("labels") or "").split(";")} - {""}


def _source(files: list[str], keys: list[str], channels: int) -> Images:
    labels, kinds = labelled(keys)
    return Images(labels, tuple(kinds), files, FileReader(files, channels))
