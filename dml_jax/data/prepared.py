"""A data set as `dml prepare` packs it: shards of images, and an index that is opened without reading them.

DIR/about.json                      the data set, what was done to its images, shards and splits; written last
DIR/names.npy, name_ends.npy        the names of the images, one after the other as UTF-8, and where each ends
DIR/split_NAME.npz                  rows, labels and coarser classes of a split
DIR/classes_NAME.json               the names of its classes
DIR/images-00000-of-00012.arrayrecord   the images of 4,096 rows, as JPEG files and others, each by itself
DIR/bad_images.csv                  images that could not be decoded, and are in no split
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from jaxtyping import Int64, UInt8

from dml_jax import names
from dml_jax.data.base import Images, Source
from dml_jax.data.decoding import decode
from dml_jax.errors import UserError

ABOUT, NAMES, ENDS = "about.json", "names.npy", "name_ends.npy"
# What reads the images, and may differ from run to run; other options of a data set are part of what was prepared.
READING = ("channels", "exif", "min_side", "size", "counts")


def is_prepared(path: Any) -> bool:
    """Returns True for a folder that `dml prepare` wrote whole.

    Args:
      path: of anything.
    """
    return (
        isinstance(path, str | os.PathLike) and (pathlib.Path(path).expanduser() / ABOUT).is_file()
    )


def shard_name(number: int, shards: int) -> str:
    """Returns the name of a shard's file.

    Args:
      number: of the shard, from 0 on.
      shards: how many there are.

    >>> shard_name(3, 12)
    'images-00003-of-00012.arrayrecord'
    """
    return f"images-{number:05d}-of-{shards:05d}.arrayrecord"


@dataclass(frozen=True, eq=False)
class Names(Sequence[str]):
    """The names of some images, which are read when they are asked for.

    Attributes:
      folder: of the data set.
      rows: of the images.
    """

    folder: str
    rows: Int64[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Names": ...
    def __getitem__(self, index: int | slice) -> "str | Names":
        if isinstance(index, slice):
            return Names(self.folder, self.rows[index])
        row = int(self.rows[index])
        begin = int(self._ends[row - 1]) if row else 0
        text = self._text[begin : int(self._ends[row])].tobytes()
        return f"{self.folder}/{text.decode('utf-8', 'surrogateescape')}"

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "rows": self.rows}

    @cached_property
    def _text(self) -> UInt8[np.ndarray, " m"]:
        found: np.ndarray = np.load(f"{self.folder}/{NAMES}", mmap_mode="r")
        return found

    @cached_property
    def _ends(self) -> Int64[np.ndarray, " n"]:
        found: np.ndarray = np.load(f"{self.folder}/{ENDS}", mmap_mode="r")
        return found


@dataclass(frozen=True, eq=False)
class RecordReader:
    """Decodes images of shards.

    Attributes:
      folder: of the data set.
      shards: how many there are.
      rows: of the images.
      channels: 1 (grey) or 3 (RGB).
      size: as in `decode`.
      min_side: as in `decode`.
      exif: as in `decode`.
    """

    folder: str
    shards: int
    rows: Int64[np.ndarray, " n"]
    channels: int
    size: int | None = None
    min_side: int | None = None
    exif: bool = True
    # One for each process: what is open does not travel.
    _opened: list[ArrayRecordDataSource] = field(default_factory=list, repr=False)

    def __call__(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        return decode(
            self.encoded(index),
            channels=self.channels,
            size=self.size,
            min_side=self.min_side,
            exif=self.exif,
        )

    def encoded(self, index: int) -> bytes:
        """Returns the bytes of an image."""
        if not self._opened:
            files = [f"{self.folder}/{shard_name(i, self.shards)}" for i in range(self.shards)]
            self._opened.append(ArrayRecordDataSource(files))
        found: bytes = self._opened[0][int(self.rows[index])]
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": []}


def open_split(
    path: str | os.PathLike[str], split: str, name: str, options: Mapping[str, Any]
) -> Source:
    """Opens a split; nothing is read but its labels.

    Args:
      path: of the folder.
      split: of the data set.
      name: of the data set, as it is asked for.
      options: of the data set, beside path and split.

    Raises:
      UserError: the folder holds another data set, was prepared with other options, has no such split, or lacks a file.
    """
    folder = pathlib.Path(path).expanduser()
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    if about["dataset"] != name:
        raise UserError(
            f"data.name={name!r}: {folder} was prepared from {about['dataset']!r}, which is accepted"
        )
    for key, value in options.items():
        if key not in READING and about["options"].get(key, value) != value:
            raise UserError(
                f"data.{key}={value!r}: {folder} was prepared with {about['options'][key]!r}, which is accepted"
            )
    if split not in about["splits"]:
        raise names.unknown(f"split of {folder}:", split, about["splits"])
    shards = len(about["shards"])
    missing = [n for i in range(shards) if not (folder / (n := shard_name(i, shards))).is_file()]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of its {shards} shards, {missing[0]} among them"
        )
    with np.load(folder / f"split_{split}.npz") as arrays:
        rows, labels = arrays["rows"], arrays["labels"]
        parents, sets = arrays.get("parents"), arrays.get("label_sets")
    classes = json.loads((folder / f"classes_{split}.json").read_text(encoding="utf-8"))
    place = str(folder)
    return Images(
        labels=labels,
        class_names=tuple(classes),
        names=Names(place, rows),
        read=RecordReader(
            place,
            shards,
            rows,
            channels=options.get("channels", about["channels"]),
            size=options.get("size"),
            min_side=options.get("min_side"),
            exif=options.get("exif", True),
        ),
        parent_labels=parents,
        label_sets=sets,
    )
