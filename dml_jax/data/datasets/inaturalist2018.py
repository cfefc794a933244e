"""iNaturalist 2018 (Van Horn et al., CVPR 2018), divided by species: photographs of 8,142 plants and animals."""

import json
import os
from typing import Literal

import numpy as np

from dml_jax.data import published
from dml_jax.data.archives import Files, root_of
from dml_jax.data.base import Source, integer_labels
from dml_jax.data.published import Archive, Count, Listing, Published
from dml_jax.errors import UserError
from dml_jax.parameters import PositiveInt, checked

ANNOTATIONS = ("train2018.json", "val2018.json")
LISTS = {split: f"Inat_dataset_splits/Inaturalist_{split}_set1.txt" for split in ("train", "test")}


@checked("data set")
def inaturalist2018(
    split: Literal["train", "test", "all"],
    *,
    path: str | os.PathLike[str],
    exif: bool = True,
    min_side: PositiveInt | None = None,
    counts: bool = True,
) -> Source:
    """Reads the split of Brown et al. (Smooth-AP, ECCV 2020): 5,690 species to train, 2,452 others as `test`.

    The images of the competition's train and val are pooled. `parent_labels` are the supercategories (Aves, Plantae,
    ...), numbered over the whole split in alphabetical order. Classes are in the order of the set's category numbers.

    Args:
      split: "train", "test" or "all"; hold classes of train out for validation.
      path: the folder, zip or tar file with `train2018.json`, `val2018.json`, `Inat_dataset_splits/` and
        `train_val2018/`.
      exif: False to leave images as they lie in their files, as the 2025 paper's code does.
      min_side: as in `folder`.
      counts: False to accept other numbers of images than the published ones.

    Raises:
      UserError: nothing at `path`, another data set, or one that is not complete.

    Example:
      >>> import pathlib, tempfile
      >>> name = "train_val2018/Aves/3/a.jpg"
      >>> with tempfile.TemporaryDirectory() as path:
      ...     root = pathlib.Path(path)
      ...     (root / name).parent.mkdir(parents=True)
      ...     (root / name).touch()
      ...     (root / "Inat_dataset_splits").mkdir()
      ...     for split, text in (("train", name), ("test", "")):
      ...         _ = (root / LISTS[split]).write_text(text)
      ...     image, label = {"id": 7, "file_name": name}, {"image_id": 7, "category_id": 3}
      ...     for file, images, labels in (("train", [image], [label]), ("val", [], [])):
      ...         text = json.dumps({"images": images, "annotations": labels})
      ...         _ = (root / f"{file}2018.json").write_text(text)
      ...     inaturalist2018("train", path=path, counts=False).class_names
      ('Aves/3',)
    """
    return published.source(
        INATURALIST2018, split, path=path, exif=exif, min_side=min_side, counts=counts
    )


def _listing(files: Files, split: str) -> Listing:
    root = root_of(files, *ANNOTATIONS, *LISTS.values())
    if root is None:
        raise INATURALIST2018.unknown(files)
    names = [
        name
        for part in (LISTS if split == "all" else (split,))
        for name in files.read(root + LISTS[part]).decode().split()
    ]
    category_of = _categories(files, root)
    unknown = next((name for name in names if name not in category_of), None)
    if unknown is not None:
        raise UserError(
            f"inaturalist2018: {unknown} is in the list of {split!r} of {files.path}, and in none of "
            f"{', '.join(ANNOTATIONS)}"
        )
    numbers = np.array([category_of[name] for name in names], np.int64)
    _, first, labels = np.unique(numbers, return_index=True, return_inverse=True)
    parents, _ = integer_labels(name.split("/")[1] for name in names)
    return Listing(
        names=[root + name for name in names],
        labels=labels.astype(np.int64),
        class_names=tuple(f"{names[i].split('/')[1]}/{numbers[i]}" for i in first.tolist()),
        parent_labels=parents,
    )


def _categories(files: Files, root: str) -> dict[str, int]:
    """Returns the category of every image by its name."""
    found: dict[str, int] = {}
    for name in ANNOTATIONS:
        content = json.loads(files.read(root + name))
        category = {label["image_id"]: label["category_id"] for label in content["annotations"]}
        found |= {image["file_name"]: category[image["id"]] for image in content["images"]}
    return found


_BUCKET = "https://ml-inat-competition-datasets.s3.amazonaws.com/2018"
INATURALIST2018 = Published(
    name="inaturalist2018",
    title="iNaturalist 2018 with the split by species",
    licence="for research; the photographs have licences of their own (CC BY-NC and others)",
    archives=(
        Archive(
            "train_val2018.tar.gz",
            f"{_BUCKET}/train_val2018.tar.gz",
            checksum="md5:b1c6952ce38f31868cc50ea72d066cc3",
        ),
        Archive(
            "train2018.json.tar.gz",
            f"{_BUCKET}/train2018.json.tar.gz",
            checksum="md5:bfa29d89d629cbf04d826a720c0a68b0",
        ),
        Archive(
            "val2018.json.tar.gz",
            f"{_BUCKET}/val2018.json.tar.gz",
            checksum="md5:f2ed8bfe31e9901aadefb98ed3f1ac55",
        ),
        Archive(
            "Inat_dataset_splits.zip",
            "https://drive.google.com/uc?id=1sXfkBTFDrRU3__-NUs1qBP3sf_0uMB98",
            direct=False,
        ),
    ),
    counts={
        "train": Count(325846, 5690),
        "test": Count(136093, 2452),
        "all": Count(461939, 8142),
    },
    listing=_listing,
    layout="train2018.json, val2018.json, Inat_dataset_splits/ and train_val2018/ in one folder",
)
