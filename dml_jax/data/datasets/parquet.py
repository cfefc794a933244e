"""Images in Parquet files, as Hugging Face and others write them."""

import glob
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from dml_jax import names
from dml_jax.data.base import SPLITS, Images, Source, existing_path, integer_labels
from dml_jax.data.decoding import decode
from dml_jax.data.fractions import share_of
from dml_jax.errors import UserError
from dml_jax.parameters import Fraction, NonNegativeInt, PositiveFloat, checked

GIB = 2**30


@checked("data set")
def parquet(
    split: Literal["train", "val", "test", "all"],
    *,
    path: str | os.PathLike[str],
    image: str = "image",
    label: str = "label",
    parent: str = "",
    by: Literal["class", "split"] = "class",
    fractions: tuple[Fraction, Fraction, Fraction] = (0.5, 0.1, 0.4),
    seed: NonNegativeInt = 0,
    memory: PositiveFloat = 4.0,
    channels: Literal[1, 3] = 3,
    exif: bool = True,
) -> Source:
    """Reads a Parquet file, or all of a folder at any depth.

    The column of images holds bytes, structs of bytes and path as those of Hugging Face, or paths of files from the
    folder of the Parquet file on. Labels are numbers or texts; names of classes come from the metadata of Hugging Face
    where they are there. A column `split`, or files called train-..., test-... and validation-..., name splits.

    A Parquet file is read by groups of rows, and not one by one: as many groups are kept as fit into `memory`. Of a
    larger set `dml prepare --dataset=parquet` makes what is read at random fast. It needs the extra `parquet`.

    Args:
      split: "train", "val" or "test"; "all" are these three together.
      path: the file, or the folder.
      image: the column of images.
      label: the column of classes.
      parent: the column of coarser classes; "" for none.
      by: "class" divides all classes by `fractions`, because published splits often share classes, which retrieval
        must not; "split" takes the splits that the files name.
      fractions: the shares of the classes for train, val and test, with sum 1.
      seed: of that division.
      memory: GiB of images that are kept.
      channels: 3 (RGB) or 1 (grey).
      exif: False to leave images as they lie in their files.

    Raises:
      UserError: the package is missing, nothing at `path`, no such columns or split, or images of another type.

    Example:
      >>> parquet("train", path="nowhere.parquet")
      Traceback (most recent call last):
      dml_jax.errors.UserError: parquet: path='nowhere.parquet' does not exist ...
    """
    place = existing_path(path, "parquet")
    files = [place]
    if os.path.isdir(place):
        files = sorted(
            glob.glob(os.path.join(glob.escape(place), "**", "*.parquet"), recursive=True)
        )
        if not files:
            raise UserError(
                f"parquet: there is no .parquet file in {place}; a file or a folder of them is accepted"
            )
    whole, splits = _opened(files, place, image, label, parent, memory, channels, exif)
    if by == "split" and split != "all":
        present = sorted(set(splits))
        if split not in present:
            raise names.unknown(f"split of {place}:", split, present)
        rows = np.flatnonzero(np.array(splits) == split)
        return _rows_of(whole, rows)
    return whole if split == "all" else share_of(whole, split, fractions, seed, "parquet", place)


def _rows_of(source: Images, rows: np.ndarray) -> Images:
    """Returns some rows of what `_opened` returned, with those of the classes that they are of."""
    present, labels = np.unique(source.labels[rows], return_inverse=True)
    read: Any = source.read
    return Images(
        labels.astype(np.int64),
        tuple(source.class_names[c] for c in present.tolist()),
        [source.names[i] for i in rows.tolist()],
        ParquetReader(
            read.files, read.places[rows], read.image, read.memory, read.channels, read.exif
        ),
        None if source.parent_labels is None else source.parent_labels[rows],
    )


def _arrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            "data set 'parquet' needs the package pyarrow: pip install 'dml_jax[parquet]'"
        ) from None
    return pyarrow.parquet


def _opened(
    files: Sequence[str],
    place: str,
    image: str,
    label: str,
    parent: str,
    memory: float,
    channels: int,
    exif: bool,
) -> tuple[Images, list[str]]:
    """Returns all rows, and the split of each ("" where none is named)."""
    arrow = _arrow()
    labels: list[Any] = []
    parents: list[Any] = []
    splits: list[str] = []
    places, known = [], None
    for number, file in enumerate(files):
        try:
            opened = arrow.ParquetFile(file)
        except (OSError, ValueError) as error:
            raise UserError(
                f"parquet: {file} cannot be read: {' '.join(str(error).split())[:200]}"
            ) from None
        columns = opened.schema_arrow.names
        for what, column in (
            ("image", image),
            ("label", label),
            *((("parent", parent),) if parent else ()),
        ):
            if column not in columns:
                raise names.unknown(f"column of {file}: {what}=", column, columns)
        known = known or _class_names(opened.schema_arrow.metadata, label)
        wanted = [label, *([parent] if parent else []), *(["split"] if "split" in columns else [])]
        for group in range(opened.num_row_groups):
            table = opened.read_row_group(group, columns=wanted)
            rows = table.num_rows
            labels += table[label].to_pylist()
            parents += table[parent].to_pylist() if parent else []
            named = table["split"].to_pylist() if "split" in columns else [_split_of(file)] * rows
            splits += [{"validation": "val"}.get(name, name) for name in named]
            places += [(number, group, row) for row in range(rows)]
    if not labels:
        raise UserError(f"parquet: {place} has no row")
    if None in labels:
        raise UserError(
            f"parquet: row {labels.index(None)} of {place} has no {label!r}; each row needs a class"
        )
    numbers, classes = integer_labels(labels)
    called = [str(known[c]) if known else str(c) for c in classes]
    read = ParquetReader(tuple(files), np.array(places, np.int32), image, memory, channels, exif)
    ids = [f"{files[file]}:{group}/{row}" for file, group, row in places]
    coarse = integer_labels(parents)[0] if parents else None
    return Images(numbers, tuple(called), ids, read, coarse), splits


def _split_of(file: str) -> str:
    name = os.path.basename(file)
    return next((s for s in (*SPLITS, "validation") if name.startswith((f"{s}-", f"{s}."))), "")


def _class_names(metadata: dict[bytes, bytes] | None, label: str) -> list[str] | None:
    """Returns the names of the classes that Hugging Face's metadata hold."""
    if not metadata or b"huggingface" not in metadata:
        return None
    features = json.loads(metadata[b"huggingface"]).get("info", {}).get("features", {})
    found: list[str] | None = features.get(label, {}).get("names")
    return found


@dataclass(frozen=True, eq=False)
class ParquetReader:
    """Reads images of Parquet files, and keeps the groups of rows that it read last.

    Attributes:
      files: the files.
      places: int32 `[N, 3]`, file, group of rows and row of each image.
      image: the column.
      memory: GiB of groups that are kept.
      channels: 1 (grey) or 3 (RGB).
      exif: as in `decode`.
    """

    files: tuple[str, ...]
    places: np.ndarray
    image: str
    memory: float
    channels: int
    exif: bool
    _kept: OrderedDict[tuple[int, int], Any] = field(default_factory=OrderedDict, repr=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    def __call__(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        return decode(self.encoded(index), channels=self.channels, exif=self.exif)

    def encoded(self, index: int) -> bytes:
        """Returns the bytes of an image."""
        file, group, row = map(int, self.places[index])
        value = self._group(file, group)[row].as_py()
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str):
            with open(os.path.join(os.path.dirname(self.files[file]), value), "rb") as opened:
                return opened.read()
        if not isinstance(value, bytes):
            raise UserError(
                f"column {self.image!r} holds {type(value).__name__}; bytes, structs of them or paths are accepted"
            )
        return value

    def _group(self, file: int, group: int) -> Any:
        with self._lock:
            if (file, group) not in self._kept:
                opened = _arrow().ParquetFile(self.files[file])
                self._kept[file, group] = opened.read_row_group(group, columns=[self.image])[
                    self.image
                ]
                while (
                    len(self._kept) > 1
                    and sum(g.nbytes for g in self._kept.values()) > self.memory * GIB
                ):
                    self._kept.popitem(last=False)
            self._kept.move_to_end((file, group))
            return self._kept[file, group]

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if not k.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _kept=OrderedDict(), _lock=threading.Lock())
