"""Images in folders, or in a list: one's own data."""

import csv
import os
from collections.abc import Sequence

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
    by `fractions`. Relative paths in a CSV file start at its folder. Split "all" is everything. Names that
    begin with a dot are passed over.

    Args:
      split: train, val, test or all.
      path: the directory or the CSV file.
      channels: 3 (RGB) or 1 (grey).
      fractions: of the classes, for train, val and test; they apply where the folder does not divide itself.
      seed: of that division.

    Raises:
      ValueError: nothing there, no images, a split without classes, a CSV file without the two columns.
    """
    if split not in (*SPLITS, "all"):
        raise names.unknown("split of folder:", split, (*SPLITS, "all"))
    if channels not in (1, 3):
        raise ValueError(f"folder: channels={channels}; 1 (grey) or 3 (RGB) is accepted")
    path = existing(path, "folder")
    if os.path.isfile(path):
        files, keys = _listed(path)
    else:
        own = [s for s in SPLITS if _directories(os.path.join(path, s))]
        if own and split != "all":
            if split not in own:
                raise ValueError(
                    f"folder: {path} has no class folders under {split!r}; it has splits {', '.join(own)}"
                )
            return _source(*_found([os.path.join(path, split)]), channels)
        files, keys = _found([os.path.join(path, s) for s in own] or [path])
    source = _source(files, keys, channels)
    if split == "all":
        return source
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


def _listed(path: str) -> tuple[list[str], list[str]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        columns = rows.fieldnames or []
        if not {"path", "label"} <= set(columns):
            raise ValueError(
                f"folder: {path} has the columns {', '.join(columns) or '(none)'}; a CSV file whose first "
                "line names the columns path and label is accepted"
            )
        files, keys = [], []
        for row in rows:
            if not row["path"] or not row["label"]:
                raise ValueError(f"folder: line {rows.line_num} of {path} lacks a path or a label")
            files.append(os.path.join(os.path.dirname(path), row["path"]))
            keys.append(row["label"])
    if not files:
        raise ValueError(f"folder: {path} lists no images; a row path,label per image is accepted")
    return files, keys


def _source(files: list[str], keys: list[str], channels: int) -> Images:
    labels, kinds = labelled(keys)
    return Images(labels, tuple(kinds), files, FileReader(files, channels))
