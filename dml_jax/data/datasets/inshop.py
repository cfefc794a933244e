"""In-Shop Clothes Retrieval of DeepFashion (Liu et al., CVPR 2016): photographs of 7,982 articles of clothing."""

import os
from typing import Literal

import numpy as np

from dml_jax.data import published
from dml_jax.data.archives import Files, root_of
from dml_jax.data.base import Source
from dml_jax.data.published import Archive, Count, Listing, Published
from dml_jax.errors import UserError
from dml_jax.parameters import PositiveInt, checked

LIST = "list_eval_partition.txt"
HEADER = ["image_name", "item_id", "evaluation_status"]
# What a split is called in the lists.
PARTS = {
    "train": ("train",),
    "test": ("query",),
    "gallery": ("gallery",),
    "all": ("train", "query", "gallery"),
}
# The images lie in one of these, beside the lists or above them.
FOLDERS = ("", "Img/", "../Img/", "../")


@checked("data set")
def inshop(
    split: Literal["train", "test", "gallery", "all"],
    *,
    path: str | os.PathLike[str],
    exif: bool = True,
    min_side: PositiveInt | None = None,
    counts: bool = True,
) -> Source:
    """Reads the published partition: articles to train, queries as `test`, and the `gallery` that they are searched in.

    Queries and gallery show the same 3,985 articles: `config.evaluation.gallery.test="gallery"`. Classes are sorted by
    the number of the article.

    Args:
      split: "train", "test" (the queries), "gallery" or "all"; hold classes of train out for validation.
      path: the folder of the set, or a zip or tar file of it, with `list_eval_partition.txt` (in `Eval/`, or at the
        top) and `img/` (in `Img/`, or beside the list); or with lists `train.txt`, `query.txt` and `gallery.txt` of
        paths and articles.
      exif: False to leave images as they lie in their files.
      min_side: as in `folder`.
      counts: False to accept other numbers of images than the published ones.

    Raises:
      UserError: nothing at `path`, another data set, or one that is not complete.

    Example:
      >>> import pathlib, tempfile
      >>> with tempfile.TemporaryDirectory() as path:
      ...     rows = ["2", " ".join(HEADER), "img/a/id_1/1.jpg id_1 query", "img/a/id_1/2.jpg id_1 gallery"]
      ...     _ = pathlib.Path(path, LIST).write_text("\\n".join(rows))
      ...     pathlib.Path(path, "img/a/id_1").mkdir(parents=True)
      ...     for name in "12":
      ...         pathlib.Path(path, f"img/a/id_1/{name}.jpg").touch()
      ...     [len(inshop(split, path=path, counts=False)) for split in ("test", "gallery", "all")]
      [1, 1, 2]
    """
    return published.source(INSHOP, split, path=path, exif=exif, min_side=min_side, counts=counts)


def _listing(files: Files, split: str) -> Listing:
    root, rows = _rows(files)
    kept = [(image, item) for image, item, part in rows if part in PARTS[split]]
    items, labels = np.unique([item for _, item in kept], return_inverse=True)
    prefix = _prefix(files, root, kept[0][0]) if kept else ""
    return Listing(
        names=[prefix + image for image, _ in kept],
        labels=labels.astype(np.int64),
        class_names=tuple(map(str, items)),
    )


def _rows(files: Files) -> tuple[str, list[list[str]]]:
    """Returns the folder of the lists, and image, article and part of every row."""
    # The longer one first: the folder Eval/ could be taken for the whole.
    for below in ("Eval/", ""):
        root = root_of(files, below + LIST)
        if root is not None:
            name = root + below + LIST
            _, header, *lines = files.read(name).decode().splitlines()
            if header.split() != HEADER:
                raise UserError(
                    f"inshop: {name} in {files.path} has the columns {header!r}; accepted: {' '.join(HEADER)}"
                )
            return root + below, [line.split() for line in lines]
    lists = {part: f"{part}.txt" for part in PARTS["all"]}
    root = root_of(files, *lists.values())
    if root is None:
        raise INSHOP.unknown(files)
    # Articles by the folder of their images, which the lists number in ways of their own.
    return root, [
        [image, image.split("/")[-2], part]
        for part, name in lists.items()
        for image in (line.split()[0] for line in files.read(root + name).decode().splitlines())
    ]


def _prefix(files: Files, root: str, image: str) -> str:
    """Returns what the name of a listed image begins with in the files."""
    above = root.rstrip("/").rpartition("/")[0]
    tops = {"": root, "../": f"{above}/" if above else ""}
    for folder in FOLDERS:
        up = "../" if folder.startswith("../") else ""
        prefix = tops[up] + folder.removeprefix("../")
        if files.exists(prefix + image):
            return prefix
    return root


INSHOP = Published(
    name="inshop",
    title="In-Shop Clothes Retrieval",
    licence="for research, upon request",
    archives=(
        Archive(
            "img.zip",
            "https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html",
            direct=False,
        ),
        Archive(
            "list_eval_partition.txt",
            "https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html",
            direct=False,
        ),
    ),
    counts={
        "train": Count(25882, 3997),
        "test": Count(14218, 3985),
        "gallery": Count(12612, 3985),
        "all": Count(52712, 7982),
    },
    listing=_listing,
    layout="list_eval_partition.txt (in Eval/ or at the top) with img/ (in Img/ or beside it)",
)
