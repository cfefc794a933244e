"""CUB-200-2011 (Wah et al., 2011): photographs of 200 species of birds."""

import os
import re
from typing import Literal

import numpy as np

from dml_jax.data import published
from dml_jax.data.archives import Files, root_of
from dml_jax.data.base import Source
from dml_jax.data.published import Archive, Count, Listing, Published
from dml_jax.parameters import PositiveInt, checked

# Classes from 1 on.
CLASSES = {"train": range(1, 101), "test": range(101, 201), "all": range(1, 201)}
LISTS = ("images.txt", "image_class_labels.txt")


@checked("data set")
def cub200(
    split: Literal["train", "test", "all"],
    *,
    path: str | os.PathLike[str],
    exif: bool = True,
    min_side: PositiveInt | None = None,
    counts: bool = True,
) -> Source:
    """Reads the zero-shot retrieval split: the first 100 species to train, the other 100 as `test`.

    Both papers use it; the set's own division, which has all species on both sides, is not read. Classes are in the
    set's order.

    Args:
      split: "train", "test" or "all"; hold classes of train out for validation.
      path: the folder CUB_200_2011, one that holds it, or a zip or tar file of it; or a folder with
        `images/001.Black_footed_Albatross/` and so on, as the ICML 2020 code reads it.
      exif: False to leave images as they lie in their files, as both papers' code does.
      min_side: as in `folder`.
      counts: False to accept other numbers of images than the published ones.

    Raises:
      UserError: nothing at `path`, another data set, or one that is not complete.

    Example:
      >>> import pathlib, tempfile
      >>> with tempfile.TemporaryDirectory() as path:
      ...     for name in ("001.Albatross/a.jpg", "150.Jay/b.jpg"):
      ...         file = pathlib.Path(path, "images", name)
      ...         file.parent.mkdir(parents=True)
      ...         file.touch()
      ...     cub200("train", path=path, counts=False).class_names
      ('001.Albatross',)
    """
    return published.source(CUB200, split, path=path, exif=exif, min_side=min_side, counts=counts)


def _listing(files: Files, split: str) -> Listing:
    root = root_of(files, *LISTS)
    if root is None:
        pairs = _of_folders(files)
    else:
        file_of = dict(line.split() for line in _lines(files, root + LISTS[0]))
        pairs = [
            (int(number), f"{root}images/{file_of[image]}")
            for image, number in map(str.split, _lines(files, root + LISTS[1]))
        ]
    pairs = [(number, name) for number, name in pairs if number in CLASSES[split]]
    numbers, labels = np.unique([number for number, _ in pairs], return_inverse=True)
    folder_of = {number: name.split("/")[-2] for number, name in pairs}
    return Listing(
        names=[name for _, name in pairs],
        labels=labels.astype(np.int64),
        class_names=tuple(folder_of[number] for number in numbers.tolist()),
    )


def _lines(files: Files, name: str) -> list[str]:
    return files.read(name).decode().split("\n")[:-1]


def _of_folders(files: Files) -> list[tuple[int, str]]:
    """Returns the class and the name of each image in folders `images/NNN.species`, in order.

    Files that begin with "._", which macOS leaves in archives, are passed over, as in the ICML 2020 code.
    """
    pattern = re.compile(r"(?:[^/]+/)?images/(\d{3})\.[^/]+/(?!\._)[^/]+\.(?:jpe?g|png)", re.I)
    found = [(int(m[1]), m.string) for name in files.names() if (m := pattern.fullmatch(name))]
    if not found:
        raise CUB200.unknown(files)
    return sorted(found)


CUB200 = Published(
    name="cub200",
    title="CUB-200-2011",
    licence="for research; the photographs are their photographers'",
    archives=(
        Archive(
            "CUB_200_2011.tgz",
            "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
            size=1_150_585_339,
            checksum="md5:97eceeb196236b17998738112f37df78",
        ),
    ),
    counts={"train": Count(5864, 100), "test": Count(5924, 100), "all": Count(11788, 200)},
    listing=_listing,
    layout="CUB_200_2011 with images.txt and image_class_labels.txt, or images/001.NAME/ to images/200.NAME/",
)
