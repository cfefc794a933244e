"""What a source is, and the pieces that sources are made of: readers, decoding, subsets, held-out classes."""

import io
import os
import tarfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int64, UInt8
from PIL import Image, ImageOps

SPLITS = ("train", "val", "test")


class DecodeError(ValueError):
    """An image that cannot be read or decoded; the message names it."""


@runtime_checkable
class Source(Protocol):
    """Random access to labelled images.

    `source[i]` is `{"image": uint8 [H, W, C], "label": int, "id": i}`; `labels` are 0..C-1, known without
    decoding; `name(i)` names one image. Sources can be pickled and read from several threads at once.
    """

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def parent_labels(self) -> np.ndarray | None: ...

    @property
    def label_sets(self) -> np.ndarray | None: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def name(self, index: int) -> str: ...


class Reader(Protocol):
    """Reads the image at a position; a frozen value that can be pickled."""

    def __call__(self, index: int) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class Images:
    """The source that every data set is made of: labels, names and a reader.

    Attributes:
      labels: int64 `[N]`, 0..C-1.
      class_names: C of them.
      names: one per image, for errors and galleries.
      read: position -> uint8 `[H, W, C]`; any exception becomes a `DecodeError` that names the image.
      parent_labels: int64 `[N]`, the coarser class of each image, where the set has one.
      label_sets: bool `[N, T]`, which of T further labels each image has, where the set has them.
    """

    labels: Int64[np.ndarray, " n"]
    class_names: tuple[str, ...]
    names: Sequence[str]
    read: Reader
    parent_labels: Int64[np.ndarray, " n"] | None = None
    label_sets: Bool[np.ndarray, "n t"] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        i = _position(index, len(self))
        try:
            image = self.read(i)
        # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error and more on damaged files.
        except Exception as error:
            raise DecodeError(f"cannot decode {self.name(i)}: {error}") from error
        return {"image": image, "label": int(self.labels[i]), "id": i}

    def name(self, index: int) -> str:
        return self.names[index]


@dataclass(frozen=True, eq=False)
class Subset:
    """Some images of another source with labels of their own; `id` counts within the subset."""

    source: Source
    rows: Int64[np.ndarray, " n"]
    labels: Int64[np.ndarray, " n"]
    class_names: tuple[str, ...]

    @property
    def parent_labels(self) -> Int64[np.ndarray, " n"] | None:
        parents = self.source.parent_labels
        return None if parents is None else parents[self.rows]

    @property
    def label_sets(self) -> Bool[np.ndarray, "n t"] | None:
        sets = self.source.label_sets
        return None if sets is None else sets[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        i = _position(index, len(self))
        return {
            "image": self.source[int(self.rows[i])]["image"],
            "label": int(self.labels[i]),
            "id": i,
        }

    def name(self, index: int) -> str:
        return self.source.name(int(self.rows[index]))


def _position(index: int, length: int) -> int:
    i = int(index)
    if not 0 <= i < length:
        raise IndexError(f"image {i} of a source of {length}")
    return i


def subset(source: Source, classes: Sequence[int] | np.ndarray) -> Subset:
    """The images of some classes; class `classes[j]` gets label j.

    Raises ValueError where a class does not exist, comes twice, or none is given.
    """
    wanted = np.asarray(classes, np.int64).reshape(-1)
    count = len(source.class_names)
    if not len(wanted):
        raise ValueError("a subset needs at least one class")
    if len(np.unique(wanted)) != len(wanted):
        raise ValueError("a class of the subset is named twice")
    if wanted.min() < 0 or wanted.max() >= count:
        wrong = wanted[(wanted < 0) | (wanted >= count)][0]
        raise ValueError(f"class {wrong} of the subset; the source has classes 0 to {count - 1}")
    table = np.full(count, -1, np.int64)
    table[wanted] = np.arange(len(wanted))
    labels = table[source.labels]
    rows = np.flatnonzero(labels >= 0)
    return Subset(source, rows, labels[rows], tuple(source.class_names[c] for c in wanted))


def hold_out(source: Source, fraction: float, seed: int) -> tuple[Subset, Subset]:
    """Two sources with disjoint classes, (rest, held out), drawn by the seed.

    round(fraction * C) of the C classes are held out, at least one, and at least one stays. Both keep the
    order of the source; labels are 0..C-1 within each.

    Raises ValueError for a fraction outside (0, 1) or a source of fewer than two classes.
    """
    count = len(source.class_names)
    if not 0 < fraction < 1:
        raise ValueError(
            f"fraction={fraction} of the classes; a number between 0 and 1 is accepted"
        )
    if count < 2:
        raise ValueError(f"a source of {count} class has none to hold out; two or more are needed")
    held = min(max(round(fraction * count), 1), count - 1)
    order = _shuffled_classes(count, seed)
    return subset(source, np.sort(order[held:])), subset(source, np.sort(order[:held]))


def _shuffled_classes(count: int, seed: int) -> Int64[np.ndarray, " n"]:
    """A permutation by the seed; word 3 of the counter keeps it apart from the plan and augmentation of epoch 0."""
    philox = np.random.Philox(key=np.array([seed, 0], np.uint64), counter=[0, 3, 0, 0])
    return np.random.Generator(philox).permutation(count)


def hierarchy(source: Source) -> Int64[np.ndarray, "n 2"]:
    """The labels of relation "hierarchy": each image's coarser class and its class, both from 0.

    Raises ValueError where the set has no coarser classes.
    """
    if source.parent_labels is None:
        raise ValueError(
            "relation 'hierarchy' needs coarser classes (parent_labels), which these data do not have; omniglot "
            "and grocery_store have them"
        )
    _, coarse = np.unique(source.parent_labels, return_inverse=True)
    return np.stack([coarse, source.labels], 1)


def label_sets(source: Source) -> Bool[np.ndarray, "n t"]:
    """The labels of relation "overlap": which of T labels each image has.

    Raises ValueError where the set has none.
    """
    if source.label_sets is None:
        raise ValueError(
            "relation 'overlap' needs a set of labels for each image (label_sets), which these data do not have; "
            "a CSV file of the data set folder with the column labels has them"
        )
    return source.label_sets


def decode(encoded: bytes, *, channels: int, size: int | None = None) -> UInt8[np.ndarray, "h w c"]:
    """An encoded image as uint8 `[H, W, channels]`, 1 (grey) or 3 (RGB), upright by its EXIF orientation.

    Args:
      encoded: the bytes of a file in any format that Pillow reads. 16-bit grey is scaled to 8 bits.
      channels: 1 or 3.
      size: side to which the image is resized (area averages), not keeping the aspect ratio.

    Raises OSError and others of Pillow's on damaged data, truncated files included.
    """
    with Image.open(io.BytesIO(encoded)) as opened:
        opened.load()
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow's own conversion clips at 255 instead of scaling.
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    image = image.convert("L" if channels == 1 else "RGB")
    if size is not None:
        image = image.resize((size, size), Image.Resampling.BOX)
    array = np.array(image, np.uint8)
    return array[..., None] if channels == 1 else array


@dataclass(frozen=True, eq=False)
class FileReader:
    """Images that are files."""

    paths: Sequence[str]
    channels: int
    size: int | None = None

    def __call__(self, index: int) -> np.ndarray:
        with open(self.paths[index], "rb") as file:
            encoded = file.read()
        return decode(encoded, channels=self.channels, size=self.size)


@dataclass(frozen=True, eq=False)
class BytesReader:
    """Encoded images held in memory: for many small ones, out of an archive without random access."""

    encoded: Sequence[bytes]
    channels: int
    size: int | None = None

    def __call__(self, index: int) -> np.ndarray:
        return decode(self.encoded[index], channels=self.channels, size=self.size)


@dataclass(frozen=True, eq=False)
class ArrayReader:
    """Decoded images held in memory, uint8 `[N, H, W, C]`."""

    images: UInt8[np.ndarray, "n h w c"]

    def __call__(self, index: int) -> np.ndarray:
        return self.images[index]


class Tar:
    """Members of an uncompressed tar file by name, read by offset: any number of threads at once.

    Raises ValueError where the file is not such a tar.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            with tarfile.open(path, "r:") as tar:
                self.members = {
                    m.name.removeprefix("./"): (m.offset_data, m.size) for m in tar if m.isfile()
                }
        except tarfile.TarError as error:
            raise ValueError(
                f"{path} cannot be read as an uncompressed tar file ({error}); "
                "unpack it and give the folder instead"
            ) from error
        self._handle: int | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "members": self.members}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path, self.members = state["path"], state["members"]
        self._handle, self._lock = None, threading.Lock()

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle is not None:
            os.close(handle)

    def read(self, name: str) -> bytes:
        """The bytes of a member; OSError where there is none or the archive ends before it does."""
        if name not in self.members:
            raise OSError(f"{self.path} holds no {name}")
        with self._lock:
            if self._handle is None:
                self._handle = os.open(self.path, os.O_RDONLY)
        offset, size = self.members[name]
        # pread has no file position to share, so that readers need no lock.
        data = os.pread(self._handle, size, offset)
        if len(data) != size:
            raise OSError(f"{self.path} ends within {name}")
        return data


@dataclass(frozen=True, eq=False)
class TarReader:
    """Images that are members of an uncompressed tar file."""

    tar: Tar
    members: Sequence[str]
    channels: int

    def __call__(self, index: int) -> np.ndarray:
        return decode(self.tar.read(self.members[index]), channels=self.channels)


def existing(path: str | os.PathLike[str], owner: str) -> str:
    """`path` with ~ expanded, or a ValueError that says whose path is missing."""
    expanded = os.path.expanduser(os.fspath(path))
    if not os.path.exists(expanded):
        raise ValueError(f"{owner}: path={expanded!r} does not exist")
    return expanded


def labelled(keys: Sequence[Any]) -> tuple[Int64[np.ndarray, " n"], list[Any]]:
    """Labels 0..C-1 of hashable keys in sorted order, and the sorted keys."""
    kinds = sorted(set(keys))
    table = {kind: label for label, kind in enumerate(kinds)}
    return np.array([table[key] for key in keys], np.int64), kinds


def split_classes(
    count: int, fractions: Sequence[float], seed: int, owner: str
) -> dict[str, list[int]]:
    """Disjoint classes for train, val and test: a permutation by the seed, cut at the cumulated fractions.

    Raises ValueError unless there are three fractions, none negative, with sum 1.
    """
    shares = [float(f) for f in fractions]
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(
            f"{owner}: fractions={tuple(fractions)}; three numbers of at least 0 with sum 1 "
            "(train, val, test) are accepted"
        )
    order = _shuffled_classes(count, seed)
    cuts = np.rint(np.cumsum(shares)[:2] * count).astype(int)
    return {
        split: sorted(part.tolist())
        for split, part in zip(SPLITS, np.split(order, cuts), strict=True)
    }
