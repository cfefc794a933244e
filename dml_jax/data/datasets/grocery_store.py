"""Grocery Store (Klasson et al., WACV 2019): photographs of 81 fine classes in shops."""

import csv
import io
import os
from collections.abc import Callable, Iterable
from typing import Literal

import numpy as np

from dml_jax.data.archives import MemberReader, Tar
from dml_jax.data.base import (
    FileReader,
    Images,
    Reader,
    Source,
    existing_path,
    integer_labels,
)
from dml_jax.errors import UserError
from dml_jax.parameters import checked

LISTS = ("train.txt", "val.txt", "test.txt")
CLASS_TABLE = "classes.csv"
CLASSES = {"train": range(0, 41), "test": range(41, 81), "all": range(0, 81)}


@checked("data set")
def grocery_store(
    split: Literal["train", "test", "all"], *, path: str | os.PathLike[str]
) -> Source:
    """Reads the zero-shot retrieval split: the three published lists pooled, then divided by fine class.

    Images are uint8 `[H, W, 3]`. `train` is fine classes 0 to 40, `test` 41 to 80, `all` everything; labels are
    renumbered from 0 within the split, and `parent_labels` are the published coarse classes. The published lists share
    their classes and are not splits here.

    Args:
      split: "train", "test" or "all"; hold classes of train out for validation.
      path: an uncompressed tar file, which is read in place, or the folder in it.

    Raises:
      UserError: nothing at `path`, one of the lists missing, or a row that is not `path, fine, coarse`.

    Example:
      >>> import pathlib, tempfile
      >>> lists = {"train.txt": "train/a.jpg, 0, 0", "val.txt": "val/b.jpg, 40, 1", "test.txt": "test/c.jpg, 41, 1"}
      >>> with tempfile.TemporaryDirectory() as path:
      ...     for name, text in {**lists, "classes.csv": "name,id\\nGala,0\\nBanana,40"}.items():
      ...         _ = pathlib.Path(path, name).write_text(text)
      ...     grocery_store("train", path=path).class_names
      ('Gala', 'Banana')
    """
    path = existing_path(path, "grocery_store")
    root, read_text, reader = (_open_tar if os.path.isfile(path) else _open_folder)(path)
    rows = [
        _row(line, name) for name in LISTS for line in read_text(name).splitlines() if line.strip()
    ]
    rows = [row for row in rows if row[1] in CLASSES[split]]
    if not rows:
        raise UserError(f"grocery_store: {path} lists no image of the classes of split {split!r}")
    labels, present = integer_labels(fine for _, fine, _ in rows)
    class_names = _class_names(read_text(CLASS_TABLE))
    return Images(
        labels=labels,
        class_names=tuple(class_names.get(fine, str(fine)) for fine in present),
        names=[f"{path}:{file}" for file, _, _ in rows],
        read=reader([root + file for file, _, _ in rows]),
        parent_labels=np.array([coarse for _, _, coarse in rows], np.int64),
    )


# The folder with its slash, a function that reads a text in it, and one that makes the reader of image files.
_Opened = tuple[str, Callable[[str], str], Callable[[list[str]], Reader]]


def _open_tar(path: str) -> _Opened:
    tar = Tar(path)
    roots = [name.removesuffix(CLASS_TABLE) for name in tar.members if name.endswith(CLASS_TABLE)]
    root = _root(roots, lambda name: name in tar.members, path)

    def read_text(name: str) -> str:
        return tar.read(root + name).decode()

    return root, read_text, lambda files: MemberReader(tar, files, 3)


def _open_folder(path: str) -> _Opened:
    root = _root([path + "/", path + "/grocery_store/", path + "/dataset/"], os.path.isfile, path)

    def read_text(name: str) -> str:
        with open(root + name, encoding="utf-8") as file:
            return file.read()

    return root, read_text, lambda files: FileReader(files, 3)


def _root(candidates: Iterable[str], exists: Callable[[str], bool], path: str) -> str:
    """Returns the folder, with its slash, in which the lists and the table of classes lie."""
    for root in candidates:
        if all(exists(root + name) for name in (*LISTS, CLASS_TABLE)):
            return root
    raise UserError(
        f"grocery_store: {path} has no folder with {', '.join(LISTS)} and {CLASS_TABLE}; the tar file of the set "
        "or the folder in it is accepted"
    )


def _row(line: str, name: str) -> tuple[str, int, int]:
    """Parses a line of a list to (path, fine class, coarse class)."""
    parts = [part.strip() for part in line.split(",")]
    if len(parts) != 3 or not parts[1].isdecimal() or not parts[2].isdecimal():
        raise UserError(f"grocery_store: {line!r} in {name} is not a row of path, fine, coarse")
    return parts[0], int(parts[1]), int(parts[2])


def _class_names(table: str) -> dict[int, str]:
    """Returns the names of the fine classes by their numbers."""
    return {int(row[1]): row[0] for row in list(csv.reader(io.StringIO(table)))[1:] if len(row) > 1}
