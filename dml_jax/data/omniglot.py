"""Omniglot (Lake et al., Science 2015): 1,623 hand-written characters of 50 alphabets, 20 drawings each."""

import os
import re
import zipfile
from collections.abc import Iterable

from dml_jax import names
from dml_jax.data.base import BytesReader, FileReader, Images, Reader, Source, existing, labelled

FOLDERS = {"train": "images_background", "test": "images_evaluation"}


def load(split: str, *, path: str, size: int | None = None) -> Source:
    """Drawings of 105 x 105 pixels, ink 0 on 255, as uint8 `[size, size, 1]`; the class is the character.

    `train` is the 30 alphabets of images_background, `test` the 20 of images_evaluation; `parent_labels`
    number the alphabets of the split in alphabetical order. Out of a zip file the compressed drawings of the
    split are held in memory (5 MB) and decoded on access.

    Args:
      split: train or test; hold classes of train out for validation.
      path: the published zip file, or a folder that holds what it holds.
      size: side to which drawings are scaled by area averages; 105 as published if None.

    Raises:
      ValueError: nothing at `path`, or nothing of the split in it.
    """
    folder = names.resolve("split of omniglot:", FOLDERS, split)
    if size is not None and size < 1:
        raise ValueError(f"omniglot: size={size}; at least 1 is accepted")
    path = existing(path, "omniglot")
    pattern = re.compile(rf"(?:.*/)?{folder}/([^/]+)/(character\d+)/[^/]+\.png")
    read: Reader
    if os.path.isfile(path):
        if not zipfile.is_zipfile(path):
            raise ValueError(
                f"omniglot: {path} is not a zip file; the published zip or its folder is accepted"
            )
        with zipfile.ZipFile(path) as archive:
            found = _matches(pattern, archive.namelist())
            read = BytesReader([archive.read(m.string) for m in found], 1, size)
    else:
        found = _matches(pattern, _files(path))
        read = FileReader([m.string for m in found], 1, size)
    if not found:
        raise ValueError(f"omniglot: no drawings {folder}/<alphabet>/character<NN>/*.png in {path}")
    labels, classes = labelled([m.groups() for m in found])
    parents, _ = labelled([m[1] for m in found])
    return Images(
        labels=labels,
        class_names=tuple(map("/".join, classes)),
        names=[m.string for m in found],
        read=read,
        parent_labels=parents,
    )


def _matches(pattern: re.Pattern[str], paths: Iterable[str]) -> list[re.Match[str]]:
    return [m for p in sorted(paths) if "__MACOSX" not in p and (m := pattern.fullmatch(p))]


def _files(path: str) -> list[str]:
    return [
        f"{folder}/{file}".replace(os.sep, "/")
        for folder, _, inside in os.walk(path)
        for file in inside
    ]
