"""Grocery Store (Klasson et al., WACV 2019): photographs of 81 fine classes in shops."""

import csv
import io
import os
from collections.abc import Callable, Iterable

import numpy as np

from dml_jax import names
from dml_jax.data.base import FileReader, Images, Reader, Source, Tar, TarReader, existing

LISTS = ("train.txt", "val.txt", "test.txt")
TABLE = "classes.csv"
CLASSES = {"train": range(0, 41), "test": range(41, 81), "all": range(0, 81)}


def load(split: str, *, path: str) -> Source:
    """The zero-shot retrieval split: the three published lists pooled, then divided by fine class.

    `train` is fine classes 0..40, `test` 41..80, `all` everything; labels are renumbered from 0 within the
    split and `parent_labels` are the published coarse classes. The published lists share their classes and
    are not splits here.

    Args:
      split: train, test or all; hold classes of train out for validation.
      path: an uncompressed tar file, read in place, or the folder in it.

    Raises:
      ValueError: nothing at `path`, one of the lists missing, a row that is not `path, fine, coarse`.
    """
    classes = names.resolve("split of grocery_store:", CLASSES, split)
    path = existing(path, "grocery_store")
    root, text, reader = _tar(path) if os.path.isfile(path) else _folder(path)
    rows = [_row(line, name) for name in LISTS for line in text(name).splitlines() if line.strip()]
    rows = [row for row in rows if row[1] in classes]
    if not rows:
        raise ValueError(f"grocery_store: {path} lists no image of the classes of split {split!r}")
    present = sorted({fine for _, fine, _ in rows})
    fine_names = _class_names(text(TABLE))
    table = {fine: label for label, fine in enumerate(present)}
    return Images(
        labels=np.array([table[fine] for _, fine, _ in rows], np.int64),
        class_names=tuple(fine_names.get(fine, str(fine)) for fine in present),
        names=[f"{path}:{file}" for file, _, _ in rows],
        read=reader([root + file for file, _, _ in rows]),
        parent_labels=np.array([coarse for _, _, coarse in rows], np.int64),
    )


_Opened = tuple[str, Callable[[str], str], Callable[[list[str]], Reader]]


def _tar(path: str) -> _Opened:
    tar = Tar(path)
    roots = [name.removesuffix(TABLE) for name in tar.members if name.endswith(TABLE)]
    root = _root(roots, lambda name: name in tar.members, path)

    def text(name: str) -> str:
        return tar.read(root + name).decode()

    return root, text, lambda files: TarReader(tar, files, 3)


def _folder(path: str) -> _Opened:
    root = _root([path + "/", path + "/grocery_store/", path + "/dataset/"], os.path.isfile, path)

    def text(name: str) -> str:
        with open(root + name, encoding="utf-8") as file:
            return file.read()

    return root, text, lambda files: FileReader(files, 3)


def _root(candidates: Iterable[str], exists: Callable[[str], bool], path: str) -> str:
    """The folder, with its slash, in which the lists and the table of classes lie."""
    for root in candidates:
        if all(exists(root + name) for name in (*LISTS, TABLE)):
            return root
    raise ValueError(
        f"grocery_store: {path} has no folder with {', '.join(LISTS)} and {TABLE}; the tar file of the set "
        "or the folder in it is accepted"
    )


def _row(line: str, name: str) -> tuple[str, int, int]:
    parts = [part.strip() for part in line.split(",")]
    if len(parts) != 3 or not parts[1].isdecimal() or not parts[2].isdecimal():
        raise ValueError(f"grocery_store: {line!r} in {name} is not a row of path, fine, coarse")
    return parts[0], int(parts[1]), int(parts[2])


def _class_names(table: str) -> dict[int, str]:
    """Fine class number -> name."""
    return {int(row[1]): row[0] for row in list(csv.reader(io.StringIO(table)))[1:] if len(row) > 1}
