"""Cars196 (Krause et al., 2013): photographs of 196 models of cars."""

import csv
import io
import os
from typing import Any, Literal

import numpy as np

from dml_jax.data import published
from dml_jax.data.archives import Files, root_of
from dml_jax.data.base import Source
from dml_jax.data.published import Archive, Count, Listing, Published
from dml_jax.errors import UserError
from dml_jax.parameters import PositiveInt, checked

Order = Literal["devkit", "names"]
TRAIN_CLASSES = 98
TABLES = ("names.csv", "anno_train.csv", "anno_test.csv")
DEVKIT = ("cars_train_annos.mat", "cars_test_annos_withlabels.mat", "cars_meta.mat")


@checked("data set")
def cars196(
    split: Literal["train", "test", "all"],
    *,
    path: str | os.PathLike[str],
    order: Order | None = None,
    exif: bool = True,
    min_side: PositiveInt | None = None,
    counts: bool = True,
) -> Source:
    """Reads the zero-shot retrieval split: the first 98 classes to train, the other 98 as `test`.

    The authors' own division into train and test images, which has all classes on both sides, is not kept. The first 98
    are the same in both orders of the classes, but the last of them are others, and with them a validation of
    `validation_by="last_classes"`: 18 of 20 classes are the same.

    Args:
      split: "train", "test" or "all"; hold classes of train out for validation.
      path: a folder, zip or tar file with `cars_annos.mat` and `car_ims/`; with the devkit's `.mat` files and
        `cars_train/`, `cars_test/`; with `names.csv`, `anno_train.csv`, `anno_test.csv` and `car_data/car_data/`, as
        PML and the 2025 code download it; or with `images/CLASS/`, as the ICML 2020 code reads it.
      order: "devkit", as in the 2025 code, or "names", sorted by name, as in the ICML 2020 code; None: devkit, where
        the files have it.
      exif: False to leave images as they lie in their files, as both papers' code does.
      min_side: as in `folder`.
      counts: False to accept other numbers of images than the published ones.

    Raises:
      UserError: nothing at `path`, another data set, one that is not complete, or an order that it does not have.

    Example:
      >>> import pathlib, tempfile
      >>> with tempfile.TemporaryDirectory() as path:
      ...     for name in ("BMW M3 Coupe 2012/a.jpg", "Acura RL Sedan 2012/b.jpg"):
      ...         file = pathlib.Path(path, "images", name)
      ...         file.parent.mkdir(parents=True)
      ...         file.touch()
      ...     cars196("all", path=path, counts=False).class_names
      ('Acura RL Sedan 2012', 'BMW M3 Coupe 2012')
    """
    return published.source(
        CARS196, split, path=path, exif=exif, min_side=min_side, counts=counts, order=order
    )


# Names of the classes in the devkit's order or None, and of each image its name and its class's.
_Read = tuple[list[str] | None, list[tuple[str, str]]]


def _listing(files: Files, split: str, order: Order | None = None) -> Listing:
    known, pairs = _read(files)
    if order == "devkit" and known is None:
        raise UserError(
            f"cars196: {files.path} has no list in the devkit's order (names.csv, cars_annos.mat or cars_meta.mat); "
            "order='names' is accepted"
        )
    if order == "names" or known is None:
        known = sorted({name for _, name in pairs})
    parts = {"train": known[:TRAIN_CLASSES], "test": known[TRAIN_CLASSES:], "all": known}
    present = {name for _, name in pairs}
    chosen = [name for name in parts[split] if name in present]
    label_of = {name: i for i, name in enumerate(chosen)}
    rows = [(image, label_of[name]) for image, name in pairs if name in label_of]
    return Listing(
        names=[image for image, _ in rows],
        labels=np.array([label for _, label in rows], np.int64),
        class_names=tuple(chosen),
    )


def _read(files: Files) -> _Read:
    if (root := root_of(files, *TABLES)) is not None:
        return _of_tables(files, root)
    if (root := root_of(files, "cars_annos.mat")) is not None:
        return _of_one_list(files, root)
    # The longer one first: the folder devkit/ could be taken for the whole.
    for below in ("devkit/", ""):
        if (root := root_of(files, *(below + name for name in DEVKIT))) is not None:
            return _of_devkit(files, root, below)
    return _of_folders(files)


def _of_tables(files: Files, root: str) -> _Read:
    names = [row[0] for row in _rows(files, root + TABLES[0])]
    pairs = []
    for part, table in zip(("train", "test"), TABLES[1:], strict=True):
        folder = f"{root}car_data/car_data/{part}/"
        rows = [(row[0], names[int(row[-1]) - 1]) for row in _rows(files, root + table)]
        # The archive has a folder for each class; there a slash in a name is a hyphen.
        below = bool(rows) and not files.exists(folder + rows[0][0])
        pairs += [
            (f"{folder}{name.replace('/', '-') + '/' if below else ''}{image}", name)
            for image, name in rows
        ]
    return names, pairs


def _rows(files: Files, name: str) -> list[list[str]]:
    return [row for row in csv.reader(io.StringIO(files.read(name).decode("utf-8-sig"))) if row]


def _mat(files: Files, name: str) -> dict[str, Any]:
    from scipy.io import loadmat  # which takes a while to import

    found: dict[str, Any] = loadmat(io.BytesIO(files.read(name)), squeeze_me=True)
    return found


def _of_one_list(files: Files, root: str) -> _Read:
    found = _mat(files, root + "cars_annos.mat")
    names = [str(name) for name in found["class_names"]]
    pairs = [
        (root + str(row["relative_im_path"]), names[int(row["class"]) - 1])
        for row in np.atleast_1d(found["annotations"])
    ]
    return names, pairs


def _of_devkit(files: Files, root: str, below: str) -> _Read:
    names = [str(n) for n in np.atleast_1d(_mat(files, f"{root}{below}{DEVKIT[2]}")["class_names"])]
    pairs = []
    for folder, name in zip(("cars_train", "cars_test"), DEVKIT, strict=False):
        rows = np.atleast_1d(_mat(files, f"{root}{below}{name}")["annotations"])
        pairs += [(f"{root}{folder}/{row['fname']}", names[int(row["class"]) - 1]) for row in rows]
    return names, pairs


def _of_folders(files: Files) -> _Read:
    parts = [name.split("/") for name in files.names()]
    pairs = [
        ("/".join(part), part[-2])
        for part in parts
        if len(part) >= 3 and part[-3] == "images" and part[-1].lower().endswith((".jpg", ".jpeg"))
    ]
    if not pairs:
        raise CARS196.unknown(files)
    return None, pairs


CARS196 = Published(
    name="cars196",
    title="Cars196",
    licence="for research; the photographs are their photographers'",
    archives=(
        Archive(
            "stanford-car-dataset-by-classes-folder.zip",
            "https://www.kaggle.com/api/v1/datasets/download/jutrera/stanford-car-dataset-by-classes-folder",
        ),
    ),
    counts={"train": Count(8054, 98), "test": Count(8131, 98), "all": Count(16185, 196)},
    listing=_listing,
    layout="cars_annos.mat with car_ims/, the devkit with cars_train/ and cars_test/, names.csv and anno_*.csv with "
    "car_data/car_data/, or images/CLASS/",
)
