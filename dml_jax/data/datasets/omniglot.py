"""Omniglot (Lake et al., Science 2015): 1,623 hand-written characters of 50 alphabets, 20 drawings each."""

import os
import re
import zipfile
from collections.abc import Iterable
from typing import Literal

from dml_jax.data.base import (
    BytesReader,
    FileReader,
    Images,
    Reader,
    Source,
    existing_path,
    integer_labels,
)
from dml_jax.errors import UserError
from dml_jax.parameters import PositiveInt, checked

FOLDERS = {"train": "images_background", "test": "images_evaluation"}


@checked("data set")
def omniglot(
    split: Literal["train", "test"],
    *,
    path: str | os.PathLike[str],
    size: PositiveInt | None = None,
) -> Source:
    """Reads the drawings of Omniglot, 105 x 105 pixels with ink 0 on 255; the class is the character.

    Images are uint8 `[size, size, 1]`. `train` is the 30 alphabets of images_background, `test` the 20 of
    images_evaluation; `parent_labels` number the alphabets of the split in alphabetical order. Out of a zip file the
    compressed drawings of the split are held in memory (5 MB) and decoded on access.

    Args:
      split: "train" or "test"; hold classes of train out for validation.
      path: the published zip file, or a folder that holds what it holds.
      size: the side to which drawings are scaled by area averages; 105 as published if None.

    Raises:
      UserError: a value out of range, nothing at `path`, or nothing of the split in it.

    Example:
      >>> import pathlib, tempfile
      >>> from PIL import Image
      >>> with tempfile.TemporaryDirectory() as path:
      ...     file = pathlib.Path(path, "images_background/Greek/character01/0001_01.png")
      ...     file.parent.mkdir(parents=True)
      ...     Image.new("1", (105, 105)).save(file)
      ...     source = omniglot("train", path=path, size=28)
      ...     source.class_names, source[0]["image"].shape
      (('Greek/character01',), (28, 28, 1))
    """
    folder = FOLDERS[split]
    path = existing_path(path, "omniglot")
    pattern = re.compile(rf"(?:.*/)?{folder}/([^/]+)/(character\d+)/[^/]+\.png")
    read: Reader
    if os.path.isfile(path):
        if not zipfile.is_zipfile(path):
            raise UserError(
                f"omniglot: {path} is not a zip file; the published zip or its folder is accepted"
            )
        with zipfile.ZipFile(path) as archive:
            drawings = _drawings(pattern, archive.namelist())
            read = BytesReader([archive.read(m.string) for m in drawings], 1, size)
    else:
        drawings = _drawings(pattern, _files_below(path))
        read = FileReader([m.string for m in drawings], 1, size)
    if not drawings:
        raise UserError(f"omniglot: no drawings {folder}/<alphabet>/character<NN>/*.png in {path}")
    labels, classes = integer_labels(m.groups() for m in drawings)
    parents, _ = integer_labels(m[1] for m in drawings)
    return Images(
        labels=labels,
        class_names=tuple(map("/".join, classes)),
        names=[m.string for m in drawings],
        read=read,
        parent_labels=parents,
    )


def _drawings(pattern: re.Pattern[str], paths: Iterable[str]) -> list[re.Match[str]]:
    """Returns the matches of the paths that are drawings, in the order of their paths."""
    return [m for p in sorted(paths) if "__MACOSX" not in p and (m := pattern.fullmatch(p))]


def _files_below(path: str) -> list[str]:
    return [
        f"{folder}/{file}".replace(os.sep, "/")
        for folder, _, files in os.walk(path)
        for file in files
    ]
