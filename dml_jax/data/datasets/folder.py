"""Images in folders, or in a list: one's own data."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypedDict

import numpy as np
from PIL import features

from dml_jax.data.base import (
    SPLITS,
    FileReader,
    Images,
    Source,
    existing_path,
    integer_labels,
)
from dml_jax.data.csv_lists import Row, read_list
from dml_jax.data.fractions import share_of
from dml_jax.errors import UserError
from dml_jax.parameters import Fraction, NonNegativeInt, PositiveInt, checked

# Splits that are not classes of their own.
EXTRA_SPLITS = ("gallery", "distractors")
EXTENSIONS = (
    ".jpg",
    ".jpeg",
    ".jfif",
    ".png",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
    *((".avif",) if features.check("avif") else ()),
)

# Pictures that Pillow does not read without a further package.
UNREAD = tuple(
    s
    for s in (".avif", ".heic", ".heif", ".jxl", ".raw", ".dng", ".cr2", ".nef", ".svg", ".psd")
    if s not in EXTENSIONS
)


@checked("data set")
def folder(
    split: Literal["train", "val", "test", "all", "gallery", "distractors"],
    *,
    path: str | os.PathLike[str],
    channels: Literal[1, 3] = 3,
    fractions: tuple[Fraction, Fraction, Fraction] = (0.5, 0.1, 0.4),
    seed: NonNegativeInt = 0,
    min_side: PositiveInt | None = None,
    exif: bool = True,
) -> Source:
    """Reads images from a directory with a sub-directory for each class, or from a CSV file that lists them.

    Images may lie at any depth below the directory of their class. Where `path` holds directories named train, val or
    test, each is a split with classes of its own; else the classes are divided among the splits by `fractions`. Beside
    them, `gallery` is a split that may share the classes of another, to be searched in its place, and `distractors` any
    images, without classes. Names that begin with a dot are passed over.

    A CSV file has the columns `path` and `label`; relative paths start at its folder. Its column `split`, where there
    is one, names the splits, `parent` a coarser class, and `labels` further labels with ";" between them.

    Args:
      split: "train", "val", "test", "all" (these three together), "gallery" or "distractors".
      path: the directory or the CSV file.
      channels: 3 (RGB) or 1 (grey).
      fractions: the shares of the classes for train, val and test, with sum 1; they apply where the folder does not
        divide itself.
      seed: of that division.
      min_side: for photographs much larger than what is cut out of them: JPEG files are decoded at 1/8 to 4/8 of their
        size, the smallest of these at which both sides have at least this many pixels. Crops from 12 megapixels then
        take 0.5 to 0.75 of the time with 512, and their pixels differ slightly. None decodes them whole.
      exif: False to leave images as they lie in their files, whatever their EXIF orientation says.

    Raises:
      UserError: a value out of range, nothing at `path`, no images, a split without classes, or a CSV file without the
        two columns.

    Example:
      >>> import pathlib, tempfile
      >>> from PIL import Image
      >>> with tempfile.TemporaryDirectory() as path:
      ...     for name in ("ant", "bee", "cat", "dog"):
      ...         pathlib.Path(path, name).mkdir()
      ...         Image.new("RGB", (4, 3)).save(f"{path}/{name}/1.png")
      ...     source = folder("train", path=path, fractions=(0.75, 0.0, 0.25))
      ...     len(source.class_names), source[0]["image"].shape
      (3, (3, 4, 3))
    """
    path = existing_path(path, "folder")
    read = _from_csv if os.path.isfile(path) else _from_directory
    source, is_split = read(path, split, channels)
    if min_side is not None or not exif:
        reader = FileReader(source.names, channels, min_side=min_side, exif=exif)
        source = replace(source, read=reader)
    if is_split or split == "all":
        return source
    if split in EXTRA_SPLITS:
        raise UserError(
            f"folder: {path} has no {split!r}; directories train, val or test beside it, or the column split of "
            "a CSV file, are accepted"
        )
    return share_of(source, split, fractions, seed, "folder", path)


def files(paths: Sequence[str], *, channels: int) -> Images:
    """Reads image files as a source without classes (labels -1).

    Args:
      paths: of the files.
      channels: 3 (RGB) or 1 (grey).

    Raises:
      UserError: a path that is not a file.

    Example:
      >>> import tempfile
      >>> from PIL import Image
      >>> with tempfile.TemporaryDirectory() as path:
      ...     Image.new("RGB", (4, 3)).save(f"{path}/a.png")
      ...     files([f"{path}/a.png"], channels=1)[0]["image"].shape
      (3, 4, 1)
    """
    paths = [os.path.expanduser(path) for path in paths]
    for path in paths:
        if not os.path.isfile(path):
            raise UserError(f"{path!r} is not a file; the path of an image is accepted")
    return Images(np.full(len(paths), -1, np.int64), (), paths, FileReader(paths, channels))


def files_below(path: str | os.PathLike[str], *, channels: int) -> Images:
    """Reads all images at any depth below a directory, in the order of their paths, without classes (labels -1).

    Args:
      path: of the directory.
      channels: 3 (RGB) or 1 (grey).

    Raises:
      UserError: no such directory, or no image in it.

    Example:
      >>> import tempfile
      >>> from PIL import Image
      >>> with tempfile.TemporaryDirectory() as path:
      ...     Image.new("RGB", (4, 3)).save(f"{path}/a.png")
      ...     len(files_below(path, channels=3))
      1
    """
    path = existing_path(path, "images", "--images")
    paths = _image_files(path)
    if not paths:
        raise UserError(
            f"no images under {path}; a directory with files ending in {' '.join(EXTENSIONS)} is accepted"
        )
    return files(paths, channels=channels)


def _from_directory(path: str, split: str, channels: int) -> tuple[Images, bool]:
    """Returns the images below a directory, and whether they are the split already."""
    present = [s for s in SPLITS if _directories(os.path.join(path, s))]
    if not present or split == "all":
        roots = [os.path.join(path, s) for s in present] or [path]
        return _source(*_images_by_class(roots), channels), False
    below = os.path.join(path, split)
    if split == "distractors" and os.path.isdir(below):
        return files_below(below, channels=channels), True
    if not _directories(below):
        raise UserError(
            f"folder: {path} has no class folders under {split!r}; it has splits {', '.join(present)}"
        )
    return _source(*_images_by_class([below]), channels), True


def _directories(path: str) -> list[str]:
    if not os.path.isdir(path):
        return []
    return sorted(e.name for e in os.scandir(path) if e.is_dir() and not e.name.startswith("."))


def _images_by_class(roots: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the image files below directories of classes, and the class of each."""
    paths, keys = [], []
    for root in roots:
        for key in _directories(root):
            images = _image_files(os.path.join(root, key))
            paths += images
            keys += [key] * len(images)
    if not paths:
        alone = sum(len(_image_files(root)) for root in roots)
        beside = f" in a directory of a class, and {alone} beside them" if alone else ""
        raise UserError(
            f"folder: no images under {' or '.join(roots)}{beside}; a directory per class with files ending in "
            f"{' '.join(EXTENSIONS)} is accepted"
        )
    return paths, keys


def _image_files(root: str) -> list[str]:
    """Returns the image files at any depth below a directory, in the order of their names.

    Each directory is entered once, however many links lead to it: a link to a directory above would go on for ever.
    """
    paths = []
    entered = {os.path.realpath(root)}
    for directory, below, inside in os.walk(root, followlinks=True):
        found = []
        for name in sorted(d for d in below if not d.startswith(".")):
            place = os.path.realpath(os.path.join(directory, name))
            if place not in entered:
                entered.add(place)
                found.append(name)
        below[:] = found
        images = (
            f for f in sorted(inside) if f.lower().endswith(EXTENSIONS) and not f.startswith(".")
        )
        paths += [os.path.join(directory, f) for f in images]
    return paths


class OtherFiles(TypedDict):
    """Files that are passed over.

    Attributes:
      count: how many.
      first: the path of one.
    """

    count: int
    first: str


def other_files(path: str | os.PathLike[str]) -> dict[str, OtherFiles]:
    """Returns what is below a folder and is not read, by what it is; nothing for a CSV file.

    Args:
      path: of the folder.
    """
    found: dict[str, OtherFiles] = {}
    root = os.path.expanduser(os.fspath(path))

    def add(what: str, place: str) -> None:
        entry = found.setdefault(what, {"count": 0, "first": place})
        entry["count"] += 1

    for directory, below, inside in os.walk(root):
        below[:] = sorted(d for d in below if not d.startswith("."))
        for name in sorted(inside):
            suffix = os.path.splitext(name)[1].lower()
            place = os.path.join(directory, name)
            if name.startswith("."):
                add("hidden files", place)
            elif suffix in UNREAD:
                add(f"{suffix} images, which cannot be read", place)
            elif suffix not in EXTENSIONS:
                add("files of other kinds", place)
    # A folder whose sub-folders hold the images is no class.
    for name in _directories(root):
        if name not in (*SPLITS, *EXTRA_SPLITS) and not _image_files(os.path.join(root, name)):
            add("folders of classes without an image", os.path.join(root, name))
    return found


def _from_csv(path: str, split: str, channels: int) -> tuple[Images, bool]:
    """Returns the images that a CSV file lists, and whether they are the split already."""
    rows, columns = _csv_rows(path)
    # Of the whole file, so that a label is the same column in every split.
    kinds = sorted({name for row in rows for name in _further_labels(row)})
    has_splits = "split" in columns
    if has_splits:
        present = dict.fromkeys(row["split"] for row in rows)
        wanted = SPLITS if split == "all" else (split,)
        rows = [row for row in rows if row["split"] in wanted]
        if not rows:
            raise UserError(
                f"folder: {path} has no row of split {split!r}; it has splits {', '.join(map(str, present))}"
            )
    source = _source(
        [os.path.join(os.path.dirname(path), os.path.expanduser(row["path"])) for row in rows],
        [row["label"] for row in rows],
        channels,
    )
    if "parent" in columns:
        source = replace(source, parent_labels=integer_labels(row["parent"] for row in rows)[0])
    if kinds:
        sets = np.array([[kind in _further_labels(row) for kind in kinds] for row in rows])
        source = replace(source, label_sets=sets)
    return source, has_splits


def _csv_rows(path: str) -> tuple[list[Row], list[str]]:
    """Returns the rows of a CSV file, in which each image stands once, and the names of its columns."""
    rows, columns = read_list(path, ("path", "label"), ("split", "parent", "labels"))
    if "parent" in columns:
        rows, columns = read_list(path, ("path", "label", "parent"))
    seen: dict[str, str] = {}
    for row in rows:
        before = seen.setdefault(row["path"], row["label"])
        if before != row["label"]:
            raise UserError(
                f"folder: {path} lists {row['path']} as {before!r} and as {row['label']!r}; one label for an image is "
                "accepted, and further ones in the column labels"
            )
    if len(seen) < len(rows):
        counts = Counter(row["path"] for row in rows)
        raise UserError(
            f"folder: {path} lists {next(p for p, n in counts.items() if n > 1)} twice; each image once is accepted"
        )
    return rows, columns


def _further_labels(row: dict[str, str]) -> set[str]:
    return {name.strip() for name in (row.get("labels") or "").split(";")} - {""}


def _source(paths: list[str], keys: list[str], channels: int) -> Images:
    labels, classes = integer_labels(keys)
    return Images(labels, tuple(classes), paths, FileReader(paths, channels))
