"""Stanford Online Products (Oh Song et al., CVPR 2016): photographs of 22,634 products offered on eBay."""

import os
from typing import Literal

import numpy as np

from dml_jax.data import published
from dml_jax.data.archives import Files, root_of
from dml_jax.data.base import Source
from dml_jax.data.published import Archive, Count, Listing, Published
from dml_jax.errors import UserError
from dml_jax.parameters import PositiveInt, checked

LISTS = {
    "train": ("Ebay_train.txt",),
    "test": ("Ebay_test.txt",),
    "all": ("Ebay_train.txt", "Ebay_test.txt"),
}
HEADER = "image_id class_id super_class_id path"


@checked("data set")
def sop(
    split: Literal["train", "test", "all"],
    *,
    path: str | os.PathLike[str],
    exif: bool = True,
    min_side: PositiveInt | None = None,
    counts: bool = True,
) -> Source:
    """Reads the published split: 11,318 products to train and 11,316 others as `test`.

    `parent_labels` are the 12 kinds of products, from 0. Classes are in the order of the lists.

    Args:
      split: "train", "test" or "all"; hold classes of train out for validation.
      path: the folder Stanford_Online_Products, one that holds it, or a zip or tar file of it; or a folder with
        `Info_Files/` and `images/`, as the ICML 2020 code reads it.
      exif: False to leave images as they lie in their files, as both papers' code does.
      min_side: as in `folder`.
      counts: False to accept other numbers of images than the published ones.

    Raises:
      UserError: nothing at `path`, another data set, or one that is not complete.

    Example:
      >>> import pathlib, tempfile
      >>> with tempfile.TemporaryDirectory() as path:
      ...     _ = pathlib.Path(path, "Ebay_train.txt").write_text(f"{HEADER}\\n1 1 12 lamp_final/7_0.JPG\\n")
      ...     _ = pathlib.Path(path, "Ebay_test.txt").write_text(HEADER)
      ...     pathlib.Path(path, "lamp_final").mkdir()
      ...     pathlib.Path(path, "lamp_final", "7_0.JPG").touch()
      ...     source = sop("train", path=path, counts=False)
      ...     source.class_names, source.parent_labels.tolist()
      (('lamp/7',), [11])
    """
    return published.source(SOP, split, path=path, exif=exif, min_side=min_side, counts=counts)


def _listing(files: Files, split: str) -> Listing:
    root, lists, images = _layout(files)
    rows = [row for name in LISTS[split] for row in _rows(files, f"{root}{lists}{name}")]
    products = np.array([int(row[1]) for row in rows], np.int64)
    _, first, labels = np.unique(products, return_index=True, return_inverse=True)
    return Listing(
        names=[f"{root}{images}{row[3]}" for row in rows],
        labels=labels.astype(np.int64),
        class_names=tuple(_product(rows[i][3]) for i in first.tolist()),
        parent_labels=np.array([int(row[2]) for row in rows], np.int64) - 1,
    )


def _layout(files: Files) -> tuple[str, str, str]:
    """Returns the folder of the set, and those of its lists and of its images below it."""
    # The longer one first: the folder Info_Files/ could be taken for the whole.
    for lists, images in (("Info_Files/", "images/"), ("", "")):
        root = root_of(files, *(lists + name for name in LISTS["all"]))
        if root is not None:
            return root, lists, images
    raise SOP.unknown(files)


def _rows(files: Files, name: str) -> list[list[str]]:
    header, *lines = files.read(name).decode().splitlines()
    rows = [line.split() for line in lines]
    wrong = next((line for line, row in zip(lines, rows, strict=True) if len(row) != 4), None)
    if header.split() != HEADER.split() or wrong is not None:
        raise UserError(
            f"sop: {name} in {files.path} is not a list of {HEADER}: it has {wrong or header!r}"
        )
    return rows


def _product(path: str) -> str:
    """Returns the kind and the number of the product, as in "bicycle/111085122871"."""
    kind, _, file = path.rpartition("/")
    return f"{kind.removesuffix('_final')}/{file.partition('_')[0]}"


SOP = Published(
    name="sop",
    title="Stanford Online Products",
    licence="for research; the photographs are the sellers'",
    archives=(
        Archive(
            "Stanford_Online_Products.zip",
            "https://drive.usercontent.google.com/download?id=1TclrpQOF_ullUP99wk_gjGN8pKvtErG8&export=download"
            "&authuser=0&confirm=t",
        ),
    ),
    counts={
        "train": Count(59551, 11318),
        "test": Count(60502, 11316),
        "all": Count(120053, 22634),
    },
    listing=_listing,
    layout="Stanford_Online_Products with Ebay_train.txt and Ebay_test.txt, or Info_Files/ with these and images/",
)
