"""What a source of images is, and the pieces that sources are made of: readers and subsets."""

import os
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypedDict, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int64, UInt8
from PIL import Image

from dml_jax import streams
from dml_jax.data.decoding import decode
from dml_jax.errors import UserError

SPLITS = ("train", "val", "test")

Key = TypeVar("Key", bound=Hashable)


class DecodeError(UserError):
    """An image that cannot be read or decoded; the message names it."""


class Item(TypedDict):
    """What a source returns for one image.

    Attributes:
      image: uint8 `[H, W, C]`.
      label: the class, 0 to C-1, or -1 where there are no classes.
      id: the position in the source.
    """

    image: UInt8[np.ndarray, "h w c"]
    label: int
    id: int


@runtime_checkable
class Source(Protocol):
    """Random access to labelled images.

    `source[i]` decodes an image; everything else is known without decoding. A source can be pickled, and read from
    several threads at once.

    Attributes:
      labels: int64 `[N]`, the classes, numbered from 0.
      class_names: the names of the classes in order.
      parent_labels: int64 `[N]`, the coarser class of each image, or None.
      label_sets: bool `[N, T]`, which of T further labels each image has, or None.
    """

    @property
    def labels(self) -> Int64[np.ndarray, " n"]: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def parent_labels(self) -> Int64[np.ndarray, " n"] | None: ...

    @property
    def label_sets(self) -> Bool[np.ndarray, "n t"] | None: ...

    def __len__(self) -> int:
        """Returns the number of images."""
        ...

    def __getitem__(self, index: int) -> Item:
        """Reads one image."""
        ...

    def name(self, index: int) -> str:
        """Returns the name of one image, as errors and galleries show it."""
        ...


@runtime_checkable
class Augmentation(Protocol):
    """A function of (Pillow image, NumPy generator) that returns the augmented image."""

    def __call__(self, image: Image.Image, rng: np.random.Generator, /) -> Image.Image: ...


class Reader(Protocol):
    """A function that reads the image at a position; it can be pickled."""

    def __call__(self, index: int, /) -> UInt8[np.ndarray, "h w c"]: ...


@dataclass(frozen=True, eq=False)
class Images:
    """The source that every data set is made of: labels, names and a reader.

    Attributes:
      labels: int64 `[N]`, 0 to C-1.
      class_names: the C names.
      names: a name for each image, for errors and galleries.
      read: position -> uint8 `[H, W, C]`; any exception becomes a `DecodeError` that names the image.
      parent_labels: int64 `[N]`, the coarser class of each image, where the set has one.
      label_sets: bool `[N, T]`, which of T further labels each image has, where the set has them.

    Example:
      >>> pixels = np.zeros((3, 8, 8, 1), np.uint8)
      >>> source = Images(np.array([0, 0, 1]), ("a", "b"), ["x", "y", "z"], ArrayReader(pixels))
      >>> len(source), source[2]["label"], source.name(2)
      (3, 1, 'z')
    """

    labels: Int64[np.ndarray, " n"]
    class_names: tuple[str, ...]
    names: Sequence[str]
    read: Reader
    parent_labels: Int64[np.ndarray, " n"] | None = None
    label_sets: Bool[np.ndarray, "n t"] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Item:
        i = _checked_index(index, len(self))
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
    """Some images of another source with labels of their own.

    Attributes:
      source: the other source.
      rows: int64 `[N]`, the positions of the images in it; `id` counts within the subset.
      labels: int64 `[N]`, 0 to C-1.
      class_names: the C names.
    """

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

    def __getitem__(self, index: int) -> Item:
        i = _checked_index(index, len(self))
        image = self.source[int(self.rows[i])]["image"]
        return {"image": image, "label": int(self.labels[i]), "id": i}

    def name(self, index: int) -> str:
        return self.source.name(int(self.rows[index]))


def _checked_index(index: int, length: int) -> int:
    i = int(index)
    if not 0 <= i < length:
        raise IndexError(f"image {i} of a source of {length}")
    return i


def subset(source: Source, classes: Sequence[int] | np.ndarray) -> Subset:
    """Returns the images of some classes.

    Args:
      source: where the images come from.
      classes: the classes to keep; `classes[j]` gets label j.

    Raises:
      UserError: a class that does not exist, one that comes twice, or none at all.

    Example:
      >>> pixels = np.zeros((3, 8, 8, 1), np.uint8)
      >>> source = Images(np.array([0, 1, 2]), ("a", "b", "c"), ["x", "y", "z"], ArrayReader(pixels))
      >>> subset(source, [2, 0]).labels.tolist()
      [1, 0]
    """
    kept = np.asarray(classes, np.int64).reshape(-1)
    count = len(source.class_names)
    if not len(kept):
        raise UserError("a subset needs at least one class")
    if len(np.unique(kept)) != len(kept):
        raise UserError("a class of the subset is named twice")
    if kept.min() < 0 or kept.max() >= count:
        wrong = kept[(kept < 0) | (kept >= count)][0]
        raise UserError(f"class {wrong} of the subset; the source has classes 0 to {count - 1}")
    label_of_class = np.full(count, -1, np.int64)
    label_of_class[kept] = np.arange(len(kept))
    labels = label_of_class[source.labels]
    rows = np.flatnonzero(labels >= 0)
    return Subset(source, rows, labels[rows], tuple(source.class_names[c] for c in kept))


def shuffled_classes(count: int, seed: int) -> Int64[np.ndarray, " n"]:
    """Returns the numbers of the classes in an order that the seed draws."""
    return streams.generator("split_classes", seed).permutation(count)


def hierarchy(source: Source) -> Int64[np.ndarray, "n 2"]:
    """Returns the labels of relation "hierarchy": each image's coarser class and its class, both from 0.

    Args:
      source: a source with `parent_labels`.

    Raises:
      UserError: a source without coarser classes.

    Example:
      >>> pixels, parents = np.zeros((3, 8, 8, 1), np.uint8), np.array([7, 7, 9])
      >>> source = Images(np.arange(3), tuple("abc"), list("xyz"), ArrayReader(pixels), parents)
      >>> hierarchy(source).tolist()
      [[0, 0], [0, 1], [1, 2]]
    """
    if source.parent_labels is None:
        raise UserError(
            "relation 'hierarchy' needs coarser classes (parent_labels), which these data do not have; omniglot "
            "and grocery_store have them"
        )
    _, coarse = np.unique(source.parent_labels, return_inverse=True)
    return np.stack([coarse, source.labels], 1)


def label_sets(source: Source) -> Bool[np.ndarray, "n t"]:
    """Returns the labels of relation "overlap": which of T labels each image has.

    Args:
      source: a source with `label_sets`.

    Raises:
      UserError: a source without sets of labels.

    Example:
      >>> pixels, sets = np.zeros((2, 8, 8, 1), np.uint8), np.array([[True, False], [True, True]])
      >>> source = Images(np.arange(2), tuple("ab"), list("xy"), ArrayReader(pixels), label_sets=sets)
      >>> label_sets(source).tolist()
      [[True, False], [True, True]]
    """
    if source.label_sets is None:
        raise UserError(
            "relation 'overlap' needs a set of labels for each image (label_sets), which these data do not have; "
            "a CSV file of the data set folder with the column labels has them"
        )
    return source.label_sets


@dataclass(frozen=True, eq=False)
class FileReader:
    """Reads images that are files.

    Attributes:
      paths: of the files.
      channels: 1 (grey) or 3 (RGB).
      size: the side to which images are resized, or None.
      min_side: the side down to which JPEG files are decoded at a fraction of their size, as in `decode`; None decodes
        them whole.
      exif: as in `decode`.
    """

    paths: Sequence[str]
    channels: int
    size: int | None = None
    min_side: int | None = None
    exif: bool = True

    def __call__(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        with open(self.paths[index], "rb") as file:
            encoded = file.read()
        return decode(
            encoded,
            channels=self.channels,
            size=self.size,
            min_side=self.min_side,
            exif=self.exif,
        )


@dataclass(frozen=True, eq=False)
class BytesReader:
    """Decodes images that are held in memory: for many small ones, out of an archive without random access.

    Attributes:
      encoded: the bytes of each image.
      channels: 1 (grey) or 3 (RGB).
      size: the side to which images are resized, or None.
      exif: as in `decode`.
    """

    encoded: Sequence[bytes]
    channels: int
    size: int | None = None
    exif: bool = True

    def __call__(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        return decode(self.encoded[index], channels=self.channels, size=self.size, exif=self.exif)


@dataclass(frozen=True, eq=False)
class ArrayReader:
    """Returns images that are held in memory decoded.

    Attributes:
      images: uint8 `[N, H, W, C]`.
    """

    images: UInt8[np.ndarray, "n h w c"]

    def __call__(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        image: np.ndarray = self.images[index]
        return image


def existing_path(
    path: str | os.PathLike[str], owner: str, option: str = "--config.data.path"
) -> str:
    """Returns the path with ~ expanded.

    Args:
      path: of a file or a folder.
      owner: whose path it is, as errors name it.
      option: what sets it.

    Raises:
      UserError: a path where nothing is.
    """
    expanded = os.path.expanduser(os.fspath(path))
    if not os.path.exists(expanded):
        here = "" if os.path.isabs(expanded) else f" below the current folder, {os.getcwd()}"
        raise UserError(
            f"{owner}: path={expanded!r} does not exist{here}; {option}=PATH names another"
        )
    return expanded


def integer_labels(keys: Iterable[Key]) -> tuple[Int64[np.ndarray, " n"], list[Key]]:
    """Numbers keys from 0 in sorted order and returns the number of each, and the distinct keys.

    Args:
      keys: hashable values that can be sorted, one for each image.

    Example:
      >>> labels, classes = integer_labels(["cat", "ant", "cat"])
      >>> labels.tolist(), classes
      ([1, 0, 1], ['ant', 'cat'])
    """
    keys = list(keys)
    classes = sorted(set(keys))  # type: ignore[type-var]
    label_of_key = {key: label for label, key in enumerate(classes)}
    return np.array([label_of_key[key] for key in keys], np.int64), classes


def split_classes(
    count: int, fractions: tuple[float, float, float], seed: int, owner: str
) -> dict[str, list[int]]:
    """Divides classes at random among train, val and test.

    A permutation of the classes, drawn by the seed, is cut at the cumulated fractions.

    Args:
      count: the number of classes.
      fractions: the shares of train, val and test, none negative, with sum 1.
      seed: of the permutation.
      owner: whose fractions they are, as errors name it.

    Raises:
      UserError: fractions that are negative or have another sum.

    Example:
      >>> {split: len(classes) for split, classes in split_classes(10, (0.5, 0.1, 0.4), 0, "x").items()}
      {'train': 5, 'val': 1, 'test': 4}
    """
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise UserError(
            f"{owner}: fractions={tuple(fractions)}; three numbers of at least 0 with sum 1 "
            "(train, val, test) are accepted"
        )
    order = shuffled_classes(count, seed)
    cuts = np.rint(np.cumsum(fractions)[:2] * count).astype(int)
    return {
        split: sorted(part.tolist())
        for split, part in zip(SPLITS, np.split(order, cuts), strict=True)
    }
